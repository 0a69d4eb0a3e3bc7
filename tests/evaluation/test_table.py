from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.table import render


def report(evaluation: Evaluation, canaries: list[dict[str, Any]], **summary: Any) -> dict[str, Any]:
    return {
        "results": evaluation.rows(),
        "summary": {"levels": evaluation.summary(), "canaries": canaries, **summary},
    }


def test_table_shows_every_row_once(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = evaluate(level="all", steps=1)
    evaluation.run()
    rows = evaluation.rows()
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
    text = render(report(evaluation, canaries, masking=masking))
    assert text.count("±") - 1 == len(rows)  # one more in the heading
    assert "level 0 (6)  level 1 (4)  level 2 (2)" in text
    for row in rows:
        value = row["clean"] if row["robust"] is None else row["robust"]
        mark = "*" if row["transfer"] is False else " "
        assert f"{mark}{100 * value:.1f} ±" in text
    summary = evaluation.summary()[0]
    assert f"any-level robust accuracy at ε {summary['eps']}: {100 * summary['any_level_robust']:.1f}%" in text
    assert "UNEXPECTED d, huge-eps: 0.500; expected at most 0.05. masked?." in text
    assert "not run    d, untouched-model: expected at most 0.25. not to be had." in text
    assert "n/a        d, x: expected y. z." in text
    assert "gradient masking on d: suspected\n  - 9 of 60 images hold\n  Do not trust" in text


def test_table_without_superclasses_or_canaries(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = evaluate(attacks=("none",))
    evaluation.run()
    text = render(report(evaluation, []))
    assert "none (clean)" in text
    assert "canaries" not in text
    assert "masking" not in text
    assert "gradient masking: switched off" in render(report(evaluation, [], masking="switched off"))


def test_table_names_what_stood_in_and_what_differs(evaluate: Callable[..., Evaluation]) -> None:
    evaluation = evaluate(attacks=("aa-2",), level="all", steps=1)
    evaluation.run()
    stand_ins = evaluation.stand_ins()
    assert stand_ins == ["aa-2 at level 2: margin for targeted DLR: 2 classes, it needs 4"]
    row = {"dataset": "shapes", "eps": "2/255", "attack": "aa-2", "attack_level": 0, "level": 0, "scoring": "prompt",
           "this": 0.5, "other": 0.25, "difference": 0.25, "difference_ci95": (0.1, 0.4), "p": 0.001, "p_holm": 0.002}  # fmt: skip
    rows = [row, row | {"level": 1, "p_holm": 0.2}, row | {"attack": "any-level", "p_holm": 1.0}]
    against = {"model": "other.json", "rows": rows}
    text = render(report(evaluation, [], stand_ins={"shapes": stand_ins}, against=against))
    assert f"  note: {stand_ins[0]}" in text
    assert "against other.json, paired on the same images: 1 of 3 differences are significant" in text
    assert "aa-2 @ 0, ε 2/255, scored at level 0 by prompt: 50.0 against 25.0, difference +25.0 [+10.0, +40.0]" in text
    assert "any-level robust accuracy at ε 2/255" in text
    assert "scored at level 1" not in text
