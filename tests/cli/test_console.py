from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

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


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("no_color", [None, "1"])
def test_colours_obey_no_color(no_color: str | None) -> None:
    import pty

    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color"} | ({} if no_color is None else {"NO_COLOR": no_color})
    ours, theirs = pty.openpty()
    try:
        command = [sys.executable, "-m", "hrzs", "evall"]
        subprocess.run(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, check=False, timeout=60)
        text = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Did you mean 'eval'?" in re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert bool(re.search(r"\x1b\[(3|9)[0-9]", text)) == (no_color is None)


def test_nothing_is_coloured_where_there_is_no_terminal(hrzs: Callable[..., Any]) -> None:
    ended = hrzs("eval", "--atack", "cw")
    assert "\x1b" not in ended.out + ended.err + hrzs("-h").out


def test_a_dry_run_is_yaml_on_stdout_and_words_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.set_up(quiet=False, debug=False)
    console.emit_estimate({"units": ["clean"], "estimated_minutes": 70.1})
    out, err = capsys.readouterr()
    assert yaml.safe_load(out) == {"units": ["clean"], "estimated_minutes": 70.1}
    assert "would take about 1 h 10 min" in err
