"""Eight shards one after the other beside one process: CPU time beyond start-up, as a ratio (`make bench`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from measures import seconds

from hrzs.data_options import DataOptions
from hrzs.evaluation.job import Job
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.shards import Shard
from hrzs.models.loading import load_model

pytestmark = pytest.mark.benchmark

CASES: dict[str, dict[str, Any]] = {
    "aa-2": {"attack": ("aa-2",), "matrix": False, "steps": 10, "batch_size": 16},
    "suite": {"steps": 3, "batch_size": 16},
}


@pytest.mark.parametrize("case", CASES)
def test_eight_shards_take_what_one_process_takes(case: str, tmp_path: Path) -> None:
    model, options = load_model("tiny"), EvalOptions(**CASES[case])

    def job(store: Path) -> Job:
        return Job(model, options, DataOptions.of({"data": "shapes", "limit": 256}), canaries=False, store=store)

    def one(folder: Path) -> float:
        whole = job(folder / "one")
        return seconds(lambda: whole.run())

    def many(folder: Path) -> float:
        spent, files = 0.0, [folder / shard.name for shard in Shard(1, 8).all]
        for shard, file in zip(Shard(1, 8).all, files, strict=True):
            part = job(folder / f"{shard.name}.partial")
            spent += seconds(lambda part=part, shard=shard, file=file: part.run_shard(shard, file))  # type: ignore[misc] -- defaults of a lambda
        merged = job(folder / "merged")
        merged.store.shards = files
        return spent + seconds(lambda: merged.run())

    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(3):
        for name, measure, kept in zip(("one", "many"), (one, many), times, strict=True):
            (folder := tmp_path / f"{name}-{turn}").mkdir()
            kept.append(measure(folder))
    found = min(times[1]) / min(times[0])
    print(f"\n{case}: eight shards {min(times[1]):.1f} s, one process {min(times[0]):.1f} s of CPU: {found:.3f}")
    assert found <= 1.05
