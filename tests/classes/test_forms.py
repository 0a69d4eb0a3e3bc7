"""Class lists as others publish them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hrzs.classes.forms import read_class_list
from hrzs.classes.specs import LISTS, ClassSpec, dataset_classes
from hrzs.errors import UsageError

FISH = [ClassSpec("n01440764", "tench"), ClassSpec("n01443537", "goldfish")]
NAMES = [ClassSpec("tench, Tinca tinca"), ClassSpec("goldfish")]
BIRDS = [ClassSpec("001.Black_footed_Albatross"), ClassSpec("002.Laysan_Albatross")]
SCENES = [ClassSpec("alcove"), ClassSpec("apse/indoor"), ClassSpec("barn")]
SIGNS = [ClassSpec("Stop sign"), ClassSpec("Speed limit (20km/h)")]


def read(tmp_path: Path, text: str | bytes, name: str = "classes.txt", *, by_line: bool = False) -> list[ClassSpec]:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_class_list(file, by_line=by_line)


@pytest.mark.parametrize(
    ("text", "name", "classes"),
    [
        # WordNet ids: synset_words.txt, LOC_synset_mapping.txt, map_clsloc.txt, and what people make of them
        ("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n", "", FISH),
        ("n01440764\ttench, Tinca tinca\nn01443537\tgoldfish\n", "", FISH),
        ("n01440764 1 tench\nn02096051 2 Airedale_terrier\n", "", [FISH[0], ClassSpec("n02096051", "Airedale terrier")]),
        ("n01440764,tench\nn01443537,goldfish\n", "x.csv", FISH),
        ('n01440764,"tench, Tinca tinca"\nn01443537,goldfish\n', "x.csv", FISH),
        ("n01443537 2 goldfish\nn01440764 1 tench\n", "", FISH),
        ("n01440764 390 tench\nn01443537 449 goldfish\n", "", FISH),
        ("0 n01440764 tench, Tinca tinca\n1 n01443537 goldfish\n", "", FISH),
        ("tench n01440764\ngoldfish (n01443537)\n", "", FISH),
        ("wnid,index,name\nn01440764,0,tench\nn01443537,1,goldfish\n", "x.csv", FISH),
        (
            "n02085620-Chihuahua\nn02085782-Japanese_spaniel\n",
            "",
            [
                ClassSpec("n02085620-Chihuahua", "Chihuahua", "n02085620"),
                ClassSpec("n02085782-Japanese_spaniel", "Japanese spaniel", "n02085782"),
            ],
        ),
        # numbers
        ("1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n", "", BIRDS),
        ("0,Stop sign\n1,Speed limit (20km/h)\n", "x.csv", SIGNS),
        ("ClassId,SignName\r\n14,Stop sign\r\n20,Speed limit (20km/h)\r\n", "x.csv", SIGNS),
        ("0: Stop sign\n1: Speed limit (20km/h)\n", "", SIGNS),
        ("0 -> Stop sign\n1 -> Speed limit (20km/h)\n", "", SIGNS),
        ("0|Stop sign\n1|Speed limit (20km/h)\n", "", SIGNS),
        ("ice_cream.n.01\n", "", [ClassSpec("ice_cream.n.01", "ice cream", "ice_cream.n.01")]),
        ("Stop sign,0\nSpeed limit (20km/h),1\n", "x.csv", SIGNS),
        ("\ufeff1. Speed limit (20km/h)\r\n0. Stop sign\r\n", "", SIGNS),
        ('0,"tench, Tinca tinca"\n1,goldfish\n', "x.csv", NAMES),
        ("0 tench, Tinca tinca\n1 goldfish\n", "", NAMES),
        # scenes
        ("/a/alcove 0\n/a/apse/indoor 1\n/b/barn 2\n", "", SCENES),
        ("/a/alcove 3\n/a/apse/indoor 7\n/b/barn 41\n", "", SCENES),
        ("/a/alcove\n/a/apse/indoor\n/b/barn\n", "", SCENES),
        ("a/alcove\na/apse/indoor\nb/barn\n", "", SCENES),
        # Python, JSON, YAML
        ("{0: 'tench, Tinca tinca',\n 1: 'goldfish'}", "", NAMES),
        ("{0: 'tench, Tinca tinca',\n 1: \"goldfish\",}", "", NAMES),
        ("names = ['tench, Tinca tinca',\n  'goldfish',\n]\n", "", NAMES),
        ("'tench, Tinca tinca',\n'goldfish',\n", "", NAMES),
        ('"tench, Tinca tinca"\n"goldfish"\n', "", NAMES),
        (json.dumps({"id2label": {"1": "goldfish", "0": "tench, Tinca tinca"}, "layers": 12}), "c.json", NAMES),
        (json.dumps({"0": "tench, Tinca tinca", "1": "goldfish"}), "c.json", NAMES),
        (json.dumps({"tench, Tinca tinca": 0, "goldfish": 1}, indent=1), "c.txt", NAMES),
        (json.dumps(["tench, Tinca tinca", "goldfish"]), "c.json", NAMES),
        (json.dumps({"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}), "c.json", FISH),
        (json.dumps({"n01440764": "tench", "n01443537": "goldfish"}), "c.json", FISH),
        ("path: x\nnames:\n  0: 'tench, Tinca tinca'\n  1: goldfish\nnc: 2\n", "data.yaml", NAMES),
        ("train: x\nnames:\n- tench, Tinca tinca\n- goldfish\n", "data.yaml", NAMES),
        ("nc: 2\nnames: ['tench, Tinca tinca', goldfish]\n", "data.yaml", NAMES),
        # names that hold numbers are no numbered lists
        ("2 of clubs\n2 of hearts\n", "", [ClassSpec("2 of clubs"), ClassSpec("2 of hearts")]),
        ("Audi TT 2011\nBMW X5 2007\n", "", [ClassSpec("Audi TT 2011"), ClassSpec("BMW X5 2007")]),
        ("0\n1\n2\n", "", [ClassSpec("0"), ClassSpec("1"), ClassSpec("2")]),
        ("707-320\n737-200\n", "", [ClassSpec("707-320"), ClassSpec("737-200")]),
        ("7 up\ncola\n", "", [ClassSpec("7 up"), ClassSpec("cola")]),
        ("1 cent\t1 cent\n5 cent\t5 cent\n", "", [ClassSpec("1 cent", "1 cent"), ClassSpec("5 cent", "5 cent")]),
        ("rock 'n' roll\na\u2028b\n", "", [ClassSpec("rock 'n' roll"), ClassSpec("a\u2028b")]),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, text: str, name: str, classes: list[ClassSpec]) -> None:
    assert read(tmp_path, text, name or "classes.txt") == classes
    assert read(tmp_path, "\ufeff" + text.removeprefix("\ufeff").replace("\n", "\r\n"), name or "c.txt") == classes


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("1 cent\n5 cent\n", "", r":1: the number in '1 cent' may count the classes or be part of the name"),
        ("airplane 0\nbird 2\n", "", r":1: the number in 'airplane 0' may count the classes"),
        ("* cat\n* dog\n", "", r":1: '\* cat' is a piece of something else"),
        ("0,cat\ndog\n2,cow\n", "", r":2: 'dog' has no number, but other lines have one"),
        ("0 cat\n1 dog\ncow\n", "", r":3: 'cow' has no number"),
        ("n01440764 1 tench\nn01443537 goldfish\n", "", r":2: 'n01443537 goldfish' has no number"),
        ("0,cat\n0,dog\n", "", r":2: the number 0 stands on line 1 already"),
        ("cat\ndog\ncat\n", "", r":3: class 'cat' stands on line 1 already"),
        ("0,Stop sign,red\n1,Yield,red\n", "x.csv", r":1: 'Stop sign,red' may be one name or several columns"),
        ("cat,feline\ndog,canine\n", "", r":1: 'cat,feline' may be one name or several columns"),
        ("cat,dog,bird\n", "", r":1: 'cat,dog,bird' may be one name or several columns"),
        ('0,"cat\n1,dog\n', "x.csv", r":1: no CSV"),
        ("ID\tname\nx\ty\n", "", r":1: this is a header"),
        ("cat\t0\ndog\t1\n", "", r":1: the name of 'cat' is a number"),
        ("a\tb\tc\n", "", r":1: the columns are not ID<TAB>NAME<TAB>SYNSET"),
        ("cat\tdog\tn02084071\tx\n", "", r":1: the columns are not"),
        ("dog n02084071 puppy\n", "", r":1: a WordNet id stands within 'dog n02084071 puppy'"),
        ("/data/cat\n/data/dog\n", "", r":1: '/data/cat' is a path"),
        ("{0: u'tench',\n 1: u'goldfish'}", "", r":1: \"u'tench'\" is a piece of something else"),
        ("{0: None}", "", r":1: a name is missing here"),
        (r"['caf\xe9', 'bar']", "", r":1: neither JSON, Python nor YAML: .* holds a backslash"),
        ("{0: 'tench',\n 1: 'goldfish'", "", r"neither JSON, Python nor YAML"),
        ('{"0": "a",\n "0": "b"}', "c.json", r":2: the number 0 stands on line 1 already"),
        ('{"0": "a", "0": "b"}', "c.json", r":1: the number 0 stands on line 1 already"),
        ('{"categories": [{"id": 1, "name": "cat"}]}', "c.json", r":1: 'categories' maps to something else"),
        ("[1, [2]]", "c.json", r":1: a name is missing here, or it is no text"),
        ("[" * 50, "c.json", r"nested too deep"),
        ("3", "c.json", r"neither a list of names nor a map"),
        ("class Cat:\n  pass\n", "", r":1: 'class Cat:' is a piece of something else"),
        ("x" * 3000, "", r":1: a line of 3000 characters"),
        ("\n# nothing\n", "", r"is empty"),
        ("cat\ndog\n".encode("utf-16"), "", r"no UTF-8 text; save it as UTF-8"),
        (b"x\n" * 2**23, "", r"larger than 8 MB"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else None,
)  # fmt: skip
def test_what_may_be_misread_is_refused(tmp_path: Path, text: str | bytes, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(tmp_path, text, name or "classes.txt")


def test_lines_that_are_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path, "# one\ncat\ncat\n\n\n", by_line=True) == [
        ClassSpec("# one"),
        ClassSpec("cat"),
        ClassSpec("cat"),
    ]
    assert "'# one', is the name of label 0" in caplog.text
    assert read(tmp_path, "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross", by_line=True) == BIRDS
    for text, said in [
        ("cat\n\ndog\n", r":2: the line is empty, so label 1 has no name"),
        ("1 dog\n0 cat\n", r"line n has to be label n"),
        ("ClassId,Name\n0,cat\n", r":1: 'ClassId,Name' has no number"),
        ('{"1": "cat", "2": "dog"}', r"line n has to be label n"),
    ]:
        with pytest.raises(UsageError, match=said):
            read(tmp_path, text, by_line=True)


@pytest.mark.parametrize("dataset", [file.stem for file in LISTS.glob("*.tsv")])
def test_official_lists_are_read_in_every_form(tmp_path: Path, dataset: str) -> None:
    assert read_class_list(LISTS / f"{dataset}.tsv") == dataset_classes(dataset)
    ids = [spec.class_id for spec in dataset_classes(dataset) or ()]
    specs = [ClassSpec(class_id) for class_id in ids]
    for text in (
        "\n".join(ids),
        "\n".join(f"{n} {class_id}" for n, class_id in enumerate(ids)),
        "\n".join(f"{class_id} {n}" for n, class_id in enumerate(ids)),
        "\n".join(f"{n}: {class_id}" for n, class_id in enumerate(ids)),
        repr(dict(enumerate(ids))),
        repr(ids),
        json.dumps({"id2label": {str(n): class_id for n, class_id in enumerate(ids)}}),
    ):
        assert read(tmp_path, text) == specs


REAL = (
    "n01443537 1 goldfish\nn01440764 2 tench\n",
    "/a/alcove 0\n/b/barn 1\n",
    "1 001.Black_x\n2 002.Laysan_y\n",
    "{0: 'tench, Tinca tinca',\n 1: 'goldfish'}",
    '0,Stop sign\n1,"a, b"\n',
    '{"id2label": {"0": "tench", "1": ["n01440764", "tench"]}}',
    "names:\n- cat\n- dog\n",
    "cat\tCat\tn02121620\n# x\n",
)


@given(
    text=st.one_of(
        st.text(),
        st.text(alphabet=st.sampled_from("n01440764 /a\t,:;.'\"{}[]-#\n\r=\\é\x00"), max_size=80),
        st.builds(
            lambda form, at, cut, put: form[:at] + put + form[at + cut :],
            st.sampled_from(REAL), st.integers(0, 70), st.integers(0, 5), st.text(max_size=5),
        ),
    ),
    suffix=st.sampled_from([".txt", ".csv", ".json", ".yaml"]),
    by_line=st.booleans(),
)  # fmt: skip
@example(text="[" * 100_000, suffix=".txt", by_line=False)
@example(text="%TAG ! x\n" * 100_000 + "names:\n", suffix=".yaml", by_line=False)
@example(text="0 " + " " * 1900 + "x\n" + "0 " + "," * 1900, suffix=".csv", by_line=False)
def test_any_text_gives_classes_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str, by_line: bool
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / f"c{suffix}"
    file.write_bytes(text.encode(errors="replace"))
    try:
        classes = read_class_list(file, by_line=by_line)
    except UsageError:
        return
    assert classes
    assert all(spec.class_id.strip() == spec.class_id != "" for spec in classes)
