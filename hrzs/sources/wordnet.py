"""Trees from the hypernyms of WordNet.

**Which synset a class is.** ``ClassSpec.synset`` or a class id such as ``n02119789`` says it. Any other name is looked
up, in many spellings (`hrzs.wordnet.names`), and a word with several senses is decided together with all the
others (`hrzs.wordnet.senses`). A name of several words that WordNet lacks becomes a leaf beneath its head
noun.

**Which hypernyms it has.** A synset may have several. In the first tree it keeps the one on the path to the top that
it shares most of with other classes: the number of other classes beneath each synset of the path, summed up, is
largest. Of equals, the one above most classes; at last, the lowest id.

**More trees** take other hypernyms. Another hypernym counts if it brings a synset together with classes that its first
one does not: a dog is a domestic animal like a cat, and not only a canine. From the classes up, each synset takes the
hypernym that keeps the tree furthest from the earlier tree most like it, likeness being the number of classes beneath
the synsets with the same hypernym, summed up; of equals, the one better by the rule of the first tree. Where that makes
a tree anew, the nearest one not made yet is taken: one other hypernym in an earlier tree.

**A class above another class** (a square is a rectangle): its synset is the superclass, and the class itself one more
leaf beneath it, which then means: a rectangle, and none of the more specific classes. Classes that are the same synset
become leaves beneath it in the same way.
"""

from __future__ import annotations

import difflib
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hrzs.classes.specs import is_wnid, prompt_name
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node
from hrzs.sources.base import ClassSpec, Grown, SourceOptions
from hrzs.wordnet import noun_synset, open_wordnet
from hrzs.wordnet.graph import NounGraph, noun_graph
from hrzs.wordnet.names import Names, Reading, plain
from hrzs.wordnet.senses import Senses, choose, senses_of


@dataclass(frozen=True)
class _Word:
    """A class and the synsets that its name may mean; ``reading`` if it was looked up by name."""

    spec: ClassSpec
    name: str
    senses: Senses
    reading: Reading | None = None

    @property
    def beneath(self) -> bool:
        return self.reading is not None and self.reading.beneath


def grow(classes: Sequence[ClassSpec], options: SourceOptions) -> Grown:
    """Hypernyms of WordNet's nouns (offline, in the package); takes names and WordNet ids."""
    reader = open_wordnet(options.wordnet)
    lookup = _Lookup(reader)
    words = lookup.words(classes, options.senses)
    chosen = choose(lookup.graph, [word.senses for word in words])
    forest = _Forest(lookup.graph, chosen)
    parents = forest.grow(options.trees)
    notes = [
        *lookup.head_notes(words, chosen),
        *lookup.sense_notes(words, chosen, forest.shared),
        *_forest_notes(lookup, forest, parents, options.trees),
    ]
    roots = tuple(_tree(lookup.graph, words, chosen, each) for each in parents)
    return Grown(roots, {"wordnet": reader.get_version() or "unknown"}, tuple(notes))


# -- looking up ------------------------------------------------------------------------------------------------


