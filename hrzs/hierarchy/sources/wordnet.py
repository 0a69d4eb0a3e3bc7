"""Trees from the hypernyms of WordNet.

**Which synset a class is.** A class id such as ``n02119789`` is a synset. Any other name is looked up: underscore,
hyphen and blank are the same, upper and lower case too, and plurals are taken back by WordNet's own rules. A word
with several senses is decided together with all the others, by mean field: a sense's weight is its share in
WordNet's counts times ``exp(FIT × fit)``, where its *fit* is the mean, over the other classes and their weighted
senses, of the number of synsets at or above both, divided by ``(n m)^DAMP`` for the numbers ``n`` and ``m`` above
each; weights and fits are updated in turn until they settle. So ``star`` is a plane figure among squares and
circles, and a celestial body among planets. A name of several words that WordNet lacks becomes a leaf beneath its
last word.

**Which hypernyms it has.** A synset may have several. It keeps the one on the path to the top that it shares most of
with other classes: the number of other classes beneath each synset of the path, summed up, is largest. Of equals, the
one above most classes; at last, the lowest id.

**A class above another class** (a square is a rectangle): its synset is the superclass, and the class itself one more
leaf beneath it, which then means: a rectangle, and none of the more specific classes. Classes that are the same synset
become leaves beneath it in the same way.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, fsum
from typing import Any

from hrzs.errors import UsageError
from hrzs.hierarchy.sources.base import ClassSpec, Grown, SourceOptions
from hrzs.hierarchy.tree import Node
from hrzs.hierarchy.wordnet import open_wordnet

# Chosen by eye on `shapes`, CIFAR-100 and a few small sets, tools and fish among them. A FIT of 2 takes the heart of
# `shapes` for intuition (counted 42 times, the figure never); 4 makes CIFAR's plain a knitting stitch. A DAMP of 0
# favours deep branches (its rocket is a herb), 0.5, a cosine, shallow ones (its tiger is a person). No setting tried
# got all of CIFAR-100 right: its apple and orange come out as trees, its castle as a palace. Hence the notes.
FIT = 3.7
DAMP = 0.25
SWEEPS = 20

_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class _Word:
    """A class and the synsets that its name may mean, in WordNet's order; ``given`` if there was nothing to choose."""

    spec: ClassSpec
    name: str
    candidates: tuple[Any, ...]
    given: bool = False
    head: str | None = None  # the last word, where only that is in WordNet


def grow(classes: Sequence[ClassSpec], options: SourceOptions) -> Grown:
    """Hypernyms of WordNet's nouns (offline, in the package); takes names and WordNet ids."""
    # NLTK takes synsets of the same name for equal, whichever WordNet they are from.
    _hypernyms.cache_clear()
    _closure.cache_clear()
    reader = open_wordnet(options.wordnet)
    words = _look_up(reader, classes, options.senses)
    weights = _weigh_senses(words)
    chosen = [
        max(zip(row, word.candidates, strict=True), key=lambda pair: pair[0])[1]
        for word, row in zip(words, weights, strict=True)
    ]
    notes = [*_head_notes(words, chosen), *_sense_notes(words, chosen)]
    root = _grow(words, chosen)
    return Grown((root,), {"wordnet": reader.get_version() or "unknown"}, tuple(notes))


# -- looking up ------------------------------------------------------------------------------------------------


def _look_up(reader: Any, classes: Sequence[ClassSpec], senses: Mapping[str, str]) -> list[_Word]:
    names = {spec.class_id for spec in classes} | {spec.name for spec in classes}
    unused = [name for name in senses if name not in names]
    if unused:
        raise UsageError(f"--sense: no class is called {', '.join(map(repr, unused))}")
    words: list[_Word] = []
    unknown: list[str] = []
    for spec in classes:
        sense = senses.get(spec.class_id, senses.get(spec.name or spec.class_id))
        if sense is not None:
            synset = _exact(reader, sense)
            if synset is None:
                raise UsageError(
                    f"--sense {spec.class_id}={sense}: WordNet has no noun synset {sense!r}; "
                    "write it like star.n.05 or n13881644" + _senses_of(reader, spec.name or spec.class_id)
                )
            words.append(_Word(spec, spec.name or _plain(spec.class_id), (synset,), given=True))
        elif _WNID.fullmatch(spec.class_id):
            synset = _exact(reader, spec.class_id)
            if synset is None:
                unknown.append(spec.class_id)
            else:
                words.append(_Word(spec, spec.name or _title(synset), (synset,), given=True))
        else:
            name = spec.name or _plain(spec.class_id)
            candidates = _noun_synsets(reader, name)
            head = None
            if not candidates and " " in _plain(name):
                head = _plain(name).rsplit(" ", 1)[1]
                candidates = _noun_synsets(reader, head)
            if candidates:
                words.append(_Word(spec, name, candidates, head=head))
            else:
                unknown.append(name)
    if unknown:
        raise UsageError(_unknown_message(reader, unknown))
    return words


