"""Line charts as inline SVG in the colours of the page, each with its legend; legible at the width of a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeAlias

from markupsafe import Markup

from hrzs.results.pages.templates import COLOURS, render

Points: TypeAlias = Sequence[tuple[float, float]]

#: Drawing area, in units of its own: small, so that words stay legible when a phone shrinks it.
WIDTH, HEIGHT = 420, 240
_TOP, _RIGHT, _BOTTOM = 10, 22, 40
#: A curve of more points is thinned to about so many: each is then less than a pixel wide.
MAX_POINTS = 500
#: A curve of so few points shows each of them.
_DOTTED = 15
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4")
_LARGEST = 1e300


@dataclass(frozen=True)
class Curve:
    """One line of a chart; where y is not finite it is broken.

    Args:
        name: its entry in the legend.
        points: (x, y), x ascending.
        colour: which of the page's; from the seventh on they come again with other dashes. None: that of the text.
        kind: ``line``; ``thick``; ``limit``, a thin one that curves are held against; ``faint``, one behind another,
            absent from the legend; ``cloud``, points without a line, absent from the legend as well.
        whiskers: (x, lowest, highest), an interval around a point.
    """

    name: str
    points: Points
    colour: int | None = 0
    kind: str = "line"
    whiskers: Sequence[tuple[float, float, float]] = ()

    @cached_property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]

    @property
    def last(self) -> float:
        """The last value that can be drawn."""
        return self.finite[-1][1]

    @property
    def dashes(self) -> str:
        """They tell it from the other curves of its colour."""
        if self.colour is None or self.kind == "faint":
            return ""
        return _DASHES[(self.colour + self.colour // COLOURS) % len(_DASHES)]

    @cached_property
    def stretches(self) -> list[list[tuple[float, float]]]:
        """What lies between the gaps, thinned together."""
        runs: list[list[tuple[float, float]]] = [[]]
        for x, y in self.points:
            if math.isfinite(x) and math.isfinite(y):
                runs[-1].append(_clamped((x, y)))
            elif runs[-1]:
                runs.append([])
        total = sum(map(len, runs))
        return [thin(run, max(2, MAX_POINTS * len(run) // total)) if total > MAX_POINTS else run for run in runs if run]

    @property
    def lines(self) -> list[list[tuple[float, float]]]:
        """The stretches that are more than a dot."""
        return [] if self.kind == "cloud" else [run for run in self.stretches if len(run) > 1]

    @property
    def dots(self) -> list[tuple[float, float]]:
        """A lone point is one, and every point of a short curve."""
        if self.kind == "cloud":
            return [_clamped(point) for point in self.finite]
        every = self.kind in ("line", "thick") and len(self.finite) <= _DOTTED
        return [point for run in self.stretches if every or len(run) == 1 for point in run]


def smooth(points: Points, reach: int) -> list[tuple[float, float]]:
    """The mean of every y and of the ``reach`` before and after it; what is not finite counts for nothing."""
    if not reach:
        return list(points)
    sums, counts = [0.0], [0]
    for _, y in points:
        is_finite = math.isfinite(y)
        sums.append(sums[-1] + (y if is_finite else 0.0))
        counts.append(counts[-1] + is_finite)
    smoothed = []
    for i, (x, _) in enumerate(points):
        first, last = max(0, i - reach), min(len(points), i + reach + 1)
        n = counts[last] - counts[first]
        smoothed.append((x, (sums[last] - sums[first]) / n if n else math.nan))
    return smoothed


def thin(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """About ``most`` of the finite ``points``: the first, the last, and the lowest and highest in between."""
    if len(points) <= most:
        return list(points)
    kept = {0, len(points) - 1}
    groups = max(1, (most - 2) // 2)
    for group in range(groups):
        here = range(group * len(points) // groups, (group + 1) * len(points) // groups)
        kept |= {min(here, key=lambda i: points[i][1]), max(here, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, ``most`` and one at most."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10, 20) if (high - low) / (step * m) <= most)
    return [i * step for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Evenly spaced numbers in as few digits as tell them exactly."""
    largest = max(map(abs, values))
    exponent = math.floor(math.log10(largest)) if largest and not 1e-3 <= largest < 1e5 else 0
    scaled = [v / 10.0**exponent for v in values]
    off = 1e-3 * (scaled[1] - scaled[0]) if len(scaled) > 1 else 1e-6
    digits = next((d for d in range(15) if all(abs(v - round(v, d)) < off for v in scaled)), 15)
    power = f"e{exponent}" if exponent else ""
    return [f"{v:.{digits}f}{power}" if abs(v) > off else "0" for v in scaled]


def line_chart(
    about: str,
    curves: Sequence[Curve],
    *,
    x: str = "step",
    y: tuple[float, float] | None = None,
    x_names: Mapping[float, str] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    unit: str = "",
) -> Markup:
    """Curves over one pair of axes, and below them the legend with each curve's last value.

    Args:
        about: what the chart shows, for those who cannot see it; its figures are added.
        x: the name of the horizontal axis.
        y: the ends of the vertical axis; by default those of what is drawn.
        x_names: the ticks of the horizontal axis with their words, instead of numbers; those that have room are shown.
        marks: places on the horizontal axis that a vertical line marks, with a word each.
        unit: follows the values in the legend.
    """
    curves = [curve for curve in curves if curve.finite]
    if not curves:
        return render("chart.html.j2", curves=curves)
    drawn_points = [_clamped(point) for curve in curves for point in curve.finite]
    low, high = y or _bounds([v for _, v in drawn_points])
    named = _spaced(x_names or {})
    across = [at for at, _ in drawn_points] + [*named]
    left_end, right_end = min(across), max(across)
    # Half a step beside the outermost ticks with words.
    margin = 0.5 if left_end == right_end else 0.5 * min((b - a for a, b in pairwise(sorted(named))), default=0.0)
    left_end, right_end = left_end - margin, right_end + margin
    levels = ticks(low, high)
    words = tick_labels(levels)
    left = 14 + 7.2 * max(map(len, words))

    def at_x(value: float) -> float:
        return round(left + (WIDTH - left - _RIGHT) * ((value - left_end) / (right_end - left_end)), 1)

    def at_y(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low)), 1)

    whole = named or {t: str(round(t)) for t in ticks(left_end, right_end) if abs(t - round(t)) < 1e-6}
    return render(
        "chart.html.j2", about=about, curves=curves, x=x, unit=unit, marks=marks, at_x=at_x, at_y=at_y, across=whole,
        levels=list(zip(levels, words, strict=True)), width=WIDTH, height=HEIGHT,
        left=left, right=WIDTH - _RIGHT, top=_TOP, bottom=HEIGHT - _BOTTOM,
    )  # fmt: skip


def _clamped(point: tuple[float, float]) -> tuple[float, float]:
    return point[0], max(-_LARGEST, min(_LARGEST, point[1]))


def _spaced(words: Mapping[float, str]) -> dict[float, str]:
    """Words below the axis, from the left; a letter takes a fiftieth of its length."""
    spaced: dict[float, str] = {}
    for x in sorted(words):
        last = max(spaced, default=-math.inf)
        if x - last >= 0.01 * len(words[x] + spaced.get(last, "")) * (max(words) - min(words)):
            spaced[x] = words[x]
    return spaced


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-6 * largest, _LARGEST**-1):  # a constant, up to rounding
        return (0.0, 1.0) if largest <= _LARGEST**-1 else (low - 0.1 * largest, high + 0.1 * largest)
    pad = 0.04 * (high - low)
    # Zero belongs to the picture where it is near.
    return (0.0 if 0 <= low < 0.3 * high else low - pad), high + pad
