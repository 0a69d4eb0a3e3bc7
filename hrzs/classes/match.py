"""Class lists: which class of a dataset a folder or a word stands for, by id or by name, however it is spelt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from hrzs.classes.specs import LISTS, ClassSpec, dataset_classes, prompt_name


class ClassList:
    """Classes in label order.

    ``ids`` are distinct: an id that occurs twice gets its label added (two classes ``missile``: CLIP_benchmark #109).
    """

    def __init__(self, specs: Sequence[ClassSpec]) -> None:
        count = Counter(spec.class_id for spec in specs)
        self.ids = tuple(c if count[c] == 1 else f"{c} {label}" for label, (c, *_) in enumerate(specs))
        self.names = tuple(spec.name or prompt_name(spec.class_id) for spec in specs)
        # A word is looked up as an id, as a spelling of an id, then as a spelling of a name; the first hit decides.
        self._forms: list[dict[str, list[str]]] = [{c: [c] for c in self.ids}, {}, {}]
        for spec, class_id, name in zip(specs, self.ids, self.names, strict=True):
            self._forms[1].setdefault(spelling(spec.class_id), []).append(class_id)
            for word in {spelling(name), spelling(prompt_name(spec.class_id))}:
                self._forms[2].setdefault(word, []).append(class_id)

    def find(self, word: str) -> list[str]:
        """The ids that ``word`` may stand for: none if it is unknown, several if they share this name."""
        forms = self._forms
        return forms[0].get(word) or forms[1].get(spelling(word)) or forms[2].get(spelling(word)) or []


def spelling(word: str) -> str:
    """``word`` with case folded, and one blank for each run of underscores, blanks, hyphens and other marks."""
    return re.sub(r"[\W_]+", " ", word.casefold()).strip()


@cache
def class_list(dataset: str) -> ClassList | None:
    """The classes of a known dataset; None for one without a list in ``hrzs/classes/lists``."""
    specs = dataset_classes(dataset)
    return ClassList(specs) if specs else None


def recognise(words: Sequence[str], first: str, *, in_order: bool) -> str | None:
    """The known dataset whose classes are exactly ``words``, or None; ``first`` is tried first.

    ``in_order``: the words are in label order, so a word that several classes share is told by its place.
    """
    for dataset in (first, *sorted(file.stem for file in LISTS.glob("*.tsv"))):
        listed = class_list(dataset)
        if listed is None or len(listed.ids) != len(words):
            continue
        if in_order:
            fits = all(c in listed.find(word) for word, c in zip(words, listed.ids, strict=True))
        else:
            fits = {tuple(listed.find(word)) for word in words} == {(c,) for c in listed.ids}
        if fits:
            return dataset
    return None
