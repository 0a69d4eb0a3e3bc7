"""The mean over datasets, of figures that all of them have; it says over which."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any


def mean_over_datasets(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Means of the leaf rows and of any-level accuracy over the datasets of a report; None where there is but one.

    Trees differ in their levels, so superclass rows have no mean. What not every evaluated dataset has (at this ε, by
    this attack) is left out; ``over`` names those evaluated, ``missing`` those that could not be.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in report["results"]))
    if len(datasets) < 2:
        return None
    figures: dict[tuple[Any, ...], list[tuple[float, float | None]]] = {}
    for row in report["results"]:
        if row["level"] == 0 and row["scoring"] == "prompt":
            key = (row["attack"], row["attack_level"], row["eps"])
            figures.setdefault(key, []).append((row["clean"], row["robust"]))
    for s in report["summary"]["levels"]:
        if s["any_level_robust"] is not None:
            key = ("any-level", None, s["eps"])
            figures.setdefault(key, []).append((s["any_level_clean"], s["any_level_robust"]))
    rows = []
    for (attack, attack_level, eps), values in figures.items():
        if len(values) == len(datasets):
            robust = [r for _, r in values if r is not None]
            rows.append(
                {"attack": attack, "attack_level": attack_level, "eps": eps, "clean": fmean(c for c, _ in values),
                 "robust": fmean(robust) if robust else None}
            )  # fmt: skip
    return {"over": datasets, "missing": list(report["summary"].get("missing", {})), "rows": rows}
