"""A long run that prints its memory at each tenth of the way: ``python long_run.py training|evaluation CONFIG FOLDER``.

A process of its own, for the shape checks of the tests keep memory themselves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import hrzs
from hrzs.data import open_dataset, subset
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

STEPS = 2000


def memory() -> float:
    """Resident memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(what: str, config: str, folder: Path) -> None:
    seen: dict[int, float] = {}

    def watch(done: int, total: int, _: Any) -> None:
        seen.setdefault(10 * done // total, memory())

    model = hrzs.load(config, "none")
    if what == "training":
        file = find_tree("shapes")
        assert file is not None
        data = subset(open_dataset("shapes", "train"), limit=48)
        options = TrainOptions(steps=1, batch_size=8, epochs=1000.0, max_steps=STEPS)
        Trainer(model, data, load_tree(file), options, folder, save_every=200, validation=data).run(watch)
    else:
        report = hrzs.evaluate(model, limit=250, attack="leaf-pgd,superclass-pgd,hierarchical-pgd,cw", level="all",
                               steps=1, batch_size=1, canaries=False, store=folder / "kept", progress=watch)  # fmt: skip
        assert 250 * len({(row.attack, row.attack_level, row.attacked_through) for row in report.results}) >= STEPS
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
