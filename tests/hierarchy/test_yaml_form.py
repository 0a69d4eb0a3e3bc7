from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.hierarchy.yaml_form import MAX_FAULTS, Fault, check, dump_trees, load_tree, load_trees, parse_tree_spec

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


def as_pyyaml_writes_it(text: str) -> str:
    """``text`` taken apart and written again by PyYAML's emitter, which chooses every quotation mark anew."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    stack: list[tuple[yaml.Node, bool]] = [(root, False)]
    while stack:
        node, is_number = stack.pop()
        if isinstance(node, yaml.ScalarNode):
            # Only levels, and numbers in headers, may look like anything but text.
            assert node.tag == "tag:yaml.org,2002:str" or (is_number and node.tag == "tag:yaml.org,2002:int")
            node.style = None if node.value.isprintable() else '"'
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                stack += [(key, False), (value, is_number or key.value in ("level", "source"))]
        else:
            stack += [(item, is_number) for item in node.value]
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, width=2**30, allow_unicode=True))


@settings(max_examples=150, deadline=None)
@given(st.from_type(Tree), st.booleans())
def test_bytes_are_those_of_pyyaml(tree: Tree, forest: bool) -> None:
    text = dump_trees([tree, Tree(tree.root, tree.classes)] if forest else [tree])
    body = text[re.search("^trees?:", text, re.MULTILINE).start() :]
    assert body == as_pyyaml_writes_it(body)
    assert all(re.match(r" *(- |id|name|level|prompts|children|tree|source)", line) for line in body.splitlines()[1:])


@pytest.mark.parametrize("bad", ["\ud800", "x" * 10_001])
def test_names_no_file_can_hold_are_refused(bad: str) -> None:
    leaves = (Node("a", "a", class_id="a"), Node(bad, "b", class_id="b"))
    with pytest.raises(UsageError, match="Unicode text of at most 10000 characters"):
        dump_trees([Tree(Node("r", "r", leaves, level=1))])
    with pytest.raises(UsageError, match="Unicode text of at most 10000 characters"):
        dump_trees([Tree(Node("r", "r", (*leaves[:1], Node("b", "b", class_id="b")), level=1), (), {"x": [{bad: 1}]})])


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
        (HEAD + "  - {class: a, children: [c]}\n  - b\n", 4, "a leaf has no `children`"),
        (HEAD + "  - {}\n  - b\n", 4, "an empty map"),
        (HEAD + "  - s:\n    - a\n    t:\n    - c\n  - b\n", 6, "an item of its own"),
        (HEAD + "  - {? [x] : [a]}\n  - b\n", 4, "begins with `ID NAME:`"),
        (HEAD + "  - '':\n    - a\n  - b\n", 4, "cannot be read as `ID NAME`"),
        (HEAD + "  - {id: s, name: [x], children: [a]}\n  - b\n", 4, "`name` must be text"),
        (HEAD + "  - {class: a, prompts: [x, '']}\n  - b\n", 4, "a prompt name must be text"),
        (HEAD + "  - s: [a, b, a]\n", 4, "class 'a' stands on a second leaf, first on line 4"),
        (HEAD + "  - {s: [a]}\n  - {s: [b]}\n", 5, "superclass 's' is there twice"),
        ("hrzs-tree: 1\ntree:\n- r@101:\n  - a\n  - b\n", 3, "from 1 to 100 levels"),
        ("hrzs-tree: 1\ntree:\n- r@0:\n  - a\n  - b\n", 3, "from 1 to 100 levels"),
        ("hrzs-tree: 1\ntree:\n- r:\n  - a\n- s:\n  - {}\n", 6, "an empty map"),
        ("hrzs-tree: 1\ntree: {r: [a, b]}\n", 2, "exactly one root"),
        ("hrzs-tree: 1\nsource: x\ntree:\n- r:\n  - a\n  - b\n", 2, "`source` is a map"),
        ("hrzs-tree: 1\nclasses: all\ntree:\n- r:\n  - a\n  - b\n", 2, "`classes` is a list"),
        ("hrzs-tree: 1\nclasses: [a, b, [c]]\ntree:\n- r:\n  - a\n  - b\n", 2, "a class must be text"),
        ("hrzs-tree: 1\ntree: []\ntrees: []\n", 1, "either `tree:`"),
        ("hrzs-tree: 1\ntrees: 3\n", 2, "`trees` is a list"),
        ("hrzs-tree: 1\ntrees:\n- [a]\n- {}\n", 4, "`tree` is missing"),
        ("hrzs-tree: 1\nsource: {a: 1}\ntrees:\n- tree:\n  - r:\n    - a\n    - b\n", 2, "belongs to each"),
        ("hrzs-tree: 1\nhrzs-tree: 1\ntree:\n- r:\n  - a\n  - b\n", 2, "key 'hrzs-tree' is there twice"),
        ("hrzs-tree: 1\n? [x]\n: 1\ntree:\n- r:\n  - a\n  - b\n", 2, "a key must be text"),
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


FAULTY = """\
hrzs-tree: 2
colour: red
classes: [fox, cat, dog, car, bus, fox, tram, bicycle, boat, ship, raft, canoe]
source: [hand]
tree:
- r@4 thing:
  - a@3 animal:
    - fox
    - fox red
    - cat@2
    - d@3 dogs:
      - dog
      - w@3 wolves:
        - {class: wolf, colour: grey}
  - v@2 vehicle:
    - {class: car, name: '', prompts: car}
    - {class: bus, name: bus, name: coach}
    - a again:
      - {id: e, level: high, children: [tram]}
    - rail:
    - [train]
    - bicycle: a name
  - {class: boats, children: [boat, {class: ''}]}
  - !!str ship
  - &raft raft
  - {children: [canoe]}
