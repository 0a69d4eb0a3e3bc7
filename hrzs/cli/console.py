"""What people see: results on stdout and nothing else there; progress, log and warnings on stderr."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from hrzs.errors import HrzsError
from hrzs.files import dump_yaml
from hrzs.progress import Pace, Update, in_words
from hrzs.torchrun import is_first

stderr = Console(stderr=True)

#: What a listing option is given to print the names it takes.
LIST = "list"


def set_up(*, quiet: bool, debug: bool) -> None:
    """Route the package's log and Python's warnings to stderr; other packages speak only of errors.

    Of several processes the first alone speaks.
    """
    for name in (None, "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ours = logging.getLogger("hrzs")
    ours.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    handler: logging.Handler
    if stderr.is_terminal:
        handler = RichHandler(console=stderr, show_time=False, show_path=debug, show_level=True)
        handler.setFormatter(_Printable("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    if not is_first():
        handler.setLevel(logging.CRITICAL)
    ours.handlers = [handler]
    ours.propagate = False
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").handlers = [handler]
    if not debug:
        warnings.simplefilter("ignore")


@contextmanager
def progress_bar(title: str, *, quiet: bool) -> Iterator[Update]:
    """A bar with an ETA on a terminal; without one, a plain line at each tenth of the way."""
    if quiet or not is_first():
        yield lambda *_: None
    elif stderr.is_terminal:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), _Times(),
                   TextColumn("{task.fields[note]}", markup=False))  # fmt: skip
        with Progress(*columns, console=stderr, transient=True) as bar:
            task = bar.add_task(printable(title), total=None, note="")
            yield lambda done, total, note: bar.update(task, completed=done, total=total, note=printable(note))
    else:
        yield _PlainProgress(title)


class _Times(ProgressColumn):
    """How long it has taken, and how long it will."""

    def render(self, task: Task) -> Text:
        left = "" if task.time_remaining is None else f", {in_words(round(task.time_remaining))} left"
        return Text(f"{in_words(round(task.elapsed or 0))}{left}", "progress.elapsed")


class _PlainProgress:
    def __init__(self, title: str) -> None:
        self.title, self.tenth, self.pace = title, -1, Pace()

    def __call__(self, done: int, total: int, note: str) -> None:
        tenth, said = 10 * done // max(total, 1), self.pace(done, total)
        if tenth > self.tenth:
            self.tenth = tenth
            print(printable(f"{self.title}: {said}  {note}"), file=sys.stderr, flush=True)  # noqa: T201


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def printable(text: str) -> str:
    """``text`` with its control characters escaped, but for line breaks and tabs: no file can command a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def width() -> int:
    """The characters that a line of a table may have: those of the terminal, and 80 where there is none."""
    return max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80


def emit(text: str) -> None:
    """The result, on stdout; in UTF-8 where the stream's own encoding lacks a character.

    Of several processes the first alone prints it.

    Raises:
        HrzsError: stdout cannot be written: it was closed, or its disk is full.
    """
    if not is_first():
        return
    text = text if text.endswith("\n") else text + "\n"
    try:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            sys.stdout.flush()
            sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
        sys.stdout.flush()
    except OSError as error:
        raise HrzsError(f"the result cannot be written to standard output: {error.strerror or error}") from error


def emit_estimate(found: dict[str, Any]) -> None:
    """What ``--dry-run`` found, as YAML; the time that it would take also in words, for people."""
    emit(dump_yaml(found))
    seconds = 60 * found["estimated_minutes"]
    note(f"would take {f'about {in_words(seconds)}' if seconds else 'a few seconds'}")


def print_names(pairs: list[tuple[str, str]]) -> None:
    """Names with one line each: what ``--attack list`` and its like print."""
    width = min(24, max(len(name) for name, _ in pairs))
    emit("\n".join(f"{name:<{width}}  {about}" for name, about in pairs))


def warn(text: str) -> None:
    """One line that ``--quiet`` does not silence."""
    logging.getLogger("hrzs.cli").warning(text)


def suggest(command: str | None) -> None:
    """The command to run next, on a line of stderr, which no terminal's width breaks; ``--quiet`` silences it."""
    if command is not None and is_first() and logging.getLogger("hrzs.cli").isEnabledFor(logging.INFO):
        print(printable(f"next: {command}"), file=sys.stderr, flush=True)  # noqa: T201


def note(text: str) -> None:
    """One line for the reader, on stderr (through the log, so that ``--quiet`` silences it)."""
    logging.getLogger("hrzs.cli").info(text)
