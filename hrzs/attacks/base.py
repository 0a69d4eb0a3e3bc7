"""The contract of every attack: a subclass writes `run`, the base judges what comes out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.budget import Budget
from hrzs.attacks.objectives import Objective
from hrzs.errors import HrzsError, UsageError
from hrzs.models.clip import ClipModel, frozen


def sample_seeds(ids: Sequence[str], seed: int, salt: str = "") -> list[int]:
    """One seed per image, from its id: results depend on neither batch size nor order."""
    digests = (hashlib.blake2b(f"{seed}/{salt}/{i}".encode(), digest_size=7).digest() for i in ids)
    return [int.from_bytes(d, "big") for d in digests]


@dataclass
class AttackResult:
    """Adversarial ``images``, which of them ``won`` (in fp32), and what the gradients looked like.

    ``gradients``, ``zero_gradients`` and ``bad_gradients`` count per-image gradients: all of them, those that were
    exactly zero (a masked model) and those that were not finite.
    """

    images: Float[Tensor, "B 3 H W"]
    won: Bool[Tensor, "B"]
    gradients: int = 0
    zero_gradients: int = 0
    bad_gradients: int = 0


class Attack(ABC):
    """An optimiser that looks for images inside the ball that win under an objective.

    Args:
        budget: ε, step size, steps and norm.
        early_stop: a fooled image leaves the batch. Off where the image is scored at other levels too, or
            transfer would be overstated (protocol.md).
    """

    def __init__(self, budget: Budget, *, early_stop: bool = True) -> None:
        self.budget = budget
        self.early_stop = early_stop

    def __call__(
        self,
        model: ClipModel,
        objective: Objective,
        images: Float[Tensor, "B 3 H W"],
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        """Attack every image. ``model`` comes out as it went in, and no parameter gets a gradient.

        Raises:
            UsageError: pixels outside [0, 1].
            HrzsError: the attack left the ball: a fault in the attack, never a warning.
        """
        low, high = (images.min().item(), images.max().item()) if images.numel() else (0.0, 0.0)
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # a NaN fails both
            raise UsageError(
                f"pixels must lie in [0, 1], these in [{low:.3g}, {high:.3g}]: "
                "leave normalisation to the model, it happens inside"
            )
        ball = Ball.of(images.clamp(0, 1), self.budget)
        with frozen(model), torch.enable_grad():
            result = self.run(model, objective, ball, labels, seeds)
        outside = (~ball.contains(result.images)).sum().item()
        if outside:
            raise HrzsError(f"{type(self).__name__}: {outside} of {len(images)} images left the ε-ball or [0, 1]")
        return result

    @abstractmethod
    def run(
        self,
        model: ClipModel,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        """The search itself; ``ball.centre`` holds the clean images."""


@torch.no_grad()
def judge(
    model: ClipModel, objective: Objective, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"]
) -> Bool[Tensor, "B"]:
    """Does each image win, by an fp32 forward?"""
    return objective(model.encode_image(images, "fp32"), labels).won
