"""Many short texts in one piece of memory: a million ids in tens of MB, which processes share for good.

A list of strings takes twice to three times as much. Besides, whoever looks at one writes its reference count, so each
worker process would end with a copy of its own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from jaxtyping import Integer


class Texts(Sequence[str]):
    """A sequence of strings that does not change: text i is the UTF-8 in ``blob[starts[i]:ends[i]]``."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, blob: bytes, starts: Integer[np.ndarray, " n"], ends: Integer[np.ndarray, " n"]) -> None:
        kind = np.uint32 if len(blob) < 2**32 else np.int64
        self._blob, self._starts, self._ends = blob, starts.astype(kind, copy=False), ends.astype(kind, copy=False)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """
        Raises:
            UnicodeEncodeError: one has no UTF-8.
        """
        return cls.of_utf8(text.encode() for text in texts)

    @classmethod
    def of_utf8(cls, texts: Iterable[bytes]) -> Texts:
        parts, lengths, blob = list[bytes](), array("q"), bytearray()
        for text in texts:
            parts.append(text)
            lengths.append(len(text))
            if len(parts) == 10_000:  # so that all of them are never there at once
                blob += b"".join(parts)
                parts.clear()
        blob += b"".join(parts)
        widths = np.array(lengths, dtype=np.int64)
        ends = np.cumsum(widths)
        return cls(bytes(blob), ends - widths, ends)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """One after the other."""
        offsets = np.cumsum([0, *(len(part._blob) for part in parts[:-1])])
        starts = np.concatenate([part._starts + offset for part, offset in zip(parts, offsets, strict=True)])
        ends = np.concatenate([part._ends + offset for part, offset in zip(parts, offsets, strict=True)])
        return cls(b"".join(part._blob for part in parts), starts, ends)

    def without_start(self, lengths: Integer[np.ndarray, " n"]) -> Texts:
        """Each text without its first bytes; the memory is shared."""
        return Texts(self._blob, self._starts + lengths, self._ends)

    def take(self, indices: Sequence[int] | Integer[np.ndarray, " m"]) -> Texts:
        """The texts at ``indices``; the memory is shared."""
        places = np.asarray(indices, dtype=np.int64)
        return Texts(self._blob, self._starts[places], self._ends[places])

    def utf8(self) -> Iterator[bytes]:
        """Each text, encoded."""
        blob = self._blob
        for start, end in zip(self._starts.tolist(), self._ends.tolist(), strict=True):
            yield blob[start:end]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self._blob, self._starts[index], self._ends[index])
        return self._blob[int(self._starts[index]) : int(self._ends[index])].decode()

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for text in self.utf8())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3])) + (", …" if len(self) > 3 else "")
        return f"Texts([{shown}])"


def utf8_of(texts: Sequence[str]) -> Iterator[bytes]:
    """Each text, encoded, whether they are `Texts` or not."""
    return texts.utf8() if isinstance(texts, Texts) else (text.encode() for text in texts)


def taken(texts: Sequence[str], indices: Sequence[int]) -> Sequence[str]:
    """The texts at ``indices``."""
    return texts.take(indices) if isinstance(texts, Texts) else [texts[i] for i in indices]
