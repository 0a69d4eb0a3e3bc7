"""The embedded data ``shapes``: plane figures, drawn on demand, as a function of (split, index) alone.

A figure is made in coordinates of its own (y up, any size), scaled to a radius in pixels, turned and placed. Pillow
rasterises it at four times the resolution on integer coordinates, and the result is averaged down, so that an image
does not depend on the last bit of a cosine.

Where one class is an ancestor of another, as rectangle of square and ellipse of circle, its images show no figure of
the other class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from hrzs.data.base import Dataset

SIZE = 64
SPLITS = {"train": 24000, "val": 1200, "test": 1200}

_SUPERSAMPLING = 4
_SEED = {"train": 1, "val": 2, "test": 3}
# Poses vary enough that no fixed template fits, and little enough for a small ViT to learn them in minutes.
_TILT = math.radians(15)
_RADIUS = (22.0, 28.0)
_MARGIN = 2.0

Points = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Figure:
    """``outline`` is filled but for ``hole``; ``strokes`` are the lines drawn, a closed one repeats its first point."""

    strokes: list[Points]
    outline: Points | None = None
    hole: Points | None = None


def _closed(points: Points) -> Points:
    return np.concatenate([points, points[:1]])


def _polygon(points: list[tuple[float | int, float | int]] | Points) -> _Figure:
    outline = np.asarray(points, dtype=np.float64)
    return _Figure([_closed(outline)], outline)


def _arc(start: float, stop: float, radius: float = 1.0, n: int = 48) -> Points:
    angle = np.linspace(start, stop, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _regular(n: int) -> Points:
    """The corners of a regular polygon, the first one on top."""
    return _arc(math.pi / 2, math.pi / 2 + 2 * math.pi, n=n + 1)[:-1]


def _stretched(points: Points, rng: np.random.Generator) -> Points:
    return points * [rng.uniform(0.88, 1.14), 1.0]


def _square(_: np.random.Generator) -> _Figure:
    return _polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)])


def _rectangle(rng: np.random.Generator) -> _Figure:
    a = rng.uniform(1.5, 2.6)
    w, h = (a, 1.0) if rng.random() < 0.5 else (1.0, a)
    return _polygon([(-w, -h), (w, -h), (w, h), (-w, h)])


def _rhombus(rng: np.random.Generator) -> _Figure:
    a = rng.uniform(1.5, 2.2)
    w, h = (a, 1.0) if rng.random() < 0.5 else (1.0, a)
    return _polygon([(-w, 0), (0, -h), (w, 0), (0, h)])


def _parallelogram(rng: np.random.Generator) -> _Figure:
    angle, side = math.radians(rng.uniform(45, 65)), rng.uniform(1.45, 2.2)
    x, y = math.cos(angle), math.sin(angle)
    x = x if rng.random() < 0.5 else -x
    return _polygon([(0, 0), (side, 0), (side + x, y), (x, y)])


def _trapezoid(rng: np.random.Generator) -> _Figure:
    top, height = rng.uniform(0.35, 0.62), rng.uniform(0.55, 0.85)
    left = rng.uniform(0.2, 0.8) * (1 - top)
    return _polygon([(0, 0), (1, 0), (left + top, height), (left, height)])


def _equilateral_triangle(_: np.random.Generator) -> _Figure:
    return _polygon(_regular(3))


def _isosceles_triangle(rng: np.random.Generator) -> _Figure:
    """Never equilateral nor right: its apex is clearly sharper than 60° or blunter than 90°."""
    half = math.radians(rng.uniform(14, 20) if rng.random() < 0.6 else rng.uniform(52, 60))
    return _polygon([(-math.tan(half), 0), (math.tan(half), 0), (0, 1)])


def _right_triangle(rng: np.random.Generator) -> _Figure:
    leg = rng.uniform(1.35, 2.2)
    w, h = (leg, 1.0) if rng.random() < 0.5 else (1.0, leg)
    side = 1 if rng.random() < 0.5 else -1
    return _polygon([(0, 0), (side * w, 0), (0, h)])


def _pentagon(rng: np.random.Generator) -> _Figure:
    return _polygon(_stretched(_regular(5), rng))


def _hexagon(rng: np.random.Generator) -> _Figure:
    return _polygon(_stretched(_regular(6), rng))


def _octagon(rng: np.random.Generator) -> _Figure:
    return _polygon(_stretched(_regular(8), rng))


def _circle(_: np.random.Generator) -> _Figure:
    return _polygon(_arc(0.0, 2 * math.pi, n=73)[:-1])


def _ellipse(rng: np.random.Generator) -> _Figure:
    a = rng.uniform(1.5, 2.3)
    return _polygon(_arc(0.0, 2 * math.pi, n=73)[:-1] * ((a, 1.0) if rng.random() < 0.5 else (1.0, a)))


def _semicircle(rng: np.random.Generator) -> _Figure:
    return _polygon(_arc(0.0, math.pi if rng.random() < 0.5 else -math.pi))


def _sector(rng: np.random.Generator) -> _Figure:
    half = math.radians(rng.uniform(22, 52))
    middle = math.pi / 2 if rng.random() < 0.5 else -math.pi / 2
    return _polygon(np.concatenate([np.zeros((1, 2)), _arc(middle - half, middle + half)]))


def _crescent(rng: np.random.Generator) -> _Figure:
    """A disc less another disc: both circles pass through the horns at ± ``horn``."""
    horn = math.radians(rng.uniform(35, 60))
    cut = rng.uniform(0.8, 0.95)
    y, x = math.sin(horn), math.cos(horn)
    centre = x - math.sqrt(cut**2 - y**2) if cut > y else x
    inner = math.atan2(y, x - centre)
    radius = math.hypot(x - centre, y)
    back = _arc(2 * math.pi - inner, inner, radius) + np.array([centre, 0.0])
    outline = np.concatenate([_arc(horn, 2 * math.pi - horn), back])
    return _polygon(outline * [1.0 if rng.random() < 0.5 else -1.0, 1.0])


def _ring(rng: np.random.Generator) -> _Figure:
    outer, inner = _arc(0.0, 2 * math.pi, n=73), _arc(0.0, 2 * math.pi, rng.uniform(0.45, 0.68), n=73)
    return _Figure([outer, inner], outer, inner)


def _pointed(n: int, inner: float) -> Points:
    corners = _regular(2 * n)
    corners[1::2] *= inner
    return corners


def _star(rng: np.random.Generator) -> _Figure:
    """A star of 8 to 10 points: five would be a pentagram, six a hexagram."""
    return _polygon(_pointed(int(rng.integers(8, 11)), rng.uniform(0.45, 0.62)))


def _pentagram(_: np.random.Generator) -> _Figure:
    return _Figure([_closed(_regular(5)[[0, 2, 4, 1, 3]])], _pointed(5, 0.382))


def _hexagram(_: np.random.Generator) -> _Figure:
    corners = _regular(6)
    return _Figure([_closed(corners[::2]), _closed(corners[1::2])], _pointed(6, 0.577))


def _heart(rng: np.random.Generator) -> _Figure:
    t = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _polygon(_stretched(np.stack([16 * np.sin(t) ** 3, y], axis=1), rng))


def _spiral(rng: np.random.Generator) -> _Figure:
    turns, start = rng.uniform(2.1, 2.7), rng.uniform(0, 2 * math.pi)
    t = np.linspace(0.08, 1, 80)
    angle = start + (1 if rng.random() < 0.5 else -1) * 2 * math.pi * turns * t
    return _Figure([np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1)])


def _zigzag(rng: np.random.Generator) -> _Figure:
    n = int(rng.integers(5, 8))
    y = np.where(np.arange(n) % 2 == 0, -1.0, 1.0) * rng.uniform(0.28, 0.42)
    return _Figure([np.stack([np.linspace(-1, 1, n), y], axis=1)])


def _teardrop(rng: np.random.Generator) -> _Figure:
    t = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    width = rng.uniform(0.75, 0.95) * np.sin(t) * np.sin(t / 2) ** rng.uniform(1.3, 2.0)
    up = 1 if rng.random() < 0.7 else -1
    return _polygon(np.stack([width, up * np.cos(t)], axis=1))


_FIGURES: dict[str, Callable[[np.random.Generator], _Figure]] = {
    "square": _square,
    "rectangle": _rectangle,
    "rhombus": _rhombus,
    "parallelogram": _parallelogram,
    "trapezoid": _trapezoid,
    "equilateral_triangle": _equilateral_triangle,
    "isosceles_triangle": _isosceles_triangle,
    "right_triangle": _right_triangle,
    "pentagon": _pentagon,
    "hexagon": _hexagon,
    "octagon": _octagon,
    "circle": _circle,
    "ellipse": _ellipse,
    "semicircle": _semicircle,
    "sector": _sector,
    "crescent": _crescent,
    "ring": _ring,
    "star": _star,
    "pentagram": _pentagram,
    "hexagram": _hexagram,
    "heart": _heart,
    "spiral": _spiral,
    "zigzag": _zigzag,
    "teardrop": _teardrop,
}

CLASSES = tuple(_FIGURES)


def _placed(figure: _Figure, rng: np.random.Generator) -> _Figure:
    """``figure`` in supersampled pixels: its bounding box centred, then scaled, turned and moved within the image."""
    extent = np.concatenate(figure.strokes)
    centre = (extent.min(axis=0) + extent.max(axis=0)) / 2
    radius = rng.uniform(*_RADIUS)
    tilt = rng.uniform(-_TILT, _TILT)
    scale = radius / np.hypot(*(extent - centre).T).max()
    turn = scale * np.array([[math.cos(tilt), math.sin(tilt)], [math.sin(tilt), -math.cos(tilt)]])
    room = SIZE / 2 - _MARGIN - radius
    shift = SIZE / 2 + rng.uniform(-room, room, size=2)

    def place(points: Points) -> Points:
        placed: Points = np.rint(((points - centre) @ turn + shift) * _SUPERSAMPLING)
        return placed

    return _Figure(
        [place(stroke) for stroke in figure.strokes],
        None if figure.outline is None else place(figure.outline),
        None if figure.hole is None else place(figure.hole),
    )


class _Mask:
    """Coverage of each pixel, drawn at the finer resolution."""

    def __init__(self) -> None:
        self.image = Image.new("L", (SIZE * _SUPERSAMPLING, SIZE * _SUPERSAMPLING))
        self.draw = ImageDraw.Draw(self.image)

    def fill(self, points: Points, value: int = 255) -> None:
        self.draw.polygon(points.ravel().tolist(), fill=value)

    def line(self, points: Points, width: float, value: int = 255) -> None:
        """Draw a line, ``width`` in pixels; corners of angular figures are rounded, smooth curves need no rounding."""
        thick = round(width * _SUPERSAMPLING)
        self.draw.line(points.ravel().tolist(), fill=value, width=thick)
        if len(points) <= 24:
            for x, y in points.tolist():
                self.disc(x, y, thick / 2, thick / 2, value)

    def disc(self, x: float, y: float, rx: float, ry: float, value: int) -> None:
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=value)

    def coverage(self) -> Floats:
        coverage: Floats = np.asarray(self.image.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)
        return coverage


_ROW, _COLUMN = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / np.float32(SIZE) - np.float32(0.5)


def _texture(rng: np.random.Generator, strength: float) -> Floats:
    """A map in about [-strength, strength]: plain, a gradient, stripes or speckles."""
    kind = rng.integers(4)
    if kind == 0:
        return np.zeros((SIZE, SIZE), dtype=np.float32)
    if kind == 1:
        coarse = rng.random((SIZE // 4, SIZE // 4), dtype=np.float32)
        pattern = np.repeat(np.repeat(2 * coarse - 1, 4, 0), 4, 1)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        pattern = np.float32(math.cos(angle)) * _COLUMN + np.float32(math.sin(angle)) * _ROW
        if kind == 2:
            waves = np.float32(2 * math.pi * rng.uniform(4, 10))
            pattern = np.sin(waves * pattern + np.float32(rng.uniform(0, 6)))
        else:
            pattern = 2 * pattern
    texture: Floats = np.float32(strength) * pattern
    return texture


def _colour(rng: np.random.Generator) -> Floats:
    return rng.random((3, 1, 1), dtype=np.float32)


def _contrasting(rng: np.random.Generator, *others: Floats, distance: float) -> Floats:
    """A random colour whose largest channel difference to each of ``others`` is at least ``distance``."""
    while True:
        colour = _colour(rng)
        if all(np.abs(colour - other).max() >= distance for other in others):
            return colour


def _paint(canvas: Floats, coverage: Floats, colour: Floats) -> None:
    """Lay ``colour`` over ``canvas`` (3 × 64 × 64) where ``coverage`` says."""
    canvas += coverage * (colour - canvas)


def _clutter(canvas: Floats, rng: np.random.Generator, most: int) -> None:
    """Paint up to ``most`` small blobs and thin lines of one colour, partly transparent."""
    n = rng.integers(most + 1)
    if n == 0:
        return
    mask = _Mask()
    side = SIZE * _SUPERSAMPLING
    for kind, x, y, a, b, opacity in rng.random((n, 6)).tolist():
        value = 80 + int(120 * opacity)
        x, y = x * side, y * side
        if kind < 0.5:
            mask.disc(x, y, (1.5 + 2 * a) * _SUPERSAMPLING, (1.5 + 2 * b) * _SUPERSAMPLING, value)
        else:
            end = (x + (a - 0.5) * side / 2, y + (b - 0.5) * side / 2)
            mask.draw.line((x, y, *end), fill=value, width=_SUPERSAMPLING)
    _paint(canvas, mask.coverage(), _colour(rng))


def _draw(canvas: Floats, figure: _Figure, ground: Floats, rng: np.random.Generator) -> None:
    """Draw ``figure`` filled, filled with an edge of another colour, or in outline; without inside, as a thick line."""
    ink = edge = _contrasting(rng, ground, distance=0.45)
    style = "line" if figure.outline is None else ("filled", "filled", "edged", "outline")[rng.integers(4)]
    if figure.outline is not None and style != "outline":
        body = _Mask()
        body.fill(figure.outline)
        if figure.hole is not None:
            body.fill(figure.hole, 0)
        _paint(canvas, body.coverage(), ink + _texture(rng, 0.12))
    if style == "edged":
        edge = _contrasting(rng, ground, ink, distance=0.4)
    if style != "filled":
        lines = _Mask()
        width = rng.uniform(2.2, 3.2) if style == "line" else rng.uniform(1.2, 2.2)
        for stroke in figure.strokes:
            lines.line(stroke, width)
        _paint(canvas, lines.coverage(), edge)


def render(seed: int, index: int) -> Image.Image:
    """The 64 × 64 RGB image of class ``index % 24``, a function of (seed, index)."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    figure = _placed(_FIGURES[CLASSES[index % len(CLASSES)]](rng), rng)
    ground = _colour(rng)
    canvas = ground + _texture(rng, 0.12)
    _clutter(canvas, rng, most=5)
    _draw(canvas, figure, ground, rng)
    _clutter(canvas, rng, most=2)
    grain = np.float32(rng.uniform(0, 0.06))
    canvas += grain * (2 * rng.random(canvas.shape, dtype=np.float32) - 1)
    pixels = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


class Shapes(Dataset):
    """The embedded dataset: 24 classes of plane figures, 64 × 64, equally many of each class."""

    name = "shapes"
    classes = CLASSES
    class_names = tuple(name.replace("_", " ") for name in CLASSES)
    native_size = SIZE
    default_eps = Fraction(2, 255)

    def __init__(self, split: str) -> None:
        self.split = split
        n = SPLITS[split]
        self.labels = [i % len(CLASSES) for i in range(n)]
        self.ids = [f"shapes/{split}/{i:05d}" for i in range(n)]
        # Images are kept once drawn, so later epochs cost nothing: 12 KiB each, 0.3 GB for all of train.
        self._drawn: dict[int, Image.Image] = {}

    def picture(self, index: int) -> Image.Image:
        if index not in self._drawn:
            self._drawn[index] = render(_SEED[self.split], index)
        return self._drawn[index]
