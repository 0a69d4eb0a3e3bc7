"""Killed at any moment, and resumed until they are done, all commands end with the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.soak

KILLS = 12
COMMANDS: dict[str, tuple[str, ...]] = {
    "finetune": ("--max-steps", "90", "--batch-size", "8", "--steps", "2", "--save-every", "3", "--val-limit", "8",
                 "--val-steps", "1", "--validate-every", "5", "-o"),
    "attack": ("--steps", "60", "--batch-size", "2", "-o"),
    "eval": ("--attack", "aa-2,leaf-pgd", "--steps", "20", "--no-matrix", "--no-canaries", "--batch-size", "2", "--json"),
}  # fmt: skip


def result(place: Path) -> Any:
    """What the command made; of a run what does not say how long it took."""
    if place.is_file():
        return [row | {"seconds": 0} for row in json.loads(place.read_text())["results"]]
    passed_over = (".jsonl", ".html", ".pt", ".yaml") if (place / "checkpoint").is_dir() else ()
    files = (p for p in place.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    return {str(p.relative_to(place)): p.read_bytes() for p in files if not p.name.endswith(passed_over or "\0")}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_random_moments(tmp_path: Path, config: Path, name: str, signum: int) -> None:
    common = (sys.executable, "-m", "hrzs", name, "--model", str(config), "--pretrained", "none", "--limit", "24",
              "--device", "cpu", "--threads", "1", *COMMANDS[name])  # fmt: skip
    whole, killed = (tmp_path / (f"{which}.json" if name == "eval" else which) for which in ("whole", "killed"))
    subprocess.run([*common, str(whole)], check=True, capture_output=True)
    kept = {"finetune": killed / "metrics.jsonl", "attack": killed / ".manifest.jsonl.partial",
            "eval": killed.with_name(f"{killed.name}.partial")}[name]  # fmt: skip

    def lines() -> int:
        return kept.read_bytes().count(b"\n") if kept.is_file() else 0

    chance = random.Random(f"{name}{signum}")
    kills = 0
    while True:
        before = lines()
        process = subprocess.Popen(
            [*common, str(killed), "--resume"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kills < KILLS:
            further = chance.randint(0, 3)
            while process.poll() is None and lines() < before + further:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.01))
            process.send_signal(signum)
        _, said = process.communicate(timeout=600)
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode in (-signum, 128 + signum), said
    print(f"{name}: {kills} kills by {signal.Signals(signum).name}")
    assert kills > 2
    assert result(killed) == result(whole)
    assert not list(killed.parent.rglob("*.lock"))
