from __future__ import annotations

from collections import Counter
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.hierarchy.levelling import level_tree
from hrzs.hierarchy.tree import Node, Tree


def leaf(name: str) -> Node:
    return Node(name, name, class_id=name)


def balanced(depth: int, prefix: str = "n") -> Node:
    if depth == 0:
        return leaf(prefix)
    return Node(prefix, prefix, (balanced(depth - 1, prefix + "0"), balanced(depth - 1, prefix + "1")))


def entropies(tree: Tree) -> list[float]:
    total = len(tree.classes)
    return [sum(n / total * log(total / n) for n in Counter(row.tolist()).values()) for row in tree.ancestors]


@settings(max_examples=100, deadline=None)
@given(st.from_type(Tree), st.integers(1, 8))
def test_levels_are_strictly_coarser_and_every_superclass_groups(tree: Tree, levels: int) -> None:
    levelled = level_tree(tree.root, levels, tree.classes)
    sizes = [len(nodes) for nodes in levelled.levels]
    assert 1 <= levelled.height <= levels
    assert sizes == sorted(set(sizes), reverse=True)
    assert all(len(node.children) >= 2 for node in levelled.root.walk() if not node.is_leaf)
    assert levelled.classes == tree.classes
    assert level_tree(tree.root, levels, tree.classes) == levelled


@settings(max_examples=50, deadline=None)
@given(st.from_type(Tree), st.integers(1, 8))
def test_what_was_together_below_a_superclass_stays_so(tree: Tree, levels: int) -> None:
    before = {frozenset(x.class_id for x in node.leaves()) for node in tree.root.walk()}
    levelled = level_tree(tree.root, levels, tree.classes)
    assert all(frozenset(x.class_id for x in node.leaves()) in before for node in levelled.root.walk())


def test_entropy_falls_evenly_where_the_tree_allows_it() -> None:
    for levels, sizes in ((6, [64, 32, 16, 8, 4, 2, 1]), (3, [64, 16, 4, 1]), (2, [64, 8, 1]), (1, [64, 1])):
        tree = level_tree(balanced(6), levels)
        assert [len(nodes) for nodes in tree.levels] == sizes
        assert entropies(tree) == pytest.approx([log(64) * (1 - level / levels) for level in range(levels + 1)])


def test_chain_keeps_its_most_specific_node() -> None:
    chain = Node("entity", "e", (Node("thing", "t", (Node("dog", "d", (leaf("a"), leaf("b"))),)),))
    tree = level_tree(chain, 5)
    assert (tree.root.name, tree.height) == ("dog", 1)
    over_leaf = Node("r", "r", (Node("s", "s", (leaf("a"),)), leaf("b")))
    assert {node.name for node in level_tree(over_leaf, 5).root.walk()} == {"r", "a", "b"}


def cut(node: Node, bound: int) -> list[int]:
    """Sizes of the largest nodes of at most ``bound`` classes."""
    size = len(list(node.leaves()))
    return [size] if size <= bound else [x for child in node.children for x in cut(child, bound)]


@settings(max_examples=100, deadline=None)
@given(st.from_type(Tree), st.integers(2, 4))
def test_each_level_is_the_cut_nearest_in_entropy(tree: Tree, levels: int) -> None:
    levelled = level_tree(tree.root, levels, tree.classes)
    total = len(tree.classes)
    cuts = [cut(tree.root, bound) for bound in range(2, total)]
    shares = [sum(n / total * log(total / n) for n in sizes) / log(total) for sizes in cuts if len(sizes) < total]
    chosen = [entropy / log(total) for entropy in entropies(levelled)]
    for level in range(1, levelled.height):
        wanted = 1 - level / levelled.height
        assert abs(chosen[level] - wanted) == pytest.approx(min(abs(s - wanted) for s in shares), abs=1e-8)


def test_flat_tree_has_one_level_above_its_leaves() -> None:
    flat = Node("r", "r", tuple(map(leaf, "abcdef")))
    assert level_tree(flat, 5).height == 1


def test_children_come_in_the_order_of_the_classes() -> None:
    root = Node("r", "r", (Node("s", "s", (leaf("b"), leaf("d"))), leaf("a"), leaf("c")))
    tree = level_tree(root, 3, ("c", "d", "a", "b"))
    assert [node.name for node in tree.root.walk()] == ["r", "c", "s", "d", "b", "a"]


def test_bad_calls() -> None:
    with pytest.raises(UsageError, match="--levels 0"):
        level_tree(balanced(2), 0)
    with pytest.raises(UsageError, match="at least two classes"):
        level_tree(Node("r", "r", (leaf("a"),)), 3)
