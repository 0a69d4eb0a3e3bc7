"""What every dataset of hrzs is: labelled RGB images with stable ids, in a fixed order."""

from __future__ import annotations

import difflib
import hashlib
import logging
import math
import time
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from hrzs.classes.folders import LeftOut
from hrzs.classes.texts import taken, utf8_of
from hrzs.errors import HrzsError, UsageError

logger = logging.getLogger(__name__)


class ImageError(HrzsError):
    """An image cannot be read or decoded, or whoever reads images is gone; what was done before can be kept."""


#: What to do about one.
REMEDY = "Replace it with an intact copy and run again, with --resume; or leave such images out: --bad-images skip."


#: The largest share of images that can be skipped.
MOST_BAD = 0.1


@dataclass(frozen=True)
class Sample:
    """One labelled image: pixels in [0, 1]; ``id`` never changes (``n02119789/xyz.JPEG``, ``shapes/val/00017``)."""

    image: Float[Tensor, "3 H W"]
    label: int
    id: str


@dataclass(frozen=True)
class Batch:
    """Samples of equal size, stacked."""

    images: Float[Tensor, "B 3 H W"]
    labels: Int64[Tensor, " B"]
    ids: tuple[str, ...]


class Dataset(torch.utils.data.Dataset[Sample], ABC):
    """A finite, ordered set of labelled images. A subclass sets the attributes and draws `picture`.

    Attributes:
        name, split: its names for ``--data`` and ``--split``.
        classes, class_names: class ids in label order, and the name of each class for a prompt.
        labels, ids: label and id of every image, known without opening one.
        native_size: side in pixels of the square images; None if sizes differ, and `resize_to` must come first.
        default_eps: the data's own default L∞ radius of attacks; None for the common default.
        like: the known dataset that has these class ids, if it has another name; its tree fits.
        left_out: what of the source is no part of it, or is met twice.
        unreadable: ids of images that were left out since they cannot be decoded.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    labels: Sequence[int]
    ids: Sequence[str]
    native_size: int | None
    default_eps: Fraction | None = None
    like: str | None = None
    left_out: LeftOut = LeftOut()
    unreadable: tuple[str, ...] = ()

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The RGB image at ``index``.

        Raises:
            ImageError: it cannot be decoded; the message names the image.
        """

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no number {index}")
        (image,) = as_images(torch.from_numpy(np.array(self.picture(index))[None]))
        return Sample(image, self.labels[index], self.ids[index])


