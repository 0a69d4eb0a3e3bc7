from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs.errors import UsageError
from hrzs.evaluation.rows import overall_of, rows_of, truth_of
from hrzs.evaluation.runner import Evaluation
from hrzs.hierarchy.tree import Tree
from hrzs.results.certificates import certificate, smoothed
from hrzs.results.metrics import balanced, from_bits, node_weights, to_bits
from hrzs.results.report import Comparison, Report
from hrzs.results.significance import balanced_difference, holm, mcnemar, paired_interval


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


def test_balanced_difference_by_hand() -> None:
    """One node of four images, one of one: 1/8 each, and 1/2. Two images of the large node are won, the other is lost."""
    weights = node_weights(torch.tensor([0, 0, 0, 0, 1]))
    a, b = torch.tensor([True, True, True, False, False]), torch.tensor([False, False, True, False, True])
    mean, (low, high) = balanced_difference(a, b, weights)
    assert mean == 2 / 8 - 1 / 2
    variance = (2 * (1 + 1 / 4) ** 2 + 2 * (1 / 4) ** 2) / 64 + (1 - 1 / 4) ** 2 / 4
    assert high == pytest.approx(mean + 1.959964 * variance**0.5)
    assert low == -1 > mean - 1.959964 * variance**0.5  # no difference is larger
    # Per image, the first model is ahead.
    assert int(a.sum()) > int(b.sum())


images = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=40)


@given(images)
def test_balanced_difference_is_that_of_the_accuracies_and_turns(seen: list[tuple[int, bool, bool]]) -> None:
    nodes, a, b = (torch.tensor(column) for column in zip(*seen, strict=True))
    weights = node_weights(nodes)
    mean, (low, high) = balanced_difference(a, b, weights)
    assert mean == pytest.approx(balanced(a, weights) - balanced(b, weights), abs=1e-12)
    assert -1 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    back, ends = balanced_difference(b, a, weights)
    assert (back, *ends) == pytest.approx((-mean, -high, -low), abs=1e-12)
    assert balanced_difference(a, a, weights) == (0.0, (0.0, 0.0))


def test_the_interval_of_balanced_differences_covers() -> None:
    """Of 2,000 pairs drawn on lopsided nodes, nearly 95% of the intervals hold the difference they were drawn from."""
    generator = torch.Generator().manual_seed(0)
    nodes = torch.tensor([0] * 200 + [1] * 60 + [2] * 40)
    ours, theirs = torch.tensor([0.5, 0.6, 0.3])[nodes], torch.tensor([0.6, 0.4, 0.2])[nodes]
    weights, held = node_weights(nodes), 0
    for _ in range(2000):
        a, b = (torch.rand(300, generator=generator) < rate for rate in (ours, theirs))
        _, (low, high) = balanced_difference(a, b, weights)
        held += low <= (-0.1 + 0.2 + 0.1) / 3 <= high
    assert 0.93 < held / 2000 < 0.97


# -- two reports ---------------------------------------------------------------------------------------------------


def compare(report: dict[str, Any], other: dict[str, Any]) -> Comparison:
    return typed(report).against(typed(other))


def typed(report: dict[str, Any]) -> Report:
    return Report.from_json(json.dumps(report))


@pytest.fixture(scope="module")
def written(make_evaluation: Callable[..., Evaluation]) -> dict[str, Any]:
    return reported(make_evaluation(level="all", steps=1))


def reported(evaluation: Evaluation) -> dict[str, Any]:
    evaluation.run()
    found: dict[str, Any] = msgspec.to_builtins({
        "schema": 2, "hrzs": "0", "model": {"source": "a", "digest": "1"}, "config": {},
        "tasks": [evaluation.task.describe()], "results": rows_of(evaluation),
        "summary": {"levels": overall_of(evaluation), "canaries": [],
                    "truth": {evaluation.task.data.name: truth_of(evaluation)}},
    })  # fmt: skip
    return found


