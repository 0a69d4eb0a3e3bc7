"""Means over datasets of the figures that all of them have."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from hrzs.results.export import certified_row
from hrzs.results.report import AttackLevel, Mean, MeanRow, Overall, Report, Row

#: Figures that have a mean: each per image, and balanced over nodes (None where a report does not have it).
FIGURES = ("clean", "robust", "clean_balanced", "robust_balanced", "constant", "constant_balanced")


def mean_over_datasets(report: Report) -> Mean | None:
    """Means over datasets of leaf rows, of any-level and of certified accuracy; None where there is but one dataset.

    Trees differ in their levels, so superclass rows have no mean. A row that some evaluated dataset lacks (at this ε,
    by this attack) is left out. ``over`` names the datasets evaluated, ``missing`` those that could not be. Each of
    `FIGURES` is the plain mean of the datasets' figures; None where a dataset has none.
    """
    datasets = tuple(dict.fromkeys(row.dataset for row in report.results))
    if len(datasets) < 2:
        return None
    found: dict[tuple[str, AttackLevel, str | None, str | None], list[Row | Overall]] = {}
    certified = [certified_row(one, point) for one in report.certificates for point in one.every_sigma]
    for row in (*report.results, *certified):
        if row.level == 0 and row.scoring in ("prompt", "votes"):
            found.setdefault((row.attack, row.attack_level, row.eps, row.adversary), []).append(row)
    for overall in report.summary.levels:
        if overall.any_level_robust is not None:
            found.setdefault(("any-level", None, overall.eps, overall.adversary), []).append(overall)
    rows = tuple(
        MeanRow(attack=attack, attack_level=attack_level, eps=eps, adversary=adversary,
                **{name: _mean([_value(one, name) for one in values]) for name in FIGURES})
        for (attack, attack_level, eps, adversary), values in found.items()
        if len(values) == len(datasets)
    )  # fmt: skip
    return Mean(datasets, tuple(report.summary.missing), rows)


def _value(one: Row | Overall, name: str) -> float | None:
    value: float | None = getattr(one, name if isinstance(one, Row) else f"any_level_{name}")
    return value


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if len(there) == len(values) else None
