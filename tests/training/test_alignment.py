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
from hrzs.models.depth import STEADY, ClassMeans, text_edges
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import NodeIndex
from hrzs.training.alignment import LevelAlignment, Rows, norm_gap, vicinity

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


def spread(alignment: LevelAlignment, column: int) -> list[int]:
    """The columns in the denominator of a true column."""
    return [int(i) for i in alignment.candidates[column].nonzero().squeeze(1)]


@given(plans, st.sampled_from(HNSA))
def test_denominator_is_own_level_and_strangers_of_neighbouring_levels(plan: Plan, hnsa: str) -> None:
    tree = grow(plan)
    index, edges = NodeIndex.of(tree), joined(tree)
    alignment = LevelAlignment(tree, index, hnsa)
    assert alignment.candidates.shape == (len(index.owner), len(index.owner))
    for level in range(tree.height):
        neighbours = {"none": (), "lower": (-1,), "upper": (1,), "both": (-1, 1)}[hnsa]
        for k, true in enumerate(tree.levels[level]):
            expected = {id(node) for node in tree.levels[level]}
            for neighbour in (level + step for step in neighbours):
                if 0 <= neighbour < tree.height:
                    expected |= {id(n) for n in tree.levels[neighbour] if frozenset((id(n), id(true))) not in edges}
            column = int(index.columns[level][k])
            allowed = spread(alignment, column)
            assert column in allowed
            standing = [id(index.nodes[i]) for i in index.owner[allowed]]
            # A node that passes through has a column in either level: it stands there once, with that of the level.
            assert sorted(standing) == sorted(expected)
            assert set(index.columns[level].tolist()) <= set(allowed)
            touched = {int(index.level[i]) for i in allowed}
            assert touched <= {level, *(level + step for step in neighbours)}


@given(plans)
def test_level_weights_fall_from_the_leaves(plan: Plan) -> None:
    tree = grow(plan)
    alignment = LevelAlignment(tree, NodeIndex.of(tree))
    assert alignment.weights == pytest.approx([1 - level / (tree.height + 1) for level in range(tree.height)])
    assert alignment.levels() == list(range(tree.height))


@pytest.mark.parametrize(("spec", "weights"), [("equal", (1, 1)), ("1,0.25", (1, 0.25)), ("0,2,7", (0, 2))])
def test_other_level_weights(spec: str, weights: tuple[float, ...]) -> None:
    tree = grow((3, [[(0, False), (0, False), (1, False)]], 0))
    index = NodeIndex.of(tree)
    alignment = LevelAlignment(tree, index, weights=spec)
    labels, counts = torch.tensor([0, 1, 2]), [torch.ones(3), torch.tensor([2.0, 1.0])]

    def term(levels: list[int]) -> tuple[float, float]:
        """Of logits that make an image of a leaf cost 1, one of a superclass 10."""
        found = []
        for rows in (alignment.of_images(labels, levels), alignment.of_means(counts, levels)):
            assert len(rows.columns) == len(rows.weights)
            found.append((rows.weights * 10.0 ** index.level[rows.columns]).sum().item())
        return found[0], found[1]

    counted = [level for level, weight in enumerate(weights) if weight]
    assert alignment.levels() == counted
    assert term(alignment.levels()) == pytest.approx([weights[0] + 10 * weights[1]] * 2)
    assert alignment.levels([1]) == [1]
    assert term([1]) == pytest.approx([10 * weights[1]] * 2)
    assert alignment.levels([0]) == [0][: int(weights[0])]
    assert alignment.levels([]) == []


def test_too_few_level_weights_are_refused() -> None:
    tree = grow((3, [[(0, False), (0, False), (1, False)]], 0))
    with pytest.raises(UsageError, match=r"--level-weights '1': 1 given, the tree has 2 levels"):
        LevelAlignment(tree, NodeIndex.of(tree), weights="1")


