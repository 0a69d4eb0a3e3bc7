"""The pages' templates: what is not markup is escaped on insertion, so no name can become markup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from msgspec import Struct
from msgspec.structs import asdict

from hrzs.hierarchy.describe import visible
from hrzs.results.report import nodes_with_images

#: So many colours has the style sheet for curves and levels.
COLOURS = 6


def render(name: str, **data: object) -> Markup:
    """The template of this name, filled in."""
    return Markup(_environment().get_template(name).render(data))


def source(name: str) -> str:
    """The text of a template of this name, as it is."""
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hrzs.results.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_legible,
    )
    filters = (fixed, percent, interval, points, number, plain, leaves, ink, nodes_with_images)
    environment.filters |= {filter_.__name__: filter_ for filter_ in filters}
    return environment


def _legible(value: object) -> object:
    """Control characters stand as their escapes; markup stays as it is."""
    return value if isinstance(value, Markup) else visible(str(value))


# -- filters ----------------------------------------------------------------------------------------------------------


def fixed(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return fixed(None if value is None else 100 * value)


def interval(ends: Sequence[float] | None) -> str:
    """Of a share, in percent; nothing where there is none."""
    return "" if ends is None else f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def points(tenths: Sequence[int]) -> Markup:
    """A difference and below it its interval, given in tenths of a percentage point."""
    value, low, high = (f"{one / 10:+.1f}" for one in tenths)
    return Markup(f"{value}\n[{low}, {high}]")


def number(value: float) -> str:
    """Four digits, which is what a legend has room for."""
    return f"{value:.4g}"


def plain(value: object) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " / ".join(map(plain, value))
    return "yes" if value is True else "no" if value is False else str(value)


def leaves(items: Mapping[str, Any] | Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a nested mapping under their full names; what is null is left out."""
    for name, value in (asdict(items) if isinstance(items, Struct) else items).items():
        full = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from leaves(value, f"{full}, ")
        elif value is not None:
            yield full, value


def ink(colour: int | None) -> str:
    """The style of what is drawn in one of the page's colours; None: in that of the text."""
    return "--c:var(--ink)" if colour is None else f"--c:var(--s{colour % COLOURS})"
