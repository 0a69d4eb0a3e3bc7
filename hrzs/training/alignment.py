"""Losses over the levels of a tree: alignment of images and texts (HITA), and the order of depth by norm.

Source: Dong et al., CVPR 2026. A column of logits is a node at a level
(`hrzs.models.text.NodeIndex`). Shapes never depend on which classes a batch holds, so nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.objectives import level_weights
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex
from hrzs.training.options import parse_level_weights


class Rows(NamedTuple):
    """The rows of a matrix of logits: the true column of each, and its weight in the loss."""

    columns: Int[Tensor, "M"]
    weights: Float[Tensor, "M"]


class LevelAlignment:
    """``L'``: cross-entropy at each level, with hierarchy-aware negatives from its neighbours (HNSA).

    All levels share one matrix of logits over all columns. A row is an image or a class mean seen at a level; columns
    outside the denominator of its softmax are masked. So a loss over five levels takes as few operations as over one.

    Args:
        tree: the class tree, L levels below its root.
        index: the columns of the logits.
        hnsa: which neighbours lend negatives to a level: ``none``, ``lower``, ``upper`` or ``both``.
        weights: ``ω``: ``paper``, ``equal``, or numbers from the leaves upwards, such as ``1,0.5``.
        balance: what weighs the same in the mean of a level above the leaves: each ``image``, or each ``node`` with an
            image in the batch, however many images it has.

    Raises:
        UsageError: fewer weights than the tree has levels below its root.
    """

    def __init__(
        self,
        tree: Tree,
        index: NodeIndex,
        hnsa: str = "both",
        device: torch.device | str = "cpu",
        weights: str = "paper",
        balance: str = "image",
    ) -> None:
        self.height = tree.height
        self.weights = _weights(weights, tree.height)
        self.balance = balance
        #: For each level and class, the column of the class's ancestor.
        self.paths = torch.stack([index.columns[k].cpu()[tree.ancestors[k]] for k in range(tree.height)]).to(device)
        self.columns = [c.to(device) for c in index.columns]
        self.level = index.level.to(device)
        self.candidates = _candidates(tree, index, hnsa).to(device)
        self.omega = torch.tensor(self.weights).to(device)

    def levels(self, wanted: Iterable[int] | None = None) -> list[int]:
        """The ``wanted`` levels (by default all) without those of weight 0."""
        return [level for level in (range(self.height) if wanted is None else wanted) if self.weights[level] > 0]

    def of_images(self, labels: Int[Tensor, "B"], levels: Sequence[int]) -> Rows:
        """Rows for every image at each of ``levels``, level by level; at the leaves all images weigh the same."""
        columns = torch.cat([self.paths[level][labels] for level in levels])
        omega = self.omega[self.level[columns]] / len(labels)
        if self.balance == "image":
            return Rows(columns, omega)
        counts = omega.new_zeros(len(self.level)).index_add(0, columns, torch.ones_like(omega))
        present = omega.new_zeros(self.height).index_add(0, self.level, (counts > 0).to(omega.dtype))
        by_node = self.omega[self.level[columns]] / (counts[columns] * present[self.level[columns]])
        return Rows(columns, torch.where(self.level[columns] == 0, omega, by_node))

    def of_means(self, counts: Sequence[Float[Tensor, "_"]], levels: Sequence[int]) -> Rows:
        """Rows for every node of ``levels``, level by level; ``counts[l]`` are the image counts of level l's nodes."""
        weights = []
        for level in levels:
            share = (counts[level] > 0).to(counts[level].dtype) if self.balance == "node" else counts[level]
            weights.append(self.weights[level] * share / share.sum())
        return Rows(torch.cat([self.columns[level] for level in levels]), torch.cat(weights))

    def loss(self, logits: Float[Tensor, "M N"], rows: Rows) -> Float[Tensor, ""]:
        """``Σ_l ω_l · (mean of CE(p^l, true node))``, by the weights of ``rows``."""
        masked = logits.masked_fill(~self.candidates[rows.columns], -torch.inf)
        return (F.cross_entropy(masked, rows.columns, reduction="none") * rows.weights).sum()


def _weights(spec: str, top: int) -> tuple[float, ...]:
    if spec == "paper":
        return level_weights(top)
    if spec == "equal":
        return (1.0,) * top
    weights = parse_level_weights(spec)
    if len(weights) < top:
        raise UsageError(f"--level-weights {spec!r}: {len(weights)} given, the tree has {top} levels below its root")
    return weights[:top]


def _candidates(tree: Tree, index: NodeIndex, hnsa: str) -> Bool[Tensor, "N N"]:
    """For each true column, which columns stand in the denominator of the softmax.

    These are the columns of its own level, and the nodes of neighbouring levels that share no edge with the true node.
    A node that stands at both levels is already in the denominator, as a node of the true node's level.
    """
    level, columns = index.level.cpu(), [c.cpu() for c in index.columns]
    mask: Tensor = level[:, None] == level
    for below in range(tree.height - 1):
        parents, passing = tree.parents(below), tree.passes_through(below)
        lower, upper = columns[below], columns[below + 1]
        strangers = parents[:, None] != torch.arange(len(upper))
        if hnsa in ("upper", "both"):
            passed = torch.zeros(len(upper), dtype=torch.bool)
            passed[parents[passing]] = True
            mask[lower[0] : lower[-1] + 1, upper] = strangers & ~passed
        if hnsa in ("lower", "both"):
            mask[upper[0] : upper[-1] + 1, lower] = strangers.T & ~passing
    return mask


def vicinity(
    images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"], margin: float, head: HyperbolicHead
) -> Float[Tensor, ""]:
    """``L_vic = mean max(0, d(φ(x̂), ψ(t̂_y)) - ζ_vic)``: near the leaf's text, without collapsing onto it."""
    distance: Tensor = head.space.distance(images, texts, head.value("curvature"))
    return F.relu(distance - margin).mean()


def norm_gap(steps: Float[Tensor, "E"], margin: float, edges: Bool[Tensor, "E"] | None = None) -> Float[Tensor, ""]:
    """``L_gap = mean max(0, ‖parent‖ - ‖child‖ + ζ_gap)`` over edges; zero where there is none.

    Args:
        steps: ``‖child‖ - ‖parent‖``.
        edges: which entries of ``steps`` are edges; by default all.
    """
    costs = F.relu(margin - steps)
    weights = torch.ones_like(costs) if edges is None else edges.to(costs.dtype)
    return (costs * weights).sum() / weights.sum().clamp_min(1)
