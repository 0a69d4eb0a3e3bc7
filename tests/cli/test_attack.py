"""`hrzs attack` as a process that may be killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Hrzs = Callable[..., Any]
Options = tuple[str, ...]
ATTACK = ("attack", "--threads", "1", "--quiet")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_killed_and_resumed_is_as_if_nothing_had_happened(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    command = (*ATTACK, *small, "--steps", "12", "--batch-size", "2", "--png", "-o")
    assert hrzs(*command, tmp_path / "whole").status == 0
    killed = tmp_path / "killed"
    manifest = killed / ".manifest.jsonl.partial"
    process = subprocess.Popen([sys.executable, "-m", "hrzs", *command, str(killed)], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (manifest.exists() and manifest.read_bytes().count(b"\n") > 4):
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    begun = manifest.read_bytes()
    assert 4 < begun.count(b"\n") < 24
    assert not (killed / "manifest.jsonl").exists()

    again = hrzs(*command, killed)
    assert (again.status, manifest.read_bytes()) == (2, begun)
    assert "go on with --resume" in again.err
    other = hrzs(*command, killed, "--resume", "--eps", "4/255")
    assert (other.status, manifest.read_bytes()) == (2, begun)
    assert "eps '2/255' (now '4/255')" in other.err
    ended = hrzs(*command, killed, "--resume")
    assert (ended.status, ended.out) == (0, f"{killed}\n")
    assert files(killed) == files(tmp_path / "whole")
    assert len(list((killed / "images").iterdir())) == 24


def test_resuming_a_finished_set_changes_nothing(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    command = (*ATTACK, *small, "--steps", "1", "--attack", "cw", "-o", tmp_path / "adv")
    assert hrzs(*command).status == 0
    before = files(tmp_path / "adv")
    assert hrzs(*command, "--resume").status == 0
    assert "seed 0 (now 1)" in hrzs(*command, "--resume", "--seed", "1").err
    every = hrzs(*command, "--resume", "--level", "all")
    assert every.status == 2
    assert "holds the images of one level" in every.err
    assert files(tmp_path / "adv") == before


def test_interrupted_between_levels(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing three of them takes longer than the rest.
    monkeypatch.setattr("hrzs.evaluation.adversarial.draw_gallery", lambda path, *_: path.write_bytes(b"drawn"))
    command = (*ATTACK, *small, "--steps", "1", "--attack", "superclass-pgd", "--level", "all", "-o", tmp_path / "adv")
    assert hrzs(*command).status == 0
    before = files(tmp_path / "adv")
    (tmp_path / "adv" / "level-3" / "manifest.jsonl").unlink()
    refused = hrzs(*command, "--resume", "--seed", "1")
    assert refused.status == 2  # a finished level was made otherwise: nothing is mixed
    assert "level-1" in refused.err
    assert hrzs(*command, "--resume").status == 0
    assert files(tmp_path / "adv") == before


def test_accuracies_are_printed_and_kept(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    ended = hrzs("attack", *small, "--steps", "1", "-o", tmp_path / "adv")
    printed = json.loads(ended.err.splitlines()[-1].removeprefix("INFO: "))
    kept = json.loads((tmp_path / "adv" / "summary.json").read_text())
    assert printed.keys() == {"clean", "robust", "robust_after_8_bit"}
    assert kept.pop("n") == 24
    for name, values in printed.items():
        assert values == pytest.approx(kept[name], abs=1e-4)


def test_dry_run_says_what_the_disk_needs(hrzs: Hrzs, small: Options) -> None:
    command = (*ATTACK, *small, "--dry-run", "--attack", "superclass-pgd", "--level")
    one, three = (yaml.safe_load(hrzs(*command, level).out)["estimated_disk_mb"] for level in ("1", "all"))
    assert one == pytest.approx(24 * 3 * 64 * 64 * 4 / 1e6, abs=0.1)
    assert three == pytest.approx(3 * one, abs=0.2)
