"""AutoAttack beside the reference implementation: robust accuracy and seconds, on the same model and images.

git clone https://github.com/fra31/auto-attack
python tests/benchmarks/parity_autoattack.py --reference auto-attack --part apgd-ce --eps 1/255 --n 200
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hrzs.attacks import ATTACKS, Budget, sample_seeds
from hrzs.attacks.base import further_seeds
from hrzs.attacks.budget import default_step_size, format_eps, parse_eps
from hrzs.attacks.objectives import LevelObjective
from hrzs.data import loader
from hrzs.data_options import DataOptions
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel, frozen
from hrzs.models.loading import load_model
from hrzs.tasks import open_task

#: Ours, and what the reference calls it.
PARTS = {
    "apgd-ce": ["apgd-ce"],
    "apgd-t": ["apgd-t"],
    "fab-t": ["fab-t"],
    "square": ["square"],
    "aa-2": ["apgd-ce", "apgd-t"],
    "autoattack": ["apgd-ce", "apgd-t", "fab-t", "square"],
}


def timed(attack: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """Robust or not, and seconds: on a CPU those it worked, whatever else the machine does; on a GPU those that passed."""
    clock = time.monotonic if device.type == "cuda" else time.process_time
    began = clock()
    robust = attack()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return robust, clock() - began


def run_ours(
    part: str, model: ClipModel, objective: LevelObjective, images: Tensor, labels: Tensor, seeds: list[int],
    budget: Budget, robust: Tensor, batch_size: int,
) -> Tensor:  # fmt: skip
    """Which of the ``robust`` images still hold; as `hrzs eval` does it: part by part, in full batches of what is left."""
    robust = robust.clone()
    for i, (search, aim) in enumerate(ATTACKS[part].optimiser(budget).parts(objective)):
        for rows in robust.nonzero().squeeze(1).split(batch_size):
            here = further_seeds([seeds[row] for row in rows.tolist()], i)
            robust[rows] = ~search(model, aim, images[rows], labels[rows], here).success
    return robust


def run_reference(
    checkout: Path, part: str, logits: Callable[[Tensor], Tensor], images: Tensor, truth: Tensor, budget: Budget, *,
    classes: int, steps: int, batch_size: int, seed: int,
) -> Tensor:  # fmt: skip
    """The reference's adversarial images, with as many steps, queries and targets as ours."""
    sys.path.insert(0, str(checkout.resolve()))
    from autoattack import AutoAttack  # type: ignore[import-not-found]

    attack = AutoAttack(
        logits, norm={"linf": "Linf", "l2": "L2"}[budget.norm], eps=float(budget.eps), seed=seed, version="custom",
        attacks_to_run=PARTS[part], device=str(images.device), verbose=False,
    )  # fmt: skip
    attack.apgd.n_restarts = attack.fab.n_restarts = 1
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = steps
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(9, classes - 1)
    attack.square.n_queries = 50 * steps
    adversarial: Tensor = attack.run_standard_evaluation(images, truth, bs=batch_size)
    return adversarial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of fra31/auto-attack")
    parser.add_argument("--part", default="autoattack", choices=[*PARTS, "standard"])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--pretrained")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--tree")
    parser.add_argument("--split")
    parser.add_argument("--level", type=int, default=0)
    parser.add_argument("--scoring", default="prompt", choices=["prompt", "leaves"])
    parser.add_argument("--eps", default="1/255", help="one or more, separated by commas")
    parser.add_argument("--norm", default="linf", choices=["linf", "l2"])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB; Square gets 50 queries for each")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default=["fp32"], nargs="+", choices=["fp32", "bf16"], help="of our gradients")
    parser.add_argument("--ours-only", action="store_true")
    options = parser.parse_args()
    part = "autoattack" if options.part == "standard" else options.part

    model = load_model(options.model, options.pretrained, device=options.device)
    where = DataOptions(split=options.split, data_root=options.data_root, tree=options.tree, limit=options.n)
    task = open_task(options.data, model, where, purpose="eval")
    batch = next(loader(task.data, len(task.data)))
    classifier = ZeroShotClassifier(model, task.tree)
    images, labels = batch.images.to(model.device), batch.labels.to(model.device)
    truth = classifier.labels(labels, options.level)

    def logits(pixels: Tensor) -> Tensor:
        return classifier.logits(model.encode_image(pixels, "fp32"), options.level, options.scoring)

    def correct(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            rows = zip(pixels.split(options.batch_size), truth.split(options.batch_size), strict=True)
            return torch.cat([logits(x).argmax(1) == y for x, y in rows])

    clean = correct(images)
    for eps in (parse_eps(text, norm=options.norm) for text in options.eps.split(",")):
        budget = Budget(eps, default_step_size(eps), steps_of(part, options.steps), options.norm)

        def ours(precision: str, budget: Budget = budget) -> Tensor:
            model.precision = precision
            objective = ATTACKS[part].objective(classifier, options.level, options.scoring)
            seeds = sample_seeds(batch.ids, options.seed)
            return clean & run_ours(part, model, objective, images, labels, seeds, budget, clean, options.batch_size)

        def reference(budget: Budget = budget) -> Tensor:
            with frozen(model):
                adversarial = run_reference(
                    options.reference, part, logits, images, truth, budget, classes=len(task.tree.levels[options.level]),
                    steps=options.steps, batch_size=options.batch_size, seed=options.seed,
                )  # fmt: skip
            return clean & correct(adversarial)

        theirs = None if options.ours_only else timed(reference, model.device)
        for precision in options.precision:
            robust, seconds = timed(partial(ours, precision), model.device)
            row = {
                "part": part, "model": options.model, "data": task.data.name, "n": len(labels), "eps": format_eps(eps),
                "norm": options.norm, "level": options.level, "scoring": options.scoring, "precision": precision,
                "steps": options.steps, "device": str(model.device), "clean": round(clean.float().mean().item(), 4),
                "robust": round(robust.float().mean().item(), 4), "seconds": round(seconds, 2),
            }  # fmt: skip
            if theirs is not None:
                their_robust, their_seconds = theirs
                row |= {
                    "reference_robust": round(their_robust.float().mean().item(), 4),
                    "reference_seconds": round(their_seconds, 2),
                    "only_ours_falls": int((their_robust & ~robust).sum()),
                    "only_theirs_falls": int((robust & ~their_robust).sum()),
                    "time_ratio": round(seconds / their_seconds, 3),
                }
            print(json.dumps(row), flush=True)


def steps_of(part: str, steps: int) -> int:
    """What a part counts as its steps: Square its queries."""
    return 50 * steps if part == "square" else steps


if __name__ == "__main__":
    main()
