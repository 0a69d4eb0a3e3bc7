"""`--shard K/N`, `--merge` and torchrun: the files of one process, whatever the number of shards and whoever died."""

from __future__ import annotations

import json
import os
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
TINY = (
    "--limit",
    "24",
    "--batch-size",
    "3",
    "--attack",
    "aa-2",
    "--steps",
    "2",
    "--no-matrix",
    "--no-canaries",
    "--quiet",
)


def timeless(file: Path) -> Any:
    report = json.loads(file.read_text())
    return report | {"results": [row | {"seconds": None} for row in report["results"]]}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_shards(hrzs: Hrzs, of: int, *command: object) -> Any:
    """All shards in a row, then the merge, whose end is returned."""
    for number in range(1, of + 1):
        ended = hrzs(*command, "--shard", f"{number}/{of}")
        assert ended.status == 0, ended.err
    ended = hrzs(*command, "--merge")
    assert ended.status == 0, ended.err
    return ended


# -- eval ----------------------------------------------------------------------------------------------------------


def test_everything_of_an_evaluation_in_three_shards(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default suite with canaries, compared, as JSON, table, page, CSV and LaTeX."""
    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 10)
    other = tmp_path / "other.json"
    quick = (*small, "--steps", "1", "--batch-size", "5")
    assert hrzs("eval", *quick, "--attack", "leaf-pgd", "--seed", "1", "--no-canaries", "--json", other).status == 0
    shown = []
    for name in ("one", "many"):
        folder = tmp_path / name
        folder.mkdir()
        outputs = [f"--{kind}={folder / f'r.{kind}'}" for kind in ("json", "report", "csv", "latex")]
        command = ("eval", *quick, "--against", other, *outputs)
        ended = hrzs(*command) if name == "one" else run_shards(hrzs, 3, *command)
        assert ended.status == 0, ended.err
        shown.append(ended.out)
        assert sorted(p.name for p in folder.iterdir()) == ["r.csv", "r.json", "r.latex", "r.report"]
    one, many = tmp_path / "one", tmp_path / "many"
    assert timeless(one / "r.json") == timeless(many / "r.json")
    assert len(timeless(one / "r.json")["summary"]["canaries"]) > 5
    assert shown[0] == shown[1]
    assert (one / "r.latex").read_text() == (many / "r.latex").read_text()
    again = hrzs("eval", *quick, "--against", other, "--json", many / "r.json", "--merge")
    assert (again.status, again.out) == (0, shown[0])
    assert "finished already" in again.err


def test_saved_images_and_several_data_in_shards(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    adversarial = tmp_path / "adv"
    assert hrzs("attack", *small, "--steps", "1", "--quiet", "-o", adversarial).status == 0
    model = ("--model", small[1], "--pretrained", "none", "--device", "cpu", "--batch-size", "7", "--quiet")
    quick = ("--attack", "leaf-pgd", "--steps", "1", "--limit", "9", "--no-canaries", "--skip", "2")
    for i, what in enumerate((("--adversarial", adversarial), ("--data", "shapes,shapes", *quick))):
        one, many = tmp_path / f"one-{i}.json", tmp_path / f"many-{i}.json"
        ended = hrzs("eval", *model, *what, "--json", one)
        assert ended.status == 0, ended.err
        run_shards(hrzs, 2, "eval", *model, *what, "--json", many)
        assert timeless(one) == timeless(many)


def test_a_killed_shard_goes_on_by_itself(hrzs: Hrzs, tmp_path: Path) -> None:
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    assert hrzs("eval", *TINY, "--json", one).status == 0
    command = ("eval", *TINY, "--json", many)
    assert hrzs(*command, "--shard", "1/2").status == 0
    partial = tmp_path / "many.json.shard-2-of-2.partial"
    started = [sys.executable, "-m", "hrzs", *map(str, command), "--shard=2/2"]
    with subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while not (partial.is_file() and partial.read_bytes().count(b"\n") >= 7):
            assert running.poll() is None, "it finished before it could be killed"
            time.sleep(0.01)
        running.kill()
    done = partial.read_bytes().count(b"\n")
    early = hrzs(*command, "--merge")
    assert early.status == 2
    assert "shard 2/2 is not finished" in early.err
    assert f"--json {many} --shard 2/2" in early.err
    assert hrzs(*command, "--shard", "2/2").out == f"{tmp_path / 'many.json.shard-2-of-2'}\n"
    assert partial.with_suffix("").read_bytes().count(b"\n") > done
    assert hrzs(*command, "--merge").status == 0
    assert timeless(one) == timeless(many)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["many.json", "one.json"]
    late = hrzs(*command, "--shard", "2/2")  # requeued after the merge
    assert (late.status, late.out) == (0, f"{many}\n")
    assert not [*tmp_path.glob("*shard*")]


def test_a_stopped_shard_says_how_it_goes_on(hrzs: Hrzs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hrzs.evaluation.images import Search

    attack, calls = Search.__call__, 0

    def stopped(self: Search, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return attack(self, *arguments)

    monkeypatch.setattr(Search, "__call__", stopped)
    command = ("eval", *TINY, "--json", str(tmp_path / "r.json"), "--shard", "1/4")
    ended = hrzs(*command)
    assert ended.status == 143
    assert ended.err.endswith(f"To go on: hrzs {' '.join(command)}\n")
    assert hrzs(*command).status == 0


def test_what_does_not_fit_together_is_refused(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    command = ("eval", *small, "--attack", "none", "--no-canaries", "--quiet", "--json", target)
    ended = hrzs(*command, "--merge")
    assert ended.status == 2
    assert "there are no shards" in ended.err
    assert hrzs(*command, "--shard", "1/3").status == 0
    for more, message in {
        ("--shard", "1/4"): "was begun in 3 shards",
        ("--shard", "4/3"): "K/N with K from 1 to N",
        ("--shard", "1/3", "--merge"): "first run all shards",
        ("--shard", "1/3", "--seed", "1"): "another call has done, with seed 0 (now 1)",
        ("--merge",): "shard 2/3 was not begun, 3/3 was not begun",
        ("--resume",): "is what shards have done",
        (): "is what shards have done",
    }.items():
        ended = hrzs(*command, *more)
        assert ended.status == 2, more
        assert message in ended.err
    again = hrzs(*command[:-3], "--json", target, "--shard", "1/3")
    assert again.status == 0
    assert "shard 1/3 is finished already" in again.err
    assert "needs --json FILE" in hrzs("eval", *small, "--shard", "1/3").err


def test_the_same_shard_twice_at_once_is_refused(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    from hrzs.files import locked

    command = ("eval", *small, "--attack", "none", "--no-canaries", "--json", tmp_path / "r.json")
    with locked(tmp_path / "r.json.shard-1-of-2.partial"):
        ended = hrzs(*command, "--shard", "1/2")
        assert ended.status == 2
        assert "another hrzs is at work on it" in ended.err
        assert hrzs(*command, "--shard", "2/2").status == 0


@pytest.mark.parametrize("command", ["eval", "attack"])
def test_dry_run_says_what_a_shard_takes(hrzs: Hrzs, small: Options, command: str) -> None:
    more = ("--json", "r.json") if command == "eval" else ()
    ended = hrzs(command, *small, "--batch-size", "4", *more, "--dry-run", "--shard", "2/4")
    assert ended.status == 0, ended.err
    plan = yaml.safe_load(ended.out)
    assert (plan["shard"], plan["images_of_shard"]) == ("2/4", 8)  # two of six blocks


# -- attack --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 3, 8])
def test_images_of_shards_are_those_of_one_process(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: int
) -> None:
    if of == 3:  # three levels: drawing them takes longer than the rest
        monkeypatch.setattr("hrzs.evaluation.adversarial.draw_gallery", lambda path, *_: path.write_bytes(b"drawn"))
    command = ("attack", *small, "--batch-size", "5", "--steps", "1", "--quiet")
    levels = ("--attack", "superclass-pgd", "--level", "all") if of == 3 else ("--png",)
    assert hrzs(*command, *levels, "-o", tmp_path / "one").status == 0
    ended = run_shards(hrzs, of, *command, *levels, "-o", tmp_path / "many")
    assert ended.out == f"{tmp_path / 'many'}\n"
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert hrzs(*command, *levels, "-o", tmp_path / "many", "--shard", f"1/{of}").status == 0  # requeued
    assert hrzs(*command, *levels, "-o", tmp_path / "many", "--merge").status == 0
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_killed_shard_of_an_attack(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    command = ("attack", *small, "--batch-size", "2", "--steps", "12", "--quiet", "-o")
    assert hrzs(*command, tmp_path / "one").status == 0
    many = tmp_path / "many"
    manifest = many / ".shard-1-of-2.manifest.jsonl.partial"
    started = [sys.executable, "-m", "hrzs", *command, str(many), "--shard", "1/2"]
    with subprocess.Popen(started, stdout=subprocess.DEVNULL) as running:
        while not (manifest.is_file() and manifest.read_bytes().count(b"\n") > 2):
            assert running.poll() is None, "it finished before it could be killed"
            time.sleep(0.005)
        running.kill()
    assert hrzs(*command, many, "--shard", "2/2").status == 0
    for more, message in {
        ("--merge",): "shard 1/2 is not finished",
        ("--shard", "1/3"): "was begun in 2 shards",
        ("--resume",): "is what shards have done",
        ("--shard", "1/2", "--seed", "1"): "seed 0 (now 1)",
        ("--shard", "2/2", "--batch-size", "3"): "another --batch-size",
    }.items():
        ended = hrzs(*command, many, *more)
        assert ended.status == 2, more
        assert message in ended.err
    assert hrzs(*command, many, "--shard", "1/2").status == 0
    assert hrzs(*command, many, "--merge").status == 0
    assert files(many) == files(tmp_path / "one")


# -- torchrun ------------------------------------------------------------------------------------------------------


def torchrun(*command: object) -> subprocess.CompletedProcess[str]:
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hrzs")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *map(str, command)], env=env, capture_output=True, text=True, check=False)


def test_torchrun(hrzs: Hrzs, tmp_path: Path) -> None:
    one, many = tmp_path / "one.json", tmp_path / "many.json"
    whole = hrzs("eval", *TINY, "--json", one)
    loud = [word for word in TINY if word != "--quiet"]
    ended = torchrun("eval", *loud, "--json", many)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == whole.out
    assert "shard 2/2: " not in ended.stderr  # who is not the first says nothing
    assert timeless(one) == timeless(many)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.json", "one.json"]


def test_ranks_of_torchrun(hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, the first one last: it finds the others finished."""
    quick = ("--batch-size", "5", "--steps", "1")
    commands = (("attack", *small, *quick, "-o", tmp_path / "many"),
                ("eval", *small, *quick, "--attack", "leaf-pgd", "--no-canaries", "--json", tmp_path / "many.json"))  # fmt: skip
    monkeypatch.setenv("WORLD_SIZE", "3")
    for command in commands:
        for rank in ("1", "2"):
            monkeypatch.setenv("RANK", rank)
            assert hrzs(*command) == (0, "", "")
        monkeypatch.setenv("RANK", "0")
        ended = hrzs(*command)
        assert (ended.status, ended.out != "") == (0, True)
        assert "leave --shard 1/3 out" in hrzs(*command, "--shard", "1/3").err
    monkeypatch.setenv("RANK", "3")
    assert "RANK 3, WORLD_SIZE 3" in hrzs(*commands[1]).err
    monkeypatch.delenv("WORLD_SIZE")
    assert hrzs(*commands[0][:-1], tmp_path / "one").status == 0
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_the_first_rank_waits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from hrzs.cli import shards
    from hrzs.evaluation.shards import Shard

    looks = 0

    def is_finished(shard: Shard) -> bool:
        nonlocal looks
        looks += 1
        return shard.number == 1 or looks > 40

    naps: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", naps.append)
    role = shards.Role(Shard(1, 16), merges=True, by_torchrun=True, words=())
    with caplog.at_level("INFO", "hrzs"):
        assert role.finished([], is_finished, "--json r.json") == Shard(1, 16).all
    assert len(naps) == 3
    assert caplog.messages == [
        "waiting for shard 2/16, 3/16, 4/16, 5/16, 6/16, 7/16, 8/16, 9/16 and 7 more of --json r.json"
    ]
