"""Finished batches of an evaluation, kept beside its JSON while it runs: a line each, after one that says of what."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrzs.errors import HrzsError, UsageError
from hrzs.files import fsync, fsync_folder, locked, whole_lines


class KeptFile(ABC):
    """A file of JSON lines that is read and written while it is `opened`, or nothing where ``path`` is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, no other process has the file. Inside another such block it does nothing.

        Raises:
            UsageError: another process is at work on it, or it is not what it should be (the message says how).
            HrzsError: it cannot be written.
        """
        if self.path is None or self._open:
            yield
            return
        with locked(self.path):
            self._load(self.path)
            self._open = True
            try:
                yield
            finally:
                self._open = False

    @abstractmethod
    def _load(self, path: Path) -> None:
        """Read what the file holds."""


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add these lines to a file, and see them through to the disk.

    Raises:
        HrzsError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            fsync(file)
    except OSError as error:
        raise HrzsError(f"{path} could not be written ({error}); what it held is untouched") from error


class Store(KeptFile):
    """A file of finished batches, or nothing where ``path`` is None. It is read and written while it is `opened`.

    Args:
        about: what the batches depend on besides the identity that each of them carries: a file that says otherwise is
            of another call, and is left alone.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any] | None = None) -> None:
        super().__init__(path)
        self.about = about or {}
        #: The batch size that the work was begun with, and that its blocks follow from (`hrzs.evaluation.shards`).
        self.batch_size: int | None = None
        #: The files of finished shards, all of whose batches together are the whole: then none is added.
        self.shards: Sequence[Path] = ()
        self._kept: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def read(self, identity: str, unit: str) -> list[dict[str, Any]]:
        """The batches of one unit, in the order that they were finished in."""
        return self._kept.get((identity, unit), [])

    def write(self, identity: str, unit: str, record: dict[str, Any]) -> None:
        """
        Raises:
            HrzsError: it cannot be written; what is there is untouched.
        """
        if self.path is not None:
            append(self.path, [{"identity": identity, "unit": unit, **record}])

    def finish(self, path: Path) -> None:
        """All that this file is for is done: ``path`` is its name from now on.

        Raises:
            HrzsError: it cannot be renamed.
        """
        assert self.path is not None
        try:
            self.path.replace(path)
            fsync_folder(path.parent)
        except OSError as error:
            raise HrzsError(f"{path} could not be written ({error}); what {self.path} holds is untouched") from error

    def remove(self) -> None:
        """All is done: the files are of no more use."""
        for path in (self.path, *self.shards):
            if path is not None:
                path.unlink(missing_ok=True)

    def _load(self, path: Path) -> None:
        self._kept = {}
        if self.shards:
            self.batch_size = None
            for shard in self.shards:
                self._take_in(shard)
        elif (end := self._take_in(path)) is not None:
            os.truncate(path, end)  # behind it is the line that was being written when the power went
        else:
            append(path, [{"about": dict(self.about), "batch_size": self.batch_size}])

    def _take_in(self, path: Path) -> int | None:
        """Read what a file holds, and return where its last whole line ends; None if it holds nothing."""
        lines = list(whole_lines(path))
        if not lines:
            return None
        (first, _), *records = lines
        if not {"about", "batch_size"} <= {*first}:
            raise UsageError(f"{path}: not written by this version of hrzs; delete it, and evaluate anew")
        was = first["about"]
        if other := [f"{key} {was.get(key)!r} (now {now!r})" for key, now in self.about.items() if was.get(key) != now]:
            raise UsageError(
                f"{path}: is what another call has done, with {'; '.join(other)}; repeat the options it was started "
                "with, delete it, or give another file"
            )
        size = first["batch_size"]
        if self.shards and self.batch_size not in (None, size):
            raise UsageError(
                f"{path}: was begun with --batch-size {size}, and {self.shards[0].name} with {self.batch_size}: their "
                "images are divided otherwise. Delete one of the two, and run that shard again with the other's"
            )
        self.batch_size = size
        for record, _ in records:
            self._kept.setdefault((record["identity"], record["unit"]), []).append(record)
        return lines[-1][1]
