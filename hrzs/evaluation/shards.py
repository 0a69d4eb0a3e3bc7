"""Work divided among processes that know nothing of each other, with the result of one process to the last bit.

A matrix product may round otherwise in a batch of another size, so an image's verdict may depend on its batch. Images
therefore go in `blocks`, which follow from the data and the batch size alone: no batch ever holds images of two blocks.
A shard takes every N-th block, and one process takes them all, in the same batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hrzs.errors import UsageError

Block = TypeVar("Block")

#: At most so many blocks, and so at most so many shards with work to do.
MOST = 64
# Where fooled images leave, what is left of a block has to fill a batch: blocks hold at least so many images. Of few
# images there are at least so many blocks, and always about a multiple of that: machines have 2, 4 or 8 GPUs.
_IMAGES, _BLOCKS = 512, 8


def blocks(n: int, batch_size: int, *, shrink: bool = False) -> list[range]:
    """The places of ``n`` images, cut into blocks of whole batches; the last may be smaller.

    Args:
        shrink: fooled images leave the batches, so that blocks have to be large.
    """
    most = min(max(n // _IMAGES // _BLOCKS, 1) * _BLOCKS, MOST) if shrink else MOST
    size = batch_size * max(1, -(-n // (most * batch_size)))
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


@dataclass(frozen=True)
class Shard:
    """Share ``number`` (from 1) of ``of``."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """
        Raises:
            UsageError: not K/N with K from 1 to N.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard {text}: K/N with K from 1 to N is needed, such as 3/8 for the third of eight")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def name(self) -> str:
        """What its files are called by."""
        return f"shard-{self.number}-of-{self.of}"

    @property
    def all(self) -> list[Shard]:
        """It and its sisters."""
        return [Shard(number, self.of) for number in range(1, self.of + 1)]

    def share(self, whole: Sequence[Block], first: int = 0) -> Sequence[Block]:
        """What this shard has of ``whole``, before which ``first`` others were dealt out."""
        return whole[(self.number - 1 - first) % self.of :: self.of]


#: All of it, in one process.
WHOLE = Shard(1, 1)


def kept_file(target: Path, shard: Shard) -> Path:
    """Where a finished shard keeps what it has done, beside the file that all shards together make."""
    return target.with_name(f"{target.name}.{shard.name}")


def begun(folder: Path, prefix: str) -> list[Shard]:
    """The shards that have left files in ``folder`` whose names go on from ``prefix``, finished or not."""
    if not folder.is_dir():
        return []
    form = re.compile(rf"\.?{re.escape(prefix)}shard-(\d+)-of-(\d+)\b(?!.*\.lock)")
    found = {Shard(int(it[1]), int(it[2])) for path in folder.iterdir() if (it := form.match(path.name))}
    return sorted(found, key=lambda shard: (shard.of, shard.number))