@pytest.fixture
def report(written: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(written)


@pytest.fixture
def other(report: dict[str, Any]) -> dict[str, Any]:
    """A model that gets the first three images of the first attacked row wrong, and the rest as the other does."""
    other = copy.deepcopy(report)
    other["model"]["source"] = "b"
    row = other["results"][6]
    right = from_bits(row["correct"], row["n"])
    right[:3] = ~right[:3]
    row["correct"] = to_bits(right)
    return other


def test_compares_row_by_row(report: dict[str, Any], other: dict[str, Any]) -> None:
    found = compare(report, other)
    assert found.model == "b"
    assert len(found.rows) == len(report["results"]) + 1  # any-level
    for i, row in enumerate(found.rows):
        assert row.only_this + row.only_other == (3 if i == 6 else 0)
        assert row.p_holm >= row.p
    changed, theirs = found.rows[6], from_bits(other["results"][6]["correct"], 24)
    assert changed.other == theirs.double().mean().item()
    assert changed.this == report["results"][6]["robust"]
    assert changed.difference == pytest.approx(changed.this - changed.other)
    assert found.rows[-1].attack == "any-level"
    assert found.rows[-1].this == report["summary"]["levels"][0]["any_level_robust"]
    assert found.left_out == ()


def test_balanced_differences_are_those_of_the_rows(report: dict[str, Any], other: dict[str, Any]) -> None:
    *rows, any_level = compare(report, other).rows
    for row, source in zip(rows, report["results"], strict=True):
        figure = "clean_balanced" if source["robust"] is None else "robust_balanced"
        assert row.this_balanced == pytest.approx(source[figure])
        assert row.difference_balanced == pytest.approx(row.this_balanced - row.other_balanced)
    assert rows[6].difference_balanced != 0
    low, high = rows[6].difference_balanced_ci95
    assert low < rows[6].difference_balanced < high
    assert any_level.this_balanced == pytest.approx(report["summary"]["levels"][0]["any_level_robust_balanced"])


def test_against_a_report_from_before_balanced_figures(report: dict[str, Any], other: dict[str, Any]) -> None:
    """The weights are those of either report, for the images and the tree are the same; any-level was another suite."""
    del other["summary"]["truth"], other["summary"]["levels"][0]["any_level_suite"]
    other["results"] = [
        {k: v for k, v in r.items() if "balanced" not in k and k != "constant"} for r in other["results"]
    ]
    for one, two in ((report, other), (other, report)):
        found = compare(one, two)
        assert len(found.rows) == len(report["results"])
        assert found.rows[6].difference_balanced is not None
        (reason,) = found.left_out
        assert "any-level robust accuracy on shapes at ε 2/255: of different suites" in reason
    del report["summary"]["truth"]
    rows = compare(report, other).rows
    assert {row.difference_balanced for row in rows} == {None}
    assert rows[6].difference != 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("image_ids", "not about the same shapes: images: something else, not"),
        ("tree_digest", "tree: "),
        ("resize", "resizing: "),
    ],
)
def test_refuses_what_is_no_pair(report: dict[str, Any], other: dict[str, Any], key: str, message: str) -> None:
    other["tasks"][0][key] = "something else"
    with pytest.raises(UsageError, match=message):
        compare(report, other)


@pytest.mark.parametrize(("name", "value"), [("steps", 99), ("norm", "l2"), ("step_size", "9/255")])
def test_attacks_of_other_effort_are_left_out(
    report: dict[str, Any], other: dict[str, Any], name: str, value: object
) -> None:
    """The same ε in another norm, or another number of steps, was compared without a word."""
    for row in other["results"]:
        if row["eps"] is not None:
            row[name] = value
    found = compare(report, other)
    assert {row.attack for row in found.rows} == {"none"}
    attacks = {(row["attack"], row["attack_level"]) for row in report["results"] if row["eps"]}
    assert len(found.left_out) == len(attacks) + 1  # any-level
    assert all(f"there with {name.replace('_', ' ')}: {value}, not " in reason for reason in found.left_out)
    for row in other["results"]:  # as an older hrzs wrote it
        row[name] = None
    assert len(compare(report, other).rows) == len(report["results"]) + 1


def test_refuses_where_nothing_is_alike(report: dict[str, Any], other: dict[str, Any]) -> None:
    for row in other["results"]:
        row["eps"] = "8/255"
    other["summary"]["levels"] = []
    with pytest.raises(UsageError, match="the two reports share no measurement"):
        compare(report, other)
    other["tasks"][0]["dataset"] = "cifar10"
    with pytest.raises(UsageError, match="that report is about cifar10, this one about shapes"):
        compare(report, other)


def test_refuses_a_report_without_images(report: dict[str, Any], other: dict[str, Any]) -> None:
    del other["results"][0]["correct"]
    with pytest.raises(UsageError, match="older hrzs"):
        compare(report, other)