def _exact(reader: Any, sense: str) -> Any:
    """The noun synset called ``n02119789`` or ``star.n.05``; None if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of an offset where no synset begins
        try:
            if _WNID.fullmatch(sense):
                return reader.synset_from_pos_and_offset("n", int(sense[1:]))
            synset = reader.synset(sense.replace(" ", "_"))
        except Exception:  # NLTK raises anything from WordNetError to ValueError for a malformed name
            return None
    return synset if synset.pos() == "n" else None


def _noun_synsets(reader: Any, name: str) -> tuple[Any, ...]:
    plain = _plain(name).lower()
    for form in dict.fromkeys((plain.replace(" ", "_"), plain.replace(" ", "-"), name.lower(), plain.replace(" ", ""))):
        found = dict.fromkeys(reader.synsets(form, "n"))
        # NLTK adds the senses of base forms: of `galax` for `galaxy`. They count only for a word WordNet lacks.
        own = [synset for synset in found if form in (lemma.lower() for lemma in synset.lemma_names())]
        if found:
            return tuple(own or found)
    return ()


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.strip("_- \t")))


def _title(synset: Any) -> str:
    return str(synset.lemma_names()[0].replace("_", " "))


def _wnid(synset: Any) -> str:
    return f"n{synset.offset():08d}"


def _senses_of(reader: Any, name: str) -> str:
    found = _noun_synsets(reader, name)
    return f"; {name} may be " + ", ".join(map(_describe, found)) if found else ""


def _describe(synset: Any) -> str:
    above = _hypernyms(synset)
    return f"{synset.name()} ({_title(above[0]) if above else 'no hypernym'})"


def _unknown_message(reader: Any, unknown: list[str]) -> str:
    lemmas = sorted(reader.all_lemma_names("n"))
    lines = []
    for name in unknown[:20]:
        wanted = _plain(name).lower().replace(" ", "_")
        # Comparing with all of WordNet takes seconds for each name; a slip of the pen rarely hits the first letter.
        alike = [lemma for lemma in lemmas if lemma[:1] == wanted[:1] and abs(len(lemma) - len(wanted)) <= 2]
        near = difflib.get_close_matches(wanted, alike, 3, 0.75)
        lines.append(f"  {name}" + (f" (near: {', '.join(near)})" if near else ""))
    more = f"\n  … and {len(unknown) - 20} more" if len(unknown) > 20 else ""
    return (
        f"--classes: WordNet has no noun for {len(unknown)} of the classes:\n" + "\n".join(lines) + more + "\n"
        f"Say what each one means with --sense NAME=SYNSET, such as --sense '{unknown[0]}=entity.n.01'."
    )


# -- choosing senses -------------------------------------------------------------------------------------------


@cache
def _hypernyms(synset: Any) -> tuple[Any, ...]:
    return tuple(sorted(synset.hypernyms() + synset.instance_hypernyms(), key=lambda h: h.offset()))


@cache
def _closure(synset: Any) -> frozenset[Any]:
    """The synset and everything above it, by any path."""
    return frozenset({synset}).union(*map(_closure, _hypernyms(synset)))


def _prior(word: _Word) -> list[float]:
    """The share of each candidate in WordNet's counts, each counted once more."""
    if len(word.candidates) == 1:
        return [1.0]
    forms = [_sense_count(synset, word.head or word.name) + 1 for synset in word.candidates]
    return [count / sum(forms) for count in forms]


def _sense_count(synset: Any, name: str) -> int:
    form = _plain(name).lower().replace(" ", "_")
    # A plural stands in the name and its singular in the synset: the longest common beginning tells which lemma.
    lemma = max(synset.lemmas(), key=lambda lemma: len(_common_start(lemma.name().lower(), form)))
    return int(lemma.count())


def _common_start(a: str, b: str) -> str:
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _weigh_senses(words: Sequence[_Word]) -> list[list[float]]:
    """For each word the weight of each candidate; they sum to 1."""
    priors = [_prior(word) for word in words]
    weights = priors
    for _ in range(SWEEPS):
        spread = [_spread(word, row) for word, row in zip(words, weights, strict=True)]
        total: defaultdict[Any, float] = defaultdict(float)
        for own in spread:
            for synset, weight in own.items():
                total[synset] += weight
        weights = [
            _updated(word, prior, total, own, len(words) - 1) if len(prior) > 1 else prior
            for word, prior, own in zip(words, priors, spread, strict=True)
        ]
    return weights


