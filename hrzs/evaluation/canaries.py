"""Checks that run beside every evaluation, on at most 64 images: would this set-up notice a model that is not robust?

Each says what it measured, what was expected, and whether the two agree (protocol.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from hrzs.attacks import ATTACKS, Budget, sample_seeds
from hrzs.attacks.base import judge
from hrzs.attacks.budget import format_eps
from hrzs.attacks.objectives import LevelObjective
from hrzs.data import loader, subset
from hrzs.errors import HrzsError
from hrzs.evaluation.metrics import wilson
from hrzs.evaluation.runner import GRADIENTS, Evaluation, budget_of
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model

logger = logging.getLogger(__name__)

LEAF_PGD = ATTACKS["leaf-pgd"]
IMAGES = 64
HUGE = Fraction(64, 255)


@dataclass(frozen=True)
class Canary:
    """``value`` is what was measured (None: could not be), ``ok`` whether it is as expected, on ``dataset``."""

    name: str
    value: float | None
    expected: str
    ok: bool | None
    note: str = ""
    dataset: str = ""


def run_canaries(evaluation: Evaluation, update: Callable[[str], None] = lambda _: None) -> list[Canary]:
    """All canaries of one evaluated dataset, at the first ε of its plan."""
    eps = next((u.eps for u in evaluation.units if u.eps is not None), None)
    if eps is None:
        return []
    name = evaluation.task.data.name
    update(f"{name}, canary: untouched model")
    canaries = [_untouched(evaluation, eps)]
    update(f"{name}, canary: huge ε")
    canaries += [_huge(evaluation), _gradients(evaluation)]
    if evaluation.classifier.head.name == "hyperbolic":
        update(f"{name}, canary: cosine head")
        canaries.append(_cosine_head(evaluation, eps))
    for canary in canaries:
        if canary.ok is False:
            logger.warning("canary %s: %s, expected %s. %s", canary.name, canary.value, canary.expected, canary.note)
    return [replace(canary, dataset=name) for canary in canaries]


def _leaf_pgd(
    model: ClipModel, classifier: ZeroShotClassifier, evaluation: Evaluation, budget: Budget
) -> tuple[float, float]:
    """Clean and robust leaf accuracy of a model on the canaries' images."""
    clean = robust = n = 0
    objective = LevelObjective(classifier, 0)
    for batch in loader(subset(evaluation.task.data, limit=IMAGES), IMAGES):
        images, labels = batch.images.to(model.device), batch.labels.to(model.device)
        wrong = judge(model, objective, images, labels)
        result = LEAF_PGD.optimiser(budget)(
            model, objective, images, labels, sample_seeds(batch.ids, evaluation.options.seed)
        )
        clean += int((~wrong).sum())
        robust += int((~wrong & ~result.won).sum())
        n += len(labels)
    return clean / n, robust / n


def _untouched(evaluation: Evaluation, eps: Fraction) -> Canary:
    name = "untouched-model"
    expected = f"at most 0.25 under leaf-pgd at ε {format_eps(eps)}: a model that nobody made robust must fall"
    model, base = evaluation.model, evaluation.model.info.run.get("base")
    if base and base["pretrained"] != "none":  # what was trained from scratch is untouched itself
        try:
            model = load_model(base["model"], base["pretrained"], device=str(model.device))
        except HrzsError as error:
            return Canary(name, None, expected, None, f"not run: {error}")
        if base["digest"] != model.info.digest:
            return Canary(name, None, expected, None, f"not run: {base['model']} is not the file the run started from")
    classifier = ZeroShotClassifier(model, evaluation.task.tree, evaluation.options.template)
    clean, robust = _leaf_pgd(model, classifier, evaluation, budget_of(evaluation.options, eps, LEAF_PGD))
    return Canary(name, robust, expected, robust <= 0.25, f"clean {clean:.3f} on {IMAGES} images at most")


def _huge(evaluation: Evaluation) -> Canary:
    options = replace(evaluation.options, norm="linf", step_size=HUGE / 4)
    _, robust = _leaf_pgd(evaluation.model, evaluation.classifier, evaluation, budget_of(options, HUGE, LEAF_PGD))
    return Canary(
        "huge-eps", robust, f"at most 0.05 at ε {format_eps(HUGE)}", robust <= 0.05,
        "" if robust <= 0.05 else "the attack may be blocked: gradient masking?",
    )  # fmt: skip


def _gradients(evaluation: Evaluation) -> Canary:
    counts = {name: sum(unit[name] for unit in evaluation.gradients.values()) for name in GRADIENTS}
    bad = counts["zero_gradients"] + counts["bad_gradients"]
    share = bad / max(1, counts["gradients"])
    return Canary(
        "dead-gradients", share, "at most 0.01 of all gradients zero or not finite", share <= 0.01,
        f"{counts['zero_gradients']} zero, {counts['bad_gradients']} not finite of {counts['gradients']}",
    )  # fmt: skip


def _cosine_head(evaluation: Evaluation, eps: Fraction) -> Canary:
    """Attack through the cosine head of the same encoder; the hyperbolic head judges: it must be right on both."""
    model, options = evaluation.model, evaluation.options
    own = LevelObjective(evaluation.classifier, 0)
    surrogate = LevelObjective(ZeroShotClassifier(model, evaluation.task.tree, options.template, "cosine"), 0)
    attack = LEAF_PGD.optimiser(budget_of(options, eps, LEAF_PGD), early_stop=False)
    held = both = 0
    for batch in loader(subset(evaluation.task.data, limit=IMAGES), IMAGES):
        images, labels = batch.images.to(model.device), batch.labels.to(model.device)
        seeds = sample_seeds(batch.ids, options.seed)
        right = ~judge(model, own, images, labels) & ~attack(model, own, images, labels, seeds).won
        transferred = judge(model, own, attack(model, surrogate, images, labels, seeds).images, labels)
        held += int(right.sum())
        both += int((right & ~transferred).sum())
    lost = (held - both) / max(1, held)
    # Few images hold: the verdict is whether the share is surely above the bound, not whether it is so in this sample.
    return Canary(
        "cosine-head", lost, "at most 0.05 of the images that hold under their own head fall to its cosine head",
        wilson(held - both, held)[0] <= 0.05, f"{both} of {held} hold under both",
    )  # fmt: skip
