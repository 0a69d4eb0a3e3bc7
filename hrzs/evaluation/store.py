"""Finished batches of an evaluation, kept beside its JSON while it runs: a line each, after one that says of what."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrzs.errors import HrzsError, UsageError
from hrzs.files import fsync, locked, whole_lines


class Store:
    """A file of finished batches, or nothing where ``path`` is None. It is read and written while it is `opened`.

    Args:
        about: what the batches depend on besides the identity that each of them carries: a file that says otherwise is
            of another call, and is left alone.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any] | None = None) -> None:
        self.path, self.about = path, about or {}
        self._kept: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, no other process has the file. Inside another such block it does nothing.

        Raises:
            UsageError: another process is at work on it, or it is of another call (the message says how they differ).
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

    def read(self, identity: str, unit: str) -> list[dict[str, Any]]:
        """The batches of one unit, in the order that they were finished in."""
        return self._kept.get((identity, unit), [])

    def write(self, identity: str, unit: str, record: dict[str, Any]) -> None:
        """
        Raises:
            HrzsError: it cannot be written; what is there is untouched.
        """
        if self.path is not None:
            self._append(self.path, {"identity": identity, "unit": unit, **record})

    def remove(self) -> None:
        """All is done: the file is of no more use."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                fsync(file)
        except OSError as error:
            raise HrzsError(f"{path} could not be written ({error}); what it held is untouched") from error

    def _load(self, path: Path) -> None:
        self._kept = {}
        lines = list(whole_lines(path))
        if not lines:
            self._append(path, {"about": dict(self.about)})
            return
        (first, _), *records = lines
        if "about" not in first:
            raise UsageError(f"{path}: not written by this version of hrzs; delete it, and evaluate anew")
        was = first["about"]
        if other := [f"{key} {was.get(key)!r} (now {now!r})" for key, now in self.about.items() if was.get(key) != now]:
            raise UsageError(
                f"{path}: is what another call has done, with {'; '.join(other)}; repeat the options it was started "
                "with, delete it, or give another file"
            )
        for record, _ in records:
            self._kept.setdefault((record["identity"], record["unit"]), []).append(record)
        os.truncate(path, lines[-1][1])  # behind it is the line that was being written when the power went
