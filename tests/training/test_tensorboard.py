from __future__ import annotations

from pathlib import Path

import pytest

from hrzs.training import tensorboard

ROW = {"step": 2, "loss": 1.5, "validation": {"robust": [0.5, 0.25], "n": 4, "best": True}, "note": "text"}
SCALARS = {"step": 2.0, "loss": 1.5, "validation/robust/level_0": 0.5, "validation/robust/level_1": 0.25,
           "validation/n": 4.0, "validation/best": 1.0}  # fmt: skip


def test_every_number_has_a_name() -> None:
    assert dict(tensorboard.scalars(ROW)) == SCALARS


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_what_tensorboard_reads_back(tmp_path: Path) -> None:
    for start in (0, 1):  # the second goes on from step 1, and writes steps 2 and 3 again
        board = tensorboard.open_writer(tmp_path, start)
        assert board is not None
        for step in range(start + 1, 4):
            board.write(step, {"loss": step + start / 2})
        board.close()
    assert read(tmp_path / "tensorboard")["loss"] == [(1, 1.0), (2, 2.5), (3, 3.5)]


def test_where_it_is_not_installed_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda _: None)
    assert tensorboard.open_writer(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []
