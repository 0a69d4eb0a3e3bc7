from __future__ import annotations

from collections.abc import Callable

from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.table import render


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
    text = render(rows, evaluation.summary(), canaries, masking)
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
    text = render(evaluation.rows(), evaluation.summary(), [])
    assert "none (clean)" in text
    assert "canaries" not in text
    assert "masking" not in text
    assert "gradient masking: switched off" in render(evaluation.rows(), evaluation.summary(), [], "switched off")
