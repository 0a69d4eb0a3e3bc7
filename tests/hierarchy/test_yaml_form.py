from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.hierarchy.yaml_form import Fault, check, dump_trees, load_tree, load_trees, parse_tree_spec

GOOD = """\
hrzs-tree: 1
source: {name: hand, levels: 3, wordnet: '3.0'}
classes: sorted
tree:
- r root:
  - a@1 animal:
    - n02119789 red fox
    - cat
  - t thing:
    - {class: car, name: the car, prompts: [car, automobile]}
    - id: w
      name: wheeled
      children:
      - {class: bicycle, id: n02834778}
      - no
"""


def write(path: Path, text: str) -> Path:
    file = path / "tree.yaml"
    file.write_bytes(text.encode())
    return file


def test_reads_every_way_to_write_a_node(tmp_path: Path) -> None:
    tree = load_tree(write(tmp_path, GOOD))
    assert tree.classes == ("bicycle", "car", "cat", "n02119789", "no")
    assert tree.header == {"name": "hand", "levels": 3, "wordnet": "3.0"}
    nodes = {node.id: node for node in tree.root.walk()}
    assert {i: nodes[i].level for i in "ratw"} == {"r": 3, "a": 1, "t": 2, "w": 1}
    assert nodes["n02119789"].name == "red fox"
    assert nodes["car"].prompt_names == ("car", "automobile")
    assert nodes["n02834778"].class_id == nodes["n02834778"].name == "bicycle"
    assert nodes["no"].class_id == "no"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.from_type(Tree))
def test_what_is_written_is_read_back(tmp_path: Path, tree: Tree) -> None:
    text = dump_trees([tree])
    file = write(tmp_path, text)
    again = load_tree(file)
    assert again == tree
    assert again.header == tree.header
    assert again.digest == tree.digest
    assert dump_trees([again]) == text


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.from_type(Tree))
def test_forest_is_read_back(tmp_path: Path, tree: Tree) -> None:
    flat = Tree(Node("all", "all", tuple(tree.root.leaves()), level=1), tree.classes, {"name": "flat"})
    file = write(tmp_path, dump_trees([tree, flat]))
    assert load_trees(file) == [tree, flat]
    assert load_tree(f"{file}#2") == load_tree(file, 2) == flat
    with pytest.raises(UsageError, match="no #3"):
        load_tree(f"{file}#3")


def test_one_node_to_a_line(tmp_path: Path) -> None:
    tree = load_tree(write(tmp_path, GOOD))
    lines = dump_trees([tree]).split("tree:\n")[-1].splitlines()
    assert lines == [
        "- r root:",
        "  - a@1 animal:",
        "    - n02119789 red fox",
        "    - cat",
        "  - t thing:",
        "    - {class: car, name: the car, prompts: [car, automobile]}",
        "    - w wheeled:",
        "      - {class: bicycle, id: n02834778}",
        "      - 'no'",
    ]


def faults(path: Path, text: str) -> list[Fault]:
    file = write(path, text)
    found = check(file)
    if found:
        with pytest.raises(UsageError, match=rf":{found[0].line}: "):
            load_tree(file)
    return found


