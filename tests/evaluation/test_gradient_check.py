from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from hrzs.attacks import Budget, sample_seeds
from hrzs.attacks.objectives import LevelObjective
from hrzs.data import loader
from hrzs.evaluation.gradient_check import _correlation, agreement
from hrzs.models.heads import HyperbolicHead

if TYPE_CHECKING:
    from hrzs.evaluation.runner import Evaluation

Evaluate = Callable[..., "Evaluation"]


def agreement_of(
    evaluation: Evaluation, eps: Fraction = Fraction(1, 255), norm: str = "linf", level: int = 0, size: int = 24
) -> Tensor:
    batch = next(iter(loader(evaluation.task.data, size)))
    budget = Budget(eps, eps, 1, norm, 1, True)
    objective = LevelObjective(evaluation.classifier, level)
    return agreement(evaluation.model, objective, batch.images, batch.labels, budget, sample_seeds(batch.ids, 0))


@pytest.mark.parametrize(("eps", "norm"), [(Fraction(1, 255), "linf"), (Fraction(1), "linf"), (Fraction(1, 2), "l2")])
def test_an_honest_gradient_agrees(evaluate: Evaluate, eps: Fraction, norm: str) -> None:
    assert (agreement_of(evaluate(), eps, norm) > 0.95).all()


def test_a_saturated_softmax_is_left_to_the_margin(evaluate: Evaluate) -> None:
    evaluation = evaluate()
    with torch.no_grad():
        evaluation.model.clip.logit_scale += 7
    assert agreement_of(evaluation).isnan().sum() > 12


@pytest.mark.parametrize("level", [0, 1, 2])
def test_through_a_hyperbolic_head_too(evaluate: Evaluate, level: int) -> None:
    evaluation = evaluate()
    head = HyperbolicHead(0.1, 0.1, 5.0)
    evaluation.model.geometry = evaluation.classifier.head = head
    evaluation.classifier.prepared = head.prepare(evaluation.classifier.prepared).detach()
    assert (agreement_of(evaluation, level=min(level, evaluation.task.tree.height - 1)) > 0.95).all()


def test_gradients_in_bf16_agree(evaluate: Evaluate) -> None:
    evaluation = evaluate()
    evaluation.model.precision = "bf16"
    assert (agreement_of(evaluation) > 0.7).all()


def test_neither_batch_nor_order_matters(evaluate: Evaluate) -> None:
    evaluation = evaluate()
    torch.testing.assert_close(
        agreement_of(evaluation, size=24)[:5], agreement_of(evaluation, size=5), atol=0.02, rtol=0
    )


def test_no_parameter_gets_a_gradient(evaluate: Evaluate) -> None:
    evaluation = evaluate()
    agreement_of(evaluation)
    assert all(p.grad is None and p.requires_grad for p in evaluation.model.parameters())


def test_correlation() -> None:
    a = torch.tensor([[1.0, 1.0, 1e-200, 0.0, 1.0, 0.0], [2.0, 2.0, 2e-200, 0.0, 0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[2.0, -1.0, 3e-180, 1.0, 0.0, 0.0], [4.0, -2.0, 6e-180, 1.0, 1.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([1.0, -1.0, 1.0, 0.0, 0.0, torch.nan], dtype=torch.float64)
    torch.testing.assert_close(_correlation(a, b), expected, equal_nan=True)
