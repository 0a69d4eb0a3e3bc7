"""Trees of others: every form in its real layout, every fault with its line, and files that mean harm."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.hierarchy.yaml_form import MAX_DEPTH, dump_trees, load_tree
from hrzs.safe_yaml import BadYamlError, List, Map, Scalar, Yaml
from hrzs.sources import ClassSpec, SourceOptions, json_text
from hrzs.sources.build import build_trees
from hrzs.sources.file import classes_of, grow
from hrzs.sources.formats import MAX_NAME

Nested = dict[str, "Nested | None"]

ANIMALS: Nested = {"animal": {"dog": {"poodle": None, "beagle": None}, "ant": None}, "plant": {"oak": None}}

TABLE = """\
# general to specific, the class at the end
animal,dog,poodle
plant,oak

animal,dog,"beagle"
animal,ant,
"""
TABLE_ORDER = ["poodle", "oak", "beagle", "ant"]


def shape(node: Node) -> Nested | None:
    """The names, as nested dicts in which the order does not count."""
    return None if node.is_leaf else {child.name: shape(child) for child in node.children}


def options(*files: Path | str, trees: int = 1) -> SourceOptions:
    return SourceOptions(files=tuple(map(str, files)), trees=trees)


def grown(*files: Path | str) -> Node:
    (root,) = grow([], options(*files)).roots
    return root


def ids(specs: Sequence[ClassSpec]) -> list[str]:
    return [spec.class_id for spec in specs]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


Write = Callable[[str, str | bytes], Path]


def faults(*files: Path, classes: Sequence[ClassSpec] = ()) -> str:
    """What is said of the files, without the folder that they are in."""
    with pytest.raises(UsageError) as caught:
        grow(classes, options(*files))
    return str(caught.value).replace(f"{files[0].parent}/", "")


# -- forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("t.csv", TABLE, "table"),
        ("t.txt", TABLE, "table"),
        ("crlf.csv", TABLE.replace("\n", "\r\n"), "table"),
        ("bom.csv", "\ufeff" + TABLE.removeprefix("# general to specific, the class at the end\n"), "table"),
        ("t.tsv", TABLE.replace(",", "\t"), "table"),
        ("semicolons.csv", TABLE.replace(",", ";"), "table"),
        ("header.csv", "Class,kingdom,kind\npoodle,animal,dog\noak,plant\nbeagle,animal,dog\nant,animal,\n", "table"),
        (
            "pairs.txt",
            "animal dog\nplant oak\ndog poodle\n# a comment\ndog\tbeagle\nanimal ant\n",
            "pairs",
        ),
        ("pairs.csv", "child,parent\ndog,animal\npoodle,dog\noak,plant\nbeagle,dog\nant,animal\n", "pairs"),
        ("t.json", '{"animal": [{"dog": ["poodle", "beagle"]}, "ant"], "plant": ["oak"]}', "json"),
        ("list.json", '[{"animal": [{"dog": ["poodle", "beagle"]}, "ant"]}, {"plant": ["oak"]}]', "json"),
        ("isa.json", '{"animal": ["dog", "ant"], "plant": ["oak"], "dog": ["poodle", "beagle"]}', "pairs"),
        (
            "pairs.json",
            '[["animal","dog"], ["dog","poodle"], ["plant","oak"],\n ["dog","beagle"], ["animal","ant"]]',
            "pairs",
        ),
        (
            "tree.txt",
            "hrzs-tree: 1\ntree:\n- entity:\n  - animal:\n    - dog:\n      - poodle\n      - beagle\n    - ant\n"
            "  - plant:\n    - oak\n",
            "yaml",
        ),
    ],
    ids=lambda value: value if "." in value else None,
)
def test_forms(write: Write, name: str, content: str, form: str) -> None:
    file = write(name, content)
    made = grow([], options(file))
    assert [shape(root) for root in made.roots] == [ANIMALS]
    assert made.each == ({"file": name, "format": form},)
    assert not made.notes
    (root,) = made.roots
    assert {node.id for node in root.walk() if not node.is_leaf} == {"entity", "animal", "dog", "plant"}
    assert sorted(ids(classes_of([str(file)]))) == sorted(TABLE_ORDER)


def test_classes_in_file_order(write: Write) -> None:
    assert ids(classes_of([str(write("t.csv", TABLE))])) == TABLE_ORDER
    file = write("t.yaml", "hrzs-tree: 1\nclasses: [b, a]\ntree:\n- r:\n  - a Alpha\n  - {class: b, id: n02084071}\n")
    assert classes_of([str(file)]) == [ClassSpec("b", None, "n02084071"), ClassSpec("a", "Alpha")]


def test_nested_folders(write: Write, tmp_path: Path) -> None:
    for path in ("animal/dog/poodle/1.jpg", "animal/dog/beagle/2.PNG", "animal/ant/.x/3.jpg", "plant/oak/notes.txt"):
        write(f"data/{path}", b"")
    write("data/README.md", "no image")
    made = grow([], options(tmp_path / "data"))
    assert shape(made.roots[0]) == ANIMALS
    assert made.roots[0].name == "data"
    assert made.each == ({"file": "data", "format": "folders"},)
    assert ids(classes_of([str(tmp_path / "data")])) == ["ant", "beagle", "poodle", "oak"]


def test_folder_faults(write: Write, tmp_path: Path) -> None:
    for path in ("a/x/1.jpg", "b/x/1.jpg", "c/1.jpg", "c/z/1.jpg"):
        write(f"data/{path}", b"")
    (tmp_path / "data/b/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/c/z2").symlink_to(tmp_path / "data/c/z")
    said = faults(tmp_path / "data")
    assert "data/b/x: class 'x' is there twice, first as data/a/x" in said.replace(f"{tmp_path}/", "")
    assert "data/b/loop: cycle" in said
    assert "data/c: it holds images, such as 1.jpg" in said
    assert "3 fault(s)" in said
    for split in ("train", "val"):
        write(f"split/{split}/a/1.jpg", b"")
    assert "name one of them, such as" in faults(tmp_path / "split")


def breeds(write: Write) -> Path:
    """An excerpt in the layout of MadryLab/BREEDS-Benchmarks, with a branch that holds no class."""
    write(
        "breeds/class_hierarchy.txt",
        "n00001740 n00004258\nn00004258 n02512053\nn02512053 n01443537\nn02512053 n01440764\nn00004258 dummy7\n"
        "dummy7 n01514668\nn00004258 n09999999\nn09999999 n09999998\n",
    )
    write(
        "breeds/node_names.txt",
        "n00001740\tentity\nn00004258\tliving thing\nn02512053\tfish\ndummy7\tfowl, poultry\nn01440764\ttench\n",
    )
    return write(
        "breeds/dataset_class_info.json",
        '[[1, "n01443537", "goldfish, Carassius auratus"], [0, "n01440764", "tench, Tinca tinca"], '
        '[7, "n01514668", "cock"], [8, "n01514859", "hen"]]',
    ).parent


def test_breeds(write: Write) -> None:
    folder = breeds(write)
    made = grow([], options(folder))
    assert shape(made.roots[0]) == {"living thing": {"fish": {"tench": None, "goldfish": None}, "fowl": {"cock": None}}}
    assert [n.id for n in made.roots[0].walk()] == [
        *("n00001740", "n00004258", "n02512053", "n01443537", "n01440764", "dummy7", "n01514668")
    ]
    assert made.each == ({"file": "breeds", "format": "breeds"},)
    assert ids(classes_of([str(folder)])) == ["n01440764", "n01443537", "n01514668"]
    (note,) = made.notes
    assert note.endswith("no place for 1 classes of dataset_class_info.json: n01514859")


def test_breeds_faults(write: Write) -> None:
    folder = breeds(write)
    write("breeds/class_hierarchy.txt", "n00001740 n01440764\nn01440764 n01443537\nthree words here\n")
    write("breeds/node_names.txt", "n00001740\tentity\nn00001740\tthing\nnothing\n")
    write("breeds/dataset_class_info.json", '[\n[0, "n01440764", "tench"],\n[1, "n01440764", "x"],\n["a", "b", "c"]]')
    said = faults(folder)
    for line in (
        "breeds/class_hierarchy.txt:3: 'three words here' is no pair",
        "breeds/dataset_class_info.json:3: class 'n01440764' is listed twice",
        'breeds/dataset_class_info.json:4: a class is a list [index, "ID", "name"]',
        "breeds/node_names.txt:2: 'n00001740' is named twice",
        "breeds/node_names.txt:3: 'nothing' is no `ID<TAB>name`",
    ):
        assert line in said
    write("breeds/class_hierarchy.txt", "n00001740 n01440764\nn01440764 n01443537\n")
    write("breeds/node_names.txt", "n00001740\tentity\n")
    write("breeds/dataset_class_info.json", '[[0, "n01440764", "tench"], [1, "n01443537", "goldfish"]]')
    assert "breeds/class_hierarchy.txt:2: class 'n01440764' is a parent here" in faults(folder)
    (folder / "node_names.txt").unlink()
    assert "node_names.txt: it cannot be read" in faults(folder)


def test_synset_lists_get_words(write: Write) -> None:
    """An excerpt like imagenet_isa.txt of fiveai/making-better-mistakes."""
    file = write("isa.txt", "n00015388 n02084071\nn02084071 n02085620\nn02084071 n02088364\nn00015388 n02219486\n")
    root = grown(file)
    assert root.name == "animal"
    assert shape(root) == {"dog": {"Chihuahua": None, "beagle": None}, "ant": None}
    assert [n.id for n in root.walk()] == ["n00015388", "n02084071", "n02085620", "n02088364", "n02219486"]
    specs = [ClassSpec("chihuahua"), ClassSpec("b", "hound", "n02088364"), ClassSpec("n02219486", "pismire")]
    leaves = list(grow(specs, options(file)).roots[0].leaves())
    assert [(leaf.class_id, leaf.id, leaf.name) for leaf in leaves] == [
        ("chihuahua", "n02085620", "Chihuahua"),
        ("b", "n02088364", "hound"),
        ("n02219486", "n02219486", "pismire"),
    ]


def test_words_of_synsets_find_their_leaf(write: Write) -> None:
    file = write("t.csv", "kingdom,class\ninsect,emmet\nfish,Tinca tinca\n")
    leaves = list(grow([ClassSpec("n02219486"), ClassSpec("x", None, "n01440764")], options(file)).roots[0].leaves())
    assert [(leaf.class_id, leaf.name) for leaf in leaves] == [("n02219486", "emmet"), ("x", "Tinca tinca")]


def test_several_parents_become_one(write: Write) -> None:
    # pet is listed first, but dog lies deeper; thing -> c is a short cut; a and b are equally deep.
    pairs = "thing pet\nthing animal\nanimal dog\npet poodle\ndog poodle\ndog beagle\nthing a\nthing b\na x\nb x\n"
    file = write("dag.txt", pairs + "thing beagle\npet cat\nb y\n")
    made = grow([], options(file))
    assert shape(made.roots[0]) == {
        "pet": {"cat": None},
        "animal": {"dog": {"poodle": None, "beagle": None}},
        "a": {"x": None},
        "b": {"y": None},
    }
    assert "3 nodes have several parents" in made.notes[0]
    assert "'poodle' beneath 'dog'" in made.notes[0]


def test_table_columns(write: Write) -> None:
    file = write("t.csv", 'id,class,name,kind\nn02113799,17,"poodle, a dog",dog\n,no,,dog\n"",1e3,,cat\n')
    leaves = list(grown(file).leaves())
    assert [(leaf.class_id, leaf.id, leaf.name) for leaf in leaves] == [
        ("17", "n02113799", "poodle, a dog"),
        ("no", "no", "no"),
        ("1e3", "1e3", "1e3"),
    ]


RANKS = "kingdom,phylum,class,order,family,genus,name\n"
RAVEN, WOLF = (
    "Animalia,Chordata,Aves,Passeriformes,Corvidae,Corvus",
    "Animalia,Chordata,Mammalia,Carnivora,Canidae,Canis",
)
DOGS: Nested = {"dog": {"poodle": None, "beagle": None}, "cat": {"siamese": None}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{RANKS}{RAVEN},raven\n{WOLF},wolf\n{WOLF},jackal\n", None),
        # From special to general, and without a column called `name`.
        (
            "Species,Genus,Family,Order,Class,Phylum,Kingdom\n"
            + "".join(",".join([name, *reversed(path.split(","))]) + "\n"
                      for name, path in (("raven", RAVEN), ("wolf", WOLF), ("jackal", WOLF))),
            None,
        ),
        ("family,species\ndog,poodle\ndog,beagle\ncat,siamese\n", DOGS),
        (",family,species\n0,dog,poodle\n1,dog,beagle\n2,cat,siamese\n", DOGS),
        (",kind,what\n0,dog,poodle\n1,dog,beagle\n2,cat,siamese\n", DOGS),
        ("Unnamed: 0,class,kind\n7,poodle,dog\n5,beagle,dog\n6,siamese,cat\n", DOGS),
        ("index,coarse_label,fine_label\n0,dog,poodle\n1,dog,beagle\n2,cat,siamese\n", DOGS),
        ("0,dog,poodle\n1,dog,beagle\n2,cat,siamese\n", DOGS),
        (",parent,child\n0,dog,poodle\n1,dog,beagle\n2,cat,siamese\n", DOGS),
        # One rank alone: `class` is the class.
        ("class,order\npoodle,dog\nbeagle,dog\nsiamese,cat\n", DOGS),
        # The last column holds the classes, even if they are numbers.
        ("dog,1\ndog,2\ncat,3\n", {"dog": {"1": None, "2": None}, "cat": {"3": None}}),
    ],
)  # fmt: skip
def test_headers(write: Write, text: str, expected: Nested | None) -> None:
    birds: Nested = {"Passeriformes": {"Corvidae": {"Corvus": {"raven": None}}}}
    beasts: Nested = {"Carnivora": {"Canidae": {"Canis": {"wolf": None, "jackal": None}}}}
    life: Nested = {"Chordata": {"Aves": birds, "Mammalia": beasts}}
    assert shape(grown(write("t.csv", text))) == (expected or life)


def test_a_doubtful_header_is_asked_for(write: Write) -> None:
    file = write("t.csv", "Art,Rasse\ndog,poodle\ndog,beagle\ncat,siamese\n")
    assert "t.csv:1: 'Art, Rasse' may be a header" in faults(file)
    assert shape(grow([], replace(options(file), has_header=True)).roots[0]) == DOGS
    assert shape(grow([], replace(options(file), has_header=False)).roots[0]) == {"Art": {"Rasse": None}, **DOGS}


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.text(alphabet=st.sampled_from(',;\t"\n\r#class01 é\x00'), max_size=80),
        st.builds(
            lambda form, at, cut, put: form[:at] + put + form[at + cut :],
            st.sampled_from([TABLE, f"{RANKS}{RAVEN},raven\n{WOLF},wolf\n", ",family,species\n0,dog,poodle\n1,cat,x\n"]),
            st.integers(0, 150), st.integers(0, 20), st.text(max_size=5),
        ),
    ),
    has_header=st.sampled_from([None, True, False]),
)  # fmt: skip
def test_any_table_gives_a_tree_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, has_header: bool | None
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "t.csv"
    file.write_bytes(text.encode(errors="replace"))
    try:
        made = grow([], replace(options(file), has_header=has_header))
    except UsageError:
        return
    assert list(made.roots[0].leaves())


def test_superclasses_of_one_name_stay_apart(write: Write) -> None:
    root = grown(write("t.csv", "animal,other,ant\nplant,other,oak\nplant,o ther,elm\nplant,o_ther,ash\nplant,rose\n"))
    assert [n.id for n in root.walk() if not n.is_leaf] == [
        *("entity", "animal", "animal/other", "plant", "plant/other", "plant/o_ther", "plant/o_ther~2")
    ]


def test_yaml_keeps_what_it_has(write: Write, tmp_path: Path, tree: Tree) -> None:
    file = write("own.yaml", dump_trees([Tree(tree.root, tree.classes, {"name": "hand", "levels": 3})]))
    made = grow([], options(file))
    assert made.each == ({"file": "own.yaml", "format": "yaml", "from": {"name": "hand", "levels": 3}},)
    assert made.roots == (tree.root,)
    (again,), _ = build_trees(classes_of([str(file)]), source="file", options=options(file))
    written = write("again.yaml", dump_trees([again]))
    assert load_tree(written) == again
    assert again.header == {"name": "hand", "levels": 3}
    assert {leaf.prompts for leaf in again.root.leaves()} == {(), ("bus", "coach")}


FOREST = """\
hrzs-tree: 1
trees:
- source: {name: one}
  tree:
  - r:
    - x:
      - a
      - b
    - c
