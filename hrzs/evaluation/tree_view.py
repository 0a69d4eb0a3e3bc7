"""What a model makes of a tree: how well each level's prompts work, and where the nodes lie in the Poincaré ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Complex128, Float
from torch import Tensor

from hrzs.data import loader
from hrzs.evaluation import metrics
from hrzs.evaluation.runner import EvalOptions, Evaluation, Progress
from hrzs.hierarchy.describe import check_picture, picture_style, save_picture, visible
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.classifier import SCORINGS, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.depth import ClassMeans, text_depth, text_edges
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex, Prompts, resolve_template
from hrzs.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: In a tree of so many nodes at most, leaves are named in the disk as well.
_NAME_LEAVES = 60


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
    options = EvalOptions(attacks=(), template=template, head=head, batch_size=batch_size, workers=workers)
    evaluation = Evaluation(model, task, options)
    evaluation.run(progress)
    clean = evaluation.predictions[evaluation.units[0].key]
    levels: list[dict[str, Any]] = [
        {"level": level, "nodes": len(task.tree.levels[level]), **dict.fromkeys(SCORINGS), "consistency": consistent}
        for level, consistent in enumerate([1.0, *metrics.consistency(task.tree, clean.nodes[0])])
    ]
    for row in evaluation.rows():
        levels[row["level"]][row["scoring"]] = {
            "accuracy": row["clean"], "ci95": list(row["clean_ci95"]),
            "balanced": row["clean_balanced"], "balanced_ci95": list(row["clean_balanced_ci95"]),
            "constant": row["constant"],
        }  # fmt: skip
    return {
        "model": model.info.source,
        "head": evaluation.classifier.head.name,
        "dataset": task.data.name,
        "split": task.data.split,
        "n": len(task.data),
        "template": template,
        "levels": levels,
        "depth": level_depth(model, evaluation.classifier, task),
    }


@torch.no_grad()
def level_depth(
    model: ClipModel, classifier: ZeroShotClassifier, task: Task, most: int = 1000
) -> dict[str, Any] | None:
    """Where texts and images lie, level by level, ready for JSON; None for a head that has no depth (cosine).

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
    levels = [
        {"level": level, "radius_text": placed.radius[level].item(),
         "radius_image": head.radius(mean[count > 0]).mean().item(),
         "margin": placed.margin[level].item(), "bound": placed.bound[level].item()}
        for level, (mean, count) in enumerate(zip(means, groups.counts, strict=True))
    ]  # fmt: skip
    shares = {"edges_ordered": placed.edges_ordered, "edges_ordered_image": means_of.edges_ordered(means, groups)}
    return {"head": head.name, "n": n, "levels": levels,
            **{name: None if share.isnan() else share.item() for name, share in shares.items()}}  # fmt: skip


@dataclass(frozen=True)
class NodePoints:
    """The nodes of a tree (leaves first, the root last) in the Poincaré ball, scaled by √r to the unit ball.

    ``lift`` says in words how they came there.
    """

    nodes: tuple[Node, ...]
    points: Float[Tensor, "N D"]
    lift: str


@torch.no_grad()
def node_points(model: ClipModel, tree: Tree, template: str = "photo", radius: float = 0.5) -> NodePoints:
    """Where the texts of a tree's nodes, its root among them, lie in the ball.

    A hyperbolic model places each at the depth of the lowest level it stands at, by its own head, and the root at the
    centre if the head tells levels apart. For any other, text features before normalisation are lifted as they are:
    ``exp0`` of curvature 1, scaled so that a leaf of mean norm lies at ``radius``.

    Args:
        radius: between 0 and 1.

    Raises:
        UsageError: an unknown template.
    """
    nodes = (*NodeIndex.of(tree).nodes, tree.root)
    prompts = Prompts.of(nodes, resolve_template(template))
    text = prompts.gather(model.project_text(model.encode_text_trunk(prompts.texts)), normalise=False)
    head = model.ball
    if head is None:
        mean_norm = text[: len(tree.classes)].norm(dim=1).mean().item()
        head = HyperbolicHead(1.0, math.atanh(radius) / mean_norm, 1.0).to(text.device)
        lift = f"text features of a cosine model, lifted so that the mean leaf is at radius {radius:g}"
    else:
        lift = f"the model's own hyperbolic head, curvature r = {head.value('curvature').item():.3g}"
    levels = torch.tensor([node.level for node in nodes]).to(text.device)
    points = head.value("curvature").sqrt() * head.prepare(text, levels)
    if len(head.depth) > 1:
        points[-1] = 0
    return NodePoints(nodes, points.cpu(), lift)


def to_disk(points: Float[Tensor, "N D"]) -> tuple[Complex128[np.ndarray, "N"], float]:
    """Points of the unit ball in the unit disk, as complex numbers: each keeps its norm, only directions are reduced.

    The angle is that of the first two principal components of the directions (centred); also returned is these two
    components' share of the variance. The sign of a component is such that its largest entry is positive.
    """
    norms = points.double().norm(dim=1)
    directions = points.double() / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    centred = directions - directions.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0)[None]).sign()
    plane = (centred @ axes).numpy()
    share = (variance[-2:].sum() / variance.sum().clamp_min(1e-300)).item()
    return norms.numpy() * np.exp(1j * np.arctan2(plane[:, 1], plane[:, 0])), share


