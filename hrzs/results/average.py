"""The mean over datasets, of figures that all of them have; it says over which."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

#: Figures that have a mean: each per image, and balanced over nodes (null where a report does not have it).
FIGURES = ("clean", "robust", "clean_balanced", "robust_balanced", "constant", "constant_balanced")


def mean_over_datasets(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Means of the leaf rows and of any-level accuracy over the datasets of a report; None where there is but one.

    Trees differ in their levels, so superclass rows have no mean. What not every evaluated dataset has (at this ε, by
    this attack) is left out; ``over`` names those evaluated, ``missing`` those that could not be. Every row has all of
    `FIGURES`, each the plain mean of the datasets' own; null where one of them has none.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in report["results"]))
    if len(datasets) < 2:
        return None
    found: dict[tuple[Any, ...], list[dict[str, float | None]]] = {}
    for row in report["results"]:
        if row["level"] == 0 and row["scoring"] == "prompt":
            key = (row["attack"], row["attack_level"], row["eps"])
            found.setdefault(key, []).append({name: row.get(name) for name in FIGURES})
    for s in report["summary"]["levels"]:
        if s["any_level_robust"] is not None:
            key = ("any-level", None, s["eps"])
            found.setdefault(key, []).append({name: s.get(f"any_level_{name}") for name in FIGURES})
    rows = [
        {"attack": attack, "attack_level": attack_level, "eps": eps,
         **{name: _mean([one[name] for one in values]) for name in FIGURES}}
        for (attack, attack_level, eps), values in found.items()
        if len(values) == len(datasets)
    ]  # fmt: skip
    return {"over": datasets, "missing": list(report["summary"].get("missing", {})), "rows": rows}


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if len(there) == len(values) else None