class _Lookup:
    """From classes to synsets, and from synsets to what people read."""

    def __init__(self, reader: Any) -> None:
        self.graph = noun_graph(reader)
        self._reader = reader
        self._names = Names(reader, self.graph)

    def words(self, classes: Sequence[ClassSpec], senses: Mapping[str, str]) -> list[_Word]:
        names = {spec.class_id for spec in classes} | {spec.name for spec in classes}
        unused = [name for name in senses if name not in names]
        if unused:
            raise UsageError(f"--sense: no class is called {', '.join(map(repr, unused))}")
        words: list[_Word] = []
        unknown: list[str] = []
        for spec in classes:
            name = spec.name or spec.class_id
            sense = senses.get(spec.class_id, senses.get(name))
            given = sense if sense is not None else spec.synset
            if given is None and is_wnid(spec.class_id):
                given = spec.class_id
            if given is not None:
                synset = self._exact(given)
                if synset is not None:
                    words.append(_Word(spec, spec.name or self._name_of(spec, synset), Senses((synset,))))
                elif sense is not None:
                    raise UsageError(
                        f"--sense {spec.class_id}={sense}: WordNet has no noun synset {sense!r}; "
                        "write it like star.n.05 or n13881644" + self._senses_of(name)
                    )
                else:
                    unknown.append(given if given == spec.class_id else f"{spec.class_id} as {given}")
                continue
            reading = self._names.read(spec.name or prompt_name(name))
            if reading is None:
                unknown.append(plain(name) or name)
            else:
                words.append(_Word(spec, spec.name or reading.name, senses_of(reading.synsets, reading.word), reading))
        if unknown:
            raise UsageError(self._unknown_message(unknown))
        return words

    def _exact(self, sense: str) -> int | None:
        """The noun synset called ``n02119789`` or ``star.n.05``; None if there is none."""
        if is_wnid(sense):
            return int(sense[1:]) if int(sense[1:]) in self.graph.parents else None
        synset = noun_synset(self._reader, sense)
        return None if synset is None else int(synset.offset())

    def _name_of(self, spec: ClassSpec, synset: int) -> str:
        if is_wnid(spec.class_id):
            return self.graph.titles[synset]
        reading = self._names.read(spec.class_id)
        return reading.name if reading is not None else plain(spec.class_id)

    def describe(self, synset: int) -> str:
        above = self.graph.parents[synset]
        name = self._reader.synset_from_pos_and_offset("n", synset).name()
        return f"{name} ({self.graph.titles[above[0]] if above else 'no hypernym'})"

    def _senses_of(self, name: str) -> str:
        reading = self._names.read(name)
        if reading is None:
            return ""
        return f"; {name} may be " + ", ".join(self.describe(synset.offset()) for synset in reading.synsets)

    def _unknown_message(self, unknown: list[str]) -> str:
        ids = [name for name in unknown if is_wnid(name)]
        names = [name for name in unknown if not is_wnid(name)]
        lines = [f"  {name}{self._near(name)}" for name in names[:20]]
        if len(names) > 20:
            lines.append(f"  … and {len(names) - 20} more names")
        lines += [f"  {', '.join(ids[i : i + 10])}" for i in range(0, min(len(ids), 100), 10)]
        if len(ids) > 100:
            lines.append(f"  … and {len(ids) - 100} more ids")
        return (
            f"--classes: WordNet has no noun for {len(unknown)} of the classes:\n" + "\n".join(lines) + "\n"
            f"Say what each one means with --sense NAME=SYNSET, such as --sense '{unknown[0]}=entity.n.01'."
        )

    def _near(self, name: str) -> str:
        wanted = name.lower().replace(" ", "_")
        # Comparing with all of WordNet takes seconds for each name; a slip of the pen rarely hits the first letter.
        alike = sorted(
            lemma
            for lemma in self._reader.all_lemma_names("n")
            if lemma[:1] == wanted[:1] and abs(len(lemma) - len(wanted)) <= 2
        )
        near = difflib.get_close_matches(wanted, alike, 3, 0.75)
        return f" (near: {', '.join(near)})" if near else ""

    # -- notes -------------------------------------------------------------------------------------------------

    def head_notes(self, words: Sequence[_Word], chosen: Sequence[int]) -> Iterator[str]:
        for word, synset in zip(words, chosen, strict=True):
            if word.reading is not None and word.reading.beneath:
                yield (
                    f"{word.spec.class_id}: WordNet has no {word.name!r}; placed beneath {word.reading.word!r}, "
                    f"{self.describe(synset)}. Another place: {_flag(word, 'SYNSET')}"
                )

    def sense_notes(self, words: Sequence[_Word], chosen: Sequence[int], shared: Mapping[int, int]) -> Iterator[str]:
        for word, synset in zip(words, chosen, strict=True):
            synsets = word.senses.synsets
            if len(synsets) < 2:
                continue
            why = f"sense {synsets.index(synset) + 1} of {len(synsets)}"
            company, count = self._company(synset, shared)
            if count:
                why += f", with {count} of the {len(words) - 1} other classes beneath {self.graph.titles[company]}"
            others = [self.describe(other) for other in synsets if other != synset]
            listed = ", ".join(others[:4]) + (", …" if len(others) > 4 else "")
            yield (
                f"{word.spec.class_id}: {self.describe(synset)} {_wnid(synset)}: {why}. "
                f"Or {listed}: {_flag(word, others[0].partition(' ')[0])}"
            )

    def _company(self, synset: int, shared: Mapping[int, int]) -> tuple[int, int]:
        """The hypernym that says most about why the sense fits: many others beneath it, yet low; and how many."""
        above = self.graph.above(synset)[:-1]
        best = max(above, key=lambda a: ((shared[a] - 1) * len(self.graph.above(a)), a), default=synset)
        return best, shared[best] - 1


def _flag(word: _Word, sense: str) -> str:
    return "--sense " + shlex.quote(f"{word.spec.class_id}={sense}")


def _wnid(synset: int) -> str:
    return f"n{synset:08d}"


def _forest_notes(lookup: _Lookup, forest: _Forest, parents: Sequence[Mapping[int, int]], wanted: int) -> Iterator[str]:
    if len(parents) < wanted:
        yield f"--trees {wanted}: WordNet's hypernyms give {len(parents)} different trees over these classes"
    first = parents[0]
    for number, other in enumerate(parents[1:], start=2):
        moved = sorted((s for s in other if other[s] != first.get(s, other[s])), key=lambda s: (-forest.shared[s], s))
        named = [
            f"{lookup.graph.titles[s]} beneath {lookup.graph.titles[other[s]]}, not {lookup.graph.titles[first[s]]}"
            for s in moved[:5]
        ]
        more = f"; and {len(moved) - 5} more" if len(moved) > 5 else ""
        yield f"tree {number} differs from the first: {'; '.join(named)}{more}"


# -- one tree out of many paths, and another -------------------------------------------------------------------


