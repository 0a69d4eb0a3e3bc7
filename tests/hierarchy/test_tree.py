from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hrzs.errors import UsageError
from hrzs.hierarchy.describe import outline, statistics
from hrzs.hierarchy.tree import Node, Tree


def leaf(name: str) -> Node:
    return Node(name, name, class_id=name)


def uneven() -> Tree:
    """Level 1: canine, cat, car, bus; level 2: animal, vehicle; level 3: thing."""
    canine = Node("canine", "canine", (leaf("fox"), leaf("dog")), level=1)
    animal = Node("animal", "animal", (canine, leaf("cat")), level=2)
    vehicle = Node("vehicle", "vehicle", (leaf("car"), leaf("bus")), level=2)
    return Tree(Node("thing", "thing", (animal, vehicle), level=3), ("bus", "car", "cat", "dog", "fox"))


def test_levels_pass_shallow_leaves_through() -> None:
    tree = uneven()
    assert [[node.name for node in nodes] for nodes in tree.levels] == [
        ["bus", "car", "cat", "dog", "fox"],
        ["bus", "car", "cat", "canine"],
        ["vehicle", "animal"],
        ["thing"],
    ]
    assert tree.ancestors.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 3], [0, 0, 1, 1, 1], [0] * 5]
    assert tree.parents(0).tolist() == [0, 1, 2, 3, 3]
    assert tree.passes_through(0).tolist() == [True, True, True, False, False]
    assert tree.passes_through(1).tolist() == [False] * 4


def test_lca_height_by_hand() -> None:
    tree = uneven()
    index = {c: i for i, c in enumerate(tree.classes)}
    pairs = {("fox", "fox"): 0, ("fox", "dog"): 1, ("fox", "cat"): 2, ("car", "bus"): 2, ("fox", "bus"): 3}
    a, b = (torch.tensor([index[pair[i]] for pair in pairs]) for i in (0, 1))
    assert tree.lca_height(a, b).tolist() == list(pairs.values())


@settings(max_examples=100, deadline=None)
@given(st.from_type(Tree))
def test_levels_are_nested_partitions(tree: Tree) -> None:
    count = len(tree.classes)
    assert tuple(node.class_id for node in tree.levels[0]) == tree.classes
    for level, nodes in enumerate(tree.levels):
        beneath = [leaf.class_id for node in nodes for leaf in node.leaves()]
        assert sorted(beneath) == sorted(tree.classes)
        for c in range(count):
            assert tree.classes[c] in {x.class_id for x in nodes[tree.ancestors[level, c]].leaves()}
        if level < tree.height:
            # Classes together at one level are together at the next.
            assert torch.equal(tree.parents(level)[tree.ancestors[level]], tree.ancestors[level + 1])
            same = [node in tree.levels[level + 1] for node in nodes]
            assert tree.passes_through(level).tolist() == same


@settings(max_examples=100, deadline=None)
@given(st.from_type(Tree))
def test_lca_height_is_an_ultrametric(tree: Tree) -> None:
    c = torch.arange(len(tree.classes))
    height = tree.lca_height(c[:, None].expand(len(c), len(c)), c[None].expand(len(c), len(c)))
    assert torch.equal(height, height.T)
    assert torch.equal(height == 0, torch.eye(len(c), dtype=torch.bool))
    assert int(height.max()) <= tree.height
    assert bool((height[:, :, None] <= torch.maximum(height[:, None, :], height.T[None])).all())


def naive_lca_height(tree: Tree, a: str, b: str) -> int:
    """The lowest level of a node with both beneath it, one class on its own counting as level 0."""
    both = [node for node in tree.root.walk() if {a, b} <= {leaf.class_id for leaf in node.leaves()}]
    return min(node.level for node in both)


@settings(max_examples=50, deadline=None)
@given(st.from_type(Tree))
def test_lca_height_agrees_with_a_walk(tree: Tree) -> None:
    c = torch.arange(len(tree.classes))
    heights = tree.lca_height(c[:, None].expand(len(c), len(c)), c[None].expand(len(c), len(c)))
    assert heights.dtype == torch.long
    assert heights.tolist() == [[naive_lca_height(tree, a, b) for b in tree.classes] for a in tree.classes]


def test_lca_height_takes_any_shape() -> None:
    tree = uneven()
    for shape in ((), (0,), (3, 0), (2, 1, 3)):
        a = torch.randint(5, shape)
        assert tree.lca_height(a, a).shape == shape


def test_lca_height_of_more_classes_than_16_bits_count() -> None:
    names = [str(i) for i in range(40_000)]
    half = Node("half", "half", tuple(map(leaf, names[:35_000])), level=1)
    tree = Tree(Node("all", "all", (half, *map(leaf, names[35_000:])), level=2))
    a, b = torch.tensor([0, 0, 39_999, 39_999]), torch.tensor([34_999, 35_000, 39_998, 39_999])
    assert tree.lca_height(a, b).tolist() == [1, 2, 2, 0]


