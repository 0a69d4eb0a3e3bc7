"""The hypernyms of all nouns as plain dictionaries, read in a few tenths of a second, without an object per synset.

A synset is an int, its byte offset: 2119789 is ``n02119789``.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property, lru_cache
from typing import Any


class NounGraph:
    """The hypernym relation of noun synsets.

    Args:
        reader: a reader of `open_wordnet`, whose noun file is read once, as text.

    Attributes:
        parents: hypernyms and instance hypernyms of each synset, in the order of their ids.
        titles: the first word of each synset.
    """

    def __init__(self, reader: Any) -> None:
        self.parents: dict[int, tuple[int, ...]] = {}
        self.titles: dict[int, str] = {}
        self._above: dict[int, tuple[int, ...]] = {}
        self._ranks: dict[int, tuple[int, int]] = {}
        with reader.open("data.noun") as lines:
            for line in lines:
                if line.startswith(" "):
                    continue
                # offset, file, type, word count (hex), (word, number)…, pointer count, (symbol, offset, type, words)…
                fields = line.partition("|")[0].split()
                pointers = range(5 + 2 * int(fields[3], 16), len(fields) - 3, 4)
                above = {int(fields[i + 1]) for i in pointers if fields[i] in {"@", "@i"}}
                self.parents[int(fields[0])] = tuple(sorted(above))
                self.titles[int(fields[0])] = fields[4].replace("_", " ")

    def above(self, synset: int) -> tuple[int, ...]:
        """The synset and all its ancestors by any path; each comes after its own ancestors."""
        known = self._above.get(synset)
        if known is None:
            known = tuple(sorted(self._closure(synset), key=self.rank))
            self._above[synset] = known
        return known

    def _closure(self, synset: int) -> set[int]:
        found = {synset}
        stack = [synset]
        while stack:
            new = [parent for parent in self.parents[stack.pop()] if parent not in found]
            found.update(new)
            stack.extend(new)
        return found

    def rank(self, synset: int) -> tuple[int, int]:
        """A sort key, the same in every run: a synset comes after its ancestors, which have fewer ancestors."""
        known = self._ranks.get(synset)
        if known is None:
            known = self._ranks[synset] = len(self._closure(synset)), synset
        return known

    @cached_property
    def sizes(self) -> Counter[int]:
        """For each synset, the number of synsets at or below it."""
        return Counter(above for synset in self.parents for above in self._closure(synset))


@lru_cache(maxsize=1)
def noun_graph(reader: Any) -> NounGraph:
    """The graph of ``reader``'s nouns, made once."""
    return NounGraph(reader)