class _Forest:
    """Which hypernym each synset keeps, in one tree or several.

    Attributes:
        shared: the number of classes at or beneath each synset, by any path.
    """

    def __init__(self, graph: NounGraph, chosen: Sequence[int]) -> None:
        self._graph = graph
        self._chosen = tuple(chosen)
        self.shared = Counter(above for synset in chosen for above in graph.above(synset))
        self._order = sorted(self.shared, key=graph.rank)  # each after all that is above it
        self._first, self._support = self._most_shared()

    def _most_shared(self) -> tuple[dict[int, int], dict[int, int]]:
        first: dict[int, int] = {}
        support: dict[int, int] = {}  # other classes beneath the synset and the path above it, counted at each
        for synset in self._order:
            # `max` keeps the first of equals, and the parents are in the order of their ids.
            above = max(self._graph.parents[synset], key=lambda p: (support[p], self.shared[p]), default=None)
            support[synset] = self.shared[synset] - 1
            if above is not None:
                first[synset] = above
                support[synset] += support[above]
        return first, support

    def grow(self, count: int) -> list[dict[int, int]]:
        """Up to ``count`` trees that group the classes differently, each as synset -> hypernym, the best first."""
        made = {self._groups(self._first): self._first}
        options = self._options() if count > 1 else {}
        while len(made) < count:
            other = self._unlike(list(made.values()), options)
            if self._groups(other) in made:
                neighbours = (
                    tree | {synset: above}
                    for tree in list(made.values())
                    for synset, choices in options.items()
                    for above in choices
                    if above != tree[synset]
                )
                found = next((tree for tree in neighbours if self._groups(tree) not in made), None)
                if found is None:
                    break
                other = found
            made[self._groups(other)] = other
        return [self._reached(tree) for tree in made.values()]

    def _options(self) -> dict[int, tuple[int, ...]]:
        """The hypernyms between which a synset has a choice, the best first; synsets with most classes first."""
        options = {}
        for synset in sorted(self._first, key=lambda s: (-self.shared[s], s)):
            ranked = sorted(self._graph.parents[synset], key=lambda p: (-self._support[p], -self.shared[p], p))
            others = [above for above in ranked if above != self._first[synset] and self._brings_company(synset, above)]
            if others:
                options[synset] = (self._first[synset], *others)
        return options

    def _brings_company(self, synset: int, above: int) -> bool:
        while self.shared[above] <= self.shared[synset]:
            if above not in self._first:
                return False
            above = self._first[above]
        return above not in self._graph.above(self._first[synset])

    def _unlike(self, earlier: Sequence[dict[int, int]], options: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
        """A tree far from the nearest of ``earlier``."""
        tree = dict(self._first)
        likeness = [0] * len(earlier)
        reached = set(self._chosen)
        for synset in reversed(self._order):  # children before parents
            if synset not in reached or synset not in tree:
                continue
            if synset in options:
                ranked = []
                for rank, above in enumerate(options[synset]):
                    then = [
                        known + self.shared[synset] * (other[synset] == above)
                        for known, other in zip(likeness, earlier, strict=True)
                    ]
                    ranked.append((max(then), sum(then), rank, above, then))
                *_, tree[synset], likeness = min(ranked)
            reached.add(tree[synset])
        return tree

    def _reached(self, tree: Mapping[int, int]) -> dict[int, int]:
        """The part of ``tree`` that is above a class."""
        found: dict[int, int] = {}
        for synset in self._chosen:
            while synset not in found and synset in tree:
                found[synset] = tree[synset]
                synset = tree[synset]
        return found

    def _groups(self, tree: Mapping[int, int]) -> frozenset[frozenset[int]]:
        """The sets of classes that stand beneath one synset: what tells trees apart."""
        beneath: defaultdict[int, set[int]] = defaultdict(set)
        for position, synset in enumerate(self._chosen):
            beneath[synset].add(position)
            while synset in tree:
                synset = tree[synset]
                beneath[synset].add(position)
        return frozenset(map(frozenset, beneath.values()))


def _tree(graph: NounGraph, words: Sequence[_Word], chosen: Sequence[int], parents: Mapping[int, int]) -> Node:
    below: defaultdict[int, dict[int, None]] = defaultdict(dict)  # as ordered sets
    leaves: defaultdict[int, list[Node]] = defaultdict(list)
    tops: dict[int, None] = {}
    for word, synset in zip(words, chosen, strict=True):
        # A class beneath its head noun is not that synset.
        identity = word.spec.class_id if word.beneath else _wnid(synset)
        leaves[synset].append(Node(word.name, identity, class_id=word.spec.class_id))
        while synset in parents and synset not in below[parents[synset]]:
            below[parents[synset]][synset] = None
            synset = parents[synset]
        if synset not in parents:
            tops[synset] = None
    nodes: dict[int, Node] = {}
    for synset in sorted(leaves.keys() | below.keys(), key=graph.rank, reverse=True):  # children before parents
        children = (*leaves[synset], *(nodes[child] for child in below[synset]))
        only = children[0] if len(children) == 1 and children[0].is_leaf else None
        nodes[synset] = only or Node(graph.titles[synset], _wnid(synset), children)
    roots = [nodes[top] for top in tops]
    return roots[0] if len(roots) == 1 else Node("entity", "root", tuple(roots))
