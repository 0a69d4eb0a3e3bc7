"""The boards of `hrzs leaderboard` as one HTML file, which fetches nothing.

Its script sorts, and changes the reference; without it the page has the same figures in their first order.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from hrzs._version import __version__
from hrzs.results.board import Board
from hrzs.results.pages.templates import render as fill
from hrzs.results.pages.templates import source
from hrzs.results.protocol import first_difference


def render(boards: Sequence[Board], folder: Path) -> str:
    """The page; ``folder`` is where it will lie, from which it links to the reports."""
    script = source("leaderboard.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        "leaderboard.html.j2",
        boards=boards,
        files=len({entry.file for board in boards for entry in board.entries}),
        first_unlike=partial(_first_unlike, boards),
        link=partial(_link, folder),
        pairs=_pairs,
        script=Markup(script),
        policy=f"sha256-{digest}",
        hrzs=__version__,
    )


def _first_unlike(boards: Sequence[Board], board: Board) -> tuple[str, str] | None:
    """The first board of the same title before this one, and what sets them apart."""
    before = boards[: boards.index(board)]
    like = next((other for other in before if other.title == board.title), None)
    return None if like is None else (like.title, str(first_difference(like.protocol, board.protocol)))


def _link(folder: Path, file: Path) -> str:
    """From the page to a report; empty between two drives, where nothing leads from one to the other."""
    try:
        return quote(Path(os.path.relpath(file, folder)).as_posix())
    except ValueError:
        return ""


def _pairs(board: Board) -> Markup:
    """Every pair's differences, as the script reads them: numbers and null alone, so nothing that could be markup."""
    last = len(board.entries)
    found = [[board.differences[i, j] for j in range(i + 1, last)] for i in range(last)]
    return Markup(json.dumps(found, separators=(",", ":")))
