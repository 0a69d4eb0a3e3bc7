"""An option is said once: what it means, what it may be and where ``--help`` shows it, in the field that holds it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from hrzs.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """What a number may be, in words for whoever goes beyond it."""

    holds: Callable[[Any], bool]
    words: str


AT_LEAST_1 = Range(lambda value: value >= 1, "at least 1")
POSITIVE = Range(lambda value: value > 0, "must be more than 0")
NOT_NEGATIVE = Range(lambda value: value >= 0, "cannot be negative")
SHARE = Range(lambda value: 0 <= value < 1, "at least 0 and less than 1")
PROBABILITY = Range(lambda value: 0 < value < 1, "more than 0 and less than 1")
INSIDE = Range(lambda value: 0 < value < 1, "between 0 and 1, 1 is the boundary")


@dataclass(frozen=True)
class Option:
    """What `option` says of a field."""

    help: str
    panel: str | None = None
    choices: tuple[str, ...] = ()
    range: Range | None = None
    shown: str | None = None

    @property
    def text(self) -> str:
        """The help with its choices, which a narrow terminal can break between."""
        return f"{self.help} [{' | '.join(self.choices)}]" if self.choices else self.help

    def with_default(self, default: object) -> str:
        """The help with its choices and its default, unless there is none or ``shown`` says it in other words."""
        if self.shown is not None or default is None or default is False:
            return self.text
        value = "on" if default is True else f"{default:g}" if isinstance(default, float) else default
        return f"{self.text} [default: {value}]"


def option(
    default: T,
    help: str,
    panel: str | None = None,
    *,
    choices: tuple[str, ...] = (),
    range: Range | None = None,
    shown: str | None = None,
) -> T:
    """A field of a dataclass of options.

    Args:
        help: for ``--help``; a sentence.
        panel: the panel of ``--help`` that it stands in.
        choices: the values that it may have, besides a default of None.
        range: the numbers that it may be, besides a default of None.
        shown: what ``--help`` says of the default where the value would say too little.
    """
    said: T = field(default=default, metadata={"option": Option(help, panel, choices, range, shown)})
    return said


def divide(given: Mapping[str, Any], what: str, *kinds: type) -> list[dict[str, Any]]:
    """Options of ``what`` by the dataclass that holds each, a dictionary for each of ``kinds``.

    Raises:
        UsageError: one of ``given`` is a field of none.
    """
    holder = {f.name: i for i, kind in enumerate(kinds) for f in fields(kind)}
    parts: list[dict[str, Any]] = [{} for _ in kinds]
    for name, value in given.items():
        if name not in holder:
            near = difflib.get_close_matches(name, holder, 1)
            raise UsageError(f"{name}: no option of {what}" + (f"; did you mean {near[0]}?" if near else ""))
        parts[holder[name]][name] = value
    return parts


def listed(value: Any) -> tuple[Any, ...]:
    """One thing, several with commas in a text, or a sequence of them."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return tuple(value) if isinstance(value, Sequence) else (value,)


def check(options: Any) -> None:
    """Is every field of ``options`` one of its choices and within its range?

    Raises:
        UsageError: one is not; it is named.
    """
    for f in fields(options):
        said: Option = f.metadata["option"]
        value, flag = getattr(options, f.name), f"--{f.name.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{flag} {value}: must be a finite number")
        if said.choices and value not in said.choices:
            raise UsageError(f"{flag} {value!r}: one of {', '.join(said.choices)}")
        if said.range is not None and not said.range.holds(value):
            raise UsageError(f"{flag} {value}: {said.range.words}")
