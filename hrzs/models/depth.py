"""Where the texts of a tree lie under a hyperbolic (or euclidean) head: radius, margin and order, level by level."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

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
