from __future__ import annotations

import json
from typing import Any

import torch
from msgspec.structs import replace

from hrzs.results.average import mean_over_datasets
from hrzs.results.certificates import certificate, smoothed
from hrzs.results.report import Report


def row(dataset: str, attack: str, value: float, *, eps: str | None = "1/255", level: int = 0) -> dict[str, Any]:
    clean = attack == "none"
    return {"dataset": dataset, "attack": attack, "attack_level": None if clean else 0, "eps": None if clean else eps,
            "level": level, "scoring": "prompt", "clean": value if clean else 0.9, "robust": None if clean else value,
            "clean_balanced": 0.5 if clean else 0.75, "robust_balanced": None if clean else value / 2,
            "constant": 0.5 if dataset == "a" else 0.25, "constant_balanced": 0.125}  # fmt: skip


def any_level(dataset: str, robust: float | None) -> dict[str, Any]:
    return {"dataset": dataset, "eps": "1/255", "any_level_clean": 0.5, "any_level_robust": robust,
            "any_level_clean_balanced": 0.25, "any_level_robust_balanced": None if robust is None else robust / 2,
            "any_level_constant": 0.125, "any_level_constant_balanced": 0.25}  # fmt: skip


def report(*rows: dict[str, Any], levels: tuple[dict[str, Any], ...] = (), **summary: Any) -> Report:
    found = {
        "results": rows,
        "summary": {"levels": levels, **summary},
        "hrzs": "0",
        "model": {"source": "m"},
        "config": {},
    }
    return Report.from_json(json.dumps(found))


def test_mean_by_hand() -> None:
    rows = [row("a", "none", 0.5), row("a", "leaf-pgd", 0.25), row("a", "leaf-pgd", 0.9, level=1),
            row("b", "none", 1.0), row("b", "leaf-pgd", 0.75)]  # fmt: skip
    found = mean_over_datasets(
        report(*rows, levels=(any_level("a", 0.0), any_level("b", 0.5)), missing={"c": "not here"})
    )
    assert found is not None
    assert found.over == ("a", "b")
    assert found.missing == ("c",)
    assert [(r.attack, r.eps, r.clean, r.robust) for r in found.rows] == [
        ("none", None, 0.75, None), ("leaf-pgd", "1/255", 0.9, 0.5), ("any-level", "1/255", 0.5, 0.25),
    ]  # fmt: skip
    names = ("clean_balanced", "robust_balanced", "constant", "constant_balanced")
    assert [tuple(getattr(r, name) for name in names) for r in found.rows] == [
        (0.5, None, 0.375, 0.125), (0.75, 0.25, 0.375, 0.125), (0.25, 0.125, 0.125, 0.25),
    ]  # fmt: skip


def test_certified_accuracies_have_a_mean() -> None:
    """At the leaves and every whole σ that all datasets have; the largest radius is each one's own."""
    ancestor, votes = torch.tensor([0, 1]), [{0: 100}, {0: 100}, {1: 100}, {0: 50, 1: 50}]
    certificates = [
        certificate(
            smoothed(votes, votes, ancestor, 100, sigma=0.5, alpha=alpha), torch.tensor(truth), 100, sigma=0.5,
            level_alpha=alpha, dataset=dataset, level=0, classes=2, selection=100, alpha=alpha, confidence="joint",
            seconds=0.0, chosen="", votes="",
        )
        for dataset, truth, alpha in (("a", [0, 0, 0, 1], 0.001), ("b", [0, 0, 1, 1], 0.0005))
    ]  # fmt: skip
    found = mean_over_datasets(
        replace(report(row("a", "none", 0.5), row("b", "none", 0.5)), certificates=tuple(certificates))
    )
    assert found is not None
    assert [(r.title, r.robust, r.robust_balanced) for r in found.rows[1:]] == [
        (f"certified, leaves, ℓ2 radius {radius}", (2 / 4 + 3 / 4) / 2, (2 / 6 + 3 / 4) / 2) for radius in ("0.0", "0.5")
    ]  # fmt: skip


def test_no_mean_of_a_figure_that_some_lack() -> None:
    """One dataset's rows are from before there were balanced figures."""
    former = {name: value for name, value in row("b", "none", 1.0).items() if "balanced" not in name}
    found = mean_over_datasets(report(row("a", "none", 0.5), former))
    assert found is not None
    assert (found.rows[0].clean, found.rows[0].clean_balanced) == (0.75, None)


def test_no_mean_of_what_some_lack() -> None:
    """At ε 2/255 there is one dataset only, any-level accuracy likewise: no average that covers fewer than it says."""
    rows = [
        row("a", "none", 0.5),
        row("a", "leaf-pgd", 0.25, eps="2/255"),
        row("b", "none", 0.5),
        row("b", "leaf-pgd", 0.5),
    ]
    found = mean_over_datasets(report(*rows, levels=(any_level("a", 0.1), any_level("b", None))))
    assert found is not None
    assert [r.attack for r in found.rows] == ["none"]


def test_no_mean_of_one() -> None:
    assert mean_over_datasets(report(row("a", "none", 0.5))) is None
