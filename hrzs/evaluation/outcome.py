"""What a report shows beyond the rows: what became of every image, and the most instructive adversarial images."""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Int
from torch import Tensor

from hrzs.attacks.budget import format_eps
from hrzs.data import loader
from hrzs.evaluation.runner import Evaluation, Unit
from hrzs.models.classifier import SCORINGS
from hrzs.models.exact import exact_fp32
from hrzs.results import metrics
from hrzs.results.outcome import Example, Gallery, Outcome


def outcome_of(evaluation: Evaluation) -> Outcome | None:
    """The outcome at the first ε of a finished evaluation; None if nothing was attacked.

    Superclasses are scored by their own prompt where an attack aimed at them through it, else by their leaves. An
    attack on all levels at once counts only where none aimed at that level alone.
    """
    units = _first_eps(evaluation)
    if not units:
        return None
    tree, labels = evaluation.task.tree, evaluation.labels
    clean = metrics.right(tree, labels, evaluation.predictions[evaluation.units[0].key].nodes)
    chosen, robust = clean[0].clone(), {}
    for level in range(tree.top):
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
                held &= metrics.right(tree, labels, found.nodes)[s, level]
                if unit.level == level:
                    held &= ~found.won
        robust[level] = held
    on_leaves = [evaluation.predictions[u.key] for u in units if u.level == 0]
    strongest = max(on_leaves, key=lambda found: int(found.won.sum()), default=None)
    eps = units[0].eps
    assert eps is not None
    return Outcome(format_eps(eps), labels, chosen, robust, None if strongest is None else strongest.nodes[0, 0])


def _first_eps(evaluation: Evaluation) -> list[Unit]:
    first = next((u.eps for u in evaluation.units if u.eps is not None), None)
    return [u for u in evaluation.units if u.eps is not None and u.eps == first]


@exact_fp32()
def gallery_of(evaluation: Evaluation, most: int = 8) -> Gallery | None:
    """The most instructive images of a finished evaluation at its first ε, made once more (`Evaluation.again`).

    The attack is the one under which most predictions, summed over levels, turn wrong. None if none did.
    """
    tree, labels = evaluation.task.tree, evaluation.labels
    units = [u for u in _first_eps(evaluation) if u.scoring == "prompt"]
    before = evaluation.predictions[evaluation.units[0].key].nodes[0]
    was = metrics.right(tree, labels, before[None])[0].sum(0)
    lost = {u: was - metrics.right(tree, labels, evaluation.predictions[u.key].nodes[:1])[0].sum(0) for u in units}
    unit = max(lost, key=lambda u: int(lost[u].sum()), default=None)
    if unit is None or not (lost[unit] > 0).any():
        return None
    indices = most_instructive(labels, was, lost[unit], most)
    batch = next(loader(evaluation.task.data, len(indices), 0, indices))
    found = evaluation.again(unit, batch, labels[indices])
    with torch.no_grad():
        after = evaluation.classifier.predict(evaluation.model.encode_image(found, "fp32"))[0].cpu()
    return Gallery(
        unit.title,
        [
            Example(batch.ids[k], int(labels[i]), batch.images[k], found[k].cpu(), before[:, i], after[:, k])
            for k, i in enumerate(indices)
        ],
    )


def most_instructive(labels: Int[Tensor, "n"], was: Int[Tensor, "n"], lost: Int[Tensor, "n"], most: int) -> list[int]:
    """Images that were right at most levels and lost the most of them; one of each class before a second of any.

    Args:
        was: the number of levels at which an image was right when clean.
        lost: how many of these it lost.
    """
    order = sorted((i for i in range(len(labels)) if lost[i] > 0), key=lambda i: (-int(lost[i]), -int(was[i]), i))
    seen: Counter[int] = Counter()
    ranked = []
    for place, i in enumerate(order):
        ranked.append((seen[int(labels[i])], place, i))
        seen[int(labels[i])] += 1
    return [i for _, _, i in sorted(ranked)[:most]]
