"""What an adversary may spend: ε and step size as exact rationals, the norm, the number of steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from hrzs.errors import UsageError

NORMS = ("linf", "l2")


def parse_eps(text: str, *, option: str = "--eps", norm: str = "linf") -> Fraction:
    """``1/255`` or ``0.0039`` as an exact rational.

    Raises:
        UsageError: not a number, not positive, or (L∞) more than the whole pixel range.
    """
    try:
        # `Fraction` writes out every digit, so a huge exponent would fill the memory.
        eps = Fraction(text.strip() if len(text) <= 100 and not re.search(r"e[+-]?\d{3}", text, re.I) else "")
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} {text!r}: not a number; write 1/255 or 0.0039") from None
    if eps <= 0 or (norm == "linf" and eps > 1):
        allowed = "more than 0 and at most 1 (pixels lie in [0, 1])" if norm == "linf" else "more than 0"
        hint = f"; for {text.strip()} grey levels write {eps}/255" if eps > 1 and eps.denominator == 1 else ""
        raise UsageError(f"{option} {text!r}: must be {allowed}{hint}")
    return eps


def exact_eps(value: str | float | Fraction, *, option: str = "--eps", norm: str = "linf") -> Fraction:
    """The rational that a number from Python stands for: 1/255 for the float ``1 / 255``, 3/10 for ``0.3``.

    Raises:
        UsageError: as `parse_eps`.
    """
    if isinstance(value, str):
        return parse_eps(value, option=option, norm=norm)
    if isinstance(value, float) and math.isfinite(value):
        simple = Fraction(value).limit_denominator(1_000_000)
        value = simple if float(simple) == value else Fraction(value)
    return parse_eps(str(value), option=option, norm=norm)


def format_eps(eps: Fraction) -> str:
    """ε as papers write it: over 255 where that is exact (``2/255``), else as a reduced fraction."""
    over_255 = eps * 255
    return f"{over_255.numerator}/255" if over_255.denominator == 1 else str(eps)


def default_step_size(eps: Fraction) -> Fraction:
    """The larger of 1/255 and ε/4."""
    return max(Fraction(1, 255), eps / 4)


@dataclass(frozen=True)
class Budget:
    """The adversary's budget; ``eps`` and ``step_size`` are in pixels of [0, 1] (L2: the norm over the whole image).

    ``steps`` is the number of steps of one run. ``restarts`` is the number of runs from random starts, for attacks
    that have them. Without ``random_start`` PGD starts from the clean image.
    """

    eps: Fraction
    step_size: Fraction
    steps: int
    norm: str = "linf"
    restarts: int = 1
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"--norm {self.norm!r}: one of {', '.join(NORMS)}")
        if self.steps < 1:
            raise UsageError(f"--steps {self.steps}: at least 1")
        if self.restarts < 1:
            raise UsageError(f"--restarts {self.restarts}: at least 1")
        if self.restarts > 1 and not self.random_start:
            raise UsageError(f"--restarts {self.restarts}: without a random start every run is the same; leave one out")
