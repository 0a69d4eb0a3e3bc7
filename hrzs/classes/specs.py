"""Classes of known datasets, of folders and of text files, and their names in prompts.

A class list is text: ``ID``, ``ID<TAB>NAME`` or ``ID<TAB>NAME<TAB>SYNSET`` to a line, in the dataset's own order; lines
that begin with ``#`` are comments. The lists of known datasets are in ``hrzs/classes/lists``.
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
# A line of a list of synsets, as others publish them: `n02119789 kit fox, Vulpes macrotis`.
_SYNSET_LINE = re.compile(r"(n\d{8})\s+([^,\t]+)(?:,.*)?")


class ClassSpec(NamedTuple):
    """A class of a dataset: its id, its name if that is not the id in words, its WordNet id if known."""

    class_id: str
    name: str | None = None
    synset: str | None = None


def is_wnid(text: str) -> bool:
    """Is ``text`` a WordNet id of a noun, such as ``n02119789``?"""
    return re.fullmatch(r"n[0-9]{8}", text) is not None


def prompt_name(class_id: str) -> str:
    """In words: ``aquarium_fish`` → ``aquarium fish``, ``001.ak47`` → ``ak47``, ``AnnualCrop`` → ``Annual Crop``.

    A WordNet id stays as it is: the tree knows its words.
    """
    unnumbered = re.sub(r"^\d{3}\.", "", class_id)
    return re.sub(r"(?<=[A-Za-z][a-z][a-z])(?=[A-Z][a-z])", " ", unnumbered).replace("_", " ").strip()


def dataset_classes(dataset: str) -> list[ClassSpec] | None:
    """The classes of a known dataset, in label order; None for one without a list here."""
    file = LISTS / f"{dataset}.tsv"
    return read_class_list(file) if Path(dataset).name == dataset and file.is_file() else None


def read_class_list(file: Path) -> list[ClassSpec]:
    """The classes of a text file.

    Raises:
        UsageError: the file cannot be read, is no UTF-8 text, has an empty id, or names no class.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"--classes {file}: cannot read it: {reason}; it should have one class per line") from error
    specs: list[ClassSpec] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        if match := _SYNSET_LINE.fullmatch(line.strip()):
            class_id, name, synset = match[1], match[2], ""
        else:
            class_id, name, synset, *_ = (*(part.strip() for part in line.split("\t")), "", "")
        if not class_id:
            raise UsageError(f"--classes {file}:{number}: there is no class before the tab")
        specs.append(ClassSpec(class_id, name.strip() or None, synset or None))
    if not specs:
        raise UsageError(f"--classes {file}: the file is empty; it should have one class per line")
    return specs


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
    return sorted({f.name for f in in_splits or folders})
