"""Long runs take no more memory than short ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hrzs
from hrzs.data import Dataset, subset
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

pytestmark = pytest.mark.soak

#: What may be added between a quarter of the way and its end; a leak of 10 kB a step would be 15 MB.
MOST_MB = 8.0
STEPS = 2000


def memory() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch:
    """A progress callback: memory at each tenth."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def __call__(self, done: int, total: int, _: Any) -> None:
        self.seen.setdefault(10 * done // total, memory())

    @property
    def growth(self) -> float:
        print({tenth: round(mb, 1) for tenth, mb in self.seen.items()})
        return self.seen[max(self.seen)] - self.seen[3]


def test_training(make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree, tmp_path: Path) -> None:
    options = TrainOptions(steps=1, batch_size=8, epochs=1000.0, max_steps=STEPS)
    few, watch = subset(shapes, limit=min(48, len(shapes))), Watch()
    tree = shapes_tree.restrict(few.classes)
    Trainer(make_model(), few, tree, options, tmp_path, save_every=200, validation=few).run(watch)
    assert watch.growth < MOST_MB


def test_evaluation(small: ClipModel, tmp_path: Path) -> None:
    watch = Watch()
    report = hrzs.evaluate(
        small, limit=250, attack="leaf-pgd,superclass-pgd,hierarchical-pgd,cw", level="all", steps=1, batch_size=1,
        canaries=False, store=tmp_path / "kept", progress=watch,
    )  # fmt: skip
    assert len({(row.attack, row.attack_level, row.attacked_through) for row in report.results}) * 250 >= 2000
    assert watch.growth < MOST_MB
