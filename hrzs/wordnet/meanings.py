"""The words and the hypernyms of a synset, by its WordNet id."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from hrzs.wordnet.graph import noun_graph
from hrzs.wordnet.reader import noun_synset, open_wordnet


class Meanings:
    """The dictionary that `hrzs.hierarchy.namesakes` asks; WordNet is opened at the first call.

    Args:
        wordnet: the ``where`` of `open_wordnet`.
    """

    def __init__(self, wordnet: str | None = None) -> None:
        self._wordnet = wordnet

    @cached_property
    def _reader(self) -> Any:
        return open_wordnet(self._wordnet)

    def words(self, wnid: str) -> tuple[str, ...]:
        """All lemmas, the usual one first; empty for an id that WordNet does not have."""
        synset = noun_synset(self._reader, wnid)
        return () if synset is None else tuple(lemma.replace("_", " ") for lemma in synset.lemma_names())

    def kinds(self, wnid: str) -> tuple[str, ...]:
        """The first lemma of each ancestor of the synset, the nearest first; empty for an unknown id."""
        graph, synset = noun_graph(self._reader), int(wnid[1:])
        if synset not in graph.parents:
            return ()
        return tuple(graph.titles[above] for above in reversed(graph.above(synset)) if above != synset)
