from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.rows import overall_of, rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.shards import MOST, WHOLE, Shard, begun, blocks, kept_file

Evaluate = Callable[..., Evaluation]
SUITE: dict[str, Any] = {"level": "all", "batch_size": 3}
SHRINKING: dict[str, Any] = {"attack": ("aa-2",), "level": 0, "steps": 2, "batch_size": 3, "matrix": False}
AUTOATTACK: dict[str, Any] = SHRINKING | {"attack": ("autoattack",), "steps": 2}


@given(st.integers(1, 5000), st.integers(1, 600), st.booleans(), st.integers(1, 70), st.integers(0, 9))
def test_every_image_is_in_one_shard(n: int, batch_size: int, shrink: bool, of: int, first: int) -> None:
    whole = blocks(n, batch_size, shrink=shrink)
    assert [row for block in whole for row in block] == list(range(n))
    assert len(whole) <= MOST
    assert all(len(block) % batch_size == 0 for block in whole[:-1])
    shares = [shard.share(whole, first) for shard in Shard(1, of).all]
    assert sorted(row for share in shares for block in share for row in block) == list(range(n))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("n", "batch_size", "shrink", "count"),
    [(1000, 128, False, 8), (1000, 128, True, 8), (384, 16, False, 24), (384, 16, True, 8), (10_000, 128, False, 40),
     (10_000, 128, True, 16), (50_000, 128, False, 56), (50_000, 128, True, 56), (24, 128, True, 1)],
)  # fmt: skip
def test_blocks_are_many_enough_to_share_and_large_enough_to_fill(
    n: int, batch_size: int, shrink: bool, count: int
) -> None:
    assert len(blocks(n, batch_size, shrink=shrink)) == count


def test_further_data_goes_to_those_that_had_less() -> None:
    """Of two data sets of one block each, two shards have one each."""
    assert [Shard(k, 2).share(["a"], 0) for k in (1, 2)] == [["a"], []]
    assert [Shard(k, 2).share(["b"], 1) for k in (1, 2)] == [[], ["b"]]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="K/N with K from 1 to N is needed"):
        Shard.parse(text)


def test_files_tell_which_shards_have_begun(tmp_path: Path) -> None:
    target = tmp_path / "a+b.json"
    assert begun(tmp_path / "none", "") == []
    kept_file(target, Shard(3, 8)).touch()
    kept_file(target, Shard(1, 8)).with_suffix(".partial").touch()  # of another name
    (tmp_path / f"{kept_file(target, Shard(2, 8)).name}.partial").touch()
    (tmp_path / f".{kept_file(target, Shard(5, 8)).name}.partial.lock").touch()
    kept_file(tmp_path / "aab.json", Shard(4, 8)).touch()
    assert [shard.number for shard in begun(tmp_path, "a+b.json.") if shard != Shard(1, 8)] == [2, 3]


# -- the same as one process ---------------------------------------------------------------------------------------


def figures(evaluation: Evaluation) -> Any:
    rows = [msgspec.structs.replace(row, seconds=None) for row in rows_of(evaluation)]
    return rows, overall_of(evaluation), evaluation.gradients


def run_shards(evaluate: Evaluate, folder: Path, of: int, options: dict[str, Any]) -> Evaluation:
    """All shards in a row, the last one first; then what they have done, put together."""
    files = [folder / shard.name for shard in Shard(1, of).all]
    for shard, file in reversed(list(zip(Shard(1, of).all, files, strict=True))):
        evaluate(file, **options).run(shard=shard)
    merged = evaluate(folder / "merged", **options)
    merged.store.shards = files
    return merged


@pytest.mark.parametrize("options", [SUITE, SHRINKING, AUTOATTACK], ids=["suite", "aa-2", "autoattack"])
def test_shards_give_what_one_process_gives(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    whole = evaluate(**options)
    whole.run()
    for of in (1, 3, 8) if options is SHRINKING else (3,):
        (folder := tmp_path / str(of)).mkdir()
        merged = run_shards(evaluate, folder, of, options)
        monkeypatch.setattr(merged, "_attack", lambda *_: pytest.fail("attacked again"))
        merged.run()
        assert figures(merged) == figures(whole)
        for unit in whole.units:
            for name in ("nodes", "success", "distances"):
                assert torch.equal(*(getattr(e.predictions[unit.key], name) for e in (whole, merged)))
        assert [*folder.glob("merged")] == []


def test_a_shard_works_on_its_share_only(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation, done, seen = evaluate(**SHRINKING), [], []
    attack = evaluation._attack
    monkeypatch.setattr(
        evaluation, "_attack", lambda unit, part, batch: (done.extend(batch.ids), attack(unit, part, batch))[1]
    )
    shard = Shard(2, 3)
    total = evaluation.passes(shard)
    evaluation.run(lambda now, all_, _: seen.append((now, all_)), shard)
    mine = {evaluation.task.data.ids[i] for block in evaluation.blocks(shard) for i in block.tolist()}
    assert {*done} == mine
    assert 0 < len(mine) < 24
    assert seen[-1][0] == seen[-1][1] <= total < evaluation.passes(WHOLE)


def test_what_is_in_no_shard_is_an_error(evaluate: Evaluate, tmp_path: Path) -> None:
    merged = run_shards(evaluate, tmp_path, 3, SHRINKING)
    merged.store.shards = merged.store.shards[:2]
    with pytest.raises(HrzsError, match="is in none of them"):
        merged.run()


def test_shards_of_another_batch_size_are_named(evaluate: Evaluate, tmp_path: Path) -> None:
    merged = run_shards(evaluate, tmp_path, 2, SHRINKING)
    second = tmp_path / Shard(2, 2).name
    second.unlink()
    evaluate(second, **(SHRINKING | {"batch_size": 4})).run(shard=Shard(2, 2))
    with pytest.raises(UsageError, match="begun with --batch-size 4, and shard-1-of-2 with 3"):
        merged.run()


def test_a_shard_goes_on_in_its_own_blocks(evaluate: Evaluate, tmp_path: Path) -> None:
    """With another batch size the blocks stay what they were."""
    whole = evaluate(**SHRINKING)
    whole.run()
    merged = run_shards(evaluate, tmp_path, 2, SHRINKING)
    first = tmp_path / Shard(1, 2).name
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(b"".join(lines[:9]))
    evaluate(first, **(SHRINKING | {"batch_size": 24})).run(shard=Shard(1, 2))
    merged.run()
    assert merged.blocks()[0].tolist() == [0, 1, 2]
    assert figures(merged)[0] == figures(whole)[0]
