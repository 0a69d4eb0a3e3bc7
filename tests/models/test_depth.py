"""Where the texts of a tree lie, by brute force over pairs and edges."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.depth import node_points, text_depth, text_edges
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex

if TYPE_CHECKING:
    from hrzs.models.clip import ClipModel


def distance(u: list[float], v: list[float], r: float) -> float:
    """Through arcosh, in Python's floats; twice the straight line where ``r`` is 0."""
    squared = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    if r == 0:
        return 2 * math.sqrt(squared)
    gaps = (1 - r * sum(a * a for a in u)) * (1 - r * sum(a * a for a in v))
    return math.acosh(1 + 2 * r * squared / gaps) / math.sqrt(r)


@pytest.mark.parametrize("curvature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_by_brute_force(tree: Tree, curvature: float, seed: int) -> None:
    head = HyperbolicHead(1.0, 1.0, (4.0, 3.0, 2.0), curvature, (1.0, 0.7, 0.5)).double()
    index = NodeIndex.of(tree)
    texts = torch.randn(10, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.3
    prepared = head.prepare(texts[index.owner], index.level)
    found = text_depth(head, index, text_edges(tree, index), prepared)
    points: list[list[float]] = prepared.tolist()
    lengths = [math.hypot(*p) for p in points]
    ordered = []
    for level, columns in enumerate(c.tolist() for c in index.columns):
        beta = (4.0, 3.0, 2.0)[level]
        share = math.sqrt(curvature) if curvature else 1.0
        radius = share * sum(lengths[c] for c in columns) / len(columns)
        margin = beta * max(distance(points[a], points[b], curvature) for a in columns for b in columns)
        bound = beta * 2 * max(distance(points[a], [0.0] * 4, curvature) for a in columns)
        assert found.radius[level].item() == pytest.approx(radius)
        assert found.margin[level].item() == pytest.approx(margin, rel=1e-6)
        assert found.bound[level].item() == pytest.approx(bound, rel=1e-6)
        assert margin <= bound * (1 + 1e-12)
        for row, node in enumerate(tree.levels[level]):
            for above, parent in enumerate(tree.levels[level + 1] if level + 1 < tree.height else ()):
                if any(child is node for child in parent.children):
                    ordered.append(lengths[columns[row]] > lengths[int(index.columns[level + 1][above])])
    # Of the tree's edges below the root: dog, wolf, car, bus; canine, cat, wheeled vehicle, boat.
    assert len(ordered) == 8
    assert found.edges_ordered.item() == pytest.approx(sum(ordered) / 8)
    assert not found.margin.requires_grad


@pytest.mark.parametrize("curvature", [0.0, 1.0])
def test_antipodal_texts_reach_the_bound(curvature: float) -> None:
    pair = Tree(Node("all", "all", tuple(Node(n, n, class_id=n) for n in "ab"), level=1))
    index = NodeIndex.of(pair)
    head = HyperbolicHead(1.0, 1.0, 5.0, curvature).double()
    direction = torch.tensor([[0.3, -0.4, 0.2]], dtype=torch.float64)
    found = text_depth(head, index, text_edges(pair, index), head.prepare(torch.cat([direction, -direction])))
    torch.testing.assert_close(found.margin, found.bound, rtol=1e-9, atol=0)
    assert found.edges_ordered.isnan(), "there is no superclass"
    # At right angles they stay under it.
    aside = torch.tensor([[0.4, 0.3, 0.0]], dtype=torch.float64)
    less = text_depth(head, index, text_edges(pair, index), head.prepare(torch.cat([direction, aside])))
    assert less.margin.item() < 0.95 * less.bound.item()


def test_factors_that_fall_order_every_edge_of_texts_of_one_length(tree: Tree) -> None:
    index = NodeIndex.of(tree)
    texts: Tensor = torch.nn.functional.normalize(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))

    def ordered(depth: tuple[float, ...]) -> float:
        head = HyperbolicHead(1.0, 0.5, 1.0, depth=depth)
        prepared = head.prepare(texts[index.owner], index.level)
        return text_depth(head, index, text_edges(tree, index), prepared).edges_ordered.item()

    assert ordered((1.0, 0.6, 0.3)) == 1.0
    assert ordered((1.0, 1.2, 1.4)) == 0.0
    assert ordered((1.0, 0.5, 0.7)) == 0.5


# -- nodes in the ball ----------------------------------------------------------------------------------------------


def test_nodes_lie_at_the_depth_of_their_level(small: ClipModel, tree: Tree) -> None:
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25, [1.0, 0.5, 0.2])
    found = node_points(small, tree)
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25)
    flat = node_points(small, tree)
    for node, point, without in zip(found.nodes, found.points, flat.points, strict=True):
        factor = 0.0 if node is tree.root else (1.0, 0.5, 0.2)[node.level]
        assert torch.atanh(point.norm()).item() == pytest.approx(factor * torch.atanh(without.norm()).item(), abs=1e-5)


@pytest.fixture
def hyperbolic(small: ClipModel) -> ClipModel:
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25)
    return small


def test_a_cosine_model_is_lifted_to_the_radius(small: ClipModel, tree: Tree) -> None:
    found = node_points(small, tree, radius=0.3)
    assert found.nodes[-1] is tree.root
    assert len(found.nodes) == len(list(tree.root.walk())) == len(found.points)
    # A leaf of mean norm is at the radius; tanh bends the mean a little.
    norms = torch.atanh(found.points.norm(dim=1))
    assert norms[: len(tree.classes)].mean().item() == pytest.approx(math.atanh(0.3), rel=1e-5)
    assert "radius 0.3" in found.lift


def test_a_hyperbolic_model_places_by_its_own_head(hyperbolic: ClipModel, tree: Tree) -> None:
    found = node_points(hyperbolic, tree)
    assert "r = 0.25" in found.lift
    # `bus` has two prompts; the text of `dog` is one.
    dog = next(i for i, node in enumerate(found.nodes) if node.name == "dog")
    with torch.no_grad():
        text = hyperbolic.encode_text(["a photo of a dog."])
    expected = poincare.expmap0(0.2 * text, 0.25) * 0.25**0.5
    torch.testing.assert_close(found.points[dog], expected[0], rtol=1e-4, atol=1e-6)
