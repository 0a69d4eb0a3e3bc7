from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hrzs.evaluation.canaries import Canary, run_canaries
from hrzs.evaluation.runner import Evaluation
from hrzs.models.heads import HyperbolicHead

Evaluate = Callable[..., Evaluation]


def canaries_of(evaluation: Evaluation) -> dict[str, Canary]:
    evaluation.run()
    return {canary.name: canary for canary in run_canaries(evaluation)}


def test_an_honest_model_passes(evaluate: Evaluate) -> None:
    canaries = canaries_of(evaluate(attacks=("leaf-pgd",), steps=10))
    assert {"untouched-model", "huge-eps", "dead-gradients"} == canaries.keys()
    assert len({canary.dataset for canary in canaries.values()} - {""}) == 1
    assert canaries["dead-gradients"].value == 0
    assert canaries["dead-gradients"].ok
    assert canaries["huge-eps"].ok


def test_a_masked_model_is_exposed(
    evaluate: Evaluate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = evaluate(attacks=("leaf-pgd",))
    encode = evaluation.model.encode_image

    def rounded(pixels: Tensor, precision: str | None = None) -> Tensor:
        return (encode(pixels, precision) * 256).round() / 256

    monkeypatch.setattr(evaluation.model, "encode_image", rounded)
    with caplog.at_level(logging.WARNING, "hrzs"):
        canaries = canaries_of(evaluation)
    assert canaries["dead-gradients"].value == 1.0
    assert canaries["dead-gradients"].ok is False
    assert canaries["huge-eps"].ok is False
    assert "canary dead-gradients" in caplog.text
    assert "gradient masking" in caplog.text


def test_a_hyperbolic_model_meets_its_cosine_head(evaluate: Evaluate) -> None:
    evaluation = evaluate(attacks=("leaf-pgd",), steps=2)
    head = HyperbolicHead(0.1, 0.1, 5.0)
    evaluation.model.geometry = head
    evaluation.classifier.head = head
    evaluation.classifier.prepared = head.prepare(evaluation.classifier.prepared).detach()
    canary = canaries_of(evaluation)["cosine-head"]
    assert canary.value is not None
    assert 0 <= canary.value <= 1
    assert canary.ok is (canary.value <= 0.05)


def test_without_an_attack_there_is_nothing_to_check(evaluate: Evaluate) -> None:
    assert canaries_of(evaluate(attacks=("none",))) == {}


def untouched(evaluation: Evaluation, **base: Any) -> Canary:
    evaluation.model.info.run["base"] = base
    return canaries_of(evaluation)["untouched-model"]


def test_untouched_model_that_cannot_be_had_is_said(evaluate: Evaluate) -> None:
    canary = untouched(evaluate(attacks=("leaf-pgd",), steps=1), model="no-such-model", pretrained=None, digest="x")
    assert (canary.value, canary.ok) == (None, None)
    assert "no-such-model" in canary.note


def test_untouched_model_that_is_another_is_said(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = evaluate(attacks=("leaf-pgd",), steps=1)
    monkeypatch.setattr("hrzs.evaluation.canaries.load_model", lambda *_, **__: evaluation.model)
    canary = untouched(evaluation, model="tiny", pretrained=None, digest="x")
    assert (canary.value, canary.ok) == (None, None)
    assert "not the file the run started from" in canary.note
    same = untouched(evaluation, model="tiny", pretrained=None, digest=evaluation.model.info.digest)
    assert same.value is not None


def test_parameters_come_out_untouched(evaluate: Evaluate) -> None:
    evaluation = evaluate(attacks=("leaf-pgd",), steps=1)
    before = {name: p.detach().clone() for name, p in evaluation.model.named_parameters()}
    canaries_of(evaluation)
    assert all(torch.equal(p, before[name]) for name, p in evaluation.model.named_parameters())
    assert all(p.grad is None for p in evaluation.model.parameters())
