"""What a model wants images to look like: mean, std, interpolation, and how they become square.

open_clip keeps this with each tag of weights, and repositories on the hub keep it with their config. A file of weights
does not have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg

from hrzs.errors import UsageError

#: What OpenAI's CLIP wants, and open_clip where nothing else is said.
DEFAULTS: dict[str, Any] = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
_CHOICES = {"interpolation": ("bicubic", "bilinear"), "resize_mode": ("shortest", "squash")}


def agreed(arch: str) -> dict[str, Any]:
    """What all of open_clip's tags of ``arch`` say alike; nothing if it has none."""
    said = [get_pretrained_cfg(arch, tag) for tag in open_clip.list_pretrained_tags_by_model(arch)]
    values = {key: {cfg.get(key, DEFAULTS[key]) for cfg in said} for key in DEFAULTS}
    return {key: found.pop() for key, found in values.items() if len(found) == 1}


def checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those of ``values`` that say how images are prepared; None says nothing.

    Mean and std may be three numbers, one for all channels, or text with either.

    Args:
        where: the beginning of an error; the name of the value follows.

    Raises:
        UsageError: one is not what it should be.
    """
    found = {key: values[key] for key in DEFAULTS if values.get(key) is not None}
    for key, value in found.items():
        name = f"{where}{key.replace('_', '-') if where.endswith('--') else key}"
        if key in _CHOICES:
            if value not in _CHOICES[key]:
                raise UsageError(f"{name} {str(value)[:80]!r}: one of {', '.join(_CHOICES[key])}")
        else:
            found[key] = _channels(value, name, positive=key == "std")
    return found


def _channels(value: Any, name: str, *, positive: bool) -> tuple[float, ...]:
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    try:
        numbers = [float(part) for part in parts if not isinstance(part, bool)]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    numbers = numbers * 3 if len(numbers) == 1 else numbers
    if len(numbers) != 3 or not all(math.isfinite(n) and abs(n) < 1e6 and (n > 0 or not positive) for n in numbers):
        more = " more than 0" if positive else ""
        raise UsageError(f"{name} {str(value)[:80]!r}: three numbers{more}, for red, green and blue, or one for all")
    return tuple(numbers)
