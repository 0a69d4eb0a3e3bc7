"""Decides which sense each of several class names has, for all of them together.

A sense's weight is its prior times ``exp(FIT × fit)``. Its *fit* is the mean, over the other classes and their weighted
senses, of the information that the two senses share. Two senses share the information of the most specific synset at or
above both: ``-log`` of the share of WordNet's nouns at or below that synset (Resnik 1995). Weights and fits are updated
in turn, starting from equal weights, until they settle (mean field). So ``star`` is a plane figure among squares and
circles, and a celestial body among planets.

The *prior* is the product of three factors: how often WordNet's texts use the word in that sense, plus one; whether the
word is the synset's first (``castle`` is not in ``palace, castle``); how often image datasets mean things of its kind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from hrzs.wordnet.graph import NounGraph
from hrzs.wordnet.names import bare

# Fitted, and rounded, on the names of ImageNet's classes and on tests/wordnet/senses.tsv, of which 21 of 372
# names come out wrong; a FIT of 1.2 or 2 gets 24 of them wrong, equal KINDS 26, no KNOWN_FIRST 30.
FIT = 1.5
KNOWN_FIRST = 3.0
KINDS = {"noun.animal": 2.0, "noun.food": 2.0, "noun.artifact": 1.5, "noun.plant": 0.7, "noun.person": 0.6}
SWEEPS = 20


@dataclass(frozen=True)
class Senses:
    """The synsets that one name may mean, as offsets, with their priors, which sum to 1."""

    synsets: tuple[int, ...]
    priors: tuple[float, ...] = (1.0,)


def senses_of(synsets: Sequence[Any], word: str) -> Senses:
    """NLTK's ``synsets`` of ``word`` with their priors."""
    priors = [_prior(synset, bare(word).replace(" ", "_")) for synset in synsets]
    return Senses(tuple(synset.offset() for synset in synsets), tuple(prior / sum(priors) for prior in priors))


def _prior(synset: Any, form: str) -> float:
    # The name may be a plural and the lemma its singular: the lemma with the longest common beginning is meant.
    lemmas = synset.lemmas()
    lemma = max(lemmas, key=lambda lemma: _common_start(lemma.name().lower(), form))
    known_first = KNOWN_FIRST if lemma is lemmas[0] else 1.0
    return (int(lemma.count()) + 1) * known_first * KINDS.get(synset.lexname(), 1.0)


def _common_start(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def choose(graph: NounGraph, names: Sequence[Senses]) -> list[int]:
    """The synset of each name; of equally likely ones the first in WordNet's order."""
    if all(len(name.synsets) == 1 for name in names):
        return [name.synsets[0] for name in names]
    weights = [[1 / len(name.synsets)] * len(name.synsets) for name in names]
    for _ in range(SWEEPS):
        spreads = [_spread(graph, name, row) for name, row in zip(names, weights, strict=True)]
        total: defaultdict[int, float] = defaultdict(float)
        for spread in spreads:
            for synset, weight in spread.items():
                total[synset] += weight
        before = weights
        weights = [
            _updated(graph, name, total, own, len(names) - 1) if len(name.synsets) > 1 else [1.0]
            for name, own in zip(names, spreads, strict=True)
        ]
        if all(abs(a - b) < 1e-4 for x, y in zip(before, weights, strict=True) for a, b in zip(x, y, strict=True)):
            break
    return [name.synsets[row.index(max(row))] for name, row in zip(names, weights, strict=True)]


def _spread(graph: NounGraph, name: Senses, weights: Sequence[float]) -> dict[int, float]:
    """The total weight of the name's senses at or beneath each synset, ancestors first."""
    spread: defaultdict[int, float] = defaultdict(float)
    for synset, weight in zip(name.synsets, weights, strict=True):
        for above in graph.above(synset):
            spread[above] += weight
    return spread


def _updated(
    graph: NounGraph, name: Senses, total: dict[int, float], own: dict[int, float], others: int
) -> list[float]:
    # A sum along the path that shares most: each synset adds its information times the share of the others beneath it.
    shared: dict[int, float] = {}
    for synset in own:
        company = (total[synset] - own[synset]) / max(1, others)
        shared[synset] = max(
            (
                shared[above] + company * log(graph.sizes[above] / graph.sizes[synset])
                for above in graph.parents[synset]
            ),
            default=0.0,
        )
    scores = [log(prior) + FIT * shared[synset] for synset, prior in zip(name.synsets, name.priors, strict=True)]
    scaled = [exp(score - max(scores)) for score in scores]
    return [score / sum(scaled) for score in scaled]