- tree:
  - r:
    - a
    - y:
      - b
      - c
"""


def test_forests(write: Write) -> None:
    forest, table = write("f.yaml", FOREST), write("t.csv", "z,a\nz,c\nw,b\nw,unused\n")
    made = grow([], options(forest, table, trees=4))
    assert [sorted(child.id for child in root.children) for root in made.roots] == [["c", "x"], ["a", "y"], ["w", "z"]]
    assert made.each == (
        {"file": "f.yaml#1", "format": "yaml", "from": {"name": "one"}},
        {"file": "f.yaml#2", "format": "yaml"},
        {"file": "t.csv", "format": "table"},
    )
    assert made.notes == ("--trees 4: the files hold 3; name more files with --tree",)
    second = grow([], options(f"{forest}#2"))
    assert second.roots == (made.roots[1],)
    with pytest.raises(UsageError, match=r"f\.yaml: it holds 2 tree\(s\), there is no #3"):
        grow([], options(f"{forest}#3"))
    odd = write("t.csv#2", "z,a\nz,c\nw,b\n")
    assert len(list(grown(odd).leaves())) == 3


def test_no_superclasses_is_said(write: Write) -> None:
    (note,) = grow([], options(write("flat.csv", "a\nb\n"))).notes
    assert "has no superclasses" in note


# -- the classes that are asked for --------------------------------------------------------------------------------


def test_classes_select_and_order(write: Write) -> None:
    file = write("t.csv", "animal,Aquarium-Fish,\nanimal,dog,sea lion\nplant,oak\nplant,elm\n")
    specs = [ClassSpec("oak"), ClassSpec("sea_lion"), ClassSpec("7", "aquarium fish")]
    (tree,), _ = build_trees(specs, source="file", options=options(file))
    assert tree.classes == ("oak", "sea_lion", "7")
    assert sorted((leaf.class_id, leaf.id, leaf.name) for leaf in tree.root.leaves()) == [
        ("7", "7", "aquarium fish"),
        ("oak", "oak", "oak"),
        ("sea_lion", "sea_lion", "sea lion"),
    ]


def test_the_id_comes_before_the_name(write: Write) -> None:
    file = write("t.csv", "class,name,kind\n1,crane,bird\n2,crane,machine\ncrane,derrick,machine\n")
    specs = [ClassSpec("2", "crane"), ClassSpec("crane"), ClassSpec("1", "crane")]
    assert [(leaf.class_id, leaf.name) for leaf in grow(specs, options(file)).roots[0].leaves()] == [
        ("1", "crane"),
        ("2", "crane"),
        ("crane", "derrick"),
    ]


def test_every_class_without_a_leaf_is_named(write: Write) -> None:
    file = write("t.csv", "class,name,kind\n1,crane,bird\n2,crane,machine\n3,cat,feline\n")
    other = write("u.csv", "a,1\nb,3\n")
    specs = [ClassSpec("crane"), ClassSpec("Feline"), ClassSpec("3"), ClassSpec("1"), ClassSpec("dodo")]
    said = faults(file, other, classes=specs)
    assert "t.csv: there is no leaf for class 'Feline'; it is a superclass there" in said
    assert "t.csv: there is no leaf for class 'dodo'" in said
    assert "u.csv: there is no leaf for class 'dodo'" in said
    both = faults(file, classes=[ClassSpec("cat"), ClassSpec("Cat"), ClassSpec("crane")])
    assert "classes 'cat' and 'Cat' are both leaf '3'" in both
    assert "class 'crane' may be any of the leaves '1', '2'" in both


# -- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "t.csv",
            "a,x\nb,x\na,,y\n,\n\na,b,y\n",
            ["2: class 'x'", "3: an empty name between", "4: an empty name:"],
        ),
        (
            "q.csv",
            'a,"x\nb,y\na,"y"z\nb,y\n',
            ["1: a double quote is not", "3: no table", "4: class 'y' is there twice"],
        ),
        ("w.csv", "class,kind\nx,a,b\n,a\ny,a,\n", ["2: there are 3 cells", "3: an empty name: there is no class"]),
        ("c.csv", "class,kind,class\nx,a,y\nz,a,z\n", ["1: there are 2 columns called 'class'"]),
        ("p.csv", "thing,dog\ndog,poodle\n", ["1: class 'dog' is a superclass on line 2; if the lines are pairs"]),
        ("s.csv", "a,dog\na,dog,poodle\n", ["1: class 'dog' is a superclass"]),
        ("h.csv", "class,kind,sort\ndog,a\npoodle,a,dog\n", ["2: class 'dog' is a superclass too, on line 3"]),
        ("pc.csv", "parent,child\na,b\nc\na,\n", ["3: a pair is", "4: a pair is"]),
        ("e.csv", "# nothing\n", ["there are no classes in it"]),
        (
            "cycle.txt",
            "r a\nb c\nc d\nd b\nq q\nd e\nz y\n",
            ["4: cycle: 'b' < 'd' < 'c' < 'b'", "5: cycle: 'q' < 'q'"],
        ),
        ("bad.txt", "r a\nr b c\nr\n", ["2: 'r b c' is no pair", "3: 'r' is no pair"]),
        ("utf.txt", b"r a\nr \xff\n", ["2: the text is not UTF-8"]),
        ("u16.csv", "a,b\n".encode("utf-16"), ["1: the text is not UTF-8"]),
        ("words.txt", "one\ntwo\n", ["this is no class tree in a form that hrzs knows; it should be"]),
        ("n.csv", f"a,{'x' * (MAX_NAME + 1)}\na,b\n", [f"1: a name of more than {MAX_NAME} characters"]),
        ("deep.csv", "a,b\n" + ",".join(map(str, range(150))), ["2: 149 superclasses over one class"]),
        (
            "x.json",
            '{"a": [\n"x",\n"x", 3,\n"", []],\n"b": {},\n"b": [null],\n"c": "d"}',
            [
                *("3: class", "3: a class is text", "4: a class is text", "5: superclass 'b' has no"),
                *("6: superclass 'b' is", "7: 'd' stands below 'c'"),
            ],
        ),
        ("p.json", '[["a", "b"],\n["a"],\n"c",\n["a", 1]]', ["2: a pair is", "3: a pair is", "4: a child is text"]),
        ("i.json", '{"a": ["b"],\n"b": ["a"]}', ["2: cycle: 'a' < 'b' < 'a'"]),
        ("k.json", '{"a": [{"b": ["c"]}, "b"]}', ["1: class 'b' is a superclass too"]),
        ("comma.json", '{"a": [\n,"x"]}', ["2: no JSON: Expecting value"]),
        ("nan.json", '{"a": [\nNaN]}', ["2: no JSON: 'NaN]}' means nothing"]),
        ("open.json", '{"a": ["x",\n"y', ["2: no JSON: Unterminated string"]),
        ("end.json", '{"a": ["x"', ["1: no JSON: Expecting ',' delimiter"]),
        ("two.json", '{"a": ["x"]}\n{}', ["2: no JSON: Extra data"]),
        ("half.json", '{"a": ["\\ud800"]}', ["1: no JSON: '\"\\\\ud800\"]}' means nothing"]),
        ("mix.json", '{"a": ["x"]]', ["1: no JSON: Expecting ',' delimiter"]),
        ("key.json", "{1: []}", ["1: no JSON: Expecting property name enclosed in double quotes"]),
        ("quote.json", "{'a': []}", ["1: no JSON"]),
        ("colon.json", '{"a" ["x"]}', ["1: no JSON: Expecting ':' delimiter"]),
        ("scalar.json", "3", ["1: a map or a list is needed"]),
        ("empty.json", "", ["1: no JSON: Expecting value"]),
        ("none.json", "[]", ["there are no classes in it"]),
        ("t.yaml", "hrzs-tree: 1\ntree:\n- r:\n  - a\n  - a\n", ["5: class 'a' stands on a second leaf"]),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and "\n" not in value else None,
)
def test_faults(write: Write, name: str, content: str | bytes, expected: list[str]) -> None:
    said = faults(write(name, content))
    for line in expected:
        assert f"{name}:{line}" in said or f"{name}: {line}" in said


def test_twenty_faults_are_shown(write: Write) -> None:
    said = faults(write("t.csv", "a,b\n" * 40))
    assert "39 fault(s)" in said
    assert said.count("is there twice") == 20
    assert said.endswith("… and 19 more")


def test_faults_of_several_files(write: Write) -> None:
    said = faults(write("a.csv", "a,,b\n"), write("b.json", "{"), Path("/nowhere/c.csv"))
    assert "a.csv:1: an empty name" in said
    assert "b.json:1: no JSON" in said
    assert "/nowhere/c.csv: there is no such file or folder" in said


# -- hostile files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("deep.json", "[" * 10**6, "nested too deep"),
        ("maps.json", '{"a":' * 10**6, "nested too deep"),
        ("many.json", "[" + "1," * 10**6, "more than 20000 nodes"),
        ("escapes.json", '["' + "\\\\" * 5 * 10**6, "Unterminated string"),
        ("line.json", '["' + "x" * 10**7, "Unterminated string"),
        ("cells.csv", "," * 10**7, "more than 20000 cells"),
        ("cell.csv", "x" * 10**6 + ",b", "field larger than"),
        ("quotes.csv", '"' * (10**6 + 1), "a double quote is not closed"),
        ("chain.txt", "\n".join(f"{i} {i + 1}" for i in range(10**4)), "nested too deep"),
        ("cycle.txt", "\n".join(f"{i} {(i + 1) % 10**4}" for i in range(10**4)), "cycle: "),
        ("cycles.txt", "\n".join(f"{i} {i}" for i in range(10**4)), "10000 fault(s)"),
        ("lines.txt", "a b\n" + "\n" * 10**7, "at least two"),
    ],
    ids=lambda value: value if "." in value and len(value) < 20 else None,
)
def test_hostile_files_end_soon(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, content: str, expected: str
) -> None:
    # Types are checked in tests, and a million of them take their time.
    for bound in ("formats.MAX_NODES", "formats.MAX_CELLS"):
        monkeypatch.setattr(f"hrzs.sources.{bound}", 20_000)
    monkeypatch.setattr("hrzs.safe_yaml.MAX_NODES", 20_000)
    file = write(name, content)
    start = time.process_time()
    with pytest.raises(UsageError) as caught:
        build_trees(classes_of([str(file)]), source="file", options=options(file))
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 5000
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.txt", "t.yaml"])
def test_too_large(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with file.open("wb") as stream:
        stream.truncate(100 * 2**20)
    assert "the file is larger than" in faults(file)


def test_deepest_tree_survives(write: Write) -> None:
    path = [f"s{i}" for i in range(MAX_DEPTH - 1)]
    file = write("t.csv", ",".join([*path, "a"]) + "\ns0,c\n")
    assert len(list(grown(file).walk())) == MAX_DEPTH + 1


# -- round trips ---------------------------------------------------------------------------------------------------


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "x"


names = st.one_of(
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=10),
    st.sampled_from(
        ["no", "on", "1e3", "null", "~", "#x", '"', "a,b", "a;b", "狐", "🦊", "x" * 300, "class", "{", "[z]"]
    ),
).filter(lambda text: text.strip() == text and text.replace("_", ""))


@st.composite
def nests(draw: st.DrawFn) -> list[tuple[tuple[str, ...], str]]:
    """The classes of a random tree, each with the path of its superclasses; all names differ, capitals or not."""
    inner = draw(st.lists(names, min_size=2, max_size=6, unique_by=str.casefold))
    above: dict[str, tuple[str, ...]] = {}
    for i, name in enumerate(inner):
        parent = draw(st.sampled_from([None, *inner[:i]]))
        above[name] = (above[parent] if parent is not None else ()) + (f"s{i} {name}",)
    places = [*above.values(), *draw(st.lists(st.sampled_from([(), *above.values()]), max_size=4))]
    classes = draw(st.lists(names, min_size=len(places), max_size=len(places), unique=True))
    return list(zip(places, classes, strict=True))


def nested(rows: Sequence[tuple[tuple[str, ...], str]]) -> Nested:
    top: Nested = {}
    for path, leaf in rows:
        place = top
        for name in path:
            below = place.setdefault(_one_line(name.replace("_", " ")), {})
            assert below is not None
            place = below
        place[f"leaf {leaf}"] = None
    return top


def with_ids(node: Node) -> Nested | None:
    return (
        None if node.is_leaf else {(f"leaf {c.class_id}" if c.is_leaf else c.name): with_ids(c) for c in node.children}
    )


def _check_round_trip(file: Path, rows: Sequence[tuple[tuple[str, ...], str]]) -> None:
    expected = nested(rows)
    root = grown(file)
    if len(expected) == 1:
        ((_, only),) = expected.items()
        expected = only or {}
    assert with_ids(root) == expected
    specs = classes_of([str(file)])
    assert sorted(ids(specs)) == sorted(leaf for _, leaf in rows)
    (tree,), _ = build_trees(specs, source="file", options=options(file))
    written = file.with_suffix(".out.yaml")
    written.write_text(dump_trees([tree]), "utf-8")
    assert load_tree(written) == tree


@settings(max_examples=40)
@given(rows=nests())
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[tuple[str, ...], str]]) -> None:
    text = io.StringIO()
    width = max(len(path) for path, _ in rows)
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["class", *(f"level {i}" for i in range(width))])
    writer.writerows([leaf, *path] for path, leaf in rows)
    file = tmp_path_factory.mktemp("csv") / "t.csv"
    file.write_text(text.getvalue(), "utf-8", newline="")
    _check_round_trip(file, rows)
    assert ids(classes_of([str(file)])) == [leaf for _, leaf in rows]


@settings(max_examples=40)
@given(rows=nests(), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_json_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[tuple[str, ...], str]],
    indent: int | None,
    ascii_only: bool,
) -> None:
    top: list[object] = []
    lists: dict[tuple[str, ...], list[object]] = {(): top}
    for path, leaf in rows:
        for depth in range(1, len(path) + 1):
            if path[:depth] not in lists:
                lists[path[:depth]] = []
                lists[path[: depth - 1]].append({path[depth - 1]: lists[path[:depth]]})
        lists[path].append(leaf)
    file = tmp_path_factory.mktemp("json") / "t.json"
    file.write_text(json.dumps(top, indent=indent, ensure_ascii=ascii_only), "utf-8")
    _check_round_trip(file, rows)


@given(
    value=st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(),
            # What a YAML reader stumbles over.
            st.sampled_from(["\x7f", "a\x85b", "\u2028", "\ufeff", "\uffff", "🦊", "k" * 20_000, '\\"/', "---", "#%{"]),
        ),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.one_of(st.text(), st.just("k" * 2000)), inner)),
        max_leaves=20,
    ),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    separators=st.sampled_from([None, (",", ":"), (" ,\r\n", "\n:\n")]),
    ascii_only=st.booleans(),
)
def test_json_is_read_with_its_lines(
    value: object, indent: int | str | None, separators: tuple[str, str] | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=ascii_only)
    place = 0

    def expected(value: object) -> Yaml:
        nonlocal place
        scalar = json.dumps(value, ensure_ascii=ascii_only)
        begin = scalar[0] if isinstance(value, list | dict) else scalar
        # Between two beginnings there is no third: only closing brackets, commas, colons and blanks.
        place = text.index(begin, place) + len(begin)
        line = 1 + text.count("\n", 0, place)
        if isinstance(value, list):
            return List(line, [expected(item) for item in value])
        if isinstance(value, dict):
            return Map(line, [(expected(key), expected(item)) for key, item in value.items()])
        return Scalar(line, value, plain=False) if isinstance(value, str) else Scalar(line, begin, plain=True)

    assert json_text.parse(text, 100) == expected(value)


@given(text=st.text(st.sampled_from('[]{}",:\\ \n\tax10nulltrue'), max_size=40))
def test_json_agrees_with_python(text: str) -> None:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        with pytest.raises(BadYamlError):
            json_text.parse(text, 100)
    else:
        json_text.parse(text, 100)
