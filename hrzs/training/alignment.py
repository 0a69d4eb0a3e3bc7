"""Losses over the levels of a tree: alignment of images and texts (HITA) and the placing of depth by norm.

Source: Dong et al., CVPR 2026 (method.md, sections 2 and 4). A column of logits is a node at a level
(`hrzs.models.text.NodeIndex`); the logits of a level reach over its own columns and, for the negatives of its
neighbours (HNSA), over theirs. Shapes never depend on which classes a batch holds, so nothing here waits for a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


class LevelAlignment:
    """``L'``: cross-entropy at each level, with hierarchy-aware negatives from its neighbours (HNSA).

    Args:
        tree: the class tree, L levels below its root.
        index: the columns of the logits.
        hnsa: which neighbours lend negatives to a level: ``none``, ``lower``, ``upper`` or ``both``.
        weights: ``ω``: ``paper``, ``equal``, or numbers from the leaves upwards, such as ``1,0.5``.
        balance: what counts alike in the mean of a level above the leaves: each ``image``, or each ``node`` that has an
            image in the batch, however many it has.

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
        self.top = tree.top
        self.weights = _weights(weights, tree.top)
        self.balance = balance
        self.ancestors = tree.ancestors.to(device)
        self.reach = [_reach(index, level, hnsa, tree.top) for level in range(tree.top)]
        self.candidates = [
            mask[:, reach].to(device) for mask, reach in zip(_candidates(tree, index, hnsa), self.reach, strict=True)
        ]
        #: Where a level's own columns begin within its reach.
        self._first = [int(index.columns[level][0]) - self.reach[level].start for level in range(tree.top)]

    def cross_entropy(self, logits: Float[Tensor, "M N"], nodes: Int[Tensor, "M"], level: int) -> Float[Tensor, "M"]:
        """CE of rows against the true ``nodes`` of ``level``; the logits are those of the columns ``reach[level]``."""
        masked = logits.masked_fill(~self.candidates[level][nodes], -torch.inf)
        return F.cross_entropy(masked, nodes + self._first[level], reduction="none")

    def per_image(self, logits: Float[Tensor, "B N"], labels: Int[Tensor, "B"], level: int) -> Float[Tensor, ""]:
        """The term of one level with every image itself: the mean of ``CE(p^l, anc(y, l))`` over images or nodes."""
        nodes = self.ancestors[level][labels]
        losses = self.cross_entropy(logits, nodes, level)
        if self.balance == "image" or level == 0:
            return losses.mean()
        counts = losses.new_zeros(len(self.candidates[level])).index_add(0, nodes, torch.ones_like(losses))
        return (losses / counts[nodes]).sum() / (counts > 0).sum()

    def of_means(self, logits: Float[Tensor, "K N"], counts: Float[Tensor, "K"], level: int) -> Float[Tensor, ""]:
        """The term of one level with class means: row k stands for node k, which has ``counts[k]`` images."""
        nodes = torch.arange(len(counts), device=counts.device)
        weights = (counts > 0).to(logits.dtype) if self.balance == "node" else counts
        return (self.cross_entropy(logits, nodes, level) * weights).sum() / weights.sum()

    def total(self, term: Callable[[int], Float[Tensor, ""]], levels: Iterable[int] | None = None) -> Float[Tensor, ""]:
        """``Σ_l ω_l term(l)`` over ``levels``, by default all; a level of weight 0 is not computed."""
        wanted = range(self.top) if levels is None else levels
        terms = [self.weights[level] * term(level) for level in wanted if self.weights[level] > 0]
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self.ancestors.device)


def _weights(spec: str, top: int) -> tuple[float, ...]:
    if spec == "paper":
        return level_weights(top)
    if spec == "equal":
        return (1.0,) * top
    weights = parse_level_weights(spec)
    if len(weights) < top:
        raise UsageError(f"--level-weights {spec!r}: {len(weights)} given, the tree has {top} levels below its root")
    return weights[:top]


def _reach(index: NodeIndex, level: int, hnsa: str, top: int) -> slice:
    """The columns that a level's logits are taken of; levels lie side by side."""
    lowest = level - 1 if hnsa in ("lower", "both") and level > 0 else level
    highest = level + 1 if hnsa in ("upper", "both") and level + 1 < top else level
    return slice(int(index.columns[lowest][0]), int(index.columns[highest][-1]) + 1)


def _candidates(tree: Tree, index: NodeIndex, hnsa: str) -> list[Bool[Tensor, "_ N"]]:
    """Per level: for each true node, which columns stand in the softmax's denominator.

    A neighbouring level lends the nodes that share no edge with the true one. Those that pass through stand in the
    denominator already, as nodes of the level itself.
    """
    size = len(index.owner)
    masks = []
    for level in range(tree.top):
        mask = torch.zeros(len(index.columns[level]), size, dtype=torch.bool)
        mask[:, index.columns[level]] = True
        if hnsa in ("upper", "both") and level + 1 < tree.top:
            parents, passing = tree.parents(level), tree.passes_through(level)
            lent = torch.ones(len(mask), len(index.columns[level + 1]), dtype=torch.bool)
            lent[torch.arange(len(mask)), parents] = False
            lent[:, parents[passing]] = False
            mask[:, index.columns[level + 1]] = lent
        if hnsa in ("lower", "both") and level > 0:
            parents, passing = tree.parents(level - 1), tree.passes_through(level - 1)
            lent = torch.ones(len(mask), len(index.columns[level - 1]), dtype=torch.bool)
            lent[parents, torch.arange(len(parents))] = False
            lent[:, passing] = False
            mask[:, index.columns[level - 1]] = lent
        masks.append(mask)
    return masks


def text_edges(tree: Tree, index: NodeIndex) -> tuple[Int[Tensor, "edges"], Int[Tensor, "edges"]]:
    """Columns (parents, children) of every edge below the root; a node that passes through has none."""
    parents, children = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
    for level in range(tree.top - 1):
        real = ~tree.passes_through(level)
        parents.append(index.columns[level + 1].cpu()[tree.parents(level)][real])
        children.append(index.columns[level].cpu()[real])
    return torch.cat(parents), torch.cat(children)


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
        edges: which of these are edges; by default all.
    """
    costs = F.relu(margin - steps)
    weights = torch.ones_like(costs) if edges is None else edges.to(costs.dtype)
    return (costs * weights).sum() / weights.sum().clamp_min(1)
