"""Classes of known datasets, of folders and of text files, and their names in prompts.

A class list is text: ``ID``, ``ID<TAB>NAME`` or ``ID<TAB>NAME<TAB>SYNSET`` to a line, in the dataset's own order; lines
that begin with ``#`` are comments. The lists of known datasets are in ``hrzs/classes/lists``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from hrzs.errors import UsageError

#: Names of folders that hold a split, each with the split; `split_of` looks them up whatever their case.
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "training_set": "train",
    "val": "val", "validation": "val", "valid": "val", "validation_set": "val", "dev": "val",
    "test": "test", "testing": "test", "test_set": "test",
}  # fmt: skip

#: One text file for each known dataset.
LISTS = Path(__file__).resolve().parent / "lists"
# A line of a list of synsets, as others publish them: `n02119789 kit fox, Vulpes macrotis`.
_SYNSET_LINE = re.compile(r"(n\d{8})\s+([^,\t]+)(?:,.*)?")


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
