from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex
from hrzs.training.alignment import ClassMeans, LevelAlignment, norm_gap, text_edges, vicinity

HNSA = ("none", "lower", "upper", "both")


Plan = tuple[int, list[list[tuple[int, bool]]], int]
#: Leaves; for each level the group of every node, and whether it passes through when alone; an order of classes.
plans: st.SearchStrategy[Plan] = st.integers(2, 9).flatmap(
    lambda leaves: st.tuples(
        st.just(leaves),
        st.lists(
            st.lists(st.tuples(st.integers(0, leaves - 1), st.booleans()), min_size=leaves, max_size=leaves), max_size=3
        ),
        st.integers(0, 99),
    )
)


def grow(plan: Plan) -> Tree:
    """The tree of a plan. (Not drawn as such: beartype's checks of a tree use `random`, which hypothesis forbids.)"""
    leaves, levels, order = plan
    nodes = [Node(f"c{i}", f"c{i}", class_id=f"c{i}") for i in range(leaves)]
    for level, choices in enumerate(levels, 1):
        groups: dict[int, list[Node]] = {}
        alone: dict[int, bool] = {}
        for node, (group, passes) in zip(nodes, choices, strict=False):
            groups.setdefault(group, []).append(node)
            alone[group] = passes
        nodes = [
            group[0]
            if len(group) == 1 and alone[k]
            else Node(f"s{level}.{k}", f"s{level}.{k}", tuple(group), level=level)
            for k, group in groups.items()
        ]
    classes = sorted((f"c{i}" for i in range(leaves)), key=lambda c: hash((int(c[1:]), order)))
    return Tree(Node("root", "root", tuple(nodes), level=len(levels) + 1), tuple(classes))


def joined(tree: Tree) -> set[frozenset[int]]:
    """Every edge of the tree, as the identities of its two ends."""
    return {frozenset((id(node), id(child))) for node in tree.root.walk() for child in node.children}


@given(plans, st.sampled_from(HNSA))
def test_denominator_is_own_level_and_strangers_of_neighbouring_levels(plan: Plan, hnsa: str) -> None:
    tree = grow(plan)
    index, edges = NodeIndex.of(tree), joined(tree)
    alignment = LevelAlignment(tree, index, hnsa)
    for level in range(tree.top):
        neighbours = {"none": (), "lower": (-1,), "upper": (1,), "both": (-1, 1)}[hnsa]
        for k, true in enumerate(tree.levels[level]):
            expected = {id(node) for node in tree.levels[level]}
            for neighbour in (level + step for step in neighbours):
                if 0 <= neighbour < tree.top:
                    expected |= {id(n) for n in tree.levels[neighbour] if frozenset((id(n), id(true))) not in edges}
            allowed = alignment.candidates[level][k].nonzero().squeeze(1).tolist()
            assert {id(index.nodes[i]) for i in allowed} == expected


@given(plans)
def test_level_weights_fall_from_the_leaves(plan: Plan) -> None:
    tree = grow(plan)
    weights = LevelAlignment(tree, NodeIndex.of(tree)).weights
    assert weights == pytest.approx([1 - level / (tree.top + 1) for level in range(tree.top)])


@pytest.mark.parametrize(("spec", "weights"), [("equal", (1, 1)), ("1,0.25", (1, 0.25)), ("0,2,7", (0, 2))])
def test_other_level_weights(spec: str, weights: tuple[float, ...]) -> None:
    tree = grow((3, [[(0, False), (0, False), (1, False)]], 0))
    alignment = LevelAlignment(tree, NodeIndex.of(tree), weights=spec)
    asked: list[int] = []

    def term(level: int) -> Tensor:
        asked.append(level)
        return torch.tensor(float(10**level))

    assert alignment.total(term).item() == weights[0] + 10 * weights[1]
    assert asked == [level for level, weight in enumerate(weights) if weight]
    assert alignment.total(term, [1]).item() == 10 * weights[1]
    assert alignment.total(term, []).item() == 0


def test_too_few_level_weights_are_refused() -> None:
    tree = grow((3, [[(0, False), (0, False), (1, False)]], 0))
    with pytest.raises(UsageError, match=r"--level-weights '1': 1 given, the tree has 2 levels"):
        LevelAlignment(tree, NodeIndex.of(tree), weights="1")


def scene(data: st.DataObject, tree: Tree, columns: int) -> tuple[Tensor, Tensor]:
    """Random values of 1 to 6 images, float64, and their labels."""
    count = data.draw(st.integers(1, 6))
    labels = data.draw(st.lists(st.integers(0, len(tree.classes) - 1), min_size=count, max_size=count))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    return torch.randn(count, columns, dtype=torch.float64, generator=generator), torch.tensor(labels)


