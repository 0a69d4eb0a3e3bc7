from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hrzs.attacks import ATTACKS, sample_seeds
from hrzs.attacks.base import Attack
from hrzs.attacks.objectives import LevelObjective
from hrzs.data import loader
from hrzs.evaluation import canaries as module
from hrzs.evaluation.canaries import Canary, run_canaries
from hrzs.evaluation.plan import budget_of
from hrzs.evaluation.runner import Evaluation
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.results.masking import verdicts

Evaluate = Callable[..., Evaluation]
ALWAYS = {
    "untouched-model", "transfer-vs-white-box", "huge-eps", "eps-monotone", "steps-monotone", "one-step-vs-iterative",
    "noise-vs-white-box", "margin-vs-ce", "square-vs-white-box", "dead-gradients", "gradient-check",
}  # fmt: skip


def canaries_of(evaluation: Evaluation) -> dict[str, Canary]:
    evaluation.run()
    return {canary.name: canary for canary in run_canaries(evaluation)}


@pytest.fixture(autouse=True)
def _few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES", 100)


@pytest.fixture
def evaluate(evaluate: Evaluate) -> Evaluate:
    """In one batch: a canary is a dozen attacks, and batches are tested elsewhere."""
    return partial(evaluate, batch_size=24)


# -- honest and masked models ---------------------------------------------------------------------------------------


def test_an_honest_model_passes(evaluate: Evaluate) -> None:
    canaries = canaries_of(evaluate(attack=("leaf-pgd",), steps=10))
    assert canaries.keys() == ALWAYS
    assert len({canary.dataset for canary in canaries.values()} - {""}) == 1
    assert canaries["dead-gradients"].value == 0
    for name, canary in canaries.items():
        assert canary.ok or name in ("untouched-model", "transfer-vs-white-box"), canary
        if canary.value is not None:
            assert canary.count is not None
            assert canary.of is not None
            assert canary.value == canary.count / canary.of
    assert canaries["transfer-vs-white-box"].applicable is False
    (verdict,) = verdicts(list(canaries.values()))
    assert verdict.verdict != "suspected"


def saturated(model: ClipModel) -> Callable[..., Tensor]:
    """Predictions stay as they are; the cross-entropy of a confident image has no gradient in fp32."""
    with torch.no_grad():
        model.clip.logit_scale += math.log(1000)
    return model.encode_image


def rounded_features(model: ClipModel) -> Callable[..., Tensor]:
    encode = model.encode_image
    return lambda pixels, precision=None: (encode(pixels, precision) * 256).round() / 256


def rounded_pixels(model: ClipModel) -> Callable[..., Tensor]:
    encode = model.encode_image
    return lambda pixels, precision=None: encode((pixels * 127).round() / 127, precision)


