from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.evaluation.metrics import from_bits, to_bits
from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.significance import compare, holm, mcnemar, paired_interval, read_report


def test_interval_of_the_paper() -> None:
    """Newcombe, Stat. Med. 1998 (17: 2635), table II, first column: 36, 12, 2, 0 of 50 by method 10."""
    assert paired_interval(48, 38, 12, 2, 50) == pytest.approx((0.0569, 0.3404), abs=5e-5)


counts = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@given(counts)
def test_interval_holds_the_difference_and_turns_with_it(table: tuple[int, int, int, int]) -> None:
    both, only_a, only_b, _neither = table
    n = sum(table)
    low, high = paired_interval(both + only_a, both + only_b, only_a, only_b, n)
    assert -1 - 1e-9 <= low <= (only_a - only_b) / n + 1e-9
    assert (only_a - only_b) / n - 1e-9 <= high <= 1 + 1e-9
    turned = paired_interval(both + only_b, both + only_a, only_b, only_a, n)
    assert turned == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("only_a", "only_b", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (9, 1, 22 / 1024)])
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    """Two tails of a fair coin: 2 · (1 + 10) / 2¹⁰ for nine against one."""
    assert mcnemar(only_a, only_b) == pytest.approx(p)
    assert mcnemar(only_b, only_a) == pytest.approx(p)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# -- two reports ---------------------------------------------------------------------------------------------------


@pytest.fixture
def report(evaluate: Callable[..., Evaluation]) -> dict[str, Any]:
    evaluation = evaluate(level="all", steps=1)
    evaluation.run()
    return {
        "model": {"source": "a", "digest": "1"}, "config": {"tasks": [evaluation.task.describe()]},
        "results": evaluation.rows(), "summary": {"levels": evaluation.summary(), "canaries": []},
    }  # fmt: skip


@pytest.fixture
def other(report: dict[str, Any]) -> dict[str, Any]:
    """A model that gets the first three images of the first attacked row wrong, and the rest as the other does."""
    other = copy.deepcopy(report)
    other["model"]["source"] = "b"
    row = other["results"][6]
    right = from_bits(row["right"], row["n"])
    right[:3] = ~right[:3]
    row["right"] = to_bits(right)
    return other


def test_compares_row_by_row(report: dict[str, Any], other: dict[str, Any]) -> None:
    found = compare(report, other)
    assert found["model"] == "b"
    assert len(found["rows"]) == len(report["results"]) + 1  # any-level
    for i, row in enumerate(found["rows"]):
        assert row["only_this"] + row["only_other"] == (3 if i == 6 else 0)
        assert row["p_holm"] >= row["p"]
    changed, theirs = found["rows"][6], from_bits(other["results"][6]["right"], 24)
    assert changed["other"] == theirs.double().mean().item()
    assert changed["this"] == report["results"][6]["robust"]
    assert changed["difference"] == pytest.approx(changed["this"] - changed["other"])
    assert found["rows"][-1]["attack"] == "any-level"
    assert found["rows"][-1]["this"] == report["summary"]["levels"][0]["any_level_robust"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("key", "message"),
    [("image_ids", "other images of shapes"), ("tree_digest", "another tree"), ("resize", "another resizing")],
)
def test_refuses_what_is_no_pair(report: dict[str, Any], other: dict[str, Any], key: str, message: str) -> None:
    other["config"]["tasks"][0][key] = "something else"
    with pytest.raises(UsageError, match=message):
        compare(report, other)


def test_refuses_where_nothing_is_alike(report: dict[str, Any], other: dict[str, Any]) -> None:
    for row in other["results"]:
        row["eps"] = "8/255"
    other["summary"]["levels"] = []
    with pytest.raises(UsageError, match="no row of that report has its like"):
        compare(report, other)
    other["config"]["tasks"][0]["dataset"] = "cifar10"
    with pytest.raises(UsageError, match="that report is about cifar10, this one about shapes"):
        compare(report, other)


def test_refuses_a_report_without_images(report: dict[str, Any], other: dict[str, Any]) -> None:
    del other["results"][0]["right"]
    with pytest.raises(UsageError, match="older hrzs"):
        compare(report, other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": []}'])
def test_refuses_what_is_no_report(text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    with pytest.raises(UsageError, match=r"--against .*not a readable report"):
        read_report(file)
    file.write_text(text)
    with pytest.raises(UsageError, match="--against"):
        read_report(file)


def test_bits_go_by_id_whatever_the_order(evaluate: Callable[..., Evaluation]) -> None:
    """The same images in another order (another order of classes, say) are the same pairs."""
    evaluation = evaluate(attacks=("none",))
    evaluation.run()
    ids, row = evaluation.task.data.ids, evaluation.rows()[0]
    right = (evaluation.clean.nodes[0, 0] == evaluation.labels).tolist()
    expected = [r for _, r in sorted(zip(ids, right, strict=True))]
    assert list(ids) != sorted(ids)
    assert from_bits(row["right"], row["n"]).tolist() == expected
    assert torch.tensor(expected).double().mean().item() == row["clean"]
