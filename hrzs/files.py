"""Files that are written whole or not at all, and the folders that they make up."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hrzs.errors import HrzsError, UsageError


@contextmanager
def replacing(path: Path, called: str = "") -> Iterator[Path]:
    """A file beside ``path`` to write to; when the block has ended well it is on the disk and takes its place.

    A reader never sees half a file, not even after the power failed. Several processes may write the same one: the last
    that ends stays. Where the block does not end well, ``path`` is what it was, and nothing is left beside it.

    A link is followed. A pipe or a device, which nothing can take the place of, is written to as it is.

    Args:
        called: what an error calls the file, by default its path.

    Raises:
        HrzsError: it cannot be written.
    """
    place = Path(os.path.realpath(path))
    is_device = path.exists() and not place.is_file()
    aside = path if is_device else place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        yield aside
        if not is_device:
            with aside.open("rb+") as file:
                fsync(file)
            aside.replace(place)
            fsync_folder(place.parent)
    except OSError as error:
        raise HrzsError(
            f"{called or path}: cannot be written ({error.strerror or error}); what was there is untouched"
        ) from error
    finally:
        if not is_device:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str, called: str = "") -> None:
    """``text`` as UTF-8, by `replacing`."""
    with replacing(path, called) as aside:
        aside.write_bytes(text.encode())


def whole_lines(path: Path) -> Iterator[tuple[Any, int]]:
    """The JSON lines of a file that were written whole, each with the place where it ends; none without the file.

    What comes after a torn line is no part: it was being written when the power went.
    """
    if not path.is_file():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield found, end


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Inside, no other process has the file or folder. The system frees a lock when its process ends, however it ends.

    Raises:
        UsageError: another process has it.
        HrzsError: no lock can be made there.
    """
    from filelock import FileLock, Timeout  # not for `hrzs --help`

    lock = FileLock(path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
        while not Path(lock.lock_file).exists():  # whoever had it before took it away between our two steps
            lock.release()
            lock.acquire()
    except Timeout:
        raise UsageError(f"{path}: another hrzs is at work on it; wait for its end, or give another place") from None
    except OSError as error:
        raise HrzsError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps open files
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def fsync(file: Any) -> None:
    """See what was written to an open ``file`` through to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a rename last: on POSIX systems it is the folder that has to be flushed."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def exists(text: str | Path) -> bool:
    """Is there such a file or folder? A text that no path can be, for its length or its characters, is none."""
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def dump_yaml(value: dict[str, Any]) -> str:
    """As ``--config`` reads it back."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def check_folder(folder: Path) -> None:
    """An output folder that holds a run already is refused.

    Raises:
        UsageError: it does, or it is a file.
    """
    if folder.is_file():
        raise UsageError(f"-o {folder}: is a file; give a folder")
    if any(
        (folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "model.safetensors", "manifest.jsonl")
    ):
        raise UsageError(f"-o {folder}: holds a run already; go on with --resume, or give another folder")


@contextmanager
def output_folder(folder: Path, *, resume: bool, part: str = "") -> Iterator[None]:
    """Inside, the output folder is there, and this process alone writes to it.

    Args:
        resume: it may hold a run.
        part: what this process writes there, if others write other parts.

    Raises:
        UsageError: another process is at work in it, or it holds a run already.
        HrzsError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HrzsError(f"-o {folder}: cannot be written ({error.strerror}); give another folder") from error
    with locked(folder / part):
        if not resume:
            check_folder(folder)
        yield


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """``config.yaml``, which ``--config`` reads back."""
    write_text(folder / "config.yaml", dump_yaml(config))