def geodesic(p: complex, q: complex, steps: int = 24) -> Complex128[np.ndarray, "steps"]:
    """Points of the geodesic of the unit disk from ``p`` to ``q``, evenly spaced in its metric."""
    # Möbius translation takes p to the origin, where geodesics are straight; then back again.
    w = (q - p) / (1 - p.conjugate() * q)
    along = np.tanh(np.linspace(0, 1, steps) * np.arctanh(min(abs(w), 1 - 1e-12)))
    straight = along * (w / abs(w) if w else 1.0) + 0j
    back: Complex128[np.ndarray, "steps"] = (straight + p) / (1 + p.conjugate() * straight)
    return back


def plot_disk(model: ClipModel, tree: Tree, file: Path, *, template: str = "photo", radius: float = 0.5) -> None:
    """Draw the nodes of ``tree`` in the Poincaré disk, and beside it their norms by level.

    Left: norms are exact, angles are those of `to_disk`, the tree's edges are geodesics of the disk; nodes are named
    from the root downwards where there is room (leaves in small trees only). Right: each node once, at the lowest level
    it stands at, and the median of the level. The titles say how the nodes came into the ball: see `node_points`, also
    for ``radius``.

    Raises:
        UsageError: an unknown template, or the file's ending is none of `PICTURES`.
        OSError: the file cannot be written.
    """
    check_picture(file)
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    placed = node_points(model, tree, template, radius)
    disk, share = to_disk(placed.points)
    at = {id(node): complex(z) for node, z in zip(placed.nodes, disk, strict=True)}
    colours = colormaps["viridis_r"](np.linspace(0.1, 1, tree.top + 1))
    by_level = [[node for node in placed.nodes if node.level == level] for level in range(tree.top + 1)]
    with picture_style(file):
        figure = Figure(figsize=(15, 8.6))
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
        figure.suptitle(f"{len(placed.nodes)} nodes of the tree in the Poincaré ball: {placed.lift}", fontsize=12)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        left.set_title(
            f"norms exact; angle: first two principal components of the directions ({share:.0%} of their variance)\n"
            "edges: geodesics of the disk",
            fontsize=10,
        )
        left.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
        left.axis("off")
        left.add_patch(Circle((0, 0), 1, fill=False, color="0.5"))
        edges = [geodesic(at[id(node)], at[id(child)]) for node in tree.root.walk() for child in node.children]
        lines = [np.stack([edge.real, edge.imag], 1) for edge in edges]
        left.add_collection(LineCollection(lines, colors="0.6", linewidths=0.6, alpha=min(1.0, 150 / len(lines))))
        for level, nodes in enumerate(by_level):
            z = np.array([at[id(node)] for node in nodes], complex)
            label = "leaves" if level == 0 else "root" if level == tree.top else f"level {level}"
            left.scatter(z.real, z.imag, s=12 + 14 * level, color=colours[level], zorder=2 + level, label=label)
            # A fixed spread sideways, so that equal norms do not hide one another.
            sideways = level + 0.5 * ((np.arange(len(z)) * 0.618034 + 0.5) % 1 - 0.5)
            right.scatter(sideways, abs(z), s=10, color=colours[level], alpha=0.7)
            if len(z):
                right.hlines(np.median(abs(z)), level - 0.35, level + 0.35, color="black", lw=1.5)
        left.legend(loc="lower left", fontsize=9, frameon=False)
        right.set_title("norm of each node by level; line: median", fontsize=10)
        right.set(xlabel="level (0: leaves)", ylabel="norm in the unit ball (1: its boundary)")
        right.set_xticks(range(tree.top + 1))
        right.set_xlim(tree.top + 0.5, -0.5)
        right.grid(axis="y", color="0.9")
        # Where names overlap is known only once everything has its place.
        figure.draw_without_rendering()
        named = by_level if len(placed.nodes) <= _NAME_LEAVES else by_level[1:]
        _name(left, [node for nodes in reversed(named) for node in nodes], at)
        save_picture(figure, file)


def _name(axes: Axes, nodes: list[Node], at: dict[int, complex]) -> None:
    """Write the names of ``nodes`` beside their points, each that has a place free of names and points before it."""
    from matplotlib.transforms import Bbox

    taken: list[Bbox] = []
    for node in nodes:
        z = at[id(node)]
        centre = axes.transData.transform((z.real, z.imag))
        taken.append(Bbox([centre - 4, centre + 4]))
        for x, y in ((6, 5), (6, -5), (-6, 5), (-6, -5)):
            text = axes.annotate(
                visible(node.name)[:30], (z.real, z.imag), (x, y), textcoords="offset points", parse_math=False,
                fontsize=8 if node.is_leaf else 9, color="0.35" if node.is_leaf else "black", zorder=99,
                ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
            )  # fmt: skip
            # A name takes no part in the layout, which is settled.
            text.set_in_layout(False)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
