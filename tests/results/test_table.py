from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from hrzs.evaluation.rows import overall_of, rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.results.report import Report
from hrzs.results.table import grid, render


def report(evaluation: Evaluation, canaries: list[dict[str, Any]], **summary: Any) -> Report:
    found = {
        "results": msgspec.to_builtins(rows_of(evaluation)),
        "summary": {"levels": msgspec.to_builtins(overall_of(evaluation)), "canaries": canaries, **summary},
    }
    return typed(found)


def typed(report: dict[str, Any]) -> Report:
    return Report.from_json(json.dumps({"hrzs": "0", "model": {"source": "m"}, "config": {}} | report))


def test_table_shows_every_row_once(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = evaluate(level="all", steps=1)
    evaluation.run()
    rows = rows_of(evaluation)
    canaries = [
        {"dataset": "d", "name": "huge-eps", "value": 0.5, "expected": "at most 0.05", "ok": False, "note": "masked?"},
        {
            "dataset": "d",
            "name": "untouched-model",
            "value": None,
            "expected": "at most 0.25",
            "ok": None,
            "note": "not to be had",
        },
        {"dataset": "d", "name": "x", "value": None, "expected": "y", "ok": None, "note": "z", "applicable": False},
    ]
    masking = [{"dataset": "d", "verdict": "suspected", "reasons": ["9 of 60 images hold"]}]
    text = render(report(evaluation, canaries, masking=masking), 999)
    lopsided = [row for row in rows if row.constant != row.constant_balanced]
    assert lopsided
    assert text.count("±") - 1 == len(rows) + len(lopsided)  # one more in the heading
    heads = re.findall(r"level (\d) \((\d)\)", text)
    assert heads == [("0", "6"), ("1", "4"), ("2", "2")] * 2  # scored by prompts, and by leaves
    for row in rows:
        value = row.clean if row.robust is None else row.robust
        mark = "*" if row.transfer is False else " "
        assert f"{mark}{100 * value:.1f} ±" in text
        value = row.clean_balanced if row.robust is None else row.robust_balanced
        assert f"{mark}{100 * value:.1f} ±" in text
    summary = overall_of(evaluation)[0]
    assert f"any-level robust accuracy at ε {summary.eps}: {100 * summary.any_level_robust:.1f}%" in text
    assert f"  balanced: {100 * summary.any_level_robust_balanced:.1f}% [" in text
    assert "UNEXPECTED d, huge-eps: 0.500; expected at most 0.05. masked?." in text
    assert "not run    d, untouched-model: expected at most 0.25. not to be had." in text
    assert "n/a        d, x: expected y. z." in text
    assert "gradient masking on d: suspected\n  - 9 of 60 images hold\n  Do not trust" in text


def test_heads_say_how_many_nodes_have_images() -> None:
    one = {"dataset": "d", "attack": "none", "attack_level": None, "eps": None, "scoring": "prompt", "n": 2,
           "clean": 0.5, "robust": None}  # fmt: skip
    levels = [
        {"level": 0, "classes": 9, "nodes": 2},
        {"level": 1, "classes": 3, "nodes": 3},
        {"level": 2, "classes": 2},
    ]
    text = render(typed({"results": [one | level for level in levels], "summary": {}}), 999)
    assert "level 0 (2 of 9)  level 1 (3)  level 2 (2)" in text


@pytest.mark.parametrize(
    "evaluated", [{"level": "all"}, {"attack": ("leaf-pgd",), "eps": (Fraction(1, 255), Fraction(2, 255))}]
)
def test_everything_fits_80_columns(evaluate: Callable[..., Evaluation], evaluated: dict[str, Any]) -> None:
    evaluation = evaluate(steps=1, **evaluated)
    evaluation.run()
    canary = {"dataset": "d", "name": "huge-eps", "value": 0.5, "expected": "x " * 60, "ok": False, "note": "y " * 60}
    found = report(evaluation, [canary], masking="switched off " * 9)
    narrow, wide = render(found), render(found, 999)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    assert sorted(narrow.split()) == sorted(wide.split())  # only broken otherwise


def test_levels_that_do_not_fit_come_below() -> None:
    lines = grid(["a", "one", "two", "three"], [["row", "1", "2", "3"]], words=1, width=13)
    assert lines == ["a    one  two", "-------------", "row    1    2", "", "a    three", "----------", "row      3"]
    assert grid(["a", "b"], [["c", "wider than the terminal"]], words=1, width=5)[2] == "c  wider than the terminal"


def flat_row(level: int, nodes: int, constant: float) -> dict[str, Any]:
    return {"dataset": "d", "split": "val", "n": 150, "eps": None, "attack": "none", "attack_level": None, "level": level,
            "classes": nodes, "scoring": "prompt", "clean": 0.55, "robust": None, "clean_ci95": (0.5, 0.6),
            "robust_ci95": None, "nodes": nodes, "clean_balanced": 0.25, "robust_balanced": None,
            "clean_balanced_ci95": (0.2, 0.4), "robust_balanced_ci95": None, "constant": constant,
            "constant_balanced": 1 / nodes, "precision": "fp32", "transfer": None, "attacked_through": None}  # fmt: skip


def test_table_shows_what_a_constant_answer_scores() -> None:
    """Issue 14: 88 of 150 classes were one node, so naming it for every image beat all that was trained."""
    rows = [flat_row(0, 150, 1 / 150), flat_row(3, 6, 88 / 150)]
    lines = [
        line.split()
        for line in render(typed({"results": rows, "summary": {"levels": [], "canaries": []}})).splitlines()
    ]
    assert ["constant", "answer", "0.7", "58.7"] in lines
    assert ["balanced", "16.7"] in lines
    assert ["none", "(clean)", "55.0", "±5.0", "55.0", "±5.0"] in lines
    # The leaves have one image each: balanced and per image are one there.
    assert ["balanced", "25.0", "±10.0"] in lines


def test_table_of_a_report_that_knows_nothing_of_nodes() -> None:
    new = ("nodes", "constant", "balanced")
    rows = [{k: v for k, v in flat_row(0, 5, 0.2).items() if not any(part in k for part in new)}]
    text = render(typed({"results": rows, "summary": {"levels": [], "canaries": []}}))
    assert "55.0 ±5.0" in text
    assert "constant" not in text
    assert "balanced" not in text


def test_means_over_datasets_say_both() -> None:
    row = {"attack": "leaf-pgd", "attack_level": 0, "eps": "1/255", "clean": 0.5, "robust": 0.25, "clean_balanced": 0.4,
           "robust_balanced": 0.125, "constant": 0.75, "constant_balanced": 0.5}  # fmt: skip
    rows = [row | {"attack": "none", "attack_level": None, "eps": None, "robust": None, "robust_balanced": None}, row]
    mean = {"over": ["a", "b"], "missing": [], "rows": rows}
    text = render(typed({"results": [], "summary": {"levels": [], "canaries": [], "mean": mean}}))
    assert "  clean, leaves: 50.0, balanced 40.0; a constant answer: 75.0" in text
    assert "  leaf-pgd @ 0, leaves, ε 1/255: 25.0, balanced 12.5; a constant answer: 75.0" in text


def test_table_without_superclasses_or_canaries(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = evaluate(attack=("none",))
    evaluation.run()
    text = render(report(evaluation, []))
    assert "none (clean)" in text
    assert "canaries" not in text
    assert "masking" not in text
    assert "gradient masking: switched off" in render(report(evaluation, [], masking="switched off"))


def test_table_names_what_stood_in_and_what_differs(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = evaluate(attack=("aa-2",), level="all", steps=1)
    evaluation.run()
    stand_ins = evaluation.images.stand_ins()
    assert stand_ins == ["aa-2 at level 2: margin for targeted DLR: 2 classes, it needs 4"]
    row = {"dataset": "shapes", "eps": "2/255", "attack": "aa-2", "attack_level": 0, "level": 0, "scoring": "prompt",
           "this": 0.5, "other": 0.25, "difference": 0.25, "difference_ci95": (0.1, 0.4), "p": 0.001, "p_holm": 0.002}  # fmt: skip
    balanced = {"this_balanced": 0.375, "other_balanced": 0.5, "difference_balanced": -0.125,
                "difference_balanced_ci95": (-0.25, 0.0625)}  # fmt: skip
    apart = balanced | {"difference_balanced_ci95": (-0.25, -0.125)}
    rows = [row, row | {"level": 1, "p_holm": 0.2}, row | balanced | {"attack": "any-level", "p_holm": 1.0},
            row | apart | {"level": 2, "p_holm": 0.2}]  # fmt: skip
    against = {"model": "other.json", "rows": rows, "left_out": ["another suite"]}
    text = render(report(evaluation, [], stand_ins={"shapes": stand_ins}, against=against), 999)
    assert f"  note: {stand_ins[0]}" in text
    assert "against other.json, paired on the same images: 1 of 4 differences are significant" in text
    assert "balanced over nodes: 1 of 4 intervals (95%, each by itself) hold no 0" in text
    assert "aa-2 @ 0, ε 2/255, scored at level 0 by prompt: 50.0 against 25.0, difference +25.0 [+10.0, +40.0]" in text
    assert "any-level robust accuracy at ε 2/255" in text
    assert "scored at level 1" not in text
    assert "    balanced: 37.5 against 50.0, difference -12.5 [-25.0, +6.2]" in text
    assert text.count("    balanced: ") == 2
    assert "scored at level 2" in text  # apart when balanced
    assert "  not compared: another suite" in text
