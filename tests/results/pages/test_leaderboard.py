from __future__ import annotations

import base64
import hashlib
import html
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from hrzs.results.board import boards, entries_of
from hrzs.results.pages.leaderboard import render
from hrzs.results.report import Report

RESULTS = Path(__file__).parents[3] / "docs" / "results"
HOSTILE = "</script><script>alert('x')</script>\" onload='y' {{ 7 * 7 }}\x1b"


class Page(HTMLParser):
    """What a page consists of: elements with their attributes, and the text in each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and data.strip():
            self.scripts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag]


def saved(*names: str) -> list[dict[str, Any]]:
    return [json.loads((RESULTS / f"{name}.json").read_text()) for name in names]


def page(*reports: dict[str, Any], folder: str = "site") -> str:
    files = [Path("reports") / f"{i} #1.json" for i in range(len(reports))]
    entries = [
        e for one, file in zip(reports, files, strict=True) for e in entries_of(Report.from_json(json.dumps(one)), file)
    ]
    return render(boards(entries), Path(folder))


def test_the_page_of_real_reports_asks_for_nothing_and_runs_its_own_script_alone() -> None:
    text = page(*saved("tecoa-s0-seen", "hierarchical-s0-seen", "untouched-seen", "untouched-unseen"))
    found = Page(text)
    assert {name for name, _ in found.elements} & {"link", "img", "iframe", "object", "embed", "base", "form"} == set()
    assert not any(
        "src" in attributes or any(name.startswith("on") for name in attributes) for _, attributes in found.elements
    )
    assert "url(" not in text
    links = [str(link["href"]) for link in found.all("a")]
    assert {link for link in links if not link.startswith("#")} == {f"../reports/{i}%20%231.json" for i in range(4)}
    policy = next(str(one["content"]) for one in found.all("meta") if "http-equiv" in one)
    script = found.scripts[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert len(found.all("table")) == 2
    assert len(found.all("tr")) == 2 * 2 + 4


def test_without_the_script_the_first_row_is_the_reference() -> None:
    text = page(*saved("tecoa-s0-seen", "hierarchical-s0-seen"))
    found = Page(text)
    (order,) = [head for head in found.all("th") if "aria-sort" in head]
    assert order["aria-sort"] == "descending"
    assert [row.get("class") for row in found.all("tr") if "data-i" in row] == ["reference", None]
    # The script's numbers are those in the table, turned: the second entry less the first.
    ((pairs,), _) = json.loads(found.scripts[0])
    shown = [part.split("<")[0] for part in text.split('<small class="difference')[1:]]
    shown = [part.partition(">")[2] for part in shown][len(pairs) :]
    assert len(shown) == len(pairs)
    expected = [f"{-v / 10:+.1f}\n[{-high / 10:+.1f}, {-low / 10:+.1f}]" for v, low, high in pairs]
    assert [one.replace("-0.0", "+0.0") for one in shown] == [one.replace("-0.0", "+0.0") for one in expected]


def test_names_are_text() -> None:
    one, other = saved("tecoa-s0-seen", "hierarchical-s0-seen")
    one["model"]["source"] = HOSTILE
    one["model"]["run"]["method"] = HOSTILE
    one["hrzs"] = HOSTILE
    one["config"]["template"] = HOSTILE
    text = page(one, other)
    assert len(Page(text).all("script")) == 2
    assert "alert(&#39;x&#39;)" in text
    assert "\x1b" not in text
    assert html.escape("{{ 7 * 7 }}") in text


def test_boards_of_one_title_say_what_sets_them_apart() -> None:
    one, other = saved("tecoa-s0-seen", "hierarchical-s0-seen")
    other["config"]["tasks"][0]["tree_digest"] = "another"
    assert "above: tree: another, not " in html.unescape(page(one, other))


def test_masked_gradients_are_said_beside_the_name() -> None:
    one, other = saved("tecoa-s0-seen", "hierarchical-s0-seen")
    one["summary"]["masking"] = [{"dataset": "tiny-imagenet", "verdict": "suspected", "reasons": []}]
    assert page(one, other).count("✗ masked gradients suspected") == 1
