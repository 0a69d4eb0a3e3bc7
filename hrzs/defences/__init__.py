"""Defences at test time by name. A new defence is one file and one line of `DEFENCES`."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from hrzs.defences.base import Defence, Defended, Predictor, Purifier, Undefended
from hrzs.defences.controls import Noise, Quantise
from hrzs.defences.et3 import ET3
from hrzs.defences.r_tpt import RTPT
from hrzs.defences.ttc import TTC
from hrzs.errors import UsageError

__all__ = ["DEFENCES", "Defence", "Defended", "Predictor", "Purifier", "Undefended", "defences"]

DEFENCES: dict[str, type[Defence]] = {kind.name: kind for kind in (TTC, RTPT, ET3, Quantise, Noise)}


def defences(given: Sequence[str | Defence]) -> tuple[Defence, ...]:
    """Defences by name, each with settings if it has other than its own: ``ttc:tau=0.1:steps=4``.

    Raises:
        UsageError: an unknown name or setting, or a value out of its range.
    """
    return tuple(one if isinstance(one, Defence) else _defence(one) for one in given)


def _defence(text: str) -> Defence:
    name, *settings = text.split(":")
    if name not in DEFENCES:
        raise UsageError(f"--defence {text!r}: one of {', '.join(DEFENCES)}; `--defence list` explains them")
    kind = DEFENCES[name]
    hints = get_type_hints(kind)
    kinds: dict[str, type[Any]] = {f.name: hints[f.name] for f in fields(kind)}
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in kinds or not equals:
            near = difflib.get_close_matches(key, kinds, 1)
            hint = f"; did you mean {near[0]}?" if near and equals else ""
            raise UsageError(f"--defence {text}: {setting!r} is no setting of {name} ({kind()!s}){hint}")
        try:
            found[key] = kinds[key](value)
            finite = math.isfinite(found[key])
        except (ValueError, OverflowError):
            finite = False
        if not finite:
            number = "a whole number" if kinds[key] is int else "a number"
            raise UsageError(f"--defence {text}: {key} must be {number}, not {value!r}")
    return kind(**found)
