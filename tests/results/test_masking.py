from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hrzs.results.masking import (
    _SIGNS,
    ADVICE,
    INCONCLUSIVE,
    NONE_FOUND,
    SUSPECTED,
    Canary,
    least_count,
    power,
    power_table,
    verdict_of,
    verdicts,
)
from hrzs.results.metrics import wilson


def canary(name: str, count: int = 0, of: int = 60, bound: float = 0.05, **fields: Any) -> Canary:
    ok = wilson(count, of)[0] <= bound
    return Canary(name, count / of, "?", ok, "the note", "shapes", count, of, bound, **fields)


GOOD = [canary("untouched-model", 3, 64, 0.25), *(canary(name) for name in _SIGNS)]


def with_(changed: Canary) -> list[Canary]:
    assert changed.name in {c.name for c in GOOD}
    return [changed if c.name == changed.name else c for c in GOOD]


def test_none_found() -> None:
    verdict, reasons = verdict_of(GOOD)
    assert verdict == NONE_FOUND
    assert reasons == (f"{len(_SIGNS)} signs were looked for: none on 60 images",)
    verdict, reasons = verdict_of(with_(canary("margin-vs-ce", 2)))
    assert verdict == NONE_FOUND
    assert "the largest is margin-vs-ce, 2 of 60 images" in reasons[0]


@pytest.mark.parametrize("name", _SIGNS)
def test_one_sure_sign_is_enough(name: str) -> None:
    verdict, reasons = verdict_of(with_(canary(name, 20)))
    assert verdict == SUSPECTED
    assert len(reasons) == 1
    assert "{" not in reasons[0]
    assert ("the note" if name == "dead-gradients" else "20 of 60 images") in reasons[0]


def test_every_sign_is_a_reason_and_doubts_are_not_added() -> None:
    found = [canary("huge-eps", 50), canary("square-vs-white-box", 50), canary("noise-vs-white-box", 4)]
    verdict, reasons = verdict_of(found)
    assert verdict == SUSPECTED
    assert len(reasons) == 2


@pytest.mark.parametrize("name", _SIGNS)
def test_a_sign_that_may_be_chance_is_inconclusive(name: str) -> None:
    """4 of 60 are 6.7%, the interval starts at 2.6%."""
    verdict, reasons = verdict_of(with_(canary(name, 4)))
    assert verdict == INCONCLUSIVE
    assert name in reasons[0]
    assert "4 of 60" in reasons[0]
    assert "chance" in reasons[0]


@pytest.mark.parametrize(("count", "verdict"), [(1, INCONCLUSIVE), (2, INCONCLUSIVE), (3, SUSPECTED)])
def test_one_or_two_images_raise_no_suspicion(count: int, verdict: str) -> None:
    """All of 2 lie surely above 5%, says the interval."""
    found = canary("cosine-head", count, count)
    assert found.ok is False
    assert verdict_of(with_(found))[0] == verdict


def test_what_was_not_run_is_inconclusive_and_what_does_not_apply_is_not() -> None:
    missing = Canary("transfer-vs-white-box", None, "?", None, "not run: no weights", "shapes")
    assert verdict_of(with_(missing)) == (INCONCLUSIVE, ("transfer-vs-white-box: not run: no weights",))
    assert verdict_of(with_(replace(missing, applicable=False)))[0] == NONE_FOUND


@pytest.mark.parametrize(("of", "verdict"), [(15, INCONCLUSIVE), (16, NONE_FOUND)])
def test_few_images_say_nothing(of: int, verdict: str) -> None:
    found = [canary(name, 0, 10_000 if name == "dead-gradients" else of) for name in _SIGNS]
    assert verdict_of(found)[0] == verdict
    if verdict == INCONCLUSIVE:
        assert "only 15 images" in verdict_of(found)[1][0]
        assert "20%" in verdict_of(found)[1][0]


def test_an_untouched_model_that_holds_is_a_doubt_about_the_attack_not_about_the_gradients() -> None:
    verdict, reasons = verdict_of(with_(canary("untouched-model", 50, 64, 0.25)))
    assert verdict == INCONCLUSIVE
    assert "50 of 64 images" in reasons[0]
    assert "too weak" in reasons[0]


def test_one_verdict_for_each_dataset() -> None:
    there = [replace(c, dataset="b") for c in with_(canary("huge-eps", 50))]
    found = verdicts([*GOOD, *there])
    assert [(v.dataset, v.verdict) for v in found] == [("shapes", NONE_FOUND), ("b", SUSPECTED)]
    assert verdicts([]) == []
    assert {v.verdict for v in found} < ADVICE.keys() == {NONE_FOUND, SUSPECTED, INCONCLUSIVE}


# -- superclasses -----------------------------------------------------------------------------------------------------


def test_a_sign_at_a_superclass_level_names_it() -> None:
    verdict, reasons = verdict_of([*GOOD, canary("margin-vs-ce@3", 20, level=3)])
    assert verdict == SUSPECTED
    assert len(reasons) == 1
    assert reasons[0].startswith("20 of 60 images at level 3 fall to")
    one_step = verdict_of([*GOOD, canary("one-step-vs-iterative@3", 20, level=3)])[1][0]
    assert "superclass-pgd" in one_step
    assert "leaf-pgd" not in one_step


def test_few_images_at_a_superclass_level_say_nothing() -> None:
    verdict, reasons = verdict_of([*GOOD, canary("margin-vs-ce@1", 0, 15, level=1)])
    assert verdict == INCONCLUSIVE
    assert reasons == (
        "only 15 images are right when clean at level 1: had none of them given a sign, up to 20% of all images "
        "still might",
    )


# -- what the rule notices ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "share"), [(16, 0.3), (30, 0.1), (64, 0.05), (64, 0.2)])
def test_power_is_how_often_the_verdict_is_suspected(images: int, share: float) -> None:
    """By simulation, through the verdict itself."""
    draws = 2000
    counts = (torch.rand(draws, images, generator=torch.Generator().manual_seed(0)) < share).sum(1).tolist()
    verdict = {n: verdict_of([canary("margin-vs-ce", n, images)])[0] for n in set(counts)}
    found = sum(verdict[n] == SUSPECTED for n in counts) / draws
    expected = power(share, images)
    assert abs(found - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5 + 1e-9


def test_power_at_its_ends() -> None:
    assert (least_count(2), power(1.0, 2)) == (None, 0.0)
    assert (least_count(16), least_count(64)) == (3, 7)
    assert (power(0.0, 64), power(1.0, 64)) == (0.0, 1.0)
    assert power(0.05, 64) < 0.05 < power(0.2, 64)


def test_the_table_of_power_is_the_one_in_the_documentation() -> None:
    page = Path(__file__).parents[2] / "docs/evaluation.md"
    assert power_table() in page.read_text(encoding="utf-8")
