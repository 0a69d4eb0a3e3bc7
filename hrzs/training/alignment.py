"""Losses over the levels of a tree: alignment of images and texts (HITA) and the placing of depth by norm.

Source: Dong et al., CVPR 2026 (method.md, sections 2 and 4). A node is a column of one matrix of logits, computed once;
each level reads its own columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.objectives import level_weights
from hrzs.errors import UsageError
from hrzs.geometry import poincare
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
    ) -> None:
        self.top = tree.top
        self.weights = _weights(weights, tree.top)
        self.columns = [c.to(device) for c in index.columns]
        self.ancestors = tree.ancestors.to(device)
        self.candidates = [m.to(device) for m in _candidates(tree, index, hnsa)]

    def cross_entropy(self, logits: Float[Tensor, "M N"], nodes: Int[Tensor, "M"], level: int) -> Float[Tensor, "M"]:
        """CE of rows against the true ``nodes`` of ``level``, over that level's columns and its negatives."""
        allowed = self.candidates[level][nodes]
        target = self.columns[level][nodes]
        return F.cross_entropy(logits.masked_fill(~allowed, -torch.inf), target, reduction="none")

    def per_image(self, logits: Float[Tensor, "B N"], labels: Int[Tensor, "B"], level: int) -> Float[Tensor, ""]:
        """The term of one level with every image itself: ``mean_B CE(p^l, anc(y, l))``."""
        return self.cross_entropy(logits, self.ancestors[level][labels], level).mean()

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


def _candidates(tree: Tree, index: NodeIndex, hnsa: str) -> list[Bool[Tensor, "_ N"]]:
    """Per level: for each true node, which columns stand in the softmax's denominator."""
    size = len(index.nodes)
    masks = []
    for level in range(tree.top):
        own = torch.zeros(size, dtype=torch.bool)
        own[index.columns[level]] = True
        mask = own.expand(len(index.columns[level]), -1).clone()
        if hnsa in ("upper", "both") and level + 1 < tree.top:
            above = index.columns[level + 1]
            shares = torch.zeros(len(mask), size, dtype=torch.bool)
            shares[torch.arange(len(mask)), above[tree.parents(level)]] = True
            is_above = torch.zeros(size, dtype=torch.bool)
            is_above[above] = True
            mask |= is_above & ~shares
        if hnsa in ("lower", "both") and level > 0:
            below = index.columns[level - 1]
            shares = torch.zeros(len(mask), size, dtype=torch.bool)
            shares[tree.parents(level - 1), below] = True
            is_below = torch.zeros(size, dtype=torch.bool)
            is_below[below] = True
            mask |= is_below & ~shares
        masks.append(mask)
    return masks


class ClassMeans:
    """HypAvg: image embeddings of the nodes present in a batch, averaged level by level (method.md, section 2);
    in flat space their plain means.

    ``nodes[l]`` are the present nodes of level l, ``points[l]`` their means: at level 0 over a class's images, above
    over a node's present children. ``edges[l]`` pairs rows of ``points[l + 1]`` (parents) with rows of ``points[l]``
    (children); nodes that pass through and parents with one child present are left out.
    """

    def __init__(
        self, tree: Tree, points: Float[Tensor, "B D"], labels: Int[Tensor, "B"], head: HyperbolicHead
    ) -> None:
        self.nodes: list[Int[Tensor, "present"]] = []
        self.points: list[Float[Tensor, "present D"]] = []
        self.edges: list[tuple[Int[Tensor, "edges"], Int[Tensor, "edges"]]] = []
        owner = labels
        for level in range(tree.top):
            nodes, group = torch.unique(owner, return_inverse=True)
            membership = F.one_hot(group, len(nodes)).T.to(points.dtype)
            if level > 0:
                real = ~tree.passes_through(level - 1).to(labels.device)[self.nodes[-1]]
                real &= torch.bincount(group, minlength=len(nodes))[group] > 1
                children = real.nonzero().squeeze(1)
                self.edges.append((group[children], children))
            points = head.space.einstein_midpoint(points, membership, head.value("curvature"))
            self.nodes.append(nodes)
            self.points.append(points)
            owner = tree.parents(level).to(labels.device)[nodes]


def text_edges(tree: Tree, index: NodeIndex) -> tuple[Int[Tensor, "edges"], Int[Tensor, "edges"]]:
    """Columns (parents, children) of every edge below the root; a node that passes through has none."""
    parents, children = [], []
    for level in range(tree.top - 1):
        real = ~tree.passes_through(level)
        parents.append(index.columns[level + 1][tree.parents(level)][real])
        children.append(index.columns[level][real])
    if not parents:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return torch.cat(parents), torch.cat(children)


def vicinity(
    images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"], margin: float, head: HyperbolicHead
) -> Float[Tensor, ""]:
    """``L_vic = mean max(0, d(φ(x̂), ψ(t̂_y)) - ζ_vic)``: near the leaf's text, without collapsing onto it."""
    distance: Tensor = head.space.distance(images, texts, head.value("curvature"))
    return F.relu(distance - margin).mean()


def norm_gap(parents: Float[Tensor, "E D"], children: Float[Tensor, "E D"], margin: float) -> Float[Tensor, ""]:
    """``L_gap = mean max(0, ‖parent‖ - ‖child‖ + ζ_gap)`` over edges; zero where there is none."""
    if not len(parents):
        return parents.new_zeros(())
    return F.relu(poincare.norm(parents) - poincare.norm(children) + margin).mean()
