"""What `hrzs eval` and `hrzs finetune` name as the next command runs as it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Hrzs = Callable[..., Any]
Options = tuple[str, ...]
QUICK = ("--attack", "leaf-pgd", "--steps", "1", "--no-canaries")
TRAIN = ("--max-steps", "1", "--batch-size", "8", "--validate-every", "0")


def following(ended: Any) -> list[str]:
    """The words after `hrzs`."""
    (line,) = [line for line in ended.err.splitlines() if line.startswith("next: ")]
    name, *words = shlex.split(line.removeprefix("next: "))
    assert (ended.status, name) == (0, "hrzs")
    return words


def test_from_an_evaluation_to_a_leaderboard(
    hrzs: Hrzs, small: Options, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = following(hrzs("eval", *small, *QUICK))
    assert words[-4:] == ["--json", "cli-small-none.json", "--report", "cli-small-none.html"]
    words = following(hrzs(*words))  # it is kept now: fine-tune
    assert words == [
        "finetune",
        "--model",
        str(config_file),
        "--pretrained",
        "none",
        "--data",
        "shapes",
        "--device",
        "cpu",
    ]
    words = following(hrzs(*words, *TRAIN, "--limit", "24", "-o", "run"))
    assert words == ["eval", "--model", "run", "--data", "shapes", "--device", "cpu", "--json", "run/eval.json"]
    words = following(hrzs(*words, *QUICK, "--limit", "24"))  # beside the model that it was made from
    assert words[:5] == ["eval", "--model", str(config_file), "--pretrained", "none"]
    assert words[-2:] == ["--against", "run/eval.json"]
    words = following(hrzs(*words, "--json", "run/base.json"))
    assert words == ["leaderboard", "run", "-o", "run/board.html"]
    assert hrzs(*words).out == "run/board.html\n"
    assert len(json.loads(Path("run/base.json").read_text())["summary"]["against"]["rows"]) > 1


def test_json_on_stdout_is_not_kept(hrzs: Hrzs, small: Options) -> None:
    ended = hrzs("eval", *small, *QUICK, "--json", "-", "--report", "/dev/null")
    json.loads(ended.out)
    assert following(ended) == ["eval", *small, *QUICK, "--report", "/dev/null", "--json", "cli-small-none.json"]


def test_quiet_names_nothing(hrzs: Hrzs, small: Options) -> None:
    assert "next: " not in hrzs("eval", *small, *QUICK, "--quiet").err
