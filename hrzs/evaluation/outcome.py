"""What a report shows beyond the rows: what became of every image, and the most instructive adversarial images."""

from __future__ import annotations

import torch

from hrzs.attacks.base import features_of
from hrzs.attacks.budget import format_eps
from hrzs.data import loader
from hrzs.evaluation.plan import ADAPTIVE, Unit
from hrzs.evaluation.runner import Evaluation
from hrzs.models.classifier import PROMPT, SCORINGS
from hrzs.models.exact import exact_fp32
from hrzs.results import metrics
from hrzs.results.outcome import Example, Gallery, Outcome, Pictures, most_instructive


def pictures_of(evaluation: Evaluation) -> Pictures:
    """What the page of a report shows beyond the report."""
    return Pictures(evaluation.task.tree, outcome_of(evaluation), gallery_of(evaluation))


def outcome_of(evaluation: Evaluation) -> Outcome | None:
    """The outcome at the first ε of a finished evaluation; None if nothing was attacked.

    Superclasses are scored by their own prompt where an attack aimed at them through it, else by their leaves. An
    attack on all levels at once counts only where none aimed at that level alone.
    """
    units = _first_eps(evaluation)
    if not units:
        return None
    tree, labels = evaluation.task.tree, evaluation.labels
    clean = metrics.correct(tree, labels, evaluation.predictions[evaluation.units[0].key].nodes)
    chosen, robust = clean[0].clone(), {}
    for level in range(tree.height):
        aimed = [u for u in units if u.level == level] or [u for u in units if u.level == "all"]
        through = next((s for s in SCORINGS if any(u.scoring == s for u in aimed)), None)
        if through is None:
            continue
        s = SCORINGS.index(through)
        chosen[level] = clean[s, level]
        held = clean[s, level].clone()
        for unit in aimed:
            if unit.scoring == through:
                found = evaluation.predictions[unit.key]
                held &= metrics.correct(tree, labels, found.nodes)[s, level]
                if unit.level == level:
                    held &= ~found.success
        robust[level] = held
    on_leaves = [evaluation.predictions[u.key] for u in units if u.level == 0]
    strongest = max(on_leaves, key=lambda found: int(found.success.sum()), default=None)
    eps = units[0].eps
    assert eps is not None
    return Outcome(format_eps(eps), labels, chosen, robust, None if strongest is None else strongest.nodes[PROMPT, 0])


def _first_eps(evaluation: Evaluation) -> list[Unit]:
    first = next((u.eps for u in evaluation.units if u.eps is not None), None)
    units = [u for u in evaluation.units if u.eps is not None and u.eps == first]
    # Of a model behind defences, what an adversary does that knows them.
    return [u for u in units if u.adversary == ADAPTIVE] or units


@exact_fp32()
def gallery_of(evaluation: Evaluation, most: int = 8) -> Gallery | None:
    """The most instructive images of a finished evaluation at its first ε, made once more (`adversarial_images`).

    The attack is the one under which most predictions, summed over levels, turn wrong. None if none did.
    """
    tree, labels = evaluation.task.tree, evaluation.labels
    units = [u for u in _first_eps(evaluation) if u.scoring == "prompt"]
    before = evaluation.predictions[evaluation.units[0].key].nodes[PROMPT]
    was = metrics.correct(tree, labels, before[None])[0].sum(0)
    lost = {u: was - metrics.correct(tree, labels, evaluation.predictions[u.key].nodes)[PROMPT].sum(0) for u in units}
    unit = max(lost, key=lambda u: int(lost[u].sum()), default=None)
    if unit is None or not (lost[unit] > 0).any():
        return None
    indices = most_instructive(labels, was, lost[unit], most)
    batch = next(loader(evaluation.task.data, len(indices), 0, indices))
    found = evaluation.images.adversarial_images(unit, batch)
    with torch.no_grad():
        model, classifier = evaluation.judge(batch.ids)
        after = classifier.predict(features_of(model, found))[PROMPT].cpu()
    return Gallery(
        unit.title,
        [
            Example(batch.ids[k], int(labels[i]), batch.images[k], found[k].cpu(), before[:, i], after[:, k])
            for k, i in enumerate(indices)
        ],
    )
