"""Where the nodes of a tree lie under a hyperbolic (or euclidean) head, as texts and as means of images (HypAvg)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.templates import resolve_template
from hrzs.models.text import NodeIndex, Prompts


class TextDepth(NamedTuple):
    """Where the texts of each level lie, the leaves' first; ``edges_ordered`` is one figure for the tree.

    ``radius``: the mean share of the ball's radius (in flat space the mean norm). ``margin``: the largest log-odds that
    an image can have at the level, ``β_l max d(ψ, ψ')``, when it sits on one of the two texts that lie furthest apart.
    ``bound``: the largest margin in theory, if no text lies further out than the level's outermost, ``2 β_l max d(0,
    ψ)``; two antipodal texts reach it (docs/method.md). ``edges_ordered``: the share of edges whose parent lies nearer
    the centre than the child; NaN for a tree without a superclass.
    """

    radius: Float[Tensor, "levels"]
    margin: Float[Tensor, "levels"]
    bound: Float[Tensor, "levels"]
    edges_ordered: Float[Tensor, ""]


@torch.no_grad()
def text_depth(
    head: HyperbolicHead,
    index: NodeIndex,
    edges: tuple[Int[Tensor, "E"], Int[Tensor, "E"]],
    prepared: Float[Tensor, "N D"],
) -> TextDepth:
    """Where the ``prepared`` texts of the columns of ``index`` lie; ``edges`` are those of `text_edges`."""
    curvature = head.value("curvature")
    radii, parents, children = head.radius(prepared), *edges
    centre = head.space.distance(prepared, torch.zeros_like(prepared), curvature)
    radius, margin, bound = [], [], []
    for level, columns in enumerate(index.columns):
        points, beta = prepared[columns], head.beta(level)
        radius.append(radii[columns].mean())
        margin.append(beta * head.space.pairwise_distance(points, points, curvature).max())
        bound.append(2 * beta * centre[columns].max())
    ordered = (radii[children] > radii[parents]).to(radii.dtype).mean()
    return TextDepth(torch.stack(radius), torch.stack(margin), torch.stack(bound), ordered)


def text_edges(tree: Tree, index: NodeIndex) -> tuple[Int[Tensor, "edges"], Int[Tensor, "edges"]]:
    """Columns (parents, children) of every edge below the root; a node that passes through has none."""
    parents, children = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
    for level in range(tree.height - 1):
        real = ~tree.passes_through(level)
        parents.append(index.columns[level + 1].cpu()[tree.parents(level)][real])
        children.append(index.columns[level].cpu()[real])
    device = index.owner.device
    return torch.cat(parents).to(device), torch.cat(children).to(device)


#: The number of images from which on a class mean is steady enough to tell where its class lies.
STEADY = 4


class Groups(NamedTuple):
    """What `ClassMeans` averages in a batch, by the batch's labels; one row for each node of a level.

    ``shares[l]`` are the weights of the level below (at level 0, of the images) in each node's mean; a row sums to one,
    or is zero for a node without images. ``counts[l]`` are the numbers of images beneath each node. ``edges[l]`` says
    which nodes of level l count as children in ``L_gap^Intra``: not those that pass through, nor an only child present.
    """

    shares: tuple[Float[Tensor, "_ _"], ...]
    counts: tuple[Float[Tensor, "_"], ...]
    edges: tuple[Bool[Tensor, "_"], ...]


class ClassMeans:
    """HypAvg: image embeddings of the nodes present in a batch, averaged level by level (docs/method.md).

    At level 0 a mean is taken over a class's images. Above, it is taken over the means of the children present, brought
    to the level's depth; each child counts alike. In flat space all are plain means.
    """

    def __init__(self, tree: Tree, device: torch.device | str = "cpu") -> None:
        self.classes = torch.arange(len(tree.classes), device=device)
        self.parents = [tree.parents(level).to(device) for level in range(tree.height - 1)]
        self.passing = [tree.passes_through(level).to(device) for level in range(tree.height - 1)]
        self.children = [
            (parents == torch.arange(len(tree.levels[level + 1]), device=device)[:, None]).float()
            for level, parents in enumerate(self.parents)
        ]

    def group(self, labels: Int[Tensor, "B"], like: Tensor) -> Groups:
        """The groups of a batch with these labels, in the dtype of ``like``."""
        members, edges = [(labels == self.classes[:, None]).to(like.dtype)], []
        counts = [members[0].sum(1)]
        for level, parents in enumerate(self.parents):
            children = self.children[level].to(like.dtype)
            present = (counts[level] > 0).to(like.dtype)
            edges.append(~self.passing[level] & (present > 0) & ((children @ present)[parents] > 1))
            members.append(children * present)
            counts.append(children @ counts[level])
        shares = tuple(m / m.sum(1, keepdim=True).clamp_min(1) for m in members)
        return Groups(shares, tuple(counts), tuple(edges))

    def __call__(
        self, points: Float[Tensor, "B D"], groups: Groups, head: HyperbolicHead
    ) -> tuple[Float[Tensor, "_ D"], ...]:
        """The class means of each level, one row per node, at the level's depth; the origin for a node without images.

        ``points`` are the images, at the leaves' depth.
        """
        levels = range(len(self.parents))
        factors = [head.image_factor(level + 1) / head.image_factor(level) for level in levels]
        means: tuple[Tensor, ...] = head.space.nested_midpoints(points, groups.shares, factors, head.value("curvature"))
        return means

    def steps_outwards(self, means: Sequence[Float[Tensor, "_ D"]]) -> Float[Tensor, "_"]:
        """For each node below the topmost level, the norm of its mean less the norm of its parent's mean."""
        norms = [poincare.norm(points) for points in means]
        steps = [norms[level] - norms[level + 1][parents] for level, parents in enumerate(self.parents)]
        return torch.cat([means[0].new_zeros(0), *steps])

    def edges_ordered(self, means: Sequence[Float[Tensor, "_ D"]], groups: Groups) -> Float[Tensor, ""]:
        """Of the edges with at least `STEADY` images beneath the child, the share whose parent lies nearer the centre;
        NaN if there is no such edge."""
        steps = self.steps_outwards(means)
        steady = [edge & (count >= STEADY) for edge, count in zip(groups.edges, groups.counts, strict=False)]
        kept = torch.cat([steps.new_zeros(0, dtype=torch.bool), *steady])
        return ((steps > 0) & kept).sum() / kept.sum()


@dataclass(frozen=True)
class NodePoints:
    """The nodes of a tree (leaves first, the root last) in the Poincaré ball, scaled by √r to the unit ball.

    ``lift`` says in words how they were placed there.
    """

    nodes: tuple[Node, ...]
    points: Float[Tensor, "N D"]
    lift: str


@torch.no_grad()
def node_points(model: ClipModel, tree: Tree, template: str = "photo", radius: float = 0.5) -> NodePoints:
    """Where the texts of a tree's nodes, the root included, lie in the ball.

    A hyperbolic model places each text by its own head, at the depth of the node's lowest level, and the root at the
    centre if the head tells levels apart. For any other model, the text features before normalisation are lifted by
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
