"""Datasets: the embedded `shapes`, the datasets of this field by name, folders and tars.

Everything here answers with a `Dataset`: labelled RGB images with pixels in [0, 1] and stable ids. A new dataset is
one entry in `DATASETS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from hrzs.data.base import Batch, Dataset, Sample, digest, held_out, loader, prompt_name, resize_to, subset, suggest
from hrzs.data.folder import SPLIT_FOLDERS, open_images, open_source
from hrzs.data.named import NAMED, Splits, open_named
from hrzs.data.shapes import SPLITS as SHAPES_SPLITS
from hrzs.data.shapes import Shapes
from hrzs.errors import UsageError

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "Entry",
    "Sample",
    "class_names",
    "describe_datasets",
    "digest",
    "held_out",
    "loader",
    "open_dataset",
    "resize_to",
    "subset",
]


@dataclass(frozen=True)
class Entry:
    """A dataset with a name: one line about it, its splits given the data root, its class ids if known without data."""

    about: str
    open: Callable[[Path | None], Splits]
    classes: tuple[str, ...] | None = None


def _shapes(_: Path | None) -> Splits:
    return {split: partial(Shapes, split) for split in SHAPES_SPLITS}


DATASETS: dict[str, Entry] = {
    "shapes": Entry("24 kinds of plane figures, drawn on the fly, 64×64 (embedded)", _shapes, Shapes.classes),
    **{name: Entry(named.about, partial(open_named, name), named.classes) for name, named in NAMED.items()},
}


def describe_datasets() -> list[tuple[str, str]]:
    """(name, one line about it) of every dataset that `--data` knows by name, and of the other forms it takes."""
    return [
        *((name, entry.about) for name, entry in DATASETS.items()),
        ("FOLDER", "a folder laid out as class/image, or split/class/image (train, val, test)"),
        ("FILE.tar", "an uncompressed tar of such a folder, read in place"),
    ]


def open_dataset(
    spec: str, split: str | None = None, *, root: Path | None = None, purpose: Literal["train", "eval"] = "eval"
) -> Dataset:
    """The dataset that one `--data` value stands for.

    spec: a name of `DATASETS`, a folder, or a tar file. root: where named datasets lie (default: $HRZS_DATA).
    split: `train`, `val` or `test`. None means `train` when the purpose is training, else the first of `test`, `val`
    that the data brings, else all of it. Data that brings no `val` gives up a fixed tenth of its `train` (or of
    everything, when it has no splits) for it; see `held_out`.

    Raises UsageError, with the remedy, for an unknown name, a missing or empty folder, or a split that is not there.
    """
    splits = _splits(spec, root)
    if split is None:
        split = "train" if purpose == "train" else next((s for s in ("test", "val", None) if s in splits), "train")
    undivided = None if "val" in splits else splits.get("train") or splits.get(None)
    if undivided and split in ("train", "val"):
        return held_out(undivided(), "train" if split == "train" else "val")
    if split not in splits:
        there = {s for s in splits if s} | ({"train", "val"} if undivided else set())
        raise UsageError(f"--split {split}: {spec} has no such split, it has {', '.join(sorted(there))}.")
    return splits[split]()


def class_names(spec: str, *, root: Path | None = None) -> list[tuple[str, str]]:
    """(class id, name for a prompt) of every class of a dataset, in label order; of a folder without opening its files.

    Raises UsageError as `open_dataset` does.
    """
    known = DATASETS[spec].classes if spec in DATASETS else None
    if known is not None:
        return [(c, prompt_name(c)) for c in known]
    if spec not in DATASETS and Path(spec).is_dir():
        return [(c, prompt_name(c)) for c in _class_folders(Path(spec))]
    dataset = next(iter(_splits(spec, root).values()))()
    return list(zip(dataset.classes, dataset.class_names, strict=True))


def _class_folders(path: Path) -> list[str]:
    """The classes by their folders alone: nothing of ImageNet's size is walked through, nor need there be images."""

    def inside(folder: Path) -> list[Path]:
        return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))

    folders = inside(path)
    while len(folders) == 1 and folders[0].name not in SPLIT_FOLDERS and inside(folders[0]):
        folders = inside(folders[0])
    in_splits = [c for f in folders if f.name in SPLIT_FOLDERS for c in inside(f)]
    if not folders:
        raise UsageError(f"{path} has no subfolders: one per class is needed, as in {path}/<class>/<image>.")
    return sorted({f.name for f in in_splits or folders})


def _splits(spec: str, root: Path | None) -> Splits:
    if spec in DATASETS:
        given = root or (Path(os.environ["HRZS_DATA"]) if os.environ.get("HRZS_DATA") else None)
        return DATASETS[spec].open(given)
    path = Path(spec)
    if path.exists():
        return open_images(open_source(path), path.resolve().name.removesuffix(".tar"))
    if "{" in spec:
        raise UsageError(f"--data {spec}: webdataset patterns are not read yet; give a folder or one .tar file.")
    raise UsageError(
        f"--data {spec}: no dataset of this name, and no such folder or .tar file. {suggest(spec, DATASETS)}"
    )