@given(plans, st.sampled_from(HNSA), st.data())
def test_per_image_loss_against_its_definition(plan: Plan, hnsa: str, data: st.DataObject) -> None:
    tree = grow(plan)
    index = NodeIndex.of(tree)
    logits, labels = scene(data, tree, len(index.nodes))
    alignment = LevelAlignment(tree, index, hnsa)
    expected = 0.0
    for level in range(tree.top):
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            true = int(tree.ancestors[level, label])
            against = [row[i] for i, allowed in enumerate(alignment.candidates[level][true].tolist()) if allowed]
            own = row[int(index.columns[level][true])]
            loss = math.log(sum(math.exp(v) for v in against)) - own
            expected += (1 - level / (tree.top + 1)) * loss / len(labels)
    total = alignment.total(lambda level: alignment.per_image(logits, labels, level))
    assert total.item() == pytest.approx(expected)


@given(plans, st.floats(0.1, 4), st.data())
def test_class_means_average_level_by_level(plan: Plan, curvature: float, data: st.DataObject) -> None:
    tree = grow(plan)
    values, labels = scene(data, tree, 3)
    head = HyperbolicHead(1.0, 1.0, 1.0, curvature).double()
    curvature = head.value("curvature").item()
    points = poincare.expmap0(values, curvature)
    means = ClassMeans(tree, points, labels, head)

    def average(members: list[Tensor]) -> Tensor:
        group = torch.stack(members)
        return poincare.einstein_midpoint(group, torch.ones(1, len(group), dtype=group.dtype), curvature)[0]

    below = [average([p for p, y in zip(points, labels, strict=True) if y == c]) for c in labels.unique()]
    present = labels.unique().tolist()
    for level in range(tree.top):
        assert means.nodes[level].tolist() == present
        torch.testing.assert_close(means.points[level], torch.stack(below), rtol=1e-9, atol=1e-9)
        if level + 1 == tree.top:
            break
        parents = tree.parents(level)[present].tolist()
        groups = {p: [b for b, q in zip(below, parents, strict=True) if q == p] for p in sorted(set(parents))}
        edges = {
            (p, c)
            for c, p in zip(present, parents, strict=True)
            if tree.levels[level][c] is not tree.levels[level + 1][p] and len(groups[p]) > 1
        }
        above, children = means.edges[level]
        named = {(sorted(groups)[a], present[c]) for a, c in zip(above.tolist(), children.tolist(), strict=True)}
        assert named == edges
        assert len(above) == len(edges)
        present, below = sorted(groups), [average(groups[p]) for p in sorted(groups)]
    assert len(means.edges) == tree.top - 1


@given(plans)
def test_text_edges_are_those_below_the_root_each_once(plan: Plan) -> None:
    tree = grow(plan)
    index = NodeIndex.of(tree)
    parents, children = text_edges(tree, index)
    found = [(id(index.nodes[p]), id(index.nodes[c])) for p, c in zip(parents.tolist(), children.tolist(), strict=True)]
    expected = [(id(n), id(c)) for n in tree.root.walk() if n is not tree.root for c in n.children]
    assert sorted(found) == sorted(expected)


def test_vicinity_costs_beyond_its_margin_only() -> None:
    images = torch.tensor([[0.1, 0.0], [0.6, 0.0]], requires_grad=True)
    texts = torch.zeros(2, 2)
    distances = [2 * math.atanh(0.1), 2 * math.atanh(0.6)]
    loss = vicinity(images, texts, 1.0, HyperbolicHead(1.0, 1.0, 1.0))
    assert loss.item() == pytest.approx((distances[1] - 1.0) / 2)
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient[0].tolist() == [0.0, 0.0]
    assert gradient[1, 0].item() == pytest.approx(0.5 * 2 / (1 - 0.36))


def test_in_flat_space_means_are_means_and_distances_straight() -> None:
    flat = HyperbolicHead(1.0, 1.0, 1.0, 0.0)
    tree = grow((3, [[(0, False), (0, False), (1, False)]], 0)).restrict(("c0", "c1", "c2"))
    points = torch.tensor([[3.0, 0.0], [5.0, 0.0], [0.0, 2.0]])
    means = ClassMeans(tree, points, torch.tensor([0, 0, 1]), flat)
    assert means.points[0].tolist() == [[4.0, 0.0], [0.0, 2.0]]
    assert means.points[1].tolist() == [[2.0, 1.0]]
    assert vicinity(points[:1], torch.zeros(1, 2), 1.0, flat).item() == pytest.approx(2 * 3.0 - 1.0)


def test_norm_gap_wants_parents_nearer_the_centre() -> None:
    parents = torch.tensor([[0.3, 0.0], [0.3, 0.0]], requires_grad=True)
    children = torch.tensor([[0.0, 0.4], [0.0, 0.35]], requires_grad=True)
    loss = norm_gap(parents, children, 0.08)
    assert loss.item() == pytest.approx((0.3 - 0.35 + 0.08) / 2)
    of_parents, of_children = torch.autograd.grad(loss, (parents, children))
    assert of_parents.tolist() == [[0.0, 0.0], [0.5, 0.0]]
    assert of_children.tolist() == [[0.0, 0.0], [0.0, -0.5]]


def test_norm_gap_without_edges_is_zero() -> None:
    assert norm_gap(torch.zeros(0, 2), torch.zeros(0, 2), 0.1).item() == 0.0