"""


def test_all_faults_are_found_in_one_pass(tmp_path: Path) -> None:
    expected = [
        (1, "reads `hrzs-tree: 1`"),
        (2, "unknown key 'colour'"),
        (3, "class 'bicycle' is listed in `classes` but has no leaf"),
        (3, "class 'fox' is listed twice"),
        (4, "`source` is a map"),
        (9, "class 'fox' stands on a second leaf, first on line 8"),
        (10, "leaf 'cat' stands at level 0"),
        (11, "'d' ('dogs') is at level 3"),
        (13, "'w' ('wolves') is at level 3"),
        (14, "leaf 'wolf' is not listed"),
        (14, "unknown key 'colour'"),
        (16, "`name` must be text"),
        (16, "`prompts` is a list"),
        (17, "key 'name' is there twice"),
        (18, "superclass 'a' is there twice, first on line 7"),
        (19, "'e' ('e') is at level 0"),
        (19, "`level` is a whole number"),
        (20, "superclass 'rail' has no children"),
        (21, "a list stands where a node should"),
        (21, "leaf 'train' is not listed"),
        (22, "'bicycle' has text after its colon"),
        (23, "`class` must be text"),
        (23, "a leaf has no `children`"),
        (24, "tags (tag:yaml.org,2002:str)"),
        (25, "anchors and aliases (raft)"),
        (26, "a leaf needs `class`, a superclass `id`"),
    ]
    found = faults(tmp_path, FAULTY)
    assert [fault.line for fault in found] == [line for line, _ in expected]
    for fault, (_, message) in zip(found, expected, strict=True):
        assert message in fault.message


def test_no_fault_follows_from_another(tmp_path: Path) -> None:
    # The class beneath a superclass that cannot be read is there all the same; so are those below a wrong level.
    text = "hrzs-tree: 1\nclasses: [a, b, c]\ntree:\n- r@1:\n  - s:\n    - t:\n      - a\n  - ' ':\n    - b\n  - c\n"
    assert [fault.line for fault in faults(tmp_path, text)] == [5, 8, 8]


def test_reading_stops_at_so_many_faults(tmp_path: Path) -> None:
    found = faults(tmp_path, HEAD + "  - {}\n" * (MAX_FAULTS + 5))
    assert len(found) == MAX_FAULTS + 1
    assert Fault(MAX_FAULTS + 3, f"{MAX_FAULTS} faults found by here: reading stopped") in found


def test_not_utf8_is_found_on_its_line(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_bytes(b"hrzs-tree: 1\ntree:\n- \xff\n")
    assert check(file) == [Fault(3, "the text is not UTF-8")]


SCRAPS = [
    "", "\n", " ", "  ", "\t", "- ", ":", ": ", "? ", "#", "[", "]", "{", "}", ",", "&a ", "*a", "!t ", "!!python/object:os.system ",
    "'", '"', "|", ">", "%", "@1", "@9999", "---\n", "...\n", "<<: *a", "\0", "\x07", "\r", "\x85", "\u2028", "\ufeff", "🦊",
    "children: ", "class: ", "id: ", "level: ", "level: 3", "prompts: ", "null", "tree:", "trees:", "source: ", "classes: ", "sorted",
]  # fmt: skip
FOREST = "hrzs-tree: 1\ntrees:\n" + "".join(
    f"- source: {{name: {name}}}\n  tree:\n  - r:\n    - s: [a, b]\n    - c\n" for name in "xy"
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_spoilt_file_is_a_tree_or_has_faults(tmp_path: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([GOOD, FOREST, FAULTY]))
    for _ in range(data.draw(st.integers(1, 4))):
        # A stretch of the file makes way for a scrap, or for another stretch.
        start, end, source, stop = (data.draw(st.integers(0, len(text))) for _ in range(4))
        scrap = data.draw(st.one_of(st.sampled_from(SCRAPS), st.just(text[source : min(stop, source + 60)])))
        text = text[:start] + scrap + text[min(max(start, end), start + 30) :]
    file = write(tmp_path, text)
    if found := check(file):
        assert all(1 <= fault.line <= len(text.splitlines()) + 1 for fault in found)
        with pytest.raises(UsageError, match=rf":{found[0].line}: "):
            load_trees(file)
    else:
        trees = load_trees(file)
        again = write(tmp_path, dump_trees(trees))
        assert load_trees(again) == trees


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_spoilt_bytes_are_a_tree_or_have_faults(tmp_path: Path, scrap: bytes, at: int) -> None:
    file = tmp_path / "tree.yaml"
    file.write_bytes(GOOD.encode()[:at] + scrap + GOOD.encode()[at:])
    assert check(file) or load_trees(file)


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
