"""Where the nodes of a tree lie under a hyperbolic (or euclidean) head, as texts and as means of images (HypAvg)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Tree
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex


class TextDepth(NamedTuple):
    """One entry a level, the leaves' first; ``edges_ordered`` is one figure for the tree.

    ``radius``: the mean share of the ball's radius (in flat space the mean norm). ``margin``: the largest log-odds that
    an image can have at the level: it sits on one of the two texts that lie furthest apart, so ``β_l max d(ψ, ψ')``.
    ``bound``: what theory allows texts no further out than the level's outermost, ``2 β_l max d(0, ψ)``, which two
    antipodal ones would reach (docs/method.md). ``edges_ordered``: the share of edges whose parent lies nearer the
    centre than the child; NaN for a tree without a superclass.
    """

    radius: Float[Tensor, "levels"]
    margin: Float[Tensor, "levels"]
    bound: Float[Tensor, "levels"]
    edges_ordered: Float[Tensor, ""]


@torch.no_grad()
def text_depth(head: HyperbolicHead, tree: Tree, index: NodeIndex, prepared: Float[Tensor, "N D"]) -> TextDepth:
    """Where the ``prepared`` texts of the columns of ``index`` lie."""
    curvature, outwards = head.value("curvature"), []
    radii = head.radius(prepared)
    margins, bounds = [], []
    for level, columns in enumerate(index.columns):
        points = prepared[columns]
        beta = head.beta(level)
        margins.append(beta * head.space.pairwise_distance(points, points, curvature).max())
        bounds.append(2 * beta * head.space.distance(points, torch.zeros_like(points), curvature).max())
        if level + 1 < len(index.columns):
            real = ~tree.passes_through(level)
            above = index.columns[level + 1].cpu()[tree.parents(level)]
            outwards.append(radii[columns.cpu()[real]] - radii[above[real]])
    steps = torch.cat(outwards) if outwards else radii.new_zeros(0)
    return TextDepth(
        torch.stack([radii[columns].mean() for columns in index.columns]),
        torch.stack(margins),
        torch.stack(bounds),
        (steps > 0).to(radii.dtype).mean(),
    )


#: A class mean of so many images and more is steady enough to say where its class lies.
STEADY = 4


class Means(NamedTuple):
    """The class means of a batch, one row for each node of a level whether it has images or not.

    ``points[l]`` lie at the depth of level l (the origin where there is no image), ``counts[l]`` are the images
    beneath. ``edges[l]`` says which nodes of level l are children in the sense of ``L_gap^Intra``: neither a node that
    passes through nor the only child present.
    """

    points: tuple[Float[Tensor, "nodes D"], ...]
    counts: tuple[Float[Tensor, "nodes"], ...]
    edges: tuple[Bool[Tensor, "nodes"], ...]


class ClassMeans:
    """HypAvg: image embeddings of the nodes present in a batch, averaged level by level (method.md, section 2).

    At level 0 a mean is over a class's images. Above, the present children's means are brought to the level's depth and
    averaged, each child alike. In flat space they are plain means.
    """

    def __init__(self, tree: Tree, device: torch.device | str = "cpu") -> None:
        self.classes = len(tree.classes)
        self.parents = [tree.parents(level).to(device) for level in range(tree.top - 1)]
        self.passing = [tree.passes_through(level).to(device) for level in range(tree.top - 1)]
        self.sizes = [len(level) for level in tree.levels[: tree.top]]

    def __call__(self, points: Float[Tensor, "B D"], labels: Int[Tensor, "B"], head: HyperbolicHead) -> Means:
        """The means of images that lie at ``points``, at the leaves' depth."""
        curvature = head.value("curvature")
        membership = _membership(labels, self.classes, points)
        means = [head.space.einstein_midpoint(points, membership, curvature)]
        counts, edges = [membership.sum(1)], []
        for level, parents in enumerate(self.parents):
            present = (counts[level] > 0).to(points.dtype)
            membership = _membership(parents, self.sizes[level + 1], points)
            siblings = (membership @ present)[parents]
            edges.append(~self.passing[level] & (present > 0) & (siblings > 1))
            factor = head.image_factor(level + 1) / head.image_factor(level)
            placed = head.space.scale(means[level], factor, curvature)
            means.append(head.space.einstein_midpoint(placed, membership * present, curvature))
            counts.append(membership @ counts[level])
        return Means(tuple(means), tuple(counts), tuple(edges))

    def edges_ordered(self, means: Means) -> Float[Tensor, ""]:
        """The share of edges whose parent lies nearer the centre, of those with `STEADY` images beneath the child."""
        edges = zip(self.steps_outwards(means), means.edges, means.counts, strict=False)
        steps, steady = [], []
        for outwards, real, count in edges:
            steps.append(outwards)
            steady.append(real & (count >= STEADY))
        if not steps:
            return means.points[0].new_tensor(torch.nan)
        kept = torch.cat(steady)
        return ((torch.cat(steps) > 0) & kept).sum() / kept.sum()

    def steps_outwards(self, means: Means) -> list[Float[Tensor, "nodes"]]:
        """Of each node below the topmost level, how much further out than its parent's its mean lies."""
        norms = [poincare.norm(points) for points in means.points]
        return [norms[level] - norms[level + 1][parents] for level, parents in enumerate(self.parents)]


def _membership(owner: Int[Tensor, "N"], groups: int, like: Tensor) -> Float[Tensor, "M N"]:
    return (owner == torch.arange(groups, device=owner.device)[:, None]).to(like.dtype)