@settings(max_examples=100, deadline=None)
@given(st.from_type(Tree))
def test_every_operation_survives_odd_names(tree: Tree) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(outline(tree))
    json.loads(json.dumps(statistics(tree), ensure_ascii=False))
    assert len(tree.digest) == 64
    assert tree.restrict(tree.classes[::-1]).classes == tree.classes[::-1]


def test_restrict_needs_no_torch() -> None:
    # `build-tree --depths` restricts, and importing torch would take longer than all the rest.
    code = (
        "import sys; from hrzs.hierarchy.tree import Node, Tree\n"
        "leaves = tuple(Node(c, c, class_id=c) for c in 'abc')\n"
        "Tree(Node('r', 'r', leaves, level=1)).restrict('ab'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=150, deadline=None)
@given(st.from_type(Tree), st.data())
def test_restricted_tree_keeps_what_is_together(tree: Tree, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(tree.classes), min_size=2, unique=True))
    part = tree.restrict(chosen)
    assert part.classes == tuple(chosen)
    whole = torch.tensor([tree.classes.index(c) for c in chosen])
    kept = torch.arange(len(chosen))
    before = {tuple(_partition(row)) for row in tree.ancestors[:, whole]}
    after = [tuple(_partition(row)) for row in part.ancestors]
    # Exactly the partitions that differ are left, each once; so no level but the leaves repeats another.
    if chosen != list(tree.classes):
        assert len(set(after)) == len(after)
        assert set(after) == before
        assert [len(set(p)) for p in after] == sorted({len(set(p)) for p in after}, reverse=True)
    assert int(part.lca_height(kept, kept.flip(0)).max()) <= part.height


def _partition(row: torch.Tensor) -> list[int]:
    """Block numbers in the order of their first members: equal for equal partitions."""
    seen: dict[int, int] = {}
    return [seen.setdefault(block, len(seen)) for block in row.tolist()]


def test_restrict_names_what_is_missing() -> None:
    with pytest.raises(UsageError, match=r"does not belong to this data: 1 of 3 .*'tram'.*--tree"):
        uneven().restrict(["fox", "bus", "tram"])
    with pytest.raises(UsageError, match="at least two classes"):
        uneven().restrict(["fox"])


def test_digest_tells_trees_apart() -> None:
    tree = uneven()
    assert tree.digest == Tree(tree.root, tree.classes, {"other": "header"}).digest
    assert tree.digest != Tree(tree.root).digest
    assert tree.digest != tree.restrict(["fox", "dog", "cat", "car", "bus"]).digest


@pytest.mark.parametrize(
    ("root", "classes", "fault"),
    [
        (leaf("a"), (), "root 'a' is a leaf"),
        (Node("r", "r", (leaf("a"), leaf("a")), level=1), (), "class 'a' stands on more than one leaf"),
        (Node("r", "r", (leaf("a"), Node("s", "s", level=1)), level=2), (), "'s' .s. has no children"),
        (Node("r", "r", (leaf("a"), Node("r", "r", (leaf("b"),), level=1)), level=2), (), "node id 'r'"),
        (Node("r", "r", (leaf("a"), Node("s", "s", (leaf("b"),), level=1)), level=1), (), "not below its parent"),
        (Node("r", "r", (leaf("a"), leaf("b")), level=1), ("a", "b", "c"), "class 'c' has no leaf"),
        (Node("r", "r", (leaf("a"), leaf("b")), level=1), ("a",), "leaf 'b' is not among"),
        (Node("r", "r", (leaf("a"), leaf("b")), level=1), ("a", "b", "a"), "class 'a' is listed more than once"),
        (Node("r", "r", (leaf("a"), Node("", "b", class_id="b")), level=1), (), "empty id, name, class or prompt"),
        (Node("r", "r", (leaf("a"), Node("b", "b", class_id="b", level=1)), level=2), (), "at level 1, not 0"),
        (Node("r", "r", (leaf("a"), Node("b", "b", (leaf("c"),), "b")), level=2), (), "leaf 'b' has children"),
    ],
)
def test_faulty_tree_is_refused(root: Node, classes: tuple[str, ...], fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        Tree(root, classes)


def test_all_faults_of_a_tree_are_named_at_once() -> None:
    inner = Node("s", "s", (leaf("a"), Node("r", "r", level=1)), level=3)
    with pytest.raises(UsageError) as caught:
        Tree(Node("r", "r", (leaf("a"), inner), level=2), ("a", "b", "b"))
    faults = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert faults == [
        "class 'a' stands on more than one leaf",
        "node id 'r' is used by more than one superclass",
        "'s' (s) stands at level 3, not below its parent 'r' (r) at level 2",
        "superclass 'r' (r) has no children",
        "class 'b' is listed more than once",
        "class 'b' has no leaf",
    ]


def test_digest_is_the_same_everywhere() -> None:
    assert uneven().digest.startswith("0b2929e5f1157cd1")
    # U+1FAE9 is printable to a Python that knows Unicode 16, and to no other.
    assert Tree(Node("r", "r", (leaf("\U0001fae9"), leaf("é")), level=1)).digest.startswith("9e9778286d00180b")
