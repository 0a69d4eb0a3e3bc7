from __future__ import annotations

import io
import logging
import sys
import time

import pytest

from hrzs.cli import console


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_result_is_printed_whatever_the_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    console.emit("accuracy at ε 1/255: café")
    console.emit("plain")
    assert raw.getvalue().decode() == "accuracy at ε 1/255: café\nplain\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain\n\ttext é ε", "plain\n\ttext é ε"), ("\x1b[31mred", "\\x1b[31mred"), ("a\rb\x07", "a\\rb\\x07"), ("\x9b0m", "\\x9b0m")],
)  # fmt: skip
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert console.printable(text) == shown


def test_the_log_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_up(quiet=False, debug=False)
    logging.getLogger("hrzs.some").warning("%s cannot be read", "a\x1b]0;title\x07.jpg")
    assert "a\\x1b]0;title\\x07.jpg cannot be read" in capsys.readouterr().err


def test_what_came_at_once_counts_for_no_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run said "0 s left" with most of the work to do."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    bar = console._PlainProgress("eval")
    for done in range(1, 51):  # what was kept
        clock[0] += 0.001
        bar(done, 100, "")
    for done in range(51, 71):  # what is new: 10 s each
        clock[0] += 10
        bar(done, 100, "")
    assert "70/100, 3 min 20 s, 5 min left" in capsys.readouterr().err
