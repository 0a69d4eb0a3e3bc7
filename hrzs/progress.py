"""How far work is and how long it takes, in words."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

#: Takes how much is done, how much there is, and what is being done.
Update: TypeAlias = Callable[[int, int, str], None]


def in_words(seconds: float) -> str:
    """A time as people say it, in the two largest units that it has.

    >>> in_words(125), in_words(4200), in_words(0.4)
    ('2 min 5 s', '1 h 10 min', '0.4 s')
    """
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    left = round(seconds)
    parts: list[tuple[int, str]] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if parts or count:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count)


# What comes so soon after what came before it, in seconds, was done by a run that this one resumes.
_AT_ONCE = 0.005


class Pace:
    """Watches work, to say how long it has taken and how long it will."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.before = 0

    def __call__(self, done: int, total: int) -> str:
        """How far the work is now, and how long the rest will take."""
        now = time.monotonic()
        if now - self.last < _AT_ONCE:
            self.started, self.before = now, done
        self.last = now
        elapsed, new = now - self.started, done - self.before
        left = f", {in_words(elapsed * (total - done) / new)} left" if new and done < total else ""
        return f"{done}/{total}, {in_words(elapsed)}{left}"


@contextmanager
def one_line(title: str, seconds: float = 0.25) -> Iterator[Update]:
    """A line on stderr that is written over, at most once in so many seconds: in a notebook, one line in all."""
    pace, shown, width = Pace(), -math.inf, 0

    def update(done: int, total: int, note: str) -> None:
        nonlocal shown, width
        text = f"{title}: {pace(done, total)}  {note}".rstrip()
        if (now := time.monotonic()) - shown < seconds and done < total:
            return
        # Blanks wipe out what was longer before: a notebook knows no other way.
        sys.stderr.write(f"\r{text:<{width}}")
        sys.stderr.flush()
        shown, width = now, len(text)

    try:
        yield update
    finally:
        if width:
            sys.stderr.write("\n")
