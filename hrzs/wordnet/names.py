"""From a class's name, however it is written, to the nouns of WordNet that it may be.

A name is tried as it stands, then without what datasets add to names. Case, underscores, hyphens and blanks
do not matter. WordNet's own rules undo plurals. A form that WordNet lacks is tried in American spelling.

- ``kit fox, Vulpes macrotis``, ``apse/indoor``: the first part that WordNet knows.
- ``crane (bird)``: the bracket narrows the senses to those at or beneath it; if none is, the class goes beneath it.
- ``015.bonsai-101``: numbers before and behind the name are dropped. ``AnnualCrop``: two words.
- ``maple tree``, not in WordNet: the maple that is a tree.
- ``cup of coffee``, ``aquarium fish``: the class goes beneath its head noun, cup or fish. The head noun is the words
  before ``of``, ``with`` and the like, or else the last words that WordNet knows.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hrzs.wordnet.graph import NounGraph

# A few general rules for words that WordNet has in American spelling only; a result counts only if WordNet has it.
_AMERICAN = (
    (r"our", "or"), (r"re\b", "er"), (r"grey", "gray"), (r"aero", "air"), (r"[ao]e", "e"), (r"ise", "ize"),
    (r"yse", "yze"), (r"ogue\b", "og"), (r"ll", "l"), (r"mme\b", "m"), (r"ence\b", "ense"), (r"ould", "old"),
    (r"plough", "plow"),
)  # fmt: skip
_PREPOSITION = re.compile(r"\s+(?:of|with|without|on|in|for|at|from)\s+", re.I)


@dataclass(frozen=True)
class Reading:
    """The synsets that a name may mean.

    Args:
        name: the name as a person would write it.
        synsets: NLTK's synsets in WordNet's order, at least one.
        word: the words of the name that were found.
        beneath: WordNet lacks the whole name, and the class is a kind of ``word``.
    """

    name: str
    synsets: tuple[Any, ...]
    word: str
    beneath: bool = False


class Names:
    """Looks up names in one WordNet."""

    def __init__(self, reader: Any, graph: NounGraph) -> None:
        self._reader = reader
        self._graph = graph

    def read(self, name: str) -> Reading | None:
        """The synsets that ``name`` may mean; None if WordNet has none."""
        whole, hint = _split_hint(name)
        parts = [part for part in re.split(r"\s*[,;/]\s*", whole) if part] or [whole]
        forms = list(dict.fromkeys(form for part in parts for form in _forms(part)))
        exact = [Reading(form, found, form) for form in forms if (found := self.exact(form))]
        kinds = self.read(hint) if hint else None
        if kinds is not None:
            near = (*exact, *(head for form in forms if (head := self._head(form))))
            narrowed = (self._narrow(reading, kinds.synsets) for reading in near)
            # Whoever writes a hint means its most common sense, the first.
            beneath = replace(kinds, name=forms[-1], synsets=kinds.synsets[:1], beneath=True)
            return next((reading for reading in narrowed if reading.synsets), beneath)
        if exact:
            return self._agreed(exact)
        return next((head for form in forms if (head := self._head(form))), None)

    def exact(self, name: str) -> tuple[Any, ...]:
        """The synsets that are called ``name``, of one or several words."""
        words = bare(name)
        for spelling in (words, *_american(words)):
            joined = dict.fromkeys(spelling.replace(" ", glue) for glue in ("_", "-", ""))
            for form in dict.fromkeys((*joined, name.lower() if spelling == words else spelling)):
                found = dict.fromkeys(self._reader.synsets(form, "n"))
                if found:
                    # NLTK adds the senses of base forms, which count only for a word that WordNet lacks.
                    own = [synset for synset in found if form in (lemma.lower() for lemma in synset.lemma_names())]
                    return tuple(own or found)
        # Compare without punctuation; then try the plural, for words such as binoculars.
        squeezed = _squeeze(words)
        lemma = self._squeezed.get(squeezed) or (self._squeezed.get(squeezed + "s") if squeezed else None)
        return tuple(self._reader.synsets(lemma, "n")) if lemma else ()

    def _head(self, name: str) -> Reading | None:
        words = _PREPOSITION.split(name, maxsplit=1)[0].split(" ")
        if len(words) < len(name.split(" ")) and (found := self.exact(" ".join(words))):
            return Reading(name, found, " ".join(words), beneath=True)
        for start in range(1, len(words)):
            found = self.exact(" ".join(words[start:]))
            if found:
                first = " ".join(words[:start])
                # The head noun in its first sense only: in another sense a full stop is a sign, but not a stop sign.
                named = self._narrow(Reading(name, self.exact(first), first), found[:1])
                return named if named.synsets else Reading(name, found, " ".join(words[start:]), beneath=True)
        return None

    @staticmethod
    def _agreed(readings: list[Reading]) -> Reading:
        """The first reading, with only the synsets that the others share; a reading that shares none is ignored."""
        first, *others = readings
        for other in others:
            both = tuple(synset for synset in first.synsets if synset in other.synsets)
            first = replace(first, synsets=both or first.synsets)
        return first

    def _narrow(self, reading: Reading, kinds: tuple[Any, ...]) -> Reading:
        """``reading`` with only its synsets that are at or beneath one of ``kinds``."""
        at = {kind.offset() for kind in kinds}
        kept = tuple(s for s in reading.synsets if not at.isdisjoint(self._graph.above(s.offset())))
        return replace(reading, synsets=kept)

    @cached_property
    def _squeezed(self) -> dict[str, str]:
        """Lemmas by their letters and digits alone: ``jackolantern`` -> ``jack-o'-lantern``; no ambiguous ones."""
        lemmas: defaultdict[str, list[str]] = defaultdict(list)
        for lemma in self._reader.all_lemma_names("n"):
            lemmas[_squeeze(lemma)].append(lemma)
        return {key: found[0] for key, found in lemmas.items() if len(found) == 1}


def plain(name: str) -> str:
    """``name`` with single blanks for underscores and hyphens."""
    return " ".join(re.split(r"[\s_-]+", name.strip("_- \t")))


def bare(name: str) -> str:
    """``name`` as WordNet's lists have it: plain, in lower case, without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", plain(name).lower()) if not unicodedata.combining(c))


def _split_hint(name: str) -> tuple[str, str | None]:
    match = re.fullmatch(r"(.*\S)\s*\((.+)\)\s*", name.replace("_", " "))
    return (match[1], match[2]) if match else (name, None)


def _forms(name: str) -> Iterator[str]:
    unmarked = re.sub(r"^\d+[._\s-]+|[._\s-]+\d+$", "", name)
    # Two words of CamelCase, but not `iPod`.
    return iter(dict.fromkeys(plain(re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})", " ", form)) for form in (name, unmarked)))


def _american(words: str) -> list[str]:
    """``words`` respelt by each rule alone, and by all rules together."""
    spellings = [re.sub(british, american, words) for british, american in _AMERICAN]
    together = words
    for british, american in _AMERICAN:
        together = re.sub(british, american, together)
    return [spelling for spelling in dict.fromkeys((*spellings, together)) if spelling != words]


def _squeeze(words: str) -> str:
    return re.sub(r"[^a-z0-9]", "", words.lower())