def scene(data: st.DataObject, tree: Tree, columns: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """Random values, so many ``rows`` for each of 1 to 6 images, float64, and the images' labels."""
    count = data.draw(st.integers(1, 6))
    labels = data.draw(st.lists(st.integers(0, len(tree.classes) - 1), min_size=count, max_size=count))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    return torch.randn(rows * count, columns, dtype=torch.float64, generator=generator), torch.tensor(labels)


def naive(row: list[float], alignment: LevelAlignment, column: int) -> float:
    """``CE`` of one row of all columns against the true one."""
    return math.log(sum(math.exp(row[i]) for i in spread(alignment, column))) - row[column]


def levels_of(data: st.DataObject, tree: Tree) -> list[int]:
    """All levels, or some of them."""
    some = data.draw(st.sets(st.integers(0, tree.height - 1), min_size=1))
    return data.draw(st.sampled_from((list(range(tree.height)), sorted(some))))


@given(plans, st.sampled_from(HNSA), st.sampled_from(("image", "node")), st.data())
def test_loss_of_images_against_its_definition(plan: Plan, hnsa: str, balance: str, data: st.DataObject) -> None:
    """The leaves' term is the mean over images; above it is that, or the mean over present nodes of theirs."""
    tree = grow(plan)
    index = NodeIndex.of(tree)
    levels = levels_of(data, tree)
    logits, labels = scene(data, tree, len(index.owner), len(levels))
    alignment = LevelAlignment(tree, index, hnsa, balance=balance)
    expected, columns, values = 0.0, [], iter(logits.tolist())
    for level in levels:
        of_node: dict[int, list[float]] = {}
        for label in labels.tolist():
            columns.append(int(index.columns[level][tree.ancestors[level, label]]))
            of_node.setdefault(columns[-1], []).append(naive(next(values), alignment, columns[-1]))
        groups = list(of_node.values())
        if balance == "image" or level == 0:
            groups = [[loss for group in groups for loss in group]]
        mean = sum(sum(group) / len(group) for group in groups) / len(groups)
        expected += (1 - level / (tree.height + 1)) * mean
    rows = alignment.of_images(labels, levels)
    assert rows.columns.tolist() == columns
    assert alignment.loss(logits, rows).item() == pytest.approx(expected)


@given(plans, st.sampled_from(HNSA), st.sampled_from(("image", "node")), st.data())
def test_loss_of_means_against_its_definition(plan: Plan, hnsa: str, balance: str, data: st.DataObject) -> None:
    """Nodes without images have no say, whatever their rows hold."""
    tree = grow(plan)
    index = NodeIndex.of(tree)
    _, labels = scene(data, tree, 1)
    levels = levels_of(data, tree)
    alignment = LevelAlignment(tree, index, hnsa, balance=balance)
    counts = [
        torch.bincount(tree.ancestors[k][labels], minlength=len(tree.levels[k])).double() for k in range(tree.height)
    ]
    rows = alignment.of_means(counts, levels)
    assert rows.columns.tolist() == torch.cat([index.columns[level] for level in levels]).tolist()
    logits = torch.randn(
        len(rows.columns), len(index.owner), dtype=torch.float64, generator=torch.Generator().manual_seed(len(labels))
    ).requires_grad_()
    expected, values = 0.0, iter(logits.tolist())
    for level in levels:
        losses = [naive(next(values), alignment, int(column)) for column in index.columns[level]]
        weights = [float(c > 0) if balance == "node" else c for c in counts[level].tolist()]
        mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        expected += (1 - level / (tree.height + 1)) * mean
    found = alignment.loss(logits, rows)
    assert found.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(found, logits)
    assert gradient.isfinite().all()
    assert not gradient[torch.cat([counts[level] for level in levels]) == 0].any()


@given(plans, st.integers(1, 3))
def test_nodes_of_as_many_images_weigh_alike_either_way(plan: Plan, count: int) -> None:
    """Level by level: as many images of each node, and the two balances are one."""
    tree = grow(plan)
    index = NodeIndex.of(tree)
    by_image, by_node = (LevelAlignment(tree, index, balance=balance) for balance in ("image", "node"))

    def same(one: Rows, other: Rows) -> None:
        assert torch.equal(one.columns, other.columns)
        torch.testing.assert_close(one.weights, other.weights)

    for level in range(tree.height):
        ancestors = tree.ancestors[level].tolist()
        first = [ancestors.index(node) for node in range(len(tree.levels[level]))]
        labels = torch.tensor(first * count)
        same(by_image.of_images(labels, [level]), by_node.of_images(labels, [level]))
        counts = [torch.full((len(nodes),), float(count)) for nodes in tree.levels[: tree.height]]
        same(by_image.of_means(counts, [level]), by_node.of_means(counts, [level]))
        if count > 1 and level > 0 and len(first) > 1:  # the first node has one image alone
            few = torch.tensor(first[1:] * count + first[:1])
            alike, balanced = (a.of_images(few, [level]).weights for a in (by_image, by_node))
            assert not torch.allclose(alike, balanced)
            torch.testing.assert_close(alike.sum(), balanced.sum())
            omega = 1 - level / (tree.height + 1)
            assert balanced[-1].item() == pytest.approx(omega / len(first))
            assert alike[-1].item() == pytest.approx(omega / len(few))


#: Depth factors of levels 0 to 3; a shorter list is continued with its last.
DEPTHS = ((1.0,), (1.0, 0.7, 0.4, 0.2), (1.0, 0.5), (1.0, 1.3, 0.6))


def present_only(points: Tensor, labels: Tensor, tree: Tree, head: HyperbolicHead) -> list[dict[int, Tensor]]:
    """The definition: a node's mean is that of its present children's, each brought to the node's depth."""
    curvature = head.value("curvature").item()
    factors = [head.image_factor(level).item() for level in range(tree.height)]

    def average(members: list[Tensor]) -> Tensor:
        group = torch.stack(members)
        return poincare.einstein_midpoint(group, torch.ones(1, len(group), dtype=group.dtype), curvature)[0]

    def placed(point: Tensor, factor: float) -> Tensor:
        length = point.norm() * curvature**0.5
        return point if length == 0 else point * (factor * length.atanh()).tanh() / length

    levels = [
        {c: average([p for p, y in zip(points, labels, strict=True) if y == c]) for c in labels.unique().tolist()}
    ]
    for level in range(1, tree.height):
        groups: dict[int, list[Tensor]] = {}
        for child, point in levels[-1].items():
            parent = int(tree.parents(level - 1)[child])
            groups.setdefault(parent, []).append(placed(point, factors[level] / factors[level - 1]))
        levels.append({parent: average(group) for parent, group in groups.items()})
    return levels


@given(plans, st.floats(0.1, 4), st.sampled_from(DEPTHS), st.booleans(), st.data())
def test_class_means_average_level_by_level(
    plan: Plan, curvature: float, depth: tuple[float, ...], image_depth: bool, data: st.DataObject
) -> None:
    tree = grow(plan)
    values, labels = scene(data, tree, 3)
    head = HyperbolicHead(1.0, 1.0, 1.0, curvature, depth, image_depth).double()
    points = poincare.expmap0(0.5 * values, head.value("curvature").item())
    average = ClassMeans(tree)
    groups = average.group(labels, points)
    means = average(points, groups, head)
    expected = present_only(points, labels, tree, head)
    norms = [{k: p.norm().item() for k, p in level.items()} for level in expected]
    outwards = average.steps_outwards(means).split([len(nodes) for nodes in tree.levels[: tree.height - 1]])
    assert len(means) == len(groups.counts) == len(groups.shares) == tree.height
    assert len(groups.edges) == len(outwards) == tree.height - 1
    steady: list[bool] = []
    for level, of_node in enumerate(expected):
        counts = torch.bincount(tree.ancestors[level][labels], minlength=len(tree.levels[level]))
        assert groups.counts[level].tolist() == counts.tolist()
        torch.testing.assert_close(groups.shares[level].sum(1), (counts > 0).double())
        assert (counts > 0).nonzero().squeeze(1).tolist() == sorted(of_node)
        for node, point in enumerate(means[level]):
            there = of_node.get(node, torch.zeros(3, dtype=torch.float64))
            torch.testing.assert_close(point, there, rtol=1e-6, atol=1e-8)
        if level + 1 == tree.height:
            break
        parents = tree.parents(level).tolist()
        for node in range(len(tree.levels[level])):
            siblings = [k for k in of_node if parents[k] == parents[node]]
            passes = tree.levels[level][node] is tree.levels[level + 1][parents[node]]
            edge = node in of_node and not passes and len(siblings) > 1
            assert bool(groups.edges[level][node]) == edge
            if node in of_node:
                step = norms[level][node] - norms[level + 1][parents[node]]
                assert outwards[level][node].item() == pytest.approx(step, abs=1e-7)
            if edge and counts[node] >= STEADY:
                steady.append(bool(outwards[level][node] > 0))
    ordered = average.edges_ordered(means, groups).item()
    assert ordered == pytest.approx(sum(steady) / len(steady)) if steady else math.isnan(ordered)


def test_the_share_of_ordered_edges_is_of_those_with_enough_images() -> None:
    """Two classes of four images, one of three; the parent of the first two is nearer than one of them alone."""
    tree = grow((4, [[(0, False), (0, False), (1, False), (1, False)]], 0)).restrict(("c0", "c1", "c2", "c3"))
    labels = torch.tensor([0] * 4 + [1] * 4 + [2] * 3 + [3] * 3)
    head, average = HyperbolicHead(1.0, 1.0, 1.0, 0.0), ClassMeans(tree)

    def ordered(*places: float) -> float:
        points = torch.tensor(places).repeat_interleave(torch.bincount(labels))[:, None]
        groups = average.group(labels, points)
        return average.edges_ordered(average(points, groups, head), groups).item()

    assert ordered(1.0, 2.0, 5.0, 5.0) == 0.5
    assert ordered(1.0, -2.0, 5.0, 5.0) == 1.0
    assert ordered(1.0, 1.0, 1.0, -1.0) == 0.0


@given(plans, st.sampled_from((0.0, 1.0)), st.sampled_from(DEPTHS), st.data())
def test_gradients_of_class_means_are_finite_and_those_of_the_present_nodes(
    plan: Plan, curvature: float, depth: tuple[float, ...], data: st.DataObject
) -> None:
    """What nodes without images add to a loss is nothing, and so is what they add to a gradient."""
    tree = grow(plan)
    values, labels = scene(data, tree, 3)
    head = HyperbolicHead(1.0, 1.0, 1.0, curvature, depth)
    points = head.embed_image(0.5 * values.float()).detach().requires_grad_()
    index = NodeIndex.of(tree)
    texts = head.prepare(torch.randn(len(index.nodes), 3, generator=torch.Generator().manual_seed(0))[index.owner],
                         index.level)  # fmt: skip
    alignment, average = LevelAlignment(tree, index, balance="node"), ClassMeans(tree)
    groups = average.group(labels, points)
    means = average(points, groups, head)
    rows = alignment.of_means(groups.counts, alignment.levels())
    loss = alignment.loss(head.point_logits(torch.cat(means), texts, index.level[rows.columns]), rows)
    if groups.edges:
        loss = loss + norm_gap(average.steps_outwards(means), 10.0, torch.cat(groups.edges))
    learnt = [points, *(p for p in head.parameters() if p.requires_grad)]
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, learnt, allow_unused=True, retain_graph=True):
        assert gradient is None or gradient.isfinite().all()
    for level_points, counts in zip(means, groups.counts, strict=True):
        absent = counts == 0
        assert not level_points[absent].any()
        if absent.any():
            (gradient,) = torch.autograd.grad(level_points[absent].sum(), points, retain_graph=True)
            assert not gradient.any()


