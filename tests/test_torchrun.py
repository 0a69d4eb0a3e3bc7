from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from hrzs import torchrun
from hrzs.errors import UsageError
from hrzs.torchrun import Place

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_a_process_is_the_first_of_one() -> None:
    assert torchrun.place() == Place(0, 1, 0)
    assert torchrun.is_first()
    assert not torchrun.is_watched()
    assert torchrun.restarts() == 0


def test_the_place_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES, ("5", "8", "1", "2", "none"), strict=False):
        monkeypatch.setenv(name, value)
    assert torchrun.place() == Place(5, 8, 1)
    assert not torchrun.is_first()
    assert torchrun.is_watched()
    assert torchrun.restarts() == 2


@pytest.mark.parametrize(
    "world",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"WORLD_SIZE": "2", "RANK": "-1"}],
    ids=str,
)
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, world: dict[str, str]) -> None:
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"RANK|WORLD_SIZE"):
        torchrun.place()


def test_torchrun_reads_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    torchrun.tell("nobody listens")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    torchrun.tell("no such --data")
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(file))
    assert failure.message == json.loads(file.read_text())["message"]
    assert failure.message["extraInfo"]["py_callstack"] == "no such --data"
    assert failure.timestamp > 1.7e9
