"""Datasets: the embedded ``shapes``, known datasets by name, folders and tars.

All of them are opened as a `Dataset`: labelled RGB images with pixels in [0, 1] and stable ids. A new dataset is one
entry in `DATASETS`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from hrzs.classes.folders import NO_PARQUET, LeftOut, warn_left_out
from hrzs.data.base import (
    Batch,
    Dataset,
    ImageError,
    Sample,
    decodable,
    digest,
    held_out,
    pick,
    resize_to,
    subset,
    suggest,
)
from hrzs.data.folder import Unlabelled
from hrzs.data.named import NAMED, Splits, open_named
from hrzs.data.reading import loader, read
from hrzs.data.shapes import SPLITS as SHAPES_SPLITS
from hrzs.data.shapes import Shapes
from hrzs.data.webdataset import open_path, open_pattern
from hrzs.errors import UsageError

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "Entry",
    "ImageError",
    "Sample",
    "decodable",
    "describe_datasets",
    "digest",
    "held_out",
    "loader",
    "open_dataset",
    "pick",
    "read",
    "resize_to",
    "subset",
]


@dataclass(frozen=True)
class Entry:
    """A named dataset: one line about it, and the function that gives its splits for a data root."""

    about: str
    open: Callable[[Path | None], Splits]


def _shapes(_: Path | None) -> Splits:
    return {split: partial(Shapes, split) for split in SHAPES_SPLITS}


DATASETS: dict[str, Entry] = {
    "shapes": Entry("24 kinds of plane figures, drawn on the fly, 64×64 (embedded)", _shapes),
    **{name: Entry(named.about, partial(open_named, name)) for name, named in NAMED.items()},
}


def describe_datasets() -> list[tuple[str, str]]:
    """(name, one line about it) of every dataset that ``--data`` knows by name, and of its other forms."""
    return [
        *((name, entry.about) for name, entry in DATASETS.items()),
        ("FOLDER", "a folder laid out as class/image, or split/class/image (train, val, test)"),
        ("FILE.tar", "an uncompressed tar of such a folder, read in place"),
        ("DIR/{0000..0099}.tar", "webdataset shards (KEY.jpg + KEY.cls or KEY.json, classnames.txt), read in place"),
        ("DIR", "a folder of such shards, or with them in split folders (test/0.tar), as CLIP_benchmark exports"),
    ]


def open_dataset(
    spec: str,
    split: str | None = None,
    *,
    root: Path | None = None,
    purpose: Literal["train", "eval"] = "eval",
    known: LeftOut | None = None,
) -> Dataset:
    """The dataset that one ``--data`` value stands for.

    Args:
        spec: a name of `DATASETS`, a folder, a tar file, or a pattern of shards.
        split: ``train``, ``val`` or ``test``; by default ``train`` for training, else the first of ``test``, ``val``,
            the whole of undivided data, and ``train`` that there is. Without a ``val`` split, a fixed tenth of
            ``train`` (or of undivided data) is held out as ``val`` (`held_out`).
        root: where named datasets lie (default: ``$HRZS_DATA``).
        known: what is left out, if it was said already; otherwise a warning says it.

    Raises:
        UsageError: an unknown name, a missing or empty folder, or a missing split; the message has the remedy.
    """
    splits = _splits(spec, root)
    if split is None:
        labelled = [s for s in ("test", "val", None) if not isinstance(splits.get(s, Unlabelled("")), Unlabelled)]
        split = "train" if purpose == "train" else next((s for s in (*labelled, "val", "test") if s in splits), "train")
    undivided = None if "val" in splits else splits.get("train") or splits.get(None)
    if undivided and split in ("train", "val"):
        data = held_out(undivided(), "train" if split == "train" else "val")
    elif split in splits:
        data = splits[split]()
    else:
        there = {s for s in splits if s} | ({"train", "val"} if undivided else set())
        raise UsageError(f"--split {split}: {spec} has no such split, it has {', '.join(sorted(there))}.")
    if known is None or known.counts != data.left_out.counts:
        warn_left_out(spec, data.left_out)
    return data


#: A scheme, by which others read images as they come: http://, s3://, pipe:.
_STREAM = re.compile(r"[a-z][a-z0-9+.-]+://|pipe:")


def _check_place(spec: str) -> None:
    """
    Raises:
        UsageError: the images do not lie on this machine, or in a table.
    """
    if _STREAM.match(spec):
        raise UsageError(
            f"--data {spec}: images are read where they lie on this machine, in any order and more than once. Download "
            "them first (curl -O URL, or hf download OWNER/NAME --repo-type dataset --local-dir DIR). Then give "
            "--data DIR or --data 'DIR/{0..9}.tar'."
        )
    if spec.endswith(".parquet"):
        raise UsageError(f"--data {spec}: {NO_PARQUET}.")


def _splits(spec: str, root: Path | None) -> Splits:
    if spec in DATASETS:
        given = root or (Path(os.environ["HRZS_DATA"]) if os.environ.get("HRZS_DATA") else None)
        return DATASETS[spec].open(given)
    _check_place(spec)
    path = Path(spec)
    if path.exists():
        return open_path(path, path.resolve().name.removesuffix(".tar"))
    if "{" in spec:
        return open_pattern(spec)
    raise UsageError(
        f"--data {spec}: no dataset of this name, and no such folder or .tar file. {suggest(spec, DATASETS)}"
    )