@given(plans)
def test_text_edges_are_those_below_the_root_each_once(plan: Plan) -> None:
    tree = grow(plan)
    index = NodeIndex.of(tree)
    parents, children = text_edges(tree, index)
    assert torch.equal(index.level[parents], index.level[children] + 1)
    ends = (index.owner[parents].tolist(), index.owner[children].tolist())
    found = [(id(index.nodes[p]), id(index.nodes[c])) for p, c in zip(*ends, strict=True)]
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
    labels = torch.tensor([0, 0, 1])
    average = ClassMeans(tree)
    groups = average.group(labels, points)
    means = average(points, groups, flat)
    assert means[0].tolist() == [[4.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
    assert means[1].tolist() == [[2.0, 1.0], [0.0, 0.0]]
    assert [count.tolist() for count in groups.counts] == [[2.0, 1.0, 0.0], [3.0, 0.0]]
    halved = average(points, groups, HyperbolicHead(1.0, 1.0, 1.0, 0.0, (1.0, 0.5)))
    assert halved[1].tolist() == [[1.0, 0.5], [0.0, 0.0]]
    assert vicinity(points[:1], torch.zeros(1, 2), 1.0, flat).item() == pytest.approx(2 * 3.0 - 1.0)


def test_norm_gap_wants_parents_nearer_the_centre() -> None:
    steps = torch.tensor([0.1, 0.05, -0.5], requires_grad=True)
    loss = norm_gap(steps, 0.08, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((0.08 - 0.05) / 2)
    (gradient,) = torch.autograd.grad(loss, steps)
    assert gradient.tolist() == [0.0, -0.5, 0.0]
    assert norm_gap(steps, 0.08).item() == pytest.approx((0.08 - 0.05 + 0.08 + 0.5) / 3)


def test_norm_gap_without_edges_is_zero() -> None:
    assert norm_gap(torch.zeros(0), 0.1).item() == 0.0
    steps = torch.zeros(2, requires_grad=True)
    loss = norm_gap(steps, 0.1, torch.zeros(2, dtype=torch.bool))
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, steps)[0].any()
