from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs.evaluation.metrics import (
    Predictions,
    any_level,
    consistency,
    from_bits,
    hierarchical_distances,
    right,
    severity,
    to_bits,
    wilson,
)
from hrzs.hierarchy.tree import Node, Tree


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


def test_right_looks_up_the_ancestors(tree: Tree) -> None:
    labels = torch.arange(len(tree.classes))
    nodes = tree.ancestors[: tree.top].expand(2, -1, -1).clone()
    assert right(tree, labels, nodes).all()
    nodes[1, 2, 3] += 1
    found = right(tree, labels, nodes)
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
    found.put(torch.arange(4), Predictions(predicted.expand(2, tree.top, -1), torch.zeros(4).bool(), distances))
    hd = {"hd@1": 1.5, "hd@5": 1.5, "hd@20": 1.5}
    assert severity(tree, labels, found) == {"lca_height_mistakes": 2.0, "lca_height_all": 1.5, **hd}
    perfect = Predictions(labels.expand(2, tree.top, -1), torch.zeros(4).bool(), distances)
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
    truth = tree.ancestors[: tree.top]
    assert consistency(tree, truth) == [1.0] * (tree.top - 1)
    off = truth.clone()
    off[2, :3] = 1 - off[2, :3]
    assert consistency(tree, off) == [1.0, 0.5]
    assert consistency(tree, truth[:, :0]) == [None] * (tree.top - 1)


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
        and all(all(bool(a[level, i]) for level in range(2)) and not bool(won[i]) for a, won in attacked)
        for i in range(3)
    ]
    assert any_level(clean, attacked).tolist() == expected
