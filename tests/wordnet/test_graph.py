from __future__ import annotations

import io

import pytest

from hrzs.wordnet import open_wordnet
from hrzs.wordnet.graph import NounGraph, noun_graph


class Database:
    """A WordNet whose synset ``i`` has the hypernyms ``above[i]``."""

    def __init__(self, above: dict[int, tuple[int, ...]]) -> None:
        self.text = "  1 the licence\n" + "".join(
            f"{i:08d} 03 n 02 word_{i} 0 other 0 {len(up):03d} "
            + "".join(f"@ {a:08d} n 0000 " for a in up)
            + "| a gloss @ with an at\n"
            for i, up in above.items()
        )

    def open(self, _: str) -> io.StringIO:
        return io.StringIO(self.text)


def test_above_comes_before_below_by_every_path() -> None:
    graph = NounGraph(Database({1: (), 2: (1,), 3: (1,), 4: (3, 2), 5: (4, 1)}))
    assert graph.parents == {1: (), 2: (1,), 3: (1,), 4: (2, 3), 5: (1, 4)}
    assert graph.titles[4] == "word 4"
    assert graph.above(5) == (1, 2, 3, 4, 5)
    assert [graph.sizes[i] for i in (1, 2, 3, 4, 5)] == [5, 3, 3, 2, 1]


def test_deep_chains_need_no_recursion() -> None:
    graph = NounGraph(Database({i: (i - 1,) if i else () for i in range(1200)}))
    assert graph.above(1199) == tuple(range(1200))


@pytest.mark.parametrize("name", ["kit_fox.n.01", "mars.n.01", "entity.n.01", "dog.n.01"])
def test_agrees_with_nltk(name: str) -> None:
    reader = open_wordnet()
    synset = reader.synset(name)
    above = {a.offset() for a in synset.closure(lambda s: s.hypernyms() + s.instance_hypernyms())}
    assert set(noun_graph(reader).above(synset.offset())) == above | {synset.offset()}
    assert noun_graph(reader).titles[synset.offset()] == synset.lemma_names()[0].replace("_", " ")
