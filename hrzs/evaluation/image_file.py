"""Images in a safetensors file that is written and read a batch at a time: the whole of it may exceed the memory.

The format is a header of known length before the raw tensors, so once number and size of the images are known, the
place of each is too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from safetensors import safe_open
from torch import Tensor

from hrzs.errors import HrzsError
from hrzs.files import fsync
from hrzs.models.saving import pack_header


def bytes_of(n: int, shape: Sequence[int]) -> int:
    """What `n` float32 images of this shape take on disk, with their labels."""
    return n * (8 + 4 * math.prod(shape))


def allocate(path: Path, labels: Int64[Tensor, "n"], shape: Sequence[int], header: Mapping[str, Any]) -> None:
    """Write a file with these `labels` and room for as many `images` of `shape`, all zero so far.

    Raises:
        HrzsError: the disk has not the room.
        OSError: it cannot be written.
    """
    n, begin, end = len(labels), 8 * len(labels), bytes_of(len(labels), shape)
    entries = {
        "__metadata__": pack_header(header),
        "labels": {"dtype": "I64", "shape": [n], "data_offsets": [0, begin]},
        "images": {"dtype": "F32", "shape": [n, *shape], "data_offsets": [begin, end]},
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    free = shutil.disk_usage(path.parent).free
    if free < end:
        raise HrzsError(f"{path.parent}: {n} images need {end / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + labels.numpy().astype("<i8").tobytes())
        file.truncate(8 + len(text) + end)
        fsync(file)


def write_images(path: Path, start: int, images: Float[Tensor, "B 3 H W"]) -> None:
    """Put these in the places from `start` on; they are on the disk when this returns.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        begin = json.loads(file.read(length))["images"]["data_offsets"][0]
        file.seek(8 + length + begin + start * 4 * images[0].numel())
        file.write(images.contiguous().numpy().astype("<f4", copy=False).tobytes())
        fsync(file)


def read_images(path: Path, rows: Iterable[int]) -> Float[Tensor, "B 3 H W"]:
    """These images and no others.

    Raises:
        SafetensorError, OSError: not such a file.
    """
    with safe_open(path, framework="pt") as file:
        images = file.get_slice("images")
        return torch.cat([images[row : row + 1] for row in rows])
