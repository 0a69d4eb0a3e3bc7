"""Images decoded once and kept as bytes, clean or corrupted, so that a hundred runs need not read them again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

import hrzs.data
import hrzs.evaluation.canaries
import hrzs.evaluation.runner
import hrzs.training.trainer
import hrzs.training.validation
from hrzs.data import Batch, Dataset, Sample, digest
from hrzs.data.base import _Resized, _View
from hrzs.errors import UsageError

Pixels: TypeAlias = NDArray[np.uint8]


class Decoded(Dataset):
    """``data`` with its pixels in memory: uint8, shape (n, H, W, 3)."""

    def __init__(self, data: Dataset, pixels: Pixels, name: str | None = None) -> None:
        self.name, self.split = name or data.name, data.split
        self.classes, self.class_names = data.classes, data.class_names
        self.labels, self.ids = data.labels, data.ids
        self.native_size, self.default_eps, self.like = data.native_size, data.default_eps, data.like
        self.pixels = pixels

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(np.array(self.pixels[index]))

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, there is no number {index}")
        image = torch.from_numpy(np.array(self.pixels[index])).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
        return Sample(image, self.labels[index], self.ids[index])


def decode(data: Dataset, threads: int = 8, kept: Path | None = None) -> Decoded:
    """Read every image of ``data``, which must all have one size; or the file that keeps what was read before."""
    size = data.native_size
    if size is None:
        raise UsageError(f"{data.name}: images of one size are needed, these differ")
    file = kept and kept / f"{digest(data)}.npy"
    if file and file.exists():
        return Decoded(data, np.load(file, mmap_mode="r"))
    pixels = np.empty((len(data), size, size, 3), np.uint8)

    def take(index: int) -> None:
        pixels[index] = np.asarray(data.picture(index))

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(take, range(len(data))):
            pass
    if file:
        aside = file.with_name(f".{file.name}")
        np.save(aside, pixels)
        aside.replace(file)
    return Decoded(data, pixels)


class Opener:
    """Stands in for `hrzs.data.open_dataset`: a split of ``folder`` is decoded once, ``folder+corruption`` too."""

    def __init__(self, inner: Callable[..., Dataset], folder: Path, threads: int, kept: Path) -> None:
        self.inner, self.folder, self.threads, self.at = inner, str(folder), threads, kept
        self.kept: dict[tuple[str, str | None], Dataset] = {}

    def __call__(self, spec: str, split: str | None = None, **options: Any) -> Dataset:
        clean, _, corruption = spec.partition("+")
        if clean != self.folder:
            return self.inner(spec, split, **options)
        key = (corruption, split)
        if key not in self.kept:
            if corruption:
                data = self(clean, split, **options)
                assert isinstance(data, Decoded)
                self.kept[key] = Decoded(data, corrupted(data.pixels, data.ids, corruption), corruption)
            else:
                self.kept[key] = decode(self.inner(spec, split, **options), self.threads, self.at)
        return self.kept[key]


# -- on the device -----------------------------------------------------------------------------------------------------

#: The bytes of a dataset on this process's device, by its array on the host.
_ON_DEVICE: dict[int, Tensor] = {}


def on_device(data: Decoded, device: torch.device | str) -> Tensor:
    """uint8, shape (n, 3, H, W)."""
    if id(data.pixels) not in _ON_DEVICE:
        pixels = torch.from_numpy(np.array(data.pixels)).to(device)
        _ON_DEVICE[id(data.pixels)] = pixels.permute(0, 3, 1, 2).contiguous()
    return _ON_DEVICE[id(data.pixels)]


def places(data: Dataset) -> tuple[Decoded, list[int]] | None:
    """Where the images of a view lie; None if they are not as they lie there, or not decoded."""
    indices = list(range(len(data)))
    while isinstance(data, _View) and not isinstance(data, _Resized):
        indices = [data.indices[i] for i in indices]
        data = data.parent
    return (data, indices) if isinstance(data, Decoded) else None


def load_from_device(device: str) -> None:
    """From here on this process trains and evaluates on batches that are put together on the device."""

    def take(data: Dataset, batches: Iterable[Sequence[int]], **options: Any) -> Iterator[Batch]:
        found = places(data)
        if found is None:
            yield from hrzs.data.reading.read(data, batches, **options)
            return
        root, where = found
        pixels = on_device(root, device)
        for some in batches:
            yield Batch(
                pixels[torch.tensor([where[i] for i in some]).to(pixels.device)].to(torch.float32).div_(255),
                torch.tensor([data.labels[i] for i in some], dtype=torch.int64),
                tuple(data.ids[i] for i in some),
            )

    def load(
        data: Dataset, batch_size: int, workers: int = 0, order: Sequence[int] | None = None, **options: Any
    ) -> Iterator[Batch]:
        chosen = range(len(data)) if order is None else order
        batches = (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))
        return take(data, batches, workers=workers, **options)

    for module in (hrzs.training.trainer, hrzs.training.validation, hrzs.evaluation.runner, hrzs.evaluation.canaries):
        for name, function in (("read", take), ("loader", load)):
            if hasattr(module, name):
                setattr(module, name, function)


# -- corruptions: four of Hendrycks and Dietterich (ICLR 2019), at one strength each, chosen here -------------------


def _noise(image: Pixels, seed: int) -> Pixels:
    noise = np.random.default_rng(seed).normal(0.0, STRENGTH["gaussian-noise"], image.shape)
    return np.asarray(np.clip(image / 255 + noise, 0, 1) * 255).round().astype(np.uint8)


def _blur(image: Pixels, _: int) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(STRENGTH["gaussian-blur"])))


def _contrast(image: Pixels, _: int) -> Pixels:
    x = image / 255
    mean = x.mean(axis=(0, 1), keepdims=True)
    return np.asarray(np.clip((x - mean) * STRENGTH["contrast"] + mean, 0, 1) * 255).round().astype(np.uint8)


def _jpeg(image: Pixels, _: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(STRENGTH["jpeg"]))
    return np.asarray(Image.open(file).convert("RGB"))


#: Standard deviation of the noise (pixels in [0, 1]); radius of the blur in pixels; what is left of the contrast; JPEG
#: quality.
STRENGTH = {"gaussian-noise": 0.08, "gaussian-blur": 1.0, "contrast": 0.4, "jpeg": 25.0}
_CORRUPT: dict[str, Callable[[Pixels, int], Pixels]] = {
    "gaussian-noise": _noise,
    "gaussian-blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}


def corrupted(pixels: Pixels, ids: Iterable[str], name: str) -> Pixels:
    """Each image corrupted; what is random depends on its id alone."""
    seeds = (int.from_bytes(hashlib.blake2b(f"{name}/{i}".encode(), digest_size=8).digest(), "big") for i in ids)
    return np.stack([_CORRUPT[name](image, seed) for image, seed in zip(pixels, seeds, strict=True)])
