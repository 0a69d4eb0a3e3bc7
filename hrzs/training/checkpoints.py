"""Checkpoints that survive a kill at any moment: written aside, flushed, named by their digest, the last two kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hrzs.errors import HrzsError, UsageError
from hrzs.files import fsync, fsync_folder
from hrzs.models.saving import file_digest

logger = logging.getLogger(__name__)

#: The folder of the checkpoints, below the run's.
FOLDER = "checkpoint"
KEPT = 2


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, name: str = "step") -> Path:
    """Write ``state``, named by its ``step``, below ``folder``; of older checkpoints only the last is kept.

    The name of the file ends with the first digits of its SHA-256; a file that does not match was cut off or damaged.

    Raises:
        HrzsError: the checkpoint cannot be written; earlier ones are untouched.
    """
    place = folder / FOLDER
    aside = place / ".aside"  # not by `replacing`: the name is known once the content is written
    try:
        place.mkdir(exist_ok=True)
        with aside.open("wb") as file:
            torch.save(dict(state), file)
            fsync(file)
        path = place / f"{name}-{state['step']:08d}.{_digest(aside)}.pt"
        aside.replace(path)
        fsync_folder(place)
    except (OSError, RuntimeError) as error:
        aside.unlink(missing_ok=True)
        raise HrzsError(
            f"{place}: a checkpoint could not be written ({error}); those before it are untouched"
        ) from error
    if name == "step":
        for old in _latest_first(folder)[KEPT:]:
            old.unlink()
    return path


def load_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The last whole checkpoint below ``folder``; None if there never was one.

    Raises:
        UsageError: there are checkpoints, and none of them is whole.
    """
    found = _latest_first(folder)
    for path, state in _whole(found, device):
        if path != found[0]:
            logger.warning("%s is damaged; going on from the checkpoint before it, %s", found[0], path.name)
        return state
    if found:
        raise UsageError(
            f"--resume: {found[0]} is damaged, and there is no whole one before it; delete it to start anew"
        )
    return None


def has_checkpoint(folder: Path) -> bool:
    """Is there a checkpoint below ``folder``, whole or not?"""
    return bool(_latest_first(folder))


def _whole(paths: list[Path], device: torch.device) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in paths:
        try:
            if _digest(path) == path.name.split(".")[1]:
                yield path, torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch.load raises many kinds
            raise UsageError(f"--resume: {path} is no checkpoint ({error}); delete it to start anew") from error


def _latest_first(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("step-*.*.pt"), reverse=True)


def _digest(path: Path) -> str:
    return file_digest(path)[:16]
