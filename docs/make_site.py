"""The documentation site: `python docs/make_site.py` builds it into build/site and checks every page.

A page asks no other server for anything, its links lead somewhere, and the references have an entry for each function,
command and option. Zensical's strict mode checks the links of the Markdown; this checks what came of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
#: Attributes that a browser fetches. A link that a reader may follow is none.
_FETCHED = {"src", "srcset", "data", "poster"}
#: Classes of elements for which the theme's script loads a library from another server.
_LOADS = {"mermaid", "glightbox", "pyodide"}
_ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.I)


class Page(HTMLParser):
    """The ids of a page, where its links lead, and what it would fetch from elsewhere."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.foreign: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        fetched = [given[name] for name in _FETCHED & given.keys()]
        if tag in ("link", "use", "image") and given.get("rel") != "canonical":
            fetched += [given[name] for name in ("href", "xlink:href") if name in given]
        elif "href" in given:
            self.links.append(given["href"])
        self.links += [url for url in fetched if url and not url.startswith("data:")]
        self.foreign += [url for url in fetched if _ELSEWHERE.match(url)]
        self.foreign += [f"class {name}" for name in _LOADS & set(given.get("class", "").split())]
        self.foreign += re.findall(r"url\(['\"]?((?:https?:)?//[^)]*)", given.get("style", ""))


def faults(site: Path) -> Iterator[str]:
    """What is wrong with the pages of a built site, one line each."""
    pages = {file: Page(file.read_text()) for file in sorted(site.rglob("*.html"))}
    # Shown at the address of whatever was not found, so its links are none of a file.
    lost = site / "404.html"
    for file, page in pages.items():
        name = file.relative_to(site)
        yield from (f"{name} loads from elsewhere: {url}" for url in page.foreign)
        for link in page.links if file != lost else ():
            target, anchor = _target(file, link)
            if target is None:
                continue
            if not target.is_file():
                yield f"{name} leads to {link}, which is not there"
            elif anchor and target in pages and anchor not in pages[target].ids:
                yield f"{name} leads to {link}, which has no such place"
    for file in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^)'\"]*)", file.read_text())
        yield from (f"{file.relative_to(site)} loads from elsewhere: {url}" for url in found)
    first = site / "index.html"
    reached = {_target(first, link)[0] for link in pages[first].links}
    yield from (
        f"{file.relative_to(site)} is not in the navigation" for file in pages if file not in {*reached, first, lost}
    )


def _target(file: Path, link: str) -> tuple[Path | None, str]:
    """The file that a link of ``file`` leads to, and the place in it; None for one on another server."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None, ""
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    return target / "index.html" if target.is_dir() else target, unquote(parts.fragment)


def missing(site: Path, expected: dict[str, set[str]]) -> Iterator[str]:
    """The pages that were not built, and of the others the ids and options that they should have."""
    for name, wanted in expected.items():
        if not (site / name).is_file():
            yield f"{name} is not there"
            continue
        html = (site / name).read_text()
        there = Page(html).ids | set(re.findall(r"<code>(--?[a-z][a-z-]*)</code>", html))
        yield from (f"{name} has no {want}" for want in sorted(wanted - there))


def references() -> dict[str, set[str]]:
    """What the generated references have to have, as the code is today."""
    import typer

    import hrzs
    from hrzs.cli import app

    expected: defaultdict[str, set[str]] = defaultdict(set)
    for name in set(hrzs.__all__) - {"__version__"}:
        value = getattr(hrzs, name)
        expected["api.html"].add(f"{value.__module__}.{name}")
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        expected["cli.html"].add(f"options-of-{name}")
        expected["cli.html"] |= {p.opts[0] for p in command.params if p.param_type_name == "option" and not p.hidden}
    for page in (ROOT / "docs").rglob("*.md"):
        expected[page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()] |= set()
    return dict(expected)


def main() -> int:
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", ".zensical.toml"]
    built = subprocess.run(command, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, check=False)
    print(built.stdout, end="")
    # What mkdocstrings cannot make sense of is no fault to Zensical.
    if not built.returncode:
        shutil.copytree(ROOT / "docs" / "results", SITE / "results")
        board = [sys.executable, "-m", "hrzs", "leaderboard", SITE / "results", "-o", SITE / "leaderboard.html"]
        subprocess.run(board, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    found = [line for line in built.stdout.splitlines() if line.startswith("griffe:")]
    if not built.returncode:
        found += [*faults(SITE), *missing(SITE, references())]
    for line in found:
        print(line, file=sys.stderr)
    return 1 if built.returncode or found else 0


if __name__ == "__main__":
    sys.exit(main())
