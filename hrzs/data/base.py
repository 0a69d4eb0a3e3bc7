"""What every dataset of hrzs is: labelled RGB images with stable ids, in a fixed order."""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from hrzs.errors import HrzsError, UsageError


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

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The RGB image at ``index``.

        Raises:
            HrzsError: it cannot be decoded; the message names the image.
        """

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no number {index}")
        pixels = torch.from_numpy(np.array(self.picture(index)))
        image = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        return Sample(image, self.labels[index], self.ids[index])


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


class _Fetch(torch.utils.data.Dataset[Sample | HrzsError]):
    """Returns errors of worker processes as values: raised in a worker, their messages would come back mangled."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample | HrzsError:
        try:
            return self.dataset[index]
        except HrzsError as error:
            return error


def _collate(samples: list[Sample | HrzsError]) -> Batch | HrzsError:
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, HrzsError):
            return sample
        good.append(sample)
    for sample in good:
        if sample.image.shape != good[0].image.shape:
            (_, h, w), (_, h0, w0) = sample.image.shape, good[0].image.shape
            return HrzsError(
                f"Image {sample.id} is {w}×{h} where {good[0].id} is {w0}×{h0}: "
                "images of different sizes have to be resized first."
            )
    return Batch(
        torch.stack([s.image for s in good]),
        torch.tensor([s.label for s in good], dtype=torch.int64),
        tuple(s.id for s in good),
    )


def loader(dataset: Dataset, batch_size: int, workers: int = 0, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """The images of ``dataset`` in ``order`` (indices; default: its own) in batches; the last may be smaller.

    The batches do not depend on ``workers``, the number of processes that read ahead (0: read in this process).

    Raises:
        HrzsError: an image cannot be decoded, or differs in size from others of its batch; the message names it.
    """
    batches = torch.utils.data.DataLoader(
        _Fetch(dataset),
        batch_size=batch_size,
        sampler=range(len(dataset)) if order is None else order,
        num_workers=workers,
        collate_fn=_collate,
        # Without its own generator the loader would draw from the global one, and reading data would change training.
        generator=torch.Generator(),
    )
    for batch in batches:
        if isinstance(batch, HrzsError):
            raise batch
        yield batch
