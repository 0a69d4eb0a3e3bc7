"""What came of a finished evaluation, as the rows and the summary of a report (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from hrzs.attacks import attack_spec
from hrzs.attacks.budget import format_eps
from hrzs.evaluation.options import SUITE
from hrzs.evaluation.plan import ADAPTIVE, Unit
from hrzs.evaluation.runner import Evaluation
from hrzs.models.classifier import PROMPT, SCORINGS
from hrzs.results import metrics
from hrzs.results.report import Overall, Row, Truth


def rows_of(evaluation: Evaluation) -> list[Row]:
    """One row for each (ε, attack, attack level, level, scoring)."""
    return [row for unit in evaluation.units for row in _rows(evaluation, unit)]


def _rows(evaluation: Evaluation, unit: Unit) -> Iterator[Row]:
    tree, labels = evaluation.task.tree, evaluation.labels
    truth = tree.ancestors[: tree.height, labels]
    clean = metrics.correct(tree, labels, evaluation.clean.nodes)
    found = evaluation.predictions[unit.key]
    adversarial = metrics.correct(tree, labels, found.nodes)
    fooled = found.success
    if unit.adversary == ADAPTIVE:  # who knows the defences knows what fools the model without them, too
        fooled = fooled | evaluation.predictions[unit.as_static.key].success
    for level in range(tree.height):
        for s, scoring in enumerate(SCORINGS):
            aimed = unit.level == level and unit.scoring == scoring
            if not _is_scored(evaluation, unit, level, scoring, aimed=aimed):
                continue
            held = clean[s, level]
            if unit.eps is not None:
                held = held & adversarial[s, level]
                # The attack judged in batches of its own; where it saw a mistake, rounding must not undo it.
                held = held & ~fooled if aimed else held
            about: dict[str, Any] = {"level": level, "classes": len(tree.levels[level]), "scoring": scoring,
                     "constant": metrics.constant_answer(truth[level]),
                     "correct": metrics.to_bits(held[evaluation.by_id])}  # fmt: skip
            weights = metrics.node_weights(truth[level])
            about |= {"nodes": (nodes := len(set(truth[level].tolist()))), "constant_balanced": 1 / nodes}
            about |= _accuracies("clean", clean[s, level], weights)
            about |= _accuracies("robust", None if unit.eps is None else held, weights)
            yield Row(**_about(evaluation, unit), **about, **_attacked(evaluation, unit, scoring, aimed=aimed))


def _about(evaluation: Evaluation, unit: Unit) -> dict[str, Any]:
    data = evaluation.task.data
    return {"dataset": data.name, "split": data.split, "n": len(data), "attack": unit.attack,
            "attack_level": unit.level, "precision": evaluation.model.precision,
            "defence": None if evaluation.defended is None else evaluation.defended.title, "adversary": unit.adversary,
            "seconds": round(evaluation.seconds[unit.key], 3)}  # fmt: skip


def _accuracies(name: str, correct: Bool[Tensor, "n"] | None, weights: Tensor) -> dict[str, Any]:
    """Per image and balanced over the nodes of the level that have images, each with its interval."""
    if correct is None:
        return {name: None}
    n, count = len(correct), int(correct.sum())
    return {
        name: count / n,
        f"{name}_ci95": metrics.wilson(count, n),
        f"{name}_balanced": metrics.balanced(correct, weights),
        f"{name}_balanced_ci95": metrics.balanced_interval(correct, weights),
    }


def _attacked(evaluation: Evaluation, unit: Unit, scoring: str, *, aimed: bool) -> dict[str, Any]:
    """How something was attacked. A row is white-box where the attack aimed at this very level and scoring."""
    if unit.eps is None:
        return {"eps": None}
    images = evaluation.images
    budget = images.budget(unit)
    source, digest = images.source_of(unit) or (None, None)
    at_all = unit.level == "all" and scoring == "prompt"
    return {
        "eps": format_eps(unit.eps), "transfer": not ((aimed or at_all) and images.is_white_box(unit)),
        "attacked_through": unit.scoring, "norm": budget.norm, "steps": budget.steps,
        "step_size": format_eps(budget.step_size), "source_model": source, "source_model_digest": digest,
    }  # fmt: skip


def _is_scored(evaluation: Evaluation, unit: Unit, level: int, scoring: str, *, aimed: bool) -> bool:
    options = evaluation.options
    if scoring not in options.scorings and not (level == 0 and scoring == "prompt"):
        return False
    if not options.matrix and unit.eps is not None and unit.level != "all":
        return aimed
    if unit.scoring == "leaves" or (unit.level not in (None, 0, "all") and len(options.scorings) > 1):
        # Two attacks aim at a superclass, one through each scoring: each is scored through its own.
        return scoring == unit.scoring
    return level > 0 or scoring == "prompt"


def overall_of(evaluation: Evaluation) -> list[Overall]:
    """Per ε: any-level robust accuracy (only for the whole suite), severity and consistency per attack.

    The constant answer of any-level accuracy names one leaf with all its ancestors.
    """
    tree, labels, n = evaluation.task.tree, evaluation.labels, len(evaluation.labels)
    weights = metrics.weights_over_levels(tree.ancestors[: tree.height, labels])
    clean_correct = metrics.correct(tree, labels, evaluation.clean.nodes)[PROMPT]
    every = clean_correct.all(0)
    found = []
    for eps, adversary in dict.fromkeys((u.eps, u.adversary) for u in evaluation.units if u.eps is not None):
        assert eps is not None
        units = [u for u in evaluation.units if (u.eps, u.adversary, u.scoring) == (eps, adversary, "prompt")]
        robust = _any_level(evaluation, clean_correct, units)
        # Of two adversaries the first one's figures show the clean images.
        clean = () if adversary == ADAPTIVE else evaluation.units[:1]
        shown = {u.title: evaluation.predictions[u.key] for u in (*clean, *units)}
        whole: dict[str, Any] = {}
        if robust is not None:
            whole = {f"any_level_{name}": value for name, value in _accuracies("robust", robust, weights).items()}
            whole |= {"any_level_suite": SUITE, "any_level_correct": metrics.to_bits(robust[evaluation.by_id])}
        found.append(
            Overall(
                dataset=evaluation.task.data.name, eps=format_eps(eps), adversary=adversary,
                any_level_clean=int(every.sum()) / n,
                any_level_clean_balanced=metrics.balanced(every, weights),
                any_level_constant=metrics.constant_answer(labels),
                any_level_constant_balanced=metrics.constant_answer(labels, weights),
                severity={title: metrics.severity(tree, labels, one) for title, one in shown.items()},
                consistency={t: tuple(metrics.consistency(tree, one.nodes[PROMPT])) for t, one in shown.items()},
                **whole,
            )
        )  # fmt: skip
    return found


def truth_of(evaluation: Evaluation) -> Truth:
    """The node of each image at every level: what balanced figures weigh images by."""

    def words(numbers: Tensor) -> str:
        return " ".join(map(str, numbers.tolist()))

    tree = evaluation.task.tree
    return Truth(words(evaluation.labels[evaluation.by_id]), tuple(map(words, tree.ancestors[: tree.height])))


def _any_level(
    evaluation: Evaluation, clean: Bool[Tensor, "levels n"], units: Sequence[Unit]
) -> Bool[Tensor, "n"] | None:
    """Which images hold everywhere; None unless the whole suite was run.

    ``matrix`` or not makes no difference: an image that left early was fooled at the attack's own aim.
    """
    tree, labels = evaluation.task.tree, evaluation.labels
    wanted = {(name, level) for name in SUITE for level in attack_spec(name).levels(tree, "all")}
    ran = [u for u in units if (u.attack, u.level) in wanted]
    if len(ran) < len(wanted):
        return None
    ran += [u.as_static for u in ran if u.adversary == ADAPTIVE]
    suite = [evaluation.predictions[u.key] for u in ran]
    return metrics.any_level(clean, [(metrics.correct(tree, labels, one.nodes)[PROMPT], one.success) for one in suite])
