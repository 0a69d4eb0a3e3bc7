from __future__ import annotations

import pytest

from hrzs.progress import in_words, one_line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.04, "0 s"), (0.4, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3600, "1 h"),
     (4200, "1 h 10 min"), (3605, "1 h"), (86399, "23 h 59 min"), (90000, "1 d 1 h"), (86400 * 12, "12 d")],
)  # fmt: skip
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_one_line_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    """A notebook shows what comes after the last return."""
    with one_line("eval", seconds=0) as update:
        for done in range(1, 51):
            update(done, 50, "long " * (50 - done))
    out, text = capsys.readouterr()
    assert out == ""
    assert text.count("\n") == 1
    *before, last = text.removesuffix("\n").split("\r")
    assert len(before) == 50
    assert last.startswith("eval: 50/50, ")
    assert len(last) >= len(before[-1].rstrip())  # nothing of it shows through


def test_one_line_is_not_written_more_often_than_anybody_reads(capsys: pytest.CaptureFixture[str]) -> None:
    with one_line("eval", seconds=60) as update:
        for done in range(1, 51):
            update(done, 50, "")
    assert capsys.readouterr().err.count("\r") == 2  # the first and the last
    with one_line("eval"):
        pass
    assert capsys.readouterr().err == ""