def test_bits_go_by_id_whatever_the_order(evaluate: Callable[..., Evaluation]) -> None:
    """The same images in another order (another order of classes, say) are the same pairs."""
    evaluation = evaluate(attack=("none",))
    evaluation.run()
    ids, row = evaluation.task.data.ids, rows_of(evaluation)[0]
    right = (evaluation.clean.nodes[0, 0] == evaluation.labels).tolist()
    expected = [r for _, r in sorted(zip(ids, right, strict=True))]
    assert list(ids) != sorted(ids)
    assert from_bits(row.correct, row.n).tolist() == expected
    assert torch.tensor(expected).double().mean().item() == row.clean


# -- certificates --------------------------------------------------------------------------------------------------


def certified(report: dict[str, Any], tree: Tree, seed: int, sigma: float = 0.25, samples: int = 100) -> dict[str, Any]:
    """``report`` with certificates, at every level of ``tree``, from random votes that are mostly for the truth."""
    generator, (truth,) = torch.Generator().manual_seed(seed), report["summary"]["truth"].values()
    labels = torch.tensor([int(word) for word in truth["labels"].split()])
    votes = []
    for label in labels.tolist():
        other, count = (int(torch.randint(n, (), generator=generator)) for n in (6, samples // 2))
        votes.append(Counter({label: samples - count}) + Counter({other: count}))
    found = []
    for level in range(tree.height):
        one = smoothed(votes, votes, tree.ancestors[level], samples, sigma=sigma, alpha=0.001)
        chosen, held = (" ".join(map(str, numbers.tolist())) for numbers in (one.chosen, one.votes))
        found.append(certificate(
            one, tree.ancestors[level][labels], samples, sigma=sigma, level_alpha=0.001, dataset="shapes",
            split=report["tasks"][0]["split"], level=level, classes=len(tree.levels[level]), selection=samples, alpha=0.001,
            confidence="per-level", seconds=0.0, chosen=chosen, votes=held,
        ))  # fmt: skip
    return report | {"certificates": msgspec.to_builtins(found)}


def test_certified_accuracies_are_paired(evaluate: Callable[..., Evaluation], tree: Tree) -> None:
    report = reported(evaluate(attack=("none",)))
    this, other = certified(report, tree, 1), certified(report, tree, 2)
    found = compare(this, other)
    assert found.left_out == ()
    rows = [row for row in found.rows if row.attack == "certified"]
    assert len(found.rows) == len(report["results"]) + len(rows)
    one = this["certificates"][0]
    radii = [point["radius"] for point in one["certified"]]
    assert [row.eps for row in rows] == [*map(str, radii[:-1:4])] * tree.height == ["0.0", "0.25"] * tree.height
    points = [point for one in zip(this["certificates"], other["certificates"], strict=True)
              for point in [*zip(*(each["certified"] for each in one), strict=True)][:-1:4]]  # fmt: skip
    for row, (mine, theirs) in zip(rows, points, strict=True):
        assert (row.this, row.other) == (mine["value"], theirs["value"])
        assert row.this_balanced == pytest.approx(mine["balanced"])
        assert row.other_balanced == pytest.approx(theirs["balanced"])
        low, high = row.difference_ci95
        assert low <= row.difference <= high
    assert any(row.only_this and row.only_other for row in rows)
    assert rows[1].title == "certified at level 0, ℓ2 radius 0.25"
    # All of them stand in the table, and on the page.
    text = str(typed(this | {"summary": report["summary"] | {"against": msgspec.to_builtins(found)}}))
    assert text.count("certified at level") == len(rows)


def test_certificates_of_another_kind_are_left_out(evaluate: Callable[..., Evaluation], tree: Tree) -> None:
    report = reported(evaluate(attack=("none",)))
    this = certified(report, tree, 1)
    for other, reason in (
        (certified(report, tree, 1, sigma=0.5), "σ 0.25, 100 samples .*; there σ 0.5, 100 samples .*certify one"),
        (
            certified(report, tree, 1, samples=200),
            "100 samples and 100 to select, α 0.001 per-level; there σ 0.25, 200",
        ),
        (report, "certificates on shapes: only one of the two reports has them"),
    ):
        found = compare(this, other)
        assert {row.attack for row in found.rows} == {"none"}
        (said,) = found.left_out
        assert re.search(reason, said)
    assert compare(report, this).left_out == found.left_out
