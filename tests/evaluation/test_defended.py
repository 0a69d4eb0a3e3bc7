"""A model behind defences at test time: what an adversary sees of it, how it is judged, and what a report says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor

import hrzs
from hrzs.attacks import sample_seeds
from hrzs.defences import Defence, Purifier, Undefended
from hrzs.errors import UsageError
from hrzs.evaluation import canaries
from hrzs.evaluation.canaries import run_canaries
from hrzs.evaluation.rows import overall_of, rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.results.masking import verdicts
from hrzs.results.metrics import correct, from_bits
from hrzs.results.report import Report, Row
from hrzs.results.significance import gaps

Evaluate = Callable[..., Evaluation]


@dataclass(frozen=True)
class Nothing(Purifier):
    """The images as they are."""

    name: ClassVar[str] = "nothing"

    def purify(self, images: Float[Tensor, "B 3 H W"], _: Undefended, seeds: Sequence[int]) -> Float[Tensor, "B 3 H W"]:
        assert len(seeds) == len(images)
        return images


@dataclass(frozen=True)
class Dither(Nothing):
    """A little noise of its own for every image."""

    name: ClassVar[str] = "dither"

    def purify(self, images: Float[Tensor, "B 3 H W"], _: Undefended, seeds: Sequence[int]) -> Float[Tensor, "B 3 H W"]:
        noise = [torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return (images + 0.05 * torch.stack(noise)).clamp(0, 1)


def run(evaluation: Evaluation) -> list[Row]:
    evaluation.run()
    return [msgspec.structs.replace(row, seconds=None) for row in rows_of(evaluation)]


def test_behind_nothing_both_adversaries_find_what_is_found_without(evaluate: Evaluate) -> None:
    options = {"attack": ("leaf-pgd", "apgd-t"), "steps": 4, "level": 0}
    bare, behind = run(evaluate(**options)), run(evaluate(**options, defence=(Nothing(),)))
    for adversary in ("static", "adaptive"):
        same = [r for r in behind if r.adversary in (None, adversary)]
        assert [(r.attack, r.level, r.correct) for r in same] == [(r.attack, r.level, r.correct) for r in bare]
    assert {row.defence for row in behind} == {"nothing"}
    assert {row.transfer for row in behind if row.adversary == "static"} == {True}
    assert {row.transfer for row in behind if row.adversary == "adaptive" and row.level == 0} == {False}


@pytest.mark.parametrize("matrix", [True, False])
def test_verdicts_depend_on_neither_batches_nor_order(evaluate: Evaluate, matrix: bool) -> None:
    options = {"attack": ("cw",), "level": 1, "defence": (Dither(),), "scoring": "prompt", "matrix": matrix}
    found = {size: run(evaluate(**options, batch_size=size)) for size in (5, 24)}
    assert found[5] == found[24]


def test_an_adaptive_row_counts_what_holds_under_both(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), level=0, defence=(Dither(),), eot=2)
    rows = run(evaluation)
    static, adaptive = (evaluation.predictions[unit.key].success for unit in evaluation.units[1:])
    (row,) = (r for r in rows if r.adversary == "adaptive" and r.level == 0)
    held = from_bits(row.correct or "", row.n)
    assert torch.equal(held, (~static & ~adaptive)[evaluation.by_id] & held)
    assert (static | adaptive).any()
    assert not (held & (static | adaptive)[evaluation.by_id]).any()


def test_the_adversary_never_draws_what_judges_the_image(evaluate: Evaluate) -> None:
    drawn: dict[str, set[int]] = {"verdict": set(), "attack": set()}

    @dataclass(frozen=True)
    class Watched(Nothing):
        needs_eot: ClassVar[bool] = True

        def purify(
            self, images: Float[Tensor, "B 3 H W"], _: Undefended, seeds: Sequence[int]
        ) -> Float[Tensor, "B 3 H W"]:
            drawn["attack" if images.requires_grad else "verdict"] |= set(seeds)
            return images

    evaluation = evaluate(attack=("leaf-pgd",), level=0, defence=(Watched(),), eot=2, steps=3)
    evaluation.run()
    judging = set(sample_seeds(evaluation.task.data.ids, 0, "verdict"))
    assert judging <= drawn["verdict"]
    attacked = int(evaluation.images.worth(evaluation.units[2], correct_when_clean(evaluation)).sum())
    assert len(drawn["attack"]) == attacked * 3 * 2
    assert not judging & drawn["attack"]


def test_an_adversary_who_knows_the_draw_meets_no_other(evaluate: Evaluate) -> None:
    drawn: set[int] = set()

    @dataclass(frozen=True)
    class Watched(Dither):
        needs_eot: ClassVar[bool] = True

        def purify(
            self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]
        ) -> Float[Tensor, "B 3 H W"]:
            drawn.update(seeds)
            return super().purify(images, undefended, seeds)

    evaluation = evaluate(attack=("leaf-pgd",), level=0, defence=(Watched(),), draw="known")
    evaluation.run()
    assert drawn == set(sample_seeds(evaluation.task.data.ids, 0, "verdict"))


def correct_when_clean(evaluation: Evaluation) -> Bool[Tensor, "s levels n"]:
    return correct(evaluation.task.tree, evaluation.labels, evaluation.clean.nodes)


def test_any_level_figures_are_those_of_each_adversary(evaluate: Evaluate) -> None:
    evaluation = evaluate(level="all", defence=(Dither(),), steps=2)
    evaluation.run()
    static, adaptive = overall_of(evaluation)
    assert (static.adversary, adaptive.adversary) == ("static", "adaptive")
    held = [from_bits(one.any_level_correct or "", 24) for one in (static, adaptive)]
    assert not (held[1] & ~held[0]).any()


@pytest.fixture(scope="module")
def undefended() -> Report:
    return evaluated()


def evaluated(defence: str | Defence | None = None, **options: object) -> Report:
    given = {"data": "shapes", "limit": 40, "attack": "leaf-pgd", "level": 0, "steps": 10, "matrix": False}
    return hrzs.evaluate(hrzs.load("tiny"), **{**given, "defence": defence, "canaries": False, **options})


@pytest.mark.parametrize("defence", ["quantise:values=5", "noise:sigma=20"])
def test_what_defends_against_nothing_falls_and_its_static_figure_is_suspected(
    defence: str, undefended: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canaries, "QUERIES", 10)
    monkeypatch.setattr(canaries, "IMAGES", 16)
    report = evaluated(defence, canaries=True, eot=2)
    by = {row.adversary: row for row in report.results if row.level == 0 and row.attack == "leaf-pgd"}
    (bare,) = (row for row in undefended.results if row.attack == "leaf-pgd")
    static, adaptive, without = (row.robust or 0.0 for row in (by["static"], by["adaptive"], bare))
    assert adaptive <= without + 0.05
    assert adaptive < static
    verdict = {found.adversary: found for found in report.summary.masking if not isinstance(found, str)}
    assert verdict["static"].verdict == "suspected"
    assert "report the adaptive ones" in verdict["static"].advice
    assert verdict["adaptive"].verdict != "suspected"
    assert report.summary.defending is not None
    (gap,) = report.summary.defending.gaps
    assert gap.difference == pytest.approx(adaptive - static)
    assert gap.difference_ci95[0] < gap.difference < gap.difference_ci95[1]
    assert gaps(report) == (gap,)
    # Beside a report without defences each adversary stands by itself.
    against = {(row.attack, row.adversary) for row in report.against(undefended).rows}
    assert {("leaf-pgd", "static"), ("leaf-pgd", "adaptive")} <= against
    text = str(report)
    assert f"behind {defence.partition(':')[0]}" in text
    assert "gradient masking on shapes, static: suspected" in text
    assert "leaf-pgd @ 0, adaptive" in text
    assert ", adaptive &" in report.to_latex()
    assert ", static &" in report.to_latex()
    assert "What the defences owe to ignorance" in report.to_html()
    assert Report.from_json(report.to_json()) == report


def test_a_gradient_that_leads_nowhere_is_found_out(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding without BPDA: the static images fool what the adaptive attack cannot."""
    monkeypatch.setattr(canaries, "QUERIES", 10)

    @dataclass(frozen=True)
    class Blind(Nothing):
        def purify(self, images: Float[Tensor, "B 3 H W"], *_: object) -> Float[Tensor, "B 3 H W"]:
            return images + 0 * images.detach() if not images.requires_grad else 0 * images + images.detach()

    evaluation = evaluate(attack=("leaf-pgd",), level=0, defence=(Blind(),), steps=8, random_start=False)
    evaluation.run()
    found = {canary.name: canary for canary in run_canaries(evaluation)}
    assert found["static-vs-adaptive"].ok is False
    assert found["dead-gradients"].ok is False
    verdict = {one.adversary: one.verdict for one in verdicts(list(found.values()))}
    assert verdict["adaptive"] == "suspected"


@pytest.mark.parametrize(("options", "said"), [
    ({"defence": "fog"}, "one of ttc, r-tpt, et3"),
    ({"defence": "r-tpt,ttc"}, "name it last"),
    ({"defence": "et3", "attack": "fgsm"}, "takes 1 gradients of an image and et3 5"),
    ({"defence": "et3", "certify": 0.25}, "certificates are about the model alone"),
    ({"eot": 3}, "give --defence NAME"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        hrzs.evaluate(hrzs.load("tiny"), limit=4, **options)
