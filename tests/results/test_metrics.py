from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs.hierarchy.tree import Node, Tree
from hrzs.results.metrics import (
    Predictions,
    any_level,
    balanced,
    balanced_interval,
    consistency,
    constant_answer,
    correct,
    from_bits,
    hierarchical_distances,
    node_weights,
    severity,
    to_bits,
    weights_over_levels,
    wilson,
)


# From scipy.stats.binomtest(k, n).proportion_ci(method="wilson").
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775327998628892), (10, 10, 0.7224672001371106, 1.0),
        (5, 10, 0.23659309051256362, 0.7634069094874364), (1, 3, 0.06149194472039624, 0.7923403991979523),
        (437, 1000, 0.40655624686835734, 0.4679259247008226), (0, 1, 0.0, 0.7934506856227626),
    ],
)  # fmt: skip
def test_wilson_against_scipy(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion(counts: tuple[int, int]) -> None:
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_of_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


# -- balanced over nodes -------------------------------------------------------------------------------------------

#: Each image's node, and whether it is right.
seen = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40)


def unpacked(images: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    nodes, hits = zip(*images, strict=True)
    return torch.tensor(nodes), torch.tensor(hits)


def test_balanced_by_hand() -> None:
    """Three of four images of one node are right, and the one of another is wrong; node 1 has no image."""
    nodes, hits = torch.tensor([0, 0, 2, 0, 0]), torch.tensor([True, True, False, True, False])
    weights = node_weights(nodes)
    assert weights.tolist() == [1 / 8, 1 / 8, 1 / 2, 1 / 8, 1 / 8]
    assert balanced(hits, weights) == 3 / 8
    assert constant_answer(nodes) == 4 / 5
    assert constant_answer(nodes, weights) == 1 / 2
    # Four eighths squared and a half squared: as 3.2 images.
    low, high = balanced_interval(hits, weights)
    assert (low + high) / 2 == pytest.approx((3 / 8 + 1.959964**2 / 6.4) / (1 + 1.959964**2 / 3.2))


@given(seen)
def test_balanced_is_the_mean_over_nodes(images: list[tuple[int, bool]]) -> None:
    nodes, hits = unpacked(images)
    weights = node_weights(nodes)
    assert weights.sum().item() == pytest.approx(1)
    by_node = [hits[nodes == node].double().mean().item() for node in nodes.unique().tolist()]
    assert balanced(hits, weights) == pytest.approx(sum(by_node) / len(by_node))
    low, high = balanced_interval(hits, weights)
    assert 0 <= low <= balanced(hits, weights) + 1e-12
    assert balanced(hits, weights) - 1e-12 <= high <= 1
    assert high - low > 0.05  # never degenerate


@given(seen)
def test_constant_answer_is_one_of_k(images: list[tuple[int, bool]]) -> None:
    nodes, _ = unpacked(images)
    weights, present = node_weights(nodes), nodes.unique().tolist()
    for node in present:
        assert balanced(nodes == node, weights) == pytest.approx(1 / len(present), rel=1e-12)
    assert constant_answer(nodes) == max((nodes == node).double().mean().item() for node in present) >= 1 / len(present)
    assert constant_answer(nodes, weights) == pytest.approx(1 / len(present), rel=1e-12)


@given(st.integers(1, 6), st.data())
def test_balanced_is_plain_where_nodes_are_alike(each: int, data: st.DataObject) -> None:
    nodes = torch.arange(4).repeat(each)
    hits = torch.tensor(data.draw(st.lists(st.booleans(), min_size=4 * each, max_size=4 * each)))
    weights = node_weights(nodes)
    assert balanced(hits, weights) == pytest.approx(hits.double().mean().item())
    assert balanced_interval(hits, weights) == pytest.approx(wilson(int(hits.sum()), len(hits)))
    assert constant_answer(nodes) == 1 / 4


@given(seen, st.integers(0, 5), st.integers(2, 4))
def test_more_of_one_node_changes_nothing(images: list[tuple[int, bool]], node: int, times: int) -> None:
    """Every image of one node once more, and again: a data set that happens to hold more of them."""
    more = images + (times - 1) * [image for image in images if image[0] == node]
    (nodes, hits), (more_nodes, more_hits) = unpacked(images), unpacked(more)
    assert balanced(more_hits, node_weights(more_nodes)) == pytest.approx(balanced(hits, node_weights(nodes)))


def test_weights_over_levels_mean_the_levels() -> None:
    levels = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    weights = weights_over_levels(levels)
    assert weights.tolist() == pytest.approx([5 / 24, 5 / 24, 5 / 24, 9 / 24])
    hits = torch.tensor([True, False, False, True])
    expected = [balanced(hits, node_weights(level)) for level in levels]
    assert balanced(hits, weights) == pytest.approx(sum(expected) / 2)


def test_balanced_of_nothing() -> None:
    nothing = torch.tensor([], dtype=torch.long)
    assert len(node_weights(nothing)) == 0
    assert balanced_interval(nothing.bool(), node_weights(nothing)) == (0.0, 1.0)
    assert constant_answer(nothing) == 0


def test_correct_looks_up_the_ancestors(tree: Tree) -> None:
    labels = torch.arange(len(tree.classes))
    nodes = tree.ancestors[: tree.height].expand(2, -1, -1).clone()
    assert correct(tree, labels, nodes).all()
    nodes[1, 2, 3] += 1
    found = correct(tree, labels, nodes)
    assert (~found).nonzero().tolist() == [[1, 2, 3]]


def test_severity_by_hand(tree: Tree) -> None:
    dog, wolf, cat, car = (tree.classes.index(c) for c in ("dog", "wolf", "cat", "car"))
    labels, predicted = torch.tensor([dog, dog, dog, dog]), torch.tensor([dog, wolf, cat, car])
    order = [[dog, wolf, cat, car], [wolf, dog, cat, car], [cat, dog, wolf, car], [car, dog, wolf, cat]]
    distances = hierarchical_distances(tree, labels, torch.tensor(order))
    assert distances[0].tolist() == [0.0, 1.0, 2.0, 3.0]  # HD@1 is the height of the prediction itself
    # Only four are given: more than there are is all of them, at heights 0, 1, 2 and 3 in some order.
    assert distances[1:].tolist() == [[1.5] * 4] * 2
    found = Predictions.empty(tree, 4)
    found.put(torch.arange(4), Predictions(predicted.expand(2, tree.height, -1), torch.zeros(4).bool(), distances))
    hd = {"hd@1": 1.5, "hd@5": 1.5, "hd@20": 1.5}
    assert severity(tree, labels, found) == {"lca_height_mistakes": 2.0, "lca_height_all": 1.5, **hd}
    perfect = Predictions(labels.expand(2, tree.height, -1), torch.zeros(4).bool(), distances)
    assert severity(tree, labels, perfect) == {"lca_height_mistakes": None, "lca_height_all": 0.0, **hd}


def test_hd_counts_the_likeliest_first() -> None:
    """Six classes, so that HD@5 leaves one out: the farthest last, or the farthest first."""
    leaves = [Node(f"{i}", f"{i}", class_id=f"{i}") for i in range(6)]
    near = Node("near", "near", tuple(leaves[:5]), level=1)
    far = Node("far", "far", (leaves[5],), level=1)
    tree, labels = Tree(Node("thing", "thing", (near, far), level=2)), torch.tensor([0])
    last = hierarchical_distances(tree, labels, torch.tensor([[0, 1, 2, 3, 4, 5]]))
    first = hierarchical_distances(tree, labels, torch.tensor([[5, 0, 1, 2, 3, 4]]))
    assert last[:, 0].tolist() == pytest.approx([0, 4 / 5, 6 / 6])
    assert first[:, 0].tolist() == pytest.approx([2, 5 / 5, 6 / 6])


@given(st.lists(st.booleans(), max_size=40))
def test_bits(right: list[bool]) -> None:
    mask = torch.tensor(right, dtype=torch.bool)
    assert torch.equal(from_bits(to_bits(mask), len(right)), mask)


def test_bits_are_readable() -> None:
    assert to_bits(torch.tensor([True, False, False, False, True])) == "88"
    with pytest.raises(ValueError, match="1 hexadecimal digits for 5 images"):
        from_bits("8", 5)


def test_consistency_by_hand(tree: Tree) -> None:
    truth = tree.ancestors[: tree.height]
    assert consistency(tree, truth) == [1.0] * (tree.height - 1)
    off = truth.clone()
    off[2, :3] = 1 - off[2, :3]
    assert consistency(tree, off) == [1.0, 0.5]
    assert consistency(tree, truth[:, :0]) == [None] * (tree.height - 1)


@given(st.integers(0, 2**18 - 1))
def test_any_level_against_brute_force(bits: int) -> None:
    values = itertools.cycle(bool(bits >> i & 1) for i in range(18))
    clean = torch.tensor([[next(values) for _ in range(3)] for _ in range(2)])
    attacked = [
        (torch.tensor([[next(values) for _ in range(3)] for _ in range(2)]), torch.tensor([next(values)] * 3))
        for _ in range(2)
    ]
    expected = [
        all(bool(clean[level, i]) for level in range(2))
        and all(all(bool(a[level, i]) for level in range(2)) and not bool(success[i]) for a, success in attacked)
        for i in range(3)
    ]
    assert any_level(clean, attacked).tolist() == expected