class Bent(torch.autograd.Function):
    """The image goes through as it is; its gradient comes back bent."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, bend: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.bend = bend
        return pixels.view_as(pixels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.bend(gradient), None


def bent(model: ClipModel, bend: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[..., Tensor]:
    """Predictions stay as they are, to the bit; the gradient handed out is another."""
    encode, chance = model.encode_image, torch.Generator().manual_seed(0)
    return lambda pixels, precision=None: encode(Bent.apply(pixels, lambda g: bend(g, chance)), precision)


def flipped_entries(model: ClipModel) -> Callable[..., Tensor]:
    """30% of the entries of every gradient, as in the audit of docs/results.md that issue 14 came from."""
    return bent(model, lambda g, chance: torch.where(torch.rand(g.shape, generator=chance) < 0.3, -g, g))


def flipped_images(model: ClipModel) -> Callable[..., Tensor]:
    """The whole gradient of 30% of the images."""
    return bent(model, lambda g, chance: torch.where(torch.rand(len(g), 1, 1, 1, generator=chance) < 0.3, -g, g))


def random_gradients(model: ClipModel) -> Callable[..., Tensor]:
    return bent(model, lambda g, chance: g.norm() * torch.randn(g.shape, generator=chance))


def no_gradients(model: ClipModel) -> Callable[..., Tensor]:
    return bent(model, lambda g, _: 0 * g)


#: How a model is masked, and the canaries that must say so.
MASKED = [
    (saturated, {"margin-vs-ce", "dead-gradients"}),
    (no_gradients, {"gradient-check", "dead-gradients"}),
    (rounded_features, {"dead-gradients", "huge-eps"}),
    (rounded_pixels, {"dead-gradients", "huge-eps"}),
]


@pytest.mark.parametrize(("mask", "signs"), MASKED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_masked_model_is_suspected(
    evaluate: Evaluate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mask: Callable[[ClipModel], Callable[..., Tensor]],
    signs: set[str],
) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=10)
    monkeypatch.setattr(evaluation.model, "encode_image", mask(evaluation.model))
    with caplog.at_level(logging.WARNING, "hrzs"):
        canaries = canaries_of(evaluation)
    assert signs <= {name for name, canary in canaries.items() if canary.ok is False}
    assert all(f"canary {name}" in caplog.text for name in signs)
    (verdict,) = verdicts(list(canaries.values()))
    assert verdict.verdict == "suspected"
    assert any("zero or not finite" in reason and "leaf-pgd at level 0" in reason for reason in verdict.reasons)
    assert any("saturated softmax" in reason for reason in verdict.reasons) is ("margin-vs-ce" in signs)


@pytest.mark.parametrize("mask", [flipped_entries, flipped_images, random_gradients], ids=lambda f: f.__name__)
def test_gradients_that_point_elsewhere_are_found(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, mask: Callable[[ClipModel], Callable[..., Tensor]]
) -> None:
    """Issue 14: none of the other canaries need notice, since PGD still fools enough."""
    evaluation = evaluate(attack=("superclass-pgd",), level=1, steps=2)
    monkeypatch.setattr(evaluation.model, "encode_image", mask(evaluation.model))
    canaries = canaries_of(evaluation)
    assert canaries["dead-gradients"].ok is True
    for name in ("gradient-check", "gradient-check@1"):
        canary = canaries[name]
        assert canary.ok is False
        assert canary.count is not None
        assert canary.count >= 3
    (verdict,) = verdicts(list(canaries.values()))
    assert verdict.verdict == "suspected"
    said = [reason for reason in verdict.reasons if "finite differences" in reason]
    assert len(said) == 2
    assert "leaf-pgd" in said[0]
    assert "at level 1" in said[1]
    assert "superclass-pgd" in said[1]


def test_gradients_of_another_length_are_not_masked(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGD follows signs."""
    evaluation = evaluate(attack=("leaf-pgd",), steps=2)
    monkeypatch.setattr(evaluation.model, "encode_image", bent(evaluation.model, lambda g, _: 1e-12 * g))
    canary = canaries_of(evaluation)["gradient-check"]
    assert (canary.ok, canary.count, canary.of) == (True, 0, 24)


# -- superclasses -----------------------------------------------------------------------------------------------------


def test_an_attacked_superclass_level_has_canaries_too(evaluate: Evaluate) -> None:
    canaries = canaries_of(evaluate(attack=("leaf-pgd", "superclass-pgd"), level="all", steps=2))
    above = {name: canary for name, canary in canaries.items() if canary.level is not None}
    (level,) = {canary.level for canary in above.values()}
    assert level in (1, 2)
    kinds = {
        "huge-eps",
        "one-step-vs-iterative",
        "noise-vs-white-box",
        "margin-vs-ce",
        "square-vs-white-box",
        "gradient-check",
    }
    assert above.keys() == {f"{kind}@{level}" for kind in kinds}
    assert canaries.keys() - above.keys() == ALWAYS
    assert {canary.kind for canary in above.values()} == kinds
    assert f"superclass-pgd at level {level}" in above[f"margin-vs-ce@{level}"].expected


