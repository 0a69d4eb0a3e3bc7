"""Line charts as inline SVG in the colours of the page, each with its legend; legible at the width of a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from hrzs.results.pages.markup import Markup, el, join

Points: TypeAlias = Sequence[tuple[float, float]]
_Scale: TypeAlias = Callable[[float], float]

#: Drawing area, in units of its own: small, so that words stay legible when a phone shrinks it.
WIDTH, HEIGHT = 420, 240
_TOP, _RIGHT, _BOTTOM = 10, 22, 40
#: A curve of more points is thinned to about so many: each is then less than a pixel wide.
MAX_POINTS = 500
#: A curve of so few points shows each of them.
_DOTTED = 15
_COLOURS = 6
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

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [(x, y) for x, y in self.points if math.isfinite(x) and math.isfinite(y)]

    def stroke(self) -> dict[str, str | None]:
        """What tells it from the others."""
        if self.colour is None:
            return {"class_": f"curve {self.kind}", "style": "--c:var(--ink)"}
        dashes = _DASHES[(self.colour + self.colour // _COLOURS) % len(_DASHES)] if self.kind != "faint" else ""
        style = f"--c:var(--s{self.colour % _COLOURS})"
        return {"class_": f"curve {self.kind}", "style": style, "stroke_dasharray": dashes or None}


def smooth(points: Points, reach: int) -> list[tuple[float, float]]:
    """The mean of every y and of the ``reach`` before and after it; what is not finite counts for nothing."""
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
        x_names: the ticks of the horizontal axis with their words, instead of numbers.
        marks: places on the horizontal axis that a vertical line marks, with a word each.
        unit: follows the values in the legend.
    """
    finite = {i: [_clamped(p) for p in curve.finite] for i, curve in enumerate(curves)}
    drawn_points = [p for points in finite.values() for p in points]
    if not drawn_points:
        return el("p", "Nothing finite was logged.", class_="soft")
    low, high = y or _bounds([v for _, v in drawn_points])
    named = x_names or {}
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

    drawn: list[Markup] = [el("desc", _described(curves, unit))]
    for value, word in zip(levels, words, strict=True):
        height = at_y(value)
        drawn.append(el("line", class_="axis", x1=round(left, 1), x2=WIDTH - _RIGHT, y1=height, y2=height))
        drawn.append(el("text", word, x=round(left - 6, 1), y=height + 4, text_anchor="end"))
    whole = named or {t: str(round(t)) for t in ticks(left_end, right_end) if abs(t - round(t)) < 1e-6}
    for value, word in whole.items():
        drawn.append(el("text", word, x=at_x(value), y=HEIGHT - 22, text_anchor="middle"))
    drawn.append(el("text", x, x=round((left + WIDTH - _RIGHT) / 2, 1), y=HEIGHT - 4, text_anchor="middle"))
    for value, word in marks:
        place = at_x(value)
        # On the side where there is more room.
        beside: dict[str, object] = {"x": place + 5} if place < WIDTH / 2 else {"x": place - 5, "text_anchor": "end"}
        drawn.append(el("line", class_="mark", x1=place, x2=place, y1=_TOP, y2=HEIGHT - _BOTTOM))
        drawn.append(el("text", word, y=HEIGHT - _BOTTOM - 5, **beside))
    for curve in curves:
        drawn += _drawn(curve, at_x, at_y)
    svg = el("svg", *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=about, class_="chart")
    return el("figure", svg, _legend(curves, unit))


def number(value: float) -> str:
    """Four digits, which is what a legend has room for."""
    return f"{value:.4g}"


def _clamped(point: tuple[float, float]) -> tuple[float, float]:
    return point[0], max(-_LARGEST, min(_LARGEST, point[1]))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-6 * largest, _LARGEST**-1):  # a constant, up to rounding
        return (0.0, 1.0) if largest <= _LARGEST**-1 else (low - 0.1 * largest, high + 0.1 * largest)
    pad = 0.04 * (high - low)
    # Zero belongs to the picture where it is near.
    return (0.0 if 0 <= low < 0.3 * high else low - pad), high + pad


def _runs(curve: Curve) -> Iterator[list[tuple[float, float]]]:
    """The stretches between the gaps, thinned together."""
    runs: list[list[tuple[float, float]]] = [[]]
    for px, py in curve.points:
        if math.isfinite(px) and math.isfinite(py):
            runs[-1].append(_clamped((px, py)))
        elif runs[-1]:
            runs.append([])
    total = sum(map(len, runs))
    for run in filter(None, runs):
        yield thin(run, max(2, MAX_POINTS * len(run) // total)) if total > MAX_POINTS else run


def _drawn(curve: Curve, at_x: _Scale, at_y: _Scale) -> Iterator[Markup]:
    stroke = curve.stroke()
    if curve.kind == "cloud":
        for px, py in map(_clamped, curve.finite):
            yield el("circle", class_="node", style=stroke["style"], cx=at_x(px), cy=at_y(py), r=2.5)
        return
    for px, lowest, highest in curve.whiskers:
        ends = {"y1": at_y(lowest), "y2": at_y(highest)}
        yield el("line", class_="whisker", style=stroke["style"], x1=at_x(px), x2=at_x(px), **ends)
    has_dots = curve.kind in ("line", "thick") and len(curve.finite) <= _DOTTED
    for run in _runs(curve):
        if len(run) > 1:
            yield el("polyline", points=" ".join(f"{at_x(px)},{at_y(py)}" for px, py in run), **stroke)
        for px, py in run if has_dots or len(run) == 1 else ():
            yield el("circle", class_="dot", style=stroke["style"], cx=at_x(px), cy=at_y(py), r=2.5)


def _legend(curves: Sequence[Curve], unit: str) -> Markup:
    entries = []
    for curve in curves:
        if curve.finite and curve.kind not in ("faint", "cloud"):
            line = el("line", x1=0, x2=34, y1=5, y2=5, **curve.stroke())
            swatch = el("svg", line, class_="swatch", viewBox="0 0 34 10", aria_hidden="true")
            last = el("b", f"{number(curve.finite[-1][1])}{unit}")
            entries.append(el("li", swatch, join([curve.name, " ", last])))
    return el("ul", *entries, class_="legend")


def _described(curves: Sequence[Curve], unit: str) -> str:
    said = []
    for curve in curves:
        if points := curve.finite:
            lowest, highest = min(y for _, y in points), max(y for _, y in points)
            ends = f"{number(points[0][1])}{unit} to {number(points[-1][1])}{unit}"
            within = f"between {number(lowest)}{unit} and {number(highest)}{unit}"
            said.append(f"{curve.name}: {len(points)} points from {ends}, {within}")
    return "; ".join(said)
