"""What every dataset of hrzs is: labelled RGB images with stable ids, in a fixed order."""

from __future__ import annotations

import difflib
import hashlib
import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from hrzs.classes.folders import LeftOut
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
        (image,) = _as_images(np.asarray(self.picture(index))[None])
        return Sample(image, self.labels[index], self.ids[index])


def _as_images(pixels: UInt8[np.ndarray, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(torch.float32).div_(255)


class _View(Dataset):
    """Some of the images of another dataset, in an order of its own."""

    def __init__(self, parent: Dataset, indices: Sequence[int]) -> None:
        self.parent = parent
        self.indices = indices
        self.name, self.split = parent.name, parent.split
        self.classes, self.class_names = parent.classes, parent.class_names
        self.labels = [parent.labels[i] for i in indices]
        self.ids = [parent.ids[i] for i in indices]
        self.native_size = parent.native_size
        self.default_eps = parent.default_eps
        self.like = parent.like
        self.left_out, self.unreadable = parent.left_out, parent.unreadable

    def picture(self, index: int) -> Image.Image:
        return self.parent.picture(self.indices[index])


def _by_class(dataset: Dataset, salt: bytes) -> list[list[int]]:
    """The indices of each class, in the order of a salted hash of the ids, which means nothing."""
    groups: list[list[int]] = [[] for _ in dataset.classes]
    for index, label in enumerate(dataset.labels):
        groups[label].append(index)

    def key(index: int) -> tuple[bytes, str]:
        name = dataset.ids[index]
        return hashlib.blake2b(name.encode(), digest_size=8, person=salt).digest(), name

    return [sorted(group, key=key) for group in groups]


def subset(dataset: Dataset, *, limit: int | None, skip: int = 0, classes: Sequence[str] | None = None) -> Dataset:
    """Images ``skip`` … ``skip + limit`` of the fixed class-balanced order of ``dataset``.

    The order takes the classes in turn, and the images of a class by a hash of the id. It depends on nothing but the
    ids, so ``limit=1000`` and ``skip=1000`` never share an image. ``classes``, if given, are the only ones kept, and
    labels follow their order.

    Raises:
        UsageError: an unknown or repeated class, a limit or skip out of range, or no image is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least 1 image is needed.")
    if skip < 0:
        raise UsageError(f"--skip {skip}: it cannot be negative.")
    groups = _by_class(dataset, b"subset")
    chosen = range(len(groups)) if classes is None else _positions(dataset, classes)
    turns = sorted((turn, place, i) for place, c in enumerate(chosen) for turn, i in enumerate(groups[c]))
    indices = [i for _, _, i in turns][skip:][:limit]
    if not indices:
        raise UsageError(
            f"No image of {dataset.name} ({dataset.split}) is left: it holds {len(turns)} of the classes asked for, "
            f"and --skip {skip} leaves these out. Lower --skip or name other classes."
        )
    view = _View(dataset, indices)
    if classes is not None:
        place_of = {c: place for place, c in enumerate(chosen)}
        view.classes = tuple(classes)
        view.class_names = tuple(dataset.class_names[c] for c in chosen)
        view.labels = [place_of[label] for label in view.labels]
    return view


def pick(dataset: Dataset, ids: Sequence[str]) -> Dataset:
    """The images called ``ids``, in this order.

    Raises:
        UsageError: some are missing; the message names the first.
    """
    place = {name: i for i, name in enumerate(dataset.ids)}
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
    val = {
        i for group in _by_class(dataset, b"held out") for i in group[: min(max(1, len(group) // 10), len(group) - 1)]
    }
    indices = [i for i in range(len(dataset)) if (i in val) == (part == "val")]
    if not indices:
        raise UsageError(f"{dataset.name} has one image per class, too few to hold some out: give it a val split.")
    view = _View(dataset, indices)
    view.split = part
    return view


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence with the near matches of a mistyped name, or else with the known names."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"There are: {', '.join(known[:30])}{', …' if len(known) > 30 else ''}."


def digest(dataset: Dataset) -> str:
    """16 hex digits that tell which images these are, whatever their order."""
    return hashlib.sha256("\n".join(sorted(dataset.ids)).encode()).hexdigest()[:16]


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


class _Read(NamedTuple):
    """Images as a worker sends them: not as tensors, for these go through shared memory, which Docker has little of."""

    pixels: UInt8[np.ndarray, "B H W 3"]
    labels: list[int]
    ids: tuple[str, ...]


class _Fetch(torch.utils.data.Dataset["_Read | HrzsError"]):
    """Returns errors of worker processes as values: raised in a worker, their messages would come back mangled."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> _Read | HrzsError:
        data = self.dataset
        try:
            return _Read(np.asarray(data.picture(index))[None], [data.labels[index]], (data.ids[index],))
        except HrzsError as error:
            return error


def _collate(found: list[_Read | HrzsError]) -> _Read | HrzsError:
    good: list[_Read] = []
    for each in found:
        if isinstance(each, HrzsError):
            return each
        good.append(each)
    for each in good:
        if each.pixels.shape != good[0].pixels.shape:
            (_, h, w, _), (_, h0, w0, _) = each.pixels.shape, good[0].pixels.shape
            return HrzsError(
                f"Image {each.ids[0]} is {w}×{h} where {good[0].ids[0]} is {w0}×{h0}: "
                "images of different sizes have to be resized first."
            )
    pixels = np.concatenate([each.pixels for each in good])
    return _Read(pixels, [each.labels[0] for each in good], tuple(each.ids[0] for each in good))


class _Watch:
    """Says when a worker has died. torch would raise wherever the program then is, in the middle of a training step."""

    raise_if_dead: Any = None
    awaiting = False

    @classmethod
    def start(cls) -> None:
        """Take the place of the handler that torch has set with its first workers."""
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") and is_main else None
        if callable(handler) and handler != cls._on_child:
            cls.raise_if_dead = handler
            signal.signal(signal.SIGCHLD, cls._on_child)

    @classmethod
    def _on_child(cls, signum: int, frame: Any) -> None:
        if cls.awaiting:
            cls.raise_if_dead(signum, frame)

    @classmethod
    @contextmanager
    def over(cls) -> Iterator[None]:
        """Inside, the death of a worker is an error, also one that died before."""
        cls.awaiting = True
        try:
            if cls.raise_if_dead is not None:
                cls.raise_if_dead(0, None)
            yield
        finally:
            cls.awaiting = False


def loader(dataset: Dataset, batch_size: int, workers: int = 0, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """`read` of ``batch_size`` images at a time in ``order`` (default: all, in their own); the last may be fewer."""
    chosen = range(len(dataset)) if order is None else order
    batches = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    return read(dataset, batches, workers=workers)


def read(dataset: Dataset, batches: Iterable[Sequence[int]], *, workers: int = 0) -> Iterator[Batch]:
    """The images of ``dataset`` at each list of indices in ``batches``, in this order.

    The batches do not depend on ``workers``, the number of processes that read ahead (0: read in this process).

    Raises:
        ImageError: an image cannot be decoded (the message names it), or a process that reads ahead has died.
        HrzsError: an image differs in size from others of its batch; the message names it.
    """
    reading = torch.utils.data.DataLoader(
        _Fetch(dataset),
        batch_sampler=[list(batch) for batch in batches],
        num_workers=workers,
        collate_fn=_collate,
        # Without its own generator the loader would draw from the global one, and reading data would change training.
        generator=torch.Generator(),
    )
    found: _Read | HrzsError | None
    if not workers:
        for found in reading:
            yield _batch(found)
        return
    try:
        reader = iter(reading)
        _Watch.start()
        while True:
            with _Watch.over():
                found = next(reader, None)
            if found is None:
                return
            yield _batch(found)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ImageError(
            f"--workers {workers}: a process that reads images cannot go on ({str(error).strip()}). The memory, or "
            "/dev/shm, may be too small. Run again, with --resume, and with fewer --workers or --workers 0."
        ) from error


def _batch(found: _Read | HrzsError) -> Batch:
    if isinstance(found, HrzsError):
        raise found
    return Batch(_as_images(found.pixels), torch.tensor(found.labels, dtype=torch.int64), found.ids)
