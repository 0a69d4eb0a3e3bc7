"""Paired differences of accuracies with intervals that hold images and seeds, and their correction for number.

Let x[s, i] say whether image i is right at seed s of one side, y[s, i] the same of the other, w[i] be the weight of an
image, and D the difference of the means. With d[i] the difference of image i's means over the seeds, the variance is

    n/(n-1) · sum over i of w[i]² (d[i] - D)²                              images, and what seeds do to single images
    + for each side: (variance over s of sum over i of w[i] x[s, i]) / seeds           what seeds do to all of them …
                     - sum over i of w[i]² (variance over s of x[s, i]) / seeds        … less what the first line has

and what seeds add is never below 0. Sides need not have equally many seeds; one with a single seed adds nothing of its
own. Quantiles are those of Student's t with Welch's and Satterthwaite's degrees of freedom, at least those of a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Points within which two rows are called equivalent.
EQUIVALENT = 1.5


@dataclass(frozen=True)
class Difference:
    """In points, with its 95% interval (``middle`` ± ``half``) and the p-value of none."""

    middle: float
    half: float
    p: float

    @property
    def low(self) -> float:
        return self.middle - self.half

    @property
    def high(self) -> float:
        return self.middle + self.half

    def __str__(self) -> str:
        return f"{self.middle:+.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def is_equivalence(self) -> bool:
        """Two one-sided tests, at the level of the interval: all of it lies within ± `EQUIVALENT`."""
        return abs(self.middle) + self.half <= EQUIVALENT


def paired(ours: Sequence[Tensor], theirs: Sequence[Tensor], weights: Tensor) -> Difference:
    """The difference of the means over seeds and images.

    Args:
        ours, theirs: for each seed, which images are right.
        weights: of the images, together 1.
    """
    sides = [100 * torch.stack(list(side)).double() for side in (ours, theirs)]
    n, by_image = sides[0].shape[1], sides[0].mean(0) - sides[1].mean(0)
    middle = (by_image * weights).sum().item()
    images = n / (n - 1) * (weights**2 * (by_image - middle) ** 2).sum().item()
    of_seeds, parts, least = 0.0, images**2 / (n - 1), n - 1
    for side in sides:
        if (seeds := len(side)) > 1:
            whole = (side * weights).sum(1).var().item() / seeds
            of_seeds += whole - (weights**2 * side.var(0)).sum().item() / seeds
            parts += whole**2 / (seeds - 1)
            least = min(least, seeds - 1)
    variance = images + max(0.0, of_seeds)
    if variance == 0:
        return Difference(middle, 0.0, 1.0 if middle == 0 else 0.0)
    freedom, error = max(variance**2 / parts, least), math.sqrt(variance)
    return Difference(middle, t_quantile(freedom) * error, t_tails(abs(middle) / error, freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the p-values of all comparisons of a table, corrected."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    corrected, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = most
    return corrected


def t_tails(t: float, freedom: float) -> float:
    """The share of Student's t beyond ± ``t``: the regularised incomplete beta function at ν / (ν + t²)."""
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    if x >= 1:
        return 1.0
    if x <= 0:
        return 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 1000):
        for factor in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                       -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):  # fmt: skip
            d = 1 / ((1 + factor * d) or tiny)
            c = (1 + factor / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def t_quantile(freedom: float, beyond: float = 0.05) -> float:
    """The t that leaves this share of Student's t beyond ± itself, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tails(middle, freedom) > beyond else (low, middle)
    return high
