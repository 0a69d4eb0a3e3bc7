"""Every method and feature of training in float64, by one process and by several: see test_several_processes.py.

    python several_processes.py FOLDER

FOLDER/1, FOLDER/2 and FOLDER/3 get a file of weights and log for each case, made by so many processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hrzs import stopping
from hrzs.data import open_dataset, subset
from hrzs.distributed import Group, joined
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.tree import Tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.loading import load_model
from hrzs.training import trainer as trainer_module
from hrzs.training.methods import METHODS
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
OPTIONS = TrainOptions(
    steps=2, batch_size=12, max_steps=3, epochs=3.0, lr=1e-3, eps=Fraction(4, 255), step_size=Fraction(2, 255),
    validate_every=0,
)  # fmt: skip
ALL_TERMS: dict[str, Any] = {"lambda_vic": 1.0, "lambda_gap": 1.0, "hnsa": "both", "lambda_anchor": 1.0}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "class means": {"image_levels": "hypavg", "per_class": 3, **ALL_TERMS},
    "class means and images": {"image_levels": "mixed", "level_balance": "node", "eps_text": 0.05, **ALL_TERMS},
    "a perturbation per level, flat": {"perturbation": "per-level", "geometry": "euclidean", "lambda_anchor": 1.0},
    "a forest": {"image_levels": "mixed"},
    "every level": {"method": "tecoa", "every_level": True, "lambda_anchor": 1.0, "augment": "dihedral", "noise": 0.1},
    "pmg-aft, mean": {"method": "pmg-aft", "pmg_reduction": "mean"},
    "fare, clean term": {"method": "fare", "fare_clean": 0.3},
    "lore, a multiplier that moves": {"method": "lore", "lore_primal_steps": 1, "lore_rho": 1e-3, "lore_dual_lr": 1e3},
    "ucat in parts": {"method": "ucat", "accumulate": 2, "tune": "image+projection"},
    "mean weights": {"ema": 0.5, "interpolate": 0.2, "optimizer": "sgd", "lr": 0.05},
    "text encoder": {"method": "tecoa", "tune": "all"},
    "in parts": {"image_levels": "mixed", "accumulate": 2, **ALL_TERMS},
    "pmg-aft in parts": {"method": "pmg-aft", "accumulate": 3},
    "tga-zsr in parts": {"method": "tga-zsr", "accumulate": 4, "tune": "image+projection"},
    "validation": {"validate_every": 2, "val_steps": 2, "best_by": "balanced"},
}
#: What so many processes run: three of them what docs/scaling.md promises of any number.
COUNTS: dict[int, Sequence[str]] = {
    1: list(CASES),
    2: list(CASES),
    3: [*METHODS, "class means", "class means and images", "a forest", "mean weights", "in parts", "validation"],
}
#: Stopped by a signal after two steps; the log of one who goes on is the whole one.
STOPPED = "stopped"


def trainer(case: str, folder: Path, group: Group) -> Trainer:
    """A run of an untrained model in float64."""
    path = find_tree("shapes")
    assert path is not None
    tree = load_tree(path)
    data = subset(open_dataset("shapes", "train"), limit=27)
    model = load_model(str(folder.parents[1] / "small.json"), "none", seed=0).double()
    changes = CASES["class means" if case == STOPPED else case]
    more = (Tree(replace(tree.root, children=tree.root.children[::-1])),) if case == "a forest" else ()
    more = tuple(t.restrict(data.classes) for t in more)
    folder.mkdir(exist_ok=True)
    return Trainer(
        model, data, tree, replace(OPTIONS, **changes), folder, group=group, more_trees=more, origin=("small", "none"),
        validation=subset(open_dataset("shapes", "val"), limit=19),
    )  # fmt: skip


def keep(run: Trainer, name: str) -> None:
    """Weights and log of a run, if all processes have the same ones."""
    weights = {**run.model.clip.state_dict()}
    weights |= {f"head.{k}": v for k, v in (run.model.geometry.state_dict() if run.model.geometry else {}).items()}
    weights |= {f"mean.{i}": v for i, v in enumerate(run._mean)}
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in weights.values())).hexdigest()
    assert len(set(run.group.collect(digest))) == 1, f"{name}: the processes have different weights"
    if run.group.is_first:
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        best = run.folder / "best" / "model.safetensors"
        about = {"log": lines, "best": run.best, "best_file": best.is_file()}
        torch.save({"weights": weights, **about}, run.folder.with_suffix(".pt"))


def work(folder: Path, other: Path | None) -> None:
    """What each process does.

    Args:
        other: where another number of processes has left a stopped run, which this one goes on with.
    """
    torch.set_num_threads(1)
    # Pages and curves take most of the time of such short runs.
    trainer_module.write_report = lambda *_, **__: None
    trainer_module.open_writer = lambda *_: None
    with joined(torch.device("cpu")) as group:
        folder.mkdir(exist_ok=True)
        for case in COUNTS[group.size]:
            run = trainer(case, folder / case, group)
            run.run()
            keep(run, case)
        # A signal comes to one process, and all of them stop after the same step.
        run = trainer(STOPPED, folder / STOPPED, group)
        with stopping.listen(), suppress(stopping.Stopped):
            run.run(lambda done, *_: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None)
            raise AssertionError("it was not stopped")
        assert run.step == 2
        group.agree()  # the first has saved it
        if other is not None:
            if group.is_first:
                shutil.copytree(other / STOPPED, folder / "resumed")
            group.agree()
            run = trainer(STOPPED, folder / "resumed", group)
            assert run.resume()
            assert run.step == 2
            run.run()
            keep(run, "resumed")


def main(folder: Path) -> None:
    (folder / "small.json").write_text(json.dumps(CONFIG))
    for count in COUNTS:
        # As torchrun does it, but forked from here: what they import takes longer than what they do.
        config = LaunchConfig(
            1, 1, count, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork"
        )
        elastic_launch(config, work)(folder / str(count), folder / str(count - 1) if count > 1 else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
