from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from hrzs.errors import UsageError
from hrzs.wordnet import noun_synset, open_wordnet, pack
from hrzs.wordnet.reader import NounReader, _embedded, _packed


@pytest.fixture(scope="module")
def reader() -> Any:
    return open_wordnet()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no NLTK data, not even a home."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.setenv("HOME", str(tmp_path / "none"))


@pytest.mark.usefixtures("offline")
def test_opens_offline_and_without_nltk_data() -> None:
    reader = _embedded.__wrapped__()  # not one that an earlier test has opened
    assert isinstance(reader, NounReader)
    assert reader.get_version() == "3.0"


def test_ids_are_those_of_wordnet(reader: Any) -> None:
    for wnid, name in (
        (2119789, "kit_fox.n.01"),
        (1740, "entity.n.01"),
        (13881644, "star.n.05"),
        (2084071, "dog.n.01"),
    ):
        assert reader.synset_from_pos_and_offset("n", wnid).name() == name
    fox = reader.synset("kit_fox.n.01")
    assert [s.name() for s in fox.hypernyms()] == ["fox.n.01"]
    assert fox.lexname() == "noun.animal"
    assert fox.definition() == ""  # glosses are blanked


def test_counts_and_plurals(reader: Any) -> None:
    assert [lemma.count() for lemma in reader.synset("dog.n.01").lemmas()] == [42, 0, 0]
    assert reader.synsets("wolves", "n")[0].name() == "wolf.n.01"
    assert reader.synsets("run", "v") == []


def test_every_synset_is_where_its_id_says() -> None:
    files = _packed("data.noun")
    assert len(re.findall(r"(?m)^\d{8} ", files)) == 82115
    assert all(int(m[1]) == m.start() for m in re.finditer(r"(?m)^(\d{8}) ", files))


def test_nltk_corpus_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr("nltk.data.path", [])
    monkeypatch.setattr("nltk.corpus.wordnet", nltk.corpus.util.LazyCorpusLoader("wordnet", NounReader))
    with pytest.raises(UsageError, match=r"NLTK finds no WordNet.*Leave --wordnet out"):
        open_wordnet("nltk")


DATA = """\
  1 WordNet 2.9 Copyright 2006 by nobody
00000040 03 n 01 thing 0 001 ~ 00000100 n 0000 | a thing; "a thing"
00000110 03 n 01 box 0 001 @ 00000040 n 0000 | a box | with a bar
"""


def folder(path: Path) -> Path:
    (path / "data.noun").write_text(DATA)
    (path / "index.noun").write_text("  1 x\nbox n 1 1 @ 1 0 00000110\nthing n 1 1 ~ 1 0 00000040\n")
    (path / "noun.exc").write_text("boxen box\n")
    return path


def test_folder_of_the_user(tmp_path: Path) -> None:
    text = DATA.replace("00000110", f"{DATA.index('00000110'):08d}").replace(" | with a bar", "")
    offset = DATA.index("00000110")
    source = folder(tmp_path)
    (source / "data.noun").write_text(text)
    (source / "index.noun").write_text(f"box n 1 1 @ 1 0 {offset:08d}\n")
    reader = open_wordnet(str(source))
    assert reader.get_version() == "2.9"
    assert [s.name() for s in reader.synsets("boxen", "n")] == ["box.n.01"]
    assert reader.synsets("dog", "n") == []


def test_folder_without_wordnet(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*data\.noun.*leave it out"):
        open_wordnet(str(tmp_path))


def test_packing_blanks_glosses_and_moves_nothing(tmp_path: Path) -> None:
    reduced = pack.reduce("data.noun", DATA.encode()).decode()
    assert len(reduced) == len(DATA)
    assert [m.start() for m in re.finditer(r"(?m)^\d", reduced)] == [m.start() for m in re.finditer(r"(?m)^\d", DATA)]
    assert "bar" not in reduced
    assert reduced.startswith("  1 WordNet 2.9")
    assert pack.reduce("cntlist.rev", b"box%1:06:00:: 1 4\nbox%2:33:00:: 1 2\n") == b"box%1:06:00:: 1 4\n"
    source, target = folder(tmp_path), tmp_path / "out"
    target.mkdir()
    for name in ("cntlist.rev", "lexnames"):
        (source / name).write_text("x\n")
    pack.pack(source, target)
    first = {file.name: file.read_bytes() for file in target.iterdir()}
    pack.pack(source, target)
    assert first == {file.name: file.read_bytes() for file in target.iterdir()}
    assert sorted(first) == sorted(f"{name}.xz" for name in pack.FILES)


def test_licence_travels_along() -> None:
    text = (Path(pack.__file__).parent / "LICENSE.wordnet").read_text()
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
    assert "disclaimer" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n02119789", "kit_fox.n.01"),
        ("red fox.n.01", "red_fox.n.01"),
        ("star.n.05", "star.n.05"),
        ("n02119788", None),  # no synset begins there
        ("run.v.01", None),
        ("star", None),
        ("", None),
        ("n0211978", None),
    ],
)
def test_noun_synset(name: str, expected: str | None) -> None:
    found = noun_synset(open_wordnet(), name)
    assert (found and found.name()) == expected
