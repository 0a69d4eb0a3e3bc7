"""However many processes share the batches, a run ends with the weights of one process. Real processes, as torchrun starts them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

SCRIPT = Path(__file__).parent / "several_processes.py"


def _cases() -> list[tuple[str, int]]:
    spec = importlib.util.spec_from_file_location("several_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(case, count) for count in (2, 3) for case in module.COUNTS[count]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders 1, 2 and 3 with what so many processes made; made once for all workers of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder = shared / "several-processes"
    with FileLock(shared / "several-processes.lock"):
        if not folder.exists():
            folder.mkdir()
            subprocess.run(
                [sys.executable, str(SCRIPT), str(folder)],
                check=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1", "HRZS_CACHE": "0"},
            )  # fmt: skip
    return folder


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["weights"].keys() == other["weights"].keys()
    for name, value in one["weights"].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(other["weights"][name], value, rtol=0, atol=1e-10)
    assert (one["best"], one["best_file"]) == (other["best"], other["best_file"])
    assert len(one["log"]) == len(other["log"]) == 3
    for row, theirs in zip(one["log"], other["log"], strict=True):
        assert row.keys() == theirs.keys()
        for name in row.keys() - {"seconds"}:
            assert theirs[name] == (pytest.approx(row[name], abs=1e-10) if isinstance(row[name], float) else row[name])


@pytest.mark.parametrize(("case", "count"), _cases())
def test_weights_and_log_are_those_of_one_process(runs: Path, case: str, count: int) -> None:
    assert_same(torch.load(runs / "1" / f"{case}.pt"), torch.load(runs / str(count) / f"{case}.pt"))


@pytest.mark.parametrize("count", [2, 3])
def test_a_checkpoint_goes_on_with_another_number_of_processes(runs: Path, count: int) -> None:
    """Made by one process less, and stopped by a signal to one of them."""
    assert_same(torch.load(runs / "1" / "class means.pt"), torch.load(runs / str(count) / "resumed.pt"))


def test_the_best_by_validation_is_kept(runs: Path) -> None:
    assert torch.load(runs / "3" / "validation.pt")["best_file"]
