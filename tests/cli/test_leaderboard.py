from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Hrzs = Callable[..., Any]
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models on seen classes, one of them on unseen ones too, and a file that is no report."""
    for name in ("tecoa-s0-seen", "hierarchical-s0-seen", "tecoa-s0-unseen", "nodes"):
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    return tmp_path


def test_prints_a_table_for_each_protocol(hrzs: Hrzs, folder: Path) -> None:
    ended = hrzs("leaderboard", folder)
    assert ended.status == 0
    assert ended.out.count("tiny-imagenet (val)") == 2
    assert f"no reports of `hrzs eval --json`: {folder / 'nodes.json'}" in ended.err
    assert max(map(len, ended.out.splitlines())) <= 80


def test_many_other_files_are_counted(hrzs: Hrzs, folder: Path) -> None:
    for i in range(40):
        (folder / f"other-{i:02}.json").write_text("{}")
    ended = hrzs("leaderboard", folder)
    assert f"{folder / 'nodes.json'}, {folder / 'other-00.json'}, {folder / 'other-01.json'} and 38 more" in ended.err


def test_writes_a_page_and_prints_its_path(hrzs: Hrzs, folder: Path) -> None:
    page = folder / "board.html"
    ended = hrzs("leaderboard", folder, folder / "tecoa-s0-seen.json", "-o", page, "--quiet")
    assert (ended.status, ended.out) == (0, f"{page}\n")
    assert page.read_text().count('href="tecoa-s0-seen.json"') == 1
    again = page.read_bytes()
    hrzs("leaderboard", folder, "-o", page)
    assert page.read_bytes() == again


def test_only_what_was_measured_alike(hrzs: Hrzs, folder: Path) -> None:
    ended = hrzs("leaderboard", folder, "--like", folder / "tecoa-s0-seen.json")
    assert ended.out.count("tiny-imagenet (val)") == 1
    assert f"refused: {folder / 'tecoa-s0-unseen.json'}, tiny-imagenet at ε 1/255: images: " in ended.err
    assert ended.err.count("refused: ") == 1


def test_a_report_of_a_newer_hrzs_is_named_and_left_out(hrzs: Hrzs, folder: Path) -> None:
    newer = json.loads((folder / "tecoa-s0-seen.json").read_text()) | {"schema": 99}
    (folder / "newer.json").write_text(json.dumps(newer))
    ended = hrzs("leaderboard", folder)
    assert ended.status == 0
    assert f"left out: {folder / 'newer.json'}: schema 99 of a newer hrzs" in ended.err


def test_wrong_calls(hrzs: Hrzs, folder: Path) -> None:
    for arguments, message in (
        (("missing",), "missing: no such file or folder"),
        ((folder / "nodes.json",), "no report among 1 files"),
        ((folder, "-o", folder), "is a folder; give a file"),
        ((folder, "-o", folder / "no" / "board.html"), "does not exist"),
        ((folder, "--like", folder / "nodes.json"), "nodes.json: no report"),
        ((), "Missing argument"),
    ):
        ended = hrzs("leaderboard", *arguments)
        assert (ended.status, ended.out) == (2, "")
        assert message in " ".join(ended.err.split())
