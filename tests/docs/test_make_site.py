"""What docs/make_site.py finds in the pages of a site. `make docs` runs it on ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Write = Callable[..., Path]
GOOD = '<a href="other.html#place">x</a> <a href="https://example.com">x</a> <img src="a.png">'


@pytest.fixture(scope="module")
def make_site() -> ModuleType:
    file = Path(__file__).parents[2] / "docs" / "make_site.py"
    spec = importlib.util.spec_from_file_location("make_site", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A site of two pages, of which one is given; 404.html is what a server shows anywhere."""

    def site(html: str, css: str = "") -> Path:
        (tmp_path / "index.html").write_text(f'<a href="other.html">x</a> {html}')
        (tmp_path / "other.html").write_text('<h2 id="place">x</h2> <a href=".">x</a>')
        (tmp_path / "404.html").write_text('<a href="/nowhere/">x</a>')
        (tmp_path / "a.png").touch()
        (tmp_path / "a.css").write_text(css)
        return tmp_path

    return site


def test_nothing_is_wrong(make_site: ModuleType, write: Write) -> None:
    assert list(make_site.faults(write(GOOD, "a { background: url(a.png) }"))) == []


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="nothing.html">x</a>', "leads to nothing.html, which is not there"),
        ('<a href="other.html#elsewhere">x</a>', "leads to other.html#elsewhere, which has no such place"),
        ('<a href="#here">x</a>', "leads to #here, which has no such place"),
        ('<img src="nothing.png">', "leads to nothing.png, which is not there"),
        ('<script src="https://unpkg.com/a.js"></script>', "loads from elsewhere: https://unpkg.com/a.js"),
        ('<link rel="stylesheet" href="//fonts.example.com/a.css">', "loads from elsewhere: //fonts.example.com/a.css"),
        ('<p style="background: url(http://a.com/b.png)">', "loads from elsewhere: http://a.com/b.png"),
        ('<pre class="mermaid">x</pre>', "loads from elsewhere: class mermaid"),
    ],
)
def test_a_fault_is_found(html: str, fault: str, make_site: ModuleType, write: Write) -> None:
    assert list(make_site.faults(write(html))) == [f"index.html {fault}"]


def test_a_stylesheet_loads_nothing_from_elsewhere(make_site: ModuleType, write: Write) -> None:
    site = write(GOOD, "@import 'https://fonts.example.com/a.css';")
    assert list(make_site.faults(site)) == ["a.css loads from elsewhere: https://fonts.example.com/a.css"]


def test_a_page_outside_the_navigation_is_found(make_site: ModuleType, write: Write) -> None:
    (write(GOOD) / "lonely.html").write_text("")
    assert list(make_site.faults(write(GOOD))) == ["lonely.html is not in the navigation"]


def test_what_a_reference_lacks_is_found(make_site: ModuleType, write: Write) -> None:
    site = write('<h2 id="options-of-eval">x</h2> <code>--lr</code>')
    expected = {"index.html": {"options-of-eval", "--lr", "--eps", "hrzs.api.load"}, "api.html": {"hrzs.api.load"}}
    assert list(make_site.missing(site, expected)) == [
        "index.html has no --eps", "index.html has no hrzs.api.load", "api.html is not there",
    ]  # fmt: skip


def test_the_references_are_those_of_the_code(make_site: ModuleType) -> None:
    expected = make_site.references()
    assert {"hrzs.api.finetune", "hrzs.results.report.Report"} <= expected["api.html"]
    assert {"options-of-eval", "--attack", "--lr"} <= expected["cli.html"]
    assert "how-to/resume.html" in expected
