"""Classes of known datasets and of folders, and their names in prompts.

A list in ``hrzs/classes/lists`` has ``ID``, ``ID<TAB>NAME`` or ``ID<TAB>NAME<TAB>SYNSET`` to a line, in the dataset's
own order; lines that begin with ``#`` are comments. `hrzs.classes.forms` reads the lists of users.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

#: Names of folders that hold a split, each with the split; `split_of` looks them up whatever their case.
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "training_set": "train",
    "val": "val", "validation": "val", "valid": "val", "validation_set": "val", "dev": "val",
    "test": "test", "testing": "test", "test_set": "test",
}  # fmt: skip

#: One text file for each known dataset.
LISTS = Path(__file__).resolve().parent / "lists"
_WNID = r"(?<![0-9A-Za-z])(n[0-9]{8})(?![0-9])"
# A WordNet id before a name or behind it: `n02085620-Chihuahua`, `tench (n01440764)`.
_ID_NAME = re.compile(_WNID + r"[\s,;:._-]+(\S.*)")
_NAME_ID = re.compile(r"(.*[^\s,;:._-])[\s,;:._-]+[(\[]?" + _WNID + r"[)\]]?")


class ClassSpec(NamedTuple):
    """A class of a dataset: its id, its name if that is not the id in words, its WordNet id if known."""

    class_id: str
    name: str | None = None
    synset: str | None = None


def split_of(folder: str) -> str | None:
    """The split that a folder of this name holds; None if the name says none."""
    return SPLIT_FOLDERS.get(folder.casefold())


def is_wnid(text: str) -> bool:
    """Is ``text`` a WordNet id of a noun, such as ``n02119789``?"""
    return re.fullmatch(r"n[0-9]{8}", text) is not None


def part_wnid(text: str) -> tuple[str, str] | None:
    """The WordNet id before or behind a name, and the name; None if ``text`` is not both."""
    if match := _ID_NAME.fullmatch(text):
        found = match[1], match[2]
    elif match := _NAME_ID.fullmatch(text):
        found = match[2], match[1]
    else:
        return None
    return found if any(map(str.isalpha, found[1])) and not holds_wnid(found[1]) else None


def holds_wnid(text: str) -> bool:
    """Does a WordNet id stand anywhere in ``text``?"""
    return re.search(_WNID, text) is not None


def folder_class(name: str) -> ClassSpec:
    """The class of a folder: a WordNet id in its name is its synset, and the rest is what it is called."""
    parted = part_wnid(name)
    return ClassSpec(name, prompt_name(name), parted[0]) if parted else ClassSpec(name)


def prompt_name(class_id: str) -> str:
    """In words: ``aquarium_fish`` → ``aquarium fish``, ``001.ak47`` → ``ak47``, ``AnnualCrop`` → ``Annual Crop``.

    A WordNet id is left out (``n02085620-Chihuahua`` → ``Chihuahua``); alone it stays, for the tree knows its words.
    """
    parted = part_wnid(class_id)
    unnumbered = re.sub(r"^\d{3}\.", "", parted[1] if parted else class_id)
    return re.sub(r"(?<=[A-Za-z][a-z][a-z])(?=[A-Z][a-z])", " ", unnumbered).replace("_", " ").strip()


def dataset_classes(dataset: str) -> list[ClassSpec] | None:
    """The classes of a known dataset, in label order; None for one without a list here."""
    file = LISTS / f"{dataset}.tsv"
    if Path(dataset).name != dataset or not file.is_file():
        return None
    lines = (line for line in file.read_text("utf-8").splitlines() if not line.startswith("#"))
    return [ClassSpec(*line.split("\t")) for line in lines]
