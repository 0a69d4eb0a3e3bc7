"""The Slurm scripts of docs/scaling.md, with stand-ins for what a cluster has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLURM = Path(__file__).parents[1] / "docs" / "slurm"
BIN = Path(sys.executable).parent
ENV = {
    "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "2", "OMP_NUM_THREADS": "1", "HRZS_CACHE": "0",
}  # fmt: skip
SCONTROL = """
case "$1" in
  show) echo localhost ;;
  requeue) echo "requeue $2" >> "$LOG" ;;
esac
"""
SRUN = """
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment in which `srun` runs what it is given, and `scontrol` knows one machine and logs."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, body in (("scontrol", SCONTROL), ("srun", SRUN)):
        (place / name).write_text(f"#!/bin/bash\n{body}")
        (place / name).chmod(0o755)
    path = os.pathsep.join([str(place), str(BIN), os.environ["PATH"]])
    return {**os.environ, **ENV, "PATH": path, "LOG": str(tmp_path / "log")}


@pytest.mark.parametrize("script", sorted(SLURM.glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    found = subprocess.run([BIN / "shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_a_dry_run_of_fine_tuning(cluster: dict[str, str]) -> None:
    ended = subprocess.run(["bash", str(SLURM / "finetune.sh"), "--limit", "24", "--batch-size", "12", "--dry-run"],
                           env=cluster, capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "images_per_step: 12" in ended.stdout


def test_a_dry_run_of_an_evaluation(cluster: dict[str, str]) -> None:
    ended = subprocess.run(["bash", str(SLURM / "evaluate.sh"), "--limit", "24", "--json", "out.json", "--dry-run"],
                           env=cluster, capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "estimated_minutes:" in ended.stdout


def test_before_the_time_is_up_the_run_is_stopped_and_queued_again(cluster: dict[str, str], tmp_path: Path) -> None:
    """Slurm sends USR1 to the script; the run gets SIGTERM, and time for its step."""
    run = """#!/bin/bash
trap 'sleep 0.5; echo "stopped in order" >> "$LOG"; exit 143' TERM
echo begun >> "$LOG"
while true; do sleep 0.05; done
"""
    (tmp_path / "bin" / "torchrun").write_text(run)
    (tmp_path / "bin" / "torchrun").chmod(0o755)
    log = Path(cluster["LOG"])
    with subprocess.Popen(["bash", str(SLURM / "finetune.sh")], env=cluster) as job:
        while not (log.is_file() and "begun" in log.read_text()):
            assert job.poll() is None
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=30) == 143
    assert log.read_text().splitlines() == ["begun", "stopped in order", "requeue 7"]
