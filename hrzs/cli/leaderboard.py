"""`hrzs leaderboard`: the reports of several models side by side; prints tables or writes a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrzs.cli import console, options
from hrzs.errors import NoReportError, UsageError, few
from hrzs.files import write_text

if TYPE_CHECKING:
    from hrzs.results.board import Entry


def leaderboard(
    sources: Annotated[list[Path], typer.Argument(metavar="FOLDER|FILE...", help="Reports of `hrzs eval --json`, or folders with them.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.html", help="Write a page that sorts, with intervals and paired differences.")] = None,
    like: Annotated[Path | None, typer.Option("--like", metavar="FILE", help="Only what was measured as in this report.")] = None,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Rank the models of several reports: one board for each way of measuring."""
    console.set_up(quiet=quiet, debug=debug)
    if output is not None and not output.parent.is_dir():
        raise UsageError(f"-o {output}: the folder {output.parent} does not exist")
    if output is not None and output.is_dir():
        raise UsageError(f"-o {output}: is a folder; give a file")
    files = _files(sources)

    from hrzs.results.board import boards, entries_of, render
    from hrzs.results.report import Report

    entries: list[Entry] = []
    others: list[str] = []
    for file in files:
        try:
            report = Report.from_json(file)
        except NoReportError:
            others.append(str(file))
            continue
        except UsageError as error:
            console.warn(f"left out: {error}")
            continue
        found = entries_of(report, file)
        if not found:
            console.warn(f"left out: {file}: does not say which images it is about (an older hrzs); evaluate again")
        entries += found
    if others:
        console.warn(f"left out, no reports of `hrzs eval --json`: {few(others)}")
    if like is not None:
        entries = _alike(entries, entries_of(Report.from_json(like), like), like)
    if not entries:
        raise UsageError(
            f"{', '.join(map(str, sources))}: no report among {len(files)} files; `hrzs eval --json` writes them"
        )
    ranked = boards(entries)
    if output is None:
        console.emit(console.printable(render(ranked, console.width())))
        return
    from hrzs.results.pages.leaderboard import render as page

    write_text(output, page(ranked, output.parent), f"-o {output}")
    console.emit(str(output))


def _files(sources: Sequence[Path]) -> list[Path]:
    """Every file once, those of a folder by name."""
    found: dict[Path, Path] = {}
    for source in sources:
        if not source.exists():
            raise UsageError(
                f"{source}: no such file or folder; give reports of `hrzs eval --json`, or a folder of them"
            )
        for file in sorted(source.glob("*.json")) if source.is_dir() else [source]:
            found.setdefault(file.resolve(), file)
    return [*found.values()]


def _alike(entries: Sequence[Entry], wanted: Sequence[Entry], like: Path) -> list[Entry]:
    """Those that were measured as one of ``wanted``; the others are named with the first difference."""
    from hrzs.results.protocol import first_difference

    if not wanted:
        raise UsageError(f"--like {like}: does not say which images it is about (an older hrzs); evaluate again")
    protocols, alike = [one.protocol for one in wanted], []
    for entry in entries:
        if entry.protocol in protocols:
            alike.append(entry)
        else:
            # Beside what is most like it: the same dataset and ε, if there is one.
            near = min(wanted, key=lambda one: (one.task.dataset, one.eps) != (entry.task.dataset, entry.eps))
            console.warn(
                f"refused: {entry.file}, {entry.task.dataset} at ε {entry.eps or 'none'}: "
                f"{first_difference(near.protocol, entry.protocol)}, as in {like}"
            )
    return alike
