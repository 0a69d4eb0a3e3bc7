from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hrzs.errors import HrzsError, UsageError
from hrzs.models.saving import file_digest
from hrzs.training.checkpoints import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def save(folder: Path, *steps: int) -> list[Path]:
    return [save_checkpoint(folder, {"step": step, "weights": torch.full((3,), float(step))}) for step in steps]


def step(folder: Path) -> int | None:
    state = load_checkpoint(folder, CPU)
    return None if state is None else state["step"]


def test_the_last_two_are_kept_under_their_digests(tmp_path: Path) -> None:
    paths = save(tmp_path, 5, 10, 100)
    assert sorted((tmp_path / "checkpoint").iterdir()) == paths[1:]
    assert all(path.name.split(".")[1] == file_digest(path)[:16] for path in paths[1:])
    state = load_checkpoint(tmp_path, CPU)
    assert state is not None
    assert state["step"] == 100
    assert state["weights"].tolist() == [100.0] * 3


def test_none_yet(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, CPU) is None


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:0], lambda b: b[:100] + b"x" + b[101:]])
def test_whatever_is_not_whole_is_passed_over(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    before, last = save(tmp_path, 1, 2)
    last.write_bytes(damage(last.read_bytes()))
    assert step(tmp_path) == 1
    assert f"{last} is damaged" in caplog.text
    before.write_bytes(damage(before.read_bytes()))
    with pytest.raises(UsageError, match=r"step-00000002\..*\.pt is damaged, .*delete it to start anew"):
        load_checkpoint(tmp_path, CPU)


def test_what_was_being_written_counts_for_nothing(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    (path.parent / ".aside").write_bytes(b"half a checkpoint")
    assert step(tmp_path) == 1
    save(tmp_path, 2)
    assert not (path.parent / ".aside").exists()


def test_a_full_disk_leaves_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(HrzsError, match=r"could not be written .*No space left.*untouched"):
            save(tmp_path, 2)
    assert [path.name[:13] for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000001"]
    assert step(tmp_path) == 1


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_code_is_executed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 1, "model": Malicious(tmp_path / "owned")})
    with pytest.raises(UsageError, match=r"(?s)is no checkpoint .*[Ww]eights.only"):
        load_checkpoint(tmp_path, CPU)
    assert not (tmp_path / "owned").exists()