def test_the_level_with_the_most_to_lose_is_looked_at(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd", "superclass-pgd"), level="all", steps=1)
    evaluation.run()
    eps = evaluation.units[1].eps
    assert eps is not None
    bench = module._bench(evaluation, eps)
    places = [(u.level, u.scoring) for u in evaluation.units if u.attack == "superclass-pgd"]
    assert len(places) > 1
    for place in places:
        for unit in evaluation.units[1:]:
            evaluation.predictions[unit.key].success[:] = (unit.level, unit.scoring) != place
            evaluation.predictions[unit.key].nodes.copy_(evaluation.clean.nodes)
        found = module._superclasses(bench, evaluation)
        assert found is not None
        assert (found.objective.level, found.objective.scoring) == place


def test_where_no_superclass_was_attacked_none_is_looked_at(evaluate: Evaluate) -> None:
    canaries = canaries_of(evaluate(attack=("leaf-pgd",), steps=1))
    assert {canary.level for canary in canaries.values()} == {None}


def test_superclasses_masked_alone_are_found(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leaves' gradients are sound, those of every other level are turned round."""
    evaluation = evaluate(attack=("superclass-pgd",), level=1, steps=3)
    logits = evaluation.classifier.logits

    def turned(features: Tensor, level: int = 0, scoring: str = "prompt") -> Tensor:
        return logits(Bent.apply(features, lambda g: -g) if level else features, level, scoring)

    monkeypatch.setattr(evaluation.classifier, "logits", turned)
    canaries = canaries_of(evaluation)
    assert canaries["gradient-check"].count == 0
    assert canaries["gradient-check@1"].count == canaries["gradient-check@1"].of
    (verdict,) = verdicts(list(canaries.values()))
    assert verdict.verdict == "suspected"
    assert all("at level 1" in reason for reason in verdict.reasons)


def test_counts_are_of_images_that_the_weaker_attack_fools_and_the_stronger_does_not(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=4)
    saturated(evaluation.model)
    canary = canaries_of(evaluation)["margin-vs-ce"]
    model, classifier, options = evaluation.model, evaluation.classifier, evaluation.options
    batch = next(iter(loader(evaluation.task.data, 24)))
    success = {}
    for loss in ("ce", "margin"):
        objective = LevelObjective(classifier, 0, loss=loss)
        eps = evaluation.units[1].eps
        assert eps is not None
        attack = ATTACKS["leaf-pgd"].optimiser(budget_of(options, eps, ATTACKS["leaf-pgd"]))
        success[loss] = attack(model, objective, batch.images, batch.labels, sample_seeds(batch.ids, 0)).success
    assert (canary.count, canary.of) == (int((success["margin"] & ~success["ce"]).sum()), 24)
    assert canary.count
    assert f"{int((~success['ce']).sum())} hold under leaf-pgd" in canary.note


def test_a_hyperbolic_model_meets_its_cosine_head(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=2)
    head = HyperbolicHead(0.1, 0.1, 5.0)
    evaluation.model.geometry = head
    evaluation.classifier.head = head
    evaluation.classifier.prepared = head.prepare(evaluation.classifier.prepared).detach()
    canaries = canaries_of(evaluation)
    assert canaries.keys() == {*ALWAYS, "cosine-head"}
    canary = canaries["cosine-head"]
    assert canary.of is not None
    assert canaries["huge-eps"].of is not None
    assert canary.of < canaries["huge-eps"].of  # those that hold, not all that are attacked
    assert canary.note == f"{canary.count} of {canary.of} images"


@pytest.mark.parametrize("held", [0, 8])
def test_only_what_holds_meets_the_cosine_head(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=1)
    head = HyperbolicHead(0.1, 0.1, 5.0)
    evaluation.model.geometry = evaluation.classifier.head = head
    evaluation.classifier.prepared = head.prepare(evaluation.classifier.prepared).detach()
    right = module._bench(evaluation, Fraction(1, 255)).correct.nonzero().squeeze(1).tolist()
    canary = staged(evaluation, monkeypatch, lambda *_: right[held:], lambda: right[held - 3 :])["cosine-head"]
    if held:
        assert (canary.ok, canary.count, canary.of) == (False, 3, 8)
    else:
        assert (canary.ok, canary.applicable) == (None, False)


# -- each comparison, on attacks whose outcome is known ---------------------------------------------------------------

#: Which of 24 images an attack fools, by its class, number of steps, radius in 255ths and salt.
Fooled = Callable[[str, int, float, str], Any]


def staged(
    evaluation: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
    fooled: Fooled,
    cosine: Callable[[], Any] = lambda: range(0),
) -> dict[str, Canary]:
    def stage(_: Any, attack: Attack, among: Tensor, through: Any = None, salt: str = "") -> Tensor:
        name, steps, eps = type(attack).__name__, attack.budget.steps, 255 * float(attack.budget.eps)
        found = fooled(name, steps, eps, salt) if attack.early_stop else cosine()
        rows = torch.tensor(list(found), dtype=torch.long)
        return among & torch.zeros_like(among).index_fill(0, rows, True)

    monkeypatch.setattr(module._Bench, "fooled", stage)
    return canaries_of(evaluation)


@pytest.mark.parametrize(
    ("name", "weaker"),
    [
        ("one-step-vs-iterative", lambda attack, *_: range(8) if attack == "FGSM" else range(0)),
        ("noise-vs-white-box", lambda attack, *_: range(8) if attack == "Noise" else range(0)),
        ("square-vs-white-box", lambda attack, *_: range(8) if attack == "Square" else range(0)),
        ("steps-monotone", lambda attack, steps, *_: range(8) if (attack, steps) == ("PGD", 2) else range(0)),
        ("eps-monotone", lambda attack, _, eps, salt: range(8) if attack == "PGD" and eps < 3 and not salt else range(0)),
        ("huge-eps", lambda attack, _, eps, *__: range(16) if attack == "PGD" and eps > 60 else range(0)),
    ],
)  # fmt: skip
def test_the_weaker_attack_may_not_win(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, name: str, weaker: Fooled
) -> None:
    canaries = staged(evaluate(attack=("leaf-pgd",), steps=8), monkeypatch, weaker)
    canary = canaries[name]
    assert (canary.ok, canary.count, canary.of) == (False, 8, 24)
    others = {other for other, c in canaries.items() if c.ok is False} - {name, "huge-eps", "untouched-model"}
    assert others == set()
    assert (
        "8 of 24 images" in next(v for v in verdicts(list(canaries.values()))).reasons[-1 if name != "huge-eps" else 0]
    )


def test_what_both_attacks_fool_is_no_sign(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    canaries = staged(evaluate(attack=("leaf-pgd",), steps=8), monkeypatch, lambda *_: range(24))
    assert {c.count for name, c in canaries.items() if c.applicable} == {0}
    assert verdicts(list(canaries.values()))[0].verdict == "none found"


def test_few_steps_have_no_quarter(evaluate: Evaluate) -> None:
    canary = canaries_of(evaluate(attack=("leaf-pgd",), steps=3))["steps-monotone"]
    assert (canary.ok, canary.applicable) == (None, False)


@pytest.mark.parametrize(("count", "ok"), [(0, True), (4, True), (6, True), (7, False), (64, False)])
def test_a_canary_fails_where_chance_cannot_explain_it(count: int, ok: bool) -> None:
    """6 of 64 lie above 5%, but Wilson's interval starts at 4.4%."""
    assert module._measured("x", count, 64, 0.05, "").ok is ok


def test_nothing_is_measured_on_no_image() -> None:
    canary = module._measured("x", 0, 0, 0.05, "")
    assert (canary.value, canary.ok) == (None, None)
    assert "right about none" in canary.note


# -- gradients ------------------------------------------------------------------------------------------------------


def test_each_attack_answers_for_its_own_gradients(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd", "cw", "square"), level=0, steps=3)
    saturated(evaluation.model)
    canary = canaries_of(evaluation)["dead-gradients"]
    assert canary.ok is False
    assert canary.note.startswith("leaf-pgd at level 0")
    assert "cw" not in canary.note
    assert "none were taken by square" in canary.note


def test_one_blocked_attack_does_not_drown_among_many(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd", "cw"), level=0, steps=1)
    evaluation.run()
    for unit in evaluation.units[1:]:
        evaluation.gradients[unit.key] = {"gradients": 10_000, "zero_gradients": 0, "bad_gradients": 0}
    evaluation.gradients[evaluation.units[2].key] = {"gradients": 50, "zero_gradients": 3, "bad_gradients": 4}
    canary = {c.name: c for c in run_canaries(evaluation)}["dead-gradients"]
    assert (canary.count, canary.of, canary.ok) == (7, 50, False)
    assert canary.note == f"{evaluation.units[2].title}: 3 zero, 4 not finite of 50"


def test_square_alone_takes_no_gradients(evaluate: Evaluate) -> None:
    canary = canaries_of(evaluate(attack=("square",), steps=3))["dead-gradients"]
    assert (canary.value, canary.ok, canary.applicable) == (None, None, False)
    assert "square" in canary.note


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_a_model_that_is_always_wrong(evaluate: Evaluate) -> None:
    """There is nothing to attack: no verdict, and no failure either."""
    evaluation = evaluate(attack=("leaf-pgd",), steps=2)
    evaluation.task.data.labels = [(label + 1) % 6 for label in evaluation.task.data.labels]
    evaluation.labels = torch.tensor(evaluation.task.data.labels)
    canaries = canaries_of(evaluation)
    assert canaries["huge-eps"].value is None
    assert "right about none" in canaries["huge-eps"].note
    (verdict,) = verdicts(list(canaries.values()))
    assert verdict.verdict == "inconclusive"


def test_without_an_attack_there_is_nothing_to_check(evaluate: Evaluate) -> None:
    assert canaries_of(evaluate(attack=("none",))) == {}


def untouched(evaluation: Evaluation, **base: Any) -> Canary:
    evaluation.model.info.run["base"] = base
    return canaries_of(evaluation)["untouched-model"]


def test_untouched_model_that_cannot_be_had_is_said(evaluate: Evaluate) -> None:
    canary = untouched(evaluate(attack=("leaf-pgd",), steps=1), model="no-such-model", pretrained=None, digest="x")
    assert (canary.value, canary.ok) == (None, None)
    assert "no-such-model" in canary.note


def test_untouched_model_that_is_another_is_said(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=1)
    monkeypatch.setattr(module, "load_model", lambda *_, **__: evaluation.model)
    canary = untouched(evaluation, model="tiny", pretrained=None, digest="x")
    assert (canary.value, canary.ok) == (None, None)
    assert "not the file the run started from" in canary.note
    same = untouched(evaluation, model="tiny", pretrained=None, digest=evaluation.model.info.digest)
    assert same.value is not None


def test_parameters_come_out_untouched(evaluate: Evaluate) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=1)
    before = {name: p.detach().clone() for name, p in evaluation.model.named_parameters()}
    canaries_of(evaluation)
    assert all(torch.equal(p, before[name]) for name, p in evaluation.model.named_parameters())
    assert all(p.grad is None for p in evaluation.model.parameters())


# -- what was made against the untouched model --------------------------------------------------------------------------


def test_transfer_from_the_untouched_model_exposes_a_masked_one(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=10)
    base = copy.deepcopy(evaluation.model)
    evaluation.model.info.run["base"] = {"model": "m", "pretrained": None, "digest": base.info.digest}
    monkeypatch.setattr(module, "load_model", lambda *_, **__: base)
    monkeypatch.setattr(module, "ZeroShotClassifier", lambda *_: copy.copy(evaluation.classifier))
    honest = canaries_of(evaluation)
    assert honest["transfer-vs-white-box"].count == 0  # it is the same model
    monkeypatch.setattr(evaluation.model, "encode_image", rounded_features(evaluation.model))
    canaries = canaries_of(evaluation)
    transfer, untouched = canaries["transfer-vs-white-box"], canaries["untouched-model"]
    assert transfer.ok is False
    assert untouched == honest["untouched-model"]
    reasons = verdicts(list(canaries.values()))[0].reasons
    assert any("made against the untouched model" in reason for reason in reasons)


# -- kept on disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HRZS_CACHE", "1")
    return tmp_path / "cache/hrzs/canaries"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that the canaries are measured."""
    times: list[int] = []

    def measure(*_: object) -> list[Canary]:
        times.append(1)
        return [
            Canary("x", 0.1, "?", True, "π", count=1, of=10, bound=0.05),
            Canary("y", None, "?", None, applicable=False),
        ]

    monkeypatch.setattr(module, "_measure", measure)
    monkeypatch.setattr(module, "_measure_above", lambda *_: [])
    return times


def test_canaries_are_measured_once(evaluate: Evaluate, folder: Path, measured: list[int]) -> None:
    first, second = (canaries_of(evaluate(attack=("leaf-pgd",), steps=1)) for _ in range(2))
    assert first == second
    assert len(measured) == len(list(folder.iterdir())) == 1
    assert {canary.dataset for canary in second.values()} == {"shapes"}


@pytest.mark.parametrize("change", ["weights", "labels", "texts", "steps", "seed", "eps", "version", "pixels", "level"])
def test_what_they_depend_on_is_measured_anew(
    evaluate: Evaluate, folder: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    options: dict[str, Any] = {"attack": ("leaf-pgd",), "steps": 1}
    evaluation = evaluate(**options)
    evaluation.run()
    run_canaries(evaluation)
    if change == "weights":
        with torch.no_grad():
            next(evaluation.model.clip.visual.parameters()).add_(1e-3)
    elif change == "labels":
        evaluation.task.data.labels = [*evaluation.task.data.labels[1:], 0]
    elif change == "texts":
        evaluation.classifier.prepared = -evaluation.classifier.prepared
    elif change == "level":
        evaluation = evaluate(**{**options, "attack": ("leaf-pgd", "superclass-pgd"), "level": "all"})
        evaluation.run()
    elif change == "version":
        monkeypatch.setattr("hrzs.models.cache.__version__", "another")
    elif change == "pixels":
        picture = evaluation.task.data.picture
        monkeypatch.setattr(evaluation.task.data, "picture", lambda i: picture(i).transpose(0))
    else:
        options |= {"steps": {"steps": 2}, "seed": {"seed": 1}, "eps": {"eps": (Fraction(3, 255),)}}[change]
        evaluation = evaluate(**options)
        evaluation.run()
    run_canaries(evaluation)
    assert len(measured) == len(list(folder.iterdir())) == 2


def test_gradients_of_the_run_are_not_kept(evaluate: Evaluate, folder: Path, measured: list[int]) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=1)
    before = canaries_of(evaluation)["dead-gradients"]
    evaluation.gradients[evaluation.units[1].key]["zero_gradients"] = 24
    after = {c.name: c for c in run_canaries(evaluation)}["dead-gradients"]
    assert (before.ok, after.ok) == (True, False)
    assert len(measured) == 1


def test_a_canary_that_could_not_be_run_is_tried_again(
    evaluate: Evaluate, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *_: [Canary("x", None, "?", None, "not run: no weights")])
    canaries_of(evaluate(attack=("leaf-pgd",), steps=1))
    assert not folder.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"value": [{"name": "x"}]}'])
def test_a_damaged_file_is_measured_anew(evaluate: Evaluate, folder: Path, measured: list[int], content: str) -> None:
    evaluation = evaluate(attack=("leaf-pgd",), steps=1)
    first = canaries_of(evaluation)
    (file,) = folder.iterdir()
    about = json.loads(file.read_text())["about"]
    file.write_text(content and json.dumps({**dict(json.loads(content)), "about": about}))
    assert {canary.name: canary for canary in run_canaries(evaluation)} == first
    assert len(measured) == 2
