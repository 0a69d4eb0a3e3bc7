from __future__ import annotations

import math

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from hrzs.results.pages.templates import fixed, interval, leaves, percent, plain, render
from hrzs.results.report import Model


def test_what_is_no_markup_is_escaped() -> None:
    disk = render("disk.html.j2", about='"<b>&\x1b', disk=_Empty())
    assert isinstance(disk, Markup)
    assert 'aria-label="&#34;&lt;b&gt;&amp;\\x1b"' in disk


class _Empty:
    """A disk without a node."""

    width, radius, edges, dots = 20, 2.0, (), ()

    def names(self) -> list[str]:
        return []


def test_what_a_template_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="about"):
        render("disk.html.j2", disk=_Empty())


def test_numbers_and_what_is_none() -> None:
    assert [percent(v) for v in (0.125, 1.0, None, math.nan)] == ["12.5", "100.0", "–", "–"]
    assert [fixed(v, 3) for v in (0.5, math.inf)] == ["0.500", "–"]
    assert [interval(v) for v in ((0.25, 0.5), None)] == ["[25.0, 50.0]", ""]


def test_values_as_people_read_them() -> None:
    assert [plain(v) for v in (0.1 + 0.2, True, False, 3, "a b")] == ["0.3", "yes", "no", "3", "a b"]
    assert plain((0.5, ["x", True])) == "0.5 / x / yes"


def test_leaves_have_their_full_names_and_no_null() -> None:
    assert list(leaves({"a_b": {"c": 1, "d": None}, "e": 2})) == [("a b, c", 1), ("e", 2)]
    assert ("run, method", "x") in leaves(Model(source="m", run={"method": "x"}))