HEAD = "hrzs-tree: 1\ntree:\n- r:\n"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("- a\n- b\n", 1, "map with the keys"),
        ("just text", 1, "map with the keys"),
        ("tree:\n- r:\n  - a\n  - b\n", 1, "`hrzs-tree: 1` is missing"),
        ("hrzs-tree: 2\ntree:\n- r:\n  - a\n  - b\n", 1, "reads `hrzs-tree: 1`"),
        ("hrzs-tree: 1\n", 1, "either `tree:`"),
        ("hrzs-tree: 1\nleaves: 3\ntree:\n- r:\n  - a\n  - b\n", 2, "unknown key 'leaves'"),
        ("hrzs-tree: 1\ntree: []\n", 2, "exactly one root"),
        ("hrzs-tree: 1\ntree:\n- a\n", 3, "root 'a' is a leaf"),
        (HEAD + "  - a\n  - s thing:\n", 5, "has no children"),
        (HEAD + "  - a\n  - s: []\n", 5, "has no children"),
        (HEAD + "  - a\n  - b\n  - a\n", 6, "class 'a' stands on a second leaf, first on line 4"),
        (HEAD + "  - s:\n    - a\n  - s:\n    - b\n", 6, "superclass 's' is there twice, first on line 4"),
        (HEAD + "  - s:\n    - r:\n      - a\n  - b\n", 5, "cycle: 'r' stands beneath itself"),
        (HEAD + "  - s@9:\n    - t@9:\n      - a\n  - b\n", 5, "at level 9"),
        ("hrzs-tree: 1\ntree:\n- r@1:\n  - s:\n    - a\n  - b\n", 4, "at level 0"),
        (HEAD + "  - a@2 name\n  - b\n", 4, "leaf 'a' stands at level 0"),
        (HEAD + "  - fox: red\n  - b\n", 4, "text after its colon"),
        (HEAD + "  - {class: a, colour: red}\n  - b\n", 4, "unknown key 'colour'"),
        (HEAD + "  - {class: a, class: c}\n  - b\n", 4, "key 'class' is there twice"),
        (HEAD + "  - {name: a, prompts: [x]}\n  - b\n", 4, "a superclass `id`"),
        (HEAD + "  - {class: a, prompts: x}\n  - b\n", 4, "`prompts` is a list"),
        (HEAD + "  - {class: ''}\n  - b\n", 4, "not empty"),
        (HEAD + "  - [a, b]\n", 4, "a list stands where a node should"),
        (HEAD + "  - {id: s, level: x, children: [a, b]}\n", 4, "whole number"),
        (HEAD + "  - &x a\n  - *x\n", 4, "anchors and aliases"),
        (HEAD + "  - !!python/object:os.system a\n  - b\n", 4, "tags"),
        (HEAD + "  - a\n  - b\n---\nmore: 1\n", 6, "second document"),
        (HEAD + "  - a\n - b\n", 5, "no YAML"),
        (HEAD + "  - 'a\n", 5, "no YAML"),
        (HEAD + "  - a\n  - b\x07\n", 5, "no YAML"),
        ("hrzs-tree: 1\nclasses: [a, b, c, a]\ntree:\n- r:\n  - a\n  - b\n  - d\n", 2, "class 'a' is listed twice"),
        ("hrzs-tree: 1\nclasses: [a, b, c]\ntree:\n- r:\n  - a\n  - b\n", 2, "class 'c' is listed in `classes` but"),
        ("hrzs-tree: 1\nclasses: [a, b]\ntree:\n- r:\n  - a\n  - b\n  - d\n", 7, "leaf 'd' is not listed"),
        (
            "hrzs-tree: 1\ntrees:\n- tree:\n  - r:\n    - a\n    - b\n- tree:\n  - r:\n    - a\n    - c\n",
            10,
            "leaf 'c' is not in the first tree",
        ),
    ],
)
def test_fault_is_found_on_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    assert any(fault.line == line and message in fault.message for fault in faults(tmp_path, text)), check(
        tmp_path / "tree.yaml"
    )


def test_all_faults_are_found_in_one_pass(tmp_path: Path) -> None:
    text = HEAD + "  - s thing:\n  - a\n  - {class: b, colour: red}\n  - a\n  - c@3\n"
    assert [fault.line for fault in faults(tmp_path, text)] == [4, 6, 7, 8]


def test_not_utf8_is_found_on_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_bytes(b"hrzs-tree: 1\ntree:\n- \xff\n")
    assert check(file) == [Fault(3, "the text is not UTF-8")]


BILLION_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        BILLION_LAUGHS,
        "[" * 200_000,
        "{a: " * 200_000,
        "- " * 200_000,
        HEAD + "".join(f"{'  ' * depth}- s{depth}:\n" for depth in range(1, 300)),
        HEAD + "  - a\n" * 600_000,
    ],
    ids=["laughs", "lists", "maps", "dashes", "outline", "wide"],
)
def test_hostile_file_is_refused_soon(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    started = time.monotonic()
    assert len(check(file)) == 1
    assert time.monotonic() - started < 30  # seconds where it would be hours, or a crash


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    with file.open("wb") as stream:
        stream.truncate(100 * 2**20)
    assert check(file) == [Fault(1, "the file is larger than 64 MB: no class tree")]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        check(tmp_path / "none.yaml")


def test_levels_beyond_what_a_file_holds() -> None:
    root = Node("r", "r", (Node("a", "a", class_id="a"), Node("b", "b", class_id="b")), level=101)
    with pytest.raises(UsageError, match="at most 100 levels"):
        dump_trees([Tree(root)])


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("a.yaml", ("a.yaml", 1)),
        ("a.yaml#2", ("a.yaml", 2)),
        ("a#b.yaml", ("a#b.yaml", 1)),
        ("a#1.yaml", ("a#1.yaml", 1)),
    ],
)
def test_tree_spec(spec: str, parsed: tuple[str, int]) -> None:
    assert parse_tree_spec(spec) == parsed


def test_tree_spec_counts_from_one() -> None:
    with pytest.raises(UsageError, match=r"a\.yaml#1"):
        parse_tree_spec("a.yaml#0")
