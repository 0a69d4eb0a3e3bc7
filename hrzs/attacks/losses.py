"""Losses that an adversary maximises, on logits: per image, untargeted (away from ``truth``) or towards a class.

``logits`` are ``(B, N)``, ``truth`` and ``towards`` class indices ``(B,)``; every loss is ``(B,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def cross_entropy(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Cross-entropy: ``-log p_y``."""
    return F.cross_entropy(logits, truth, reduction="none")


def cross_entropy_towards(
    logits: Float[Tensor, "B N"],
    truth: Int[Tensor, "B"],  # noqa: ARG001 -- one signature for all targeted losses
    towards: Int[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """Targeted cross-entropy: ``log p_t``."""
    return -F.cross_entropy(logits, towards, reduction="none")


def margin(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Margin ``max_{j≠y} z_j - z_y``, positive for a wrong prediction (Carlini & Wagner, S&P 2017, f₆ without κ)."""
    others = logits.scatter(1, truth[:, None], -torch.inf)
    return others.amax(1) - _at(logits, truth)


def margin_towards(
    logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"], towards: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """Targeted margin: ``z_t - z_y``."""
    return _at(logits, towards) - _at(logits, truth)


def dlr(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Difference of logits ratio: the margin over ``z_π1 - z_π3``, so that scale and shift cancel; N ≥ 3.

    Croce & Hein, ICML 2020, eq. 6.
    """
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, truth) / _positive(first - third)


def dlr_towards(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"], towards: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Targeted DLR: ``(z_t - z_y) / (z_π1 - (z_π3 + z_π4) / 2)``; N ≥ 4 (Croce & Hein, ICML 2020, eq. 7)."""
    first, _, third, fourth = logits.topk(4, dim=1).values.unbind(1)
    return margin_towards(logits, truth, towards) / _positive(first - (third + fourth) / 2)


def _at(logits: Float[Tensor, "B N"], index: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
    return logits.gather(1, index[:, None]).squeeze(1)


def _positive(scale: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """``scale`` kept above zero: where all logits are the same, it would divide by zero."""
    return scale.clamp_min(torch.finfo(scale.dtype).eps)


@dataclass(frozen=True)
class Loss:
    """An untargeted loss, its targeted form, and how many classes each needs."""

    away: Callable[[Tensor, Tensor], Tensor]
    towards: Callable[[Tensor, Tensor, Tensor], Tensor]
    classes_away: int = 2
    classes_towards: int = 2


LOSSES = {
    "ce": Loss(cross_entropy, cross_entropy_towards),
    "margin": Loss(margin, margin_towards),
    "dlr": Loss(dlr, dlr_towards, classes_away=3, classes_towards=4),
}

#: The loss that replaces one which needs more classes than a level has; it needs only two.
STAND_IN = "margin"
