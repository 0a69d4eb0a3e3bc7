from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from hrzs.wordnet import open_wordnet
from hrzs.wordnet.graph import noun_graph
from hrzs.wordnet.names import Names
from hrzs.wordnet.senses import Senses, choose, senses_of

TABLE = Path(__file__).with_name("senses.tsv")

# What is wrong today; nothing else may be.
WRONG = {
    "CIFAR-100": {"plate", "sweet pepper", "television"},
    "Caltech-101": {"nautilus", "sea horse", "stop sign"},
    "Caltech-256": {
        "cake", "diamond-ring", "grapes", "iris", "pci-card", "swiss-army-knife", "touring-bike", "welding-mask",
    },
    "Food-101": {"carrot cake", "red velvet cake"},
    "Oxford Pets": {"Persian"},
    "baseball": {"bat"},  # a cricket bat
    "countries": {"chad"},
    "kitchen": {"glass"},
    "pets": {"Persian"},
}  # fmt: skip


def table() -> dict[str, dict[str, list[str]]]:
    sets: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    for line in TABLE.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            group, name, right = [*line.split("\t"), ""][:3]
            sets[group][name] = right.split()
    return dict(sets)


def chosen(names: list[str]) -> dict[str, str]:
    reader = open_wordnet()
    graph = noun_graph(reader)
    lookup = Names(reader, graph)
    readings = [lookup.read(name) for name in names]
    senses = [senses_of(reading.synsets, reading.word) for reading in readings if reading is not None]
    synsets = (reader.synset_from_pos_and_offset("n", synset).name() for synset in choose(graph, senses))
    return dict(zip(names, synsets, strict=True))


@pytest.mark.parametrize("group", table())
def test_senses_of_the_development_set(group: str) -> None:
    meant = table()[group]
    wrong = {name for name, synset in chosen(list(meant)).items() if meant[name] and synset not in meant[name]}
    assert wrong <= WRONG.get(group, set())


def test_share_of_right_senses() -> None:
    judged = sum(bool(right) for names in table().values() for right in names.values())
    assert judged > 370
    assert sum(map(len, WRONG.values())) / judged < 0.06


def test_company_decides() -> None:
    assert chosen(["crane", "heron", "stork"])["crane"] == "crane.n.05"
    assert chosen(["crane", "bulldozer", "truck"])["crane"] == "crane.n.04"


def test_nothing_to_choose() -> None:
    graph = noun_graph(open_wordnet())
    assert choose(graph, []) == []
    assert choose(graph, [Senses((2084071,))]) == [2084071]
    assert chosen(["star"]) == {"star": "star.n.01"}


def test_order_of_the_classes_does_not_matter() -> None:
    names = ["apple", "crane", "seal", "plate", "orange", "television", "bass"]
    assert chosen(names) == chosen(names[::-1])