def as_images(pixels: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """``pixels`` over 255, contiguous, on the same device."""
    (count, height, width, _), device = pixels.shape, pixels.device
    images = torch.empty((count, 3, height, width), dtype=torch.float32, device=device)
    # One pass moves the colours and widens. CUDA multiplies by 1/255 if told to divide by a number: other bits.
    return images.copy_(pixels.permute(0, 3, 1, 2)).div_(torch.full((), 255.0, device=device))


class _View(Dataset):
    """Some of the images of another dataset, in an order of its own."""

    def __init__(self, parent: Dataset, indices: Sequence[int]) -> None:
        self.parent = parent
        self.indices = indices
        self.name, self.split = parent.name, parent.split
        self.classes, self.class_names = parent.classes, parent.class_names
        is_all = indices == range(len(parent))
        self.labels = parent.labels if is_all else [parent.labels[i] for i in indices]
        self.ids = parent.ids if is_all else taken(parent.ids, indices)
        self.native_size = parent.native_size
        self.default_eps = parent.default_eps
        self.like = parent.like
        self.left_out, self.unreadable = parent.left_out, parent.unreadable

    def picture(self, index: int) -> Image.Image:
        return self.parent.picture(self.indices[index])


def _by_class(dataset: Dataset, salt: bytes) -> list[Int64[np.ndarray, " of_class"]]:
    """The indices of each class, in the order of a salted hash of the ids, which means nothing."""
    hashes = b"".join(hashlib.blake2b(name, digest_size=8, person=salt).digest() for name in utf8_of(dataset.ids))
    labels = np.fromiter(dataset.labels, np.int64, len(dataset))
    # Of two ids with one hash (not in 10 million datasets of ImageNet's size) the first in the dataset comes first.
    order = np.lexsort((np.frombuffer(hashes, ">u8").astype(np.uint64), labels))
    return np.split(order, np.searchsorted(labels[order], np.arange(1, len(dataset.classes))))


def subset(dataset: Dataset, *, limit: int | None, skip: int = 0, classes: Sequence[str] | None = None) -> Dataset:
    """Images ``skip`` … ``skip + limit`` of the fixed class-balanced order of ``dataset``.

    The order takes the classes in turn, and the images of a class by a hash of the id. It depends on nothing but the
    ids, so ``limit=1000`` and ``skip=1000`` never share an image. ``classes``, if given, are the only ones kept, and
    labels follow their order.

    In the first turn the classes come in a spread order (`_spread`), so that fewer images than classes are not all of
    the first classes. Neighbours are often alike: the first 40 WordNet ids of Tiny-ImageNet are animals.

    Raises:
        UsageError: an unknown or repeated class, a limit or skip out of range, or no image is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 image is needed.")
    if skip < 0:
        raise UsageError(f"--skip {skip}: it cannot be negative.")
    groups = _by_class(dataset, b"subset")
    chosen = range(len(groups)) if classes is None else _positions(dataset, classes)
    kept = [groups[c] for c in chosen]
    turns = np.concatenate([np.arange(len(group)) for group in kept])
    places = np.repeat(np.arange(len(kept)), [len(group) for group in kept])
    order = np.arange(len(turns))
    first = int((turns == 0).sum())
    order[:first] = _spread(first)
    chosen_turns = np.sort(order[skip:][:limit])
    indices = np.concatenate(kept)[np.lexsort((places, turns))[chosen_turns]]
    if not len(indices):
        raise UsageError(
            f"No image of {dataset.name} ({dataset.split}) is left: it holds {len(turns)} of the classes asked for, "
            f"and --skip {skip} leaves these out. Lower --skip or name other classes."
        )
    view = _View(dataset, _compact(indices))
    if classes is not None:
        place_of = {c: place for place, c in enumerate(chosen)}
        view.classes = tuple(classes)
        view.class_names = tuple(dataset.class_names[c] for c in chosen)
        view.labels = [place_of[label] for label in view.labels]
    return view


def _spread(count: int) -> Int64[np.ndarray, " count"]:
    """0 … ``count - 1``, ordered so that every beginning is spread evenly (multiples of the golden ratio, modulo 1)."""
    return np.argsort(np.arange(count) * ((math.sqrt(5) - 1) / 2) % 1, kind="stable")


def pick(dataset: Dataset, ids: Sequence[str]) -> Dataset:
    """The images called ``ids``, in this order.

    Raises:
        UsageError: some are missing; the message names the first.
    """
    wanted = set(ids)
    place = {name: i for i, name in enumerate(dataset.ids) if name in wanted}
    missing = [name for name in ids if name not in place]
    if missing:
        raise UsageError(
            f"--data {dataset.name} ({dataset.split}): it has no image {missing[0]!r}; {len(missing)} of the "
            f"{len(ids)} wanted are missing. Name the data that they come from with --data, --split and --data-root."
        )
    return _View(dataset, [place[name] for name in ids])


def _positions(dataset: Dataset, classes: Sequence[str]) -> list[int]:
    position = {name: i for i, name in enumerate(dataset.classes)}
    for name in classes:
        if name not in position:
            raise UsageError(f"{dataset.name} has no class {name!r}. {suggest(name, dataset.classes)}")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise UsageError(f"Class {twice!r} is named twice: name each class once.")
    return [position[name] for name in classes]


def decodable(dataset: Dataset, bad_images: str) -> Dataset:
    """``dataset`` without the images that cannot be decoded, after a look at every one, on all cores.

    Args:
        bad_images: ``stop`` refuses them all at once, ``skip`` leaves them out if they are few (`MOST_BAD`).

    Raises:
        UsageError: there are some, with ``stop``, or too many; the message names the first and says what is wrong.
    """

    def fault_of(index: int) -> str | None:
        try:
            dataset.picture(index)
        except ImageError as error:
            return str(error).removesuffix(f" {REMEDY}")
        return None

    faults: dict[int, str] = {}
    began = time.monotonic()
    logger.info("%s (%s): looking at all of the %d images", dataset.name, dataset.split, len(dataset))
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(dataset), 1024):
            some = range(start, min(start + 1024, len(dataset)))
            faults |= {i: fault for i, fault in zip(some, pool.map(fault_of, some), strict=True) if fault}
            if time.monotonic() - began > 30:
                began = time.monotonic()
                logger.info("%d of %d images looked at", some.stop, len(dataset))
    if not faults:
        return dataset
    shown = " ".join([*faults.values()][:3]) + (" …" if len(faults) > 3 else "")
    counted = f"{dataset.name} ({dataset.split}): {len(faults)} of {len(dataset)} images cannot be decoded"
    if bad_images == "stop":
        raise UsageError(f"--check-images: {counted}. {shown} {REMEDY}")
    if len(faults) > MOST_BAD * len(dataset):
        raise UsageError(
            f"--bad-images skip: {counted}, more than {MOST_BAD:.0%}. Replace them with intact copies. {shown}"
        )
    logger.warning("%s, and are left out. %s", counted, shown)
    view = _View(dataset, [i for i in range(len(dataset)) if i not in faults])
    view.unreadable = tuple(dataset.ids[i] for i in faults)
    return view


def held_out(dataset: Dataset, part: Literal["train", "val"]) -> Dataset:
    """One part of a fixed 90/10 division of ``dataset``: a tenth of each class, by a hash of the ids, is ``val``.

    A class of two or more images gives at least one to each part; a single image stays in ``train``.

    Raises:
        UsageError: the part is empty.
    """
    is_val = np.zeros(len(dataset), dtype=bool)
    for group in _by_class(dataset, b"held out"):
        is_val[group[: max(0, min(max(1, len(group) // 10), len(group) - 1))]] = True
    indices = _compact(np.flatnonzero(is_val == (part == "val")))
    if not indices:
        raise UsageError(f"{dataset.name} has one image per class, too few to hold some out: give it a val split.")
    view = _View(dataset, indices)
    view.split = part
    return view


def _compact(indices: Int64[np.ndarray, " n"]) -> Sequence[int]:
    """As whole numbers of Python, of 8 bytes each."""
    return array("q", indices.tobytes())


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence with the near matches of a mistyped name, or else with the known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"There are: {', '.join(known[:30])}{', …' if len(known) > 30 else ''}."


def digest(dataset: Dataset) -> str:
    """16 hex digits that tell which images these are, whatever their order."""
    # UTF-8 is in the order of the characters.
    return hashlib.sha256(b"\n".join(sorted(utf8_of(dataset.ids)))).hexdigest()[:16]


INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class _Resized(_View):
    def __init__(self, parent: Dataset, size: int, interpolation: Image.Resampling, *, squash: bool) -> None:
        super().__init__(parent, range(len(parent)))
        self.native_size = self.size = size
        self.interpolation = interpolation
        self.squash = squash

    def picture(self, index: int) -> Image.Image:
        image = self.parent.picture(index)
        if self.squash:
            return image.resize((self.size, self.size), self.interpolation)
        short = min(image.size)
        width, height = (int(self.size * side / short) for side in image.size)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        resized = image.resize((width, height), self.interpolation)
        return resized.crop((left, top, left + self.size, top + self.size))


def resize_to(dataset: Dataset, size: int, interpolation: str = "bicubic", mode: str = "shortest") -> Dataset:
    """``dataset`` with every image brought to ``size`` × ``size`` pixels.

    This is ``--resize before``: ε counts in pixels of the resized image. Images are to the bit those of the ``Resize``
    and ``CenterCrop`` that open_clip evaluates with.

    Args:
        interpolation: one of `INTERPOLATIONS`.
        mode: ``shortest`` resizes the shorter side and cuts the centre out, ``squash`` resizes both sides.
    """
    return _Resized(dataset, size, INTERPOLATIONS[interpolation], squash=mode == "squash")
