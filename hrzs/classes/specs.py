"""Classes of known datasets and of folders, and their names in prompts.

A list in ``hrzs/classes/lists`` has ``ID``, ``ID<TAB>NAME`` or ``ID<TAB>NAME<TAB>SYNSET`` to a line, in the dataset's
own order; lines that begin with ``#`` are comments. `hrzs.classes.forms` reads the lists of users.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from hrzs.errors import UsageError

#: Names of folders that hold a split, each with the split.
SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}

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


def class_folders(path: Path) -> list[str]:
    """The names of the class folders in label order, found as `hrzs.data` finds them, with splits or without.

    Raises:
        UsageError: there are no subfolders.
    """

    def inside(folder: Path) -> list[Path]:
        return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))

    folders = inside(path)
    while len(folders) == 1 and folders[0].name not in SPLIT_FOLDERS and inside(folders[0]):
        folders = inside(folders[0])
    in_splits = [f for split in folders if split.name in SPLIT_FOLDERS for f in inside(split)]
    if not folders:
        raise UsageError(f"--classes {path}: it has no subfolders; one per class is needed, as in {path}/<class>/")
    classes = in_splits or folders
    below = {f: [g.name[0] for g in inside(f)] for f in classes if len(f.name) == 1}
    if len(below) == len(classes) and all(letters and {*letters} == {f.name} for f, letters in below.items()):
        raise UsageError(
            f"--classes {path}: its folders are letters, as in Places365, with the classes below, such as "
            f"{classes[0] / inside(classes[0])[0].name}; move the class folders up, next to one another"
        )
    return sorted({f.name for f in classes})
