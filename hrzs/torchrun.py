"""What ``torchrun`` says of this process in its environment. Without it, this process is the first and only one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from hrzs.errors import UsageError


class Place(NamedTuple):
    """``rank`` of ``size`` processes, from 0; ``local`` is the rank among those of this machine."""

    rank: int
    size: int
    local: int


def place() -> Place:
    """Where this process stands among those that were started together.

    Raises:
        UsageError: the environment says so only in part, or contradicts itself.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return Place(0, 1, 0)
    if "RANK" not in os.environ:
        raise UsageError(f"WORLD_SIZE {size} without RANK: start several processes by torchrun (docs/scaling.md)")
    found = Place(_number("RANK", 0), size, _number("LOCAL_RANK", 0))
    if found.rank >= size:
        raise UsageError(f"RANK {found.rank}, WORLD_SIZE {size}: ranks go from 0 to one less than the number of them")
    return found


def is_first() -> bool:
    """Is this the process that speaks and writes?"""
    return place().rank == 0


def restarts() -> int:
    """How often ``torchrun --max-restarts`` has started all processes anew, since one had failed."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def is_watched() -> bool:
    """Does ``torchrun`` watch this process, and end it when another one fails?"""
    return "TORCHELASTIC_RUN_ID" in os.environ


def tell(reason: str) -> None:
    """Let ``torchrun``, if it is there, name the ``reason`` why this process has failed, in the form that it reads."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        about = {"py_callstack": reason, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": reason, "extraInfo": about}}), encoding="utf-8")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise UsageError(f"{name} {text!r}: a whole number is needed in the environment; torchrun sets it")
    return int(text)
