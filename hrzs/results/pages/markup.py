"""HTML from Python: what is not `Markup` is escaped on insertion, so no name can become markup."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hrzs.hierarchy.describe import visible

_STYLE = Path(__file__).with_name("report.css")


class Markup(str):
    """HTML to be inserted as it stands; any other text is escaped on insertion, so no name can become markup."""

    __slots__ = ()


def el(tag: str, *content: object, **attributes: object) -> Markup:
    """An element. None, as content or as an attribute, is left out; a trailing ``_`` of an attribute's name falls."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{shown}>{join(content)}</{tag}>")


def join(content: Iterable[object]) -> Markup:
    return Markup("".join(c if isinstance(c, Markup) else escape(c) for c in content if c is not None))


def table(caption: object, header: Sequence[object], body: Iterable[Sequence[object]], class_: str = "") -> Markup:
    """A table that scrolls sideways where it must; the first cell of a row heads it, cells of digits go right."""
    head = el("thead", el("tr", *(h if _is_cell(h) else el("th", h, scope="col") for h in header)))
    rows = [
        el("tr", *(cell if _is_cell(cell) else el("th", cell, scope="row") if i == 0 else _cell(cell)
                    for i, cell in enumerate(row)))
        for row in body
    ]  # fmt: skip
    whole = el("table", el("caption", caption), head, el("tbody", *rows), class_=class_ or None)
    return el("div", whole, class_="scroll", tabindex="0", role="group", aria_label=caption)


def _is_cell(content: object) -> bool:
    return isinstance(content, Markup) and content.startswith(("<td", "<th"))


def _cell(content: object) -> Markup:
    number = isinstance(content, (int, float)) or str(content)[:1].isdigit() or content == "–"
    return el("td", content, class_="n" if number else None)


def number_heads(*names: str) -> list[Markup]:
    return [el("th", name, scope="col", class_="n") for name in names]


def escape(text: object) -> str:
    return html.escape(visible(str(text)))


def image_element(png: bytes, description: str) -> Markup:
    """An image that carries its own data."""
    return Markup(f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{escape(description)}">')


def definitions(items: Mapping[str, Any]) -> Markup:
    """Names and values of a nested mapping."""
    pairs = ((el("dt", name), el("dd", shown(value))) for name, value in _leaves(items))
    return el("dl", *(part for pair in pairs for part in pair))


def _leaves(items: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a nested mapping under their full names; what is null is left out."""
    for name, value in items.items():
        full = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{full}, ")
        elif value is not None:
            yield full, value


def shown(value: Any) -> object:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return " / ".join(str(shown(v)) for v in value)
    text = "yes" if value is True else "no" if value is False else str(value)
    return el("code", text) if len(text) >= 16 and " " not in text else text


def document(title: str, content: Iterable[object]) -> str:
    """A whole page in the style of our reports."""
    # The policy forbids the browser to fetch anything, should a mistake of ours ever ask for it.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{el('title', title)}\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{join(content)}\n</body>\n</html>\n"
    )
