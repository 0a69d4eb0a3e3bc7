from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.attacks.losses import LOSSES, Loss, dlr, dlr_towards, margin, margin_towards

# One image each; class 0 is the truth, class 2 the goal.
RIGHT, WRONG = [5.0, 1.0, 3.0, 2.0, -4.0], [1.0, 5.0, 3.0, 2.0, -4.0]
TRUTH, GOAL = torch.tensor([0]), torch.tensor([2])
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.mark.parametrize(
    ("loss", "logits", "value"),
    [
        (margin, RIGHT, 3 - 5),
        (margin, WRONG, 5 - 1),
        (dlr, RIGHT, (3 - 5) / (5 - 2)),
        (dlr, WRONG, (5 - 1) / (5 - 2)),
        (lambda z, y: margin_towards(z, y, GOAL), RIGHT, 3 - 5),
        (lambda z, y: margin_towards(z, y, GOAL), WRONG, 3 - 1),
        (lambda z, y: dlr_towards(z, y, GOAL), RIGHT, (3 - 5) / (5 - (2 + 1) / 2)),
        (lambda z, y: dlr_towards(z, y, GOAL), WRONG, (3 - 1) / (5 - (2 + 1) / 2)),
    ],
)
def test_by_hand(loss: Callable[[Tensor, Tensor], Tensor], logits: list[float], value: float) -> None:
    assert loss(torch.tensor([logits]), TRUTH).item() == pytest.approx(value)


@every_loss
def test_rises_as_the_truth_falls(loss: Loss) -> None:
    for f in (loss.away, lambda z, y: loss.towards(z, y, GOAL)):
        logits = torch.tensor([RIGHT], requires_grad=True)
        (gradient,) = torch.autograd.grad(f(logits, TRUTH).sum(), logits)
        assert gradient[0, 0] < 0
        assert gradient[0, 2] > 0


@pytest.mark.parametrize("f", [dlr, lambda z, y: dlr_towards(z, y, GOAL)], ids=["away", "towards"])
@given(scale=st.floats(0.01, 1000), shift=st.floats(-50, 50))
def test_dlr_knows_no_scale(f: Callable[[Tensor, Tensor], Tensor], scale: float, shift: float) -> None:
    """What lets it through where a large temperature has saturated the softmax."""
    logits = torch.tensor([RIGHT], dtype=torch.float64)
    assert f(logits * scale + shift, TRUTH).item() == pytest.approx(f(logits, TRUTH).item())


@every_loss
@pytest.mark.parametrize("kind", ["away", "towards"])
@pytest.mark.parametrize("spread", [0.0, 1e-30, 1e30])
def test_finite_at_the_ends(loss: Loss, kind: str, spread: float) -> None:
    """Logits that are all alike, or as far apart as they go, and as few classes as the loss says it needs."""
    few = loss.classes_away if kind == "away" else loss.classes_towards
    for classes in (few, 10):
        logits = (torch.linspace(-1, 1, classes)[None] * spread).requires_grad_()
        last = torch.tensor([classes - 1])
        value = loss.away(logits, TRUTH) if kind == "away" else loss.towards(logits, TRUTH, last)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