def _spread(word: _Word, row: Sequence[float]) -> dict[Any, float]:
    """How much of the word stands at each synset or beneath it, its senses weighted and damped by their depth."""
    spread: defaultdict[Any, float] = defaultdict(float)
    for synset, weight in zip(word.candidates, row, strict=True):
        closure = _closure(synset)
        for above in closure:
            spread[above] += weight / len(closure) ** DAMP
    return spread


def _updated(
    word: _Word, prior: Sequence[float], total: Mapping[Any, float], own: Mapping[Any, float], others: int
) -> list[float]:
    scores = []
    for synset, share in zip(word.candidates, prior, strict=True):
        closure = _closure(synset)
        # fsum: the order of a set differs from run to run, and an ordinary sum's last digits with it.
        fit = fsum(total[above] - own[above] for above in closure) / len(closure) ** DAMP / max(1, others)
        scores.append(share * exp(FIT * fit))
    return [score / fsum(scores) for score in scores]


def _head_notes(words: Sequence[_Word], chosen: Sequence[Any]) -> list[str]:
    return [
        f"{word.spec.class_id}: WordNet has no {word.name!r}; placed beneath its last word, {_describe(synset)}. "
        f"Another place: --sense {word.spec.class_id}=SYNSET"
        for word, synset in zip(words, chosen, strict=True)
        if word.head is not None
    ]


def _sense_notes(words: Sequence[_Word], chosen: Sequence[Any]) -> list[str]:
    notes = []
    for word, synset in zip(words, chosen, strict=True):
        if len(word.candidates) < 2:
            continue
        shared, count = _company(synset, [c for w, c in zip(words, chosen, strict=True) if w is not word])
        rank = word.candidates.index(synset) + 1
        why = f"sense {rank} of {len(word.candidates)}"
        if count:
            why += f", with {count} of the {len(words) - 1} other classes beneath {_title(shared)}"
        others = [_describe(candidate) for candidate in word.candidates if candidate is not synset]
        listed = ", ".join(others[:4]) + (", …" if len(others) > 4 else "")
        flag = next(candidate for candidate in word.candidates if candidate is not synset).name()
        notes.append(
            f"{word.spec.class_id}: {_describe(synset)} {_wnid(synset)}: {why}. "
            f"Or {listed}: --sense {word.spec.class_id}={flag}"
        )
    return notes


def _company(synset: Any, others: Sequence[Any]) -> tuple[Any, int]:
    """The hypernym that says most about why the sense fits: many of the others beneath it, yet low; and how many."""
    counts = {above: sum(above in _closure(other) for other in others) for above in _closure(synset) - {synset}}
    best = max(counts, key=lambda above: (counts[above] * len(_closure(above)), above.offset()), default=None)
    return best, counts.get(best, 0)


# -- one tree out of many paths --------------------------------------------------------------------------------


def _grow(words: Sequence[_Word], chosen: Sequence[Any]) -> Node:
    shared: defaultdict[Any, int] = defaultdict(int)  # synset -> number of classes at or beneath it
    for synset in chosen:
        for above in _closure(synset):
            shared[above] += 1

    @cache
    def support(synset: Any) -> int:
        """Other classes beneath the synset, its chosen hypernym, and so on to the top, each counted at every one."""
        above = parent(synset)
        return shared[synset] - 1 + (support(above) if above is not None else 0)

    @cache
    def parent(synset: Any) -> Any:
        # `max` keeps the first of equals, and `_hypernyms` are in the order of their ids.
        return max(_hypernyms(synset), key=lambda above: (support(above), shared[above]), default=None)

    children: defaultdict[Any, dict[Any, None]] = defaultdict(dict)  # as ordered sets
    leaves: defaultdict[Any, list[Node]] = defaultdict(list)
    tops: dict[Any, None] = {}
    for word, synset in zip(words, chosen, strict=True):
        # A class known by its last word only is not that synset.
        identity = word.spec.class_id if word.head is not None else _wnid(synset)
        leaves[synset].append(Node(word.name, identity, class_id=word.spec.class_id))
        below, above = synset, parent(synset)
        while above is not None:
            children[above][below] = None
            below, above = above, parent(above)
        tops[below] = None

    def node(synset: Any) -> Node:
        below = (*leaves[synset], *map(node, children[synset]))
        if len(below) == 1 and below[0].is_leaf:
            return below[0]
        return Node(_title(synset), _wnid(synset), below)

    roots = [node(top) for top in tops]
    return roots[0] if len(roots) == 1 else Node("entity", "root", tuple(roots))
