"""What a model makes of a tree: how well each level's prompts work, and how deep its texts and images lie."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from hrzs.data import loader
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.rows import rows_of
from hrzs.evaluation.runner import Evaluation, Progress
from hrzs.models.classifier import PROMPT, SCORINGS, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.depth import ClassMeans, text_depth, text_edges
from hrzs.models.exact import exact_fp32
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex
from hrzs.results import metrics
from hrzs.results.report import Depth, LevelDepth
from hrzs.tasks import Task


def level_accuracy(
    model: ClipModel,
    task: Task,
    *,
    template: str = "photo",
    head: str | None = None,
    batch_size: int = 128,
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Zero-shot accuracy at each level of ``task.tree`` on the clean images of ``task.data``, ready for JSON.

    For each level 0 … L-1 the accuracy (a fraction, with Wilson's 95% interval; ``balanced`` over the level's nodes,
    and what a ``constant`` answer scores) of its own prompts (``prompt``), and of
    summing the probabilities of its leaves (``leaves``; null at level 0, where both are one): a level whose prompts do
    worse than its leaves is named badly. ``consistency`` is how often the leaf prediction lies beneath the predicted
    superclass.

    Raises:
        UsageError: an unknown template, or a head that the model has not.
    """
    options = EvalOptions(attack=(), template=template, head=head, batch_size=batch_size, workers=workers)
    evaluation = Evaluation(model, task, options)
    evaluation.run(progress)
    clean = evaluation.predictions[evaluation.units[0].key]
    levels: list[dict[str, Any]] = [
        {"level": level, "nodes": len(task.tree.levels[level]), **dict.fromkeys(SCORINGS), "consistency": consistent}
        for level, consistent in enumerate([1.0, *metrics.consistency(task.tree, clean.nodes[PROMPT])])
    ]
    for row in rows_of(evaluation):
        levels[row.level][row.scoring] = {
            "accuracy": row.clean, "ci95": row.clean_ci95,
            "balanced": row.clean_balanced, "balanced_ci95": row.clean_balanced_ci95, "constant": row.constant,
        }  # fmt: skip
    depth = level_depth(model, evaluation.classifier, task)
    return {
        "model": model.info.source,
        "head": evaluation.classifier.head.name,
        "dataset": task.data.name,
        "split": task.data.split,
        "n": len(task.data),
        "template": template,
        "levels": levels,
        "depth": None if depth is None else msgspec.to_builtins(depth),
    }


@exact_fp32()
@torch.no_grad()
def level_depth(model: ClipModel, classifier: ZeroShotClassifier, task: Task, most: int = 1000) -> Depth | None:
    """Where texts and images lie, level by level; None for a head that has no depth (cosine).

    For each level 0 … L-1: the mean radius of its texts (``radius_text``) and of its class means of images
    (``radius_image``), as shares of the ball's radius, in flat space as norms; the largest margin that its texts leave
    room for (``margin``) and theory's bound on it (``bound``), in logits. For the tree: the share of edges whose parent
    lies nearer the centre than the child, of texts (``edges_ordered``) and of class means of `STEADY` images or more
    (``edges_ordered_image``); null where there is no such edge.

    Args:
        most: clean images that the class means are of, the first of the class-balanced order.
    """
    head = classifier.head
    if not isinstance(head, HyperbolicHead):
        return None
    tree, index = classifier.tree, NodeIndex.of(classifier.tree).to(model.device)
    placed = text_depth(head, index, text_edges(tree, index), classifier.prepared)
    means_of, n = ClassMeans(tree, model.device), min(most, len(task.data))
    points, labels = [], []
    for batch in loader(task.data, 128, 0, list(range(n))):
        points.append(head.embed_image(model.encode_image(batch.images.to(model.device), "fp32")))
        labels.append(batch.labels.to(model.device))
    groups = means_of.group(torch.cat(labels), points[0])
    means = means_of(torch.cat(points), groups, head)
    levels = tuple(
        LevelDepth(level=level, radius_text=placed.radius[level].item(),
                   radius_image=head.radius(mean[count > 0]).mean().item(),
                   margin=placed.margin[level].item(), bound=placed.bound[level].item())
        for level, (mean, count) in enumerate(zip(means, groups.counts, strict=True))
    )  # fmt: skip
    shares = {"edges_ordered": placed.edges_ordered, "edges_ordered_image": means_of.edges_ordered(means, groups)}
    return Depth(head=head.name, n=n, levels=levels,
                 **{name: None if share.isnan() else share.item() for name, share in shares.items()})  # fmt: skip
