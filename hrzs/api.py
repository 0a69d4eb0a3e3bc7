"""The engine from Python: the same models, attacks and evaluations as on the command line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from hrzs.attacks import AttackResult, attack_spec, sample_seeds
from hrzs.attacks.budget import parse_eps, parse_eps_list
from hrzs.errors import UsageError
from hrzs.evaluation.runner import EvalOptions, Evaluation, budget_of
from hrzs.hierarchy.tree import Tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.tasks import open_task


def load(
    model: str | Path = "tiny",
    pretrained: str | None = None,
    *,
    visual: str | Path | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> ClipModel:
    """A run folder, or anything else that ``--model``, ``--pretrained`` and ``--visual`` take.

    Raises:
        UsageError, HrzsError: as `load_model`.
    """
    return load_model(str(model), pretrained, visual=visual, device=device, precision=precision)


def attack(
    model: ClipModel,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, "B"],
    *,
    tree: Tree | str | Path,
    attack: str = "leaf-pgd",
    level: int | None = None,
    eps: str = "1/255",
    step_size: str | None = None,
    steps: int | None = None,
    restarts: int = 1,
    random_start: bool = True,
    norm: str = "linf",
    template: str = "photo",
    seed: int = 0,
) -> AttackResult:
    """Adversarial versions of ``images`` (pixels in [0, 1]); ``labels`` index the tree's classes.

    Images are known by their place in the batch, so the same call gives the same result.

    Raises:
        UsageError: as the command line would, for the same reasons.
    """
    tree = tree if isinstance(tree, Tree) else load_tree(tree)
    spec = attack_spec(attack)
    levels = spec.levels(tree, None if level is None else str(level))
    if not levels:
        raise UsageError(f"{attack} has no level {level} to attack in this tree of levels 0 … {tree.top - 1}")
    options = EvalOptions(
        step_size=_fraction(step_size, norm), steps=steps, norm=norm, restarts=restarts, random_start=random_start
    )
    objective = spec.objective(ZeroShotClassifier(model, tree, template), levels[0])
    optimiser = spec.optimiser(budget_of(options, parse_eps(eps, norm=norm), spec))
    return optimiser(model, objective, images, labels, sample_seeds([str(i) for i in range(len(images))], seed))


def evaluate(
    model: ClipModel,
    *,
    data: str = "shapes",
    tree: str | None = None,
    attacks: tuple[str, ...] = EvalOptions.attacks,
    level: str | None = "all",
    eps: str | None = None,
    step_size: str | None = None,
    steps: int | None = None,
    restarts: int = 1,
    random_start: bool = True,
    norm: str = "linf",
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """``results`` (rows of the form in cli.md, each figure per image and balanced) and ``summary`` of one dataset.

    Raises:
        UsageError: as the command line would, for the same reasons.
    """
    task = open_task(data, model, purpose="eval", split=split, tree=tree, limit=limit)
    options = EvalOptions(
        attacks=attacks, level=level, eps=None if eps is None else parse_eps_list(eps, norm=norm),
        step_size=_fraction(step_size, norm), steps=steps, norm=norm, restarts=restarts, random_start=random_start,
        seed=seed,
    )  # fmt: skip
    evaluation = Evaluation(model, task, options)
    evaluation.run()
    return {"results": evaluation.rows(), "summary": evaluation.summary()}


def _fraction(text: str | None, norm: str) -> Fraction | None:
    return None if text is None else parse_eps(text, option="step_size", norm=norm)
