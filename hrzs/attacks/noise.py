"""Random points of the ball: the yardstick that an attack must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, AttackResult, further_seeds, judge
from hrzs.attacks.objectives import Objective
from hrzs.models.encoder import ImageEncoder


class Noise(Attack):
    """``budget.steps`` uniform draws from the ball, no gradients. An image's result is its last winning draw.

    No entry of `ATTACKS`: a robust accuracy under noise says nothing. But where noise fools what an optimiser does
    not, that one has not optimised (Carlini et al. 2019, "On Evaluating Adversarial Robustness").
    """

    @torch.no_grad()
    def run(
        self,
        model: ImageEncoder,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        result = AttackResult.of(ball.centre)
        for draw in range(self.budget.steps):
            left = ~result.won if self.early_stop else torch.ones_like(result.won)
            rows = left.nonzero().squeeze(1)
            if not len(rows):
                break
            # Never the first draw of these seeds: that is where PGD starts.
            x = ball.select(left).random(further_seeds([seeds[i] for i in rows.tolist()], draw + 1))
            result.record(rows, x, judge(model, objective.select(rows), x, labels[rows]))
        return result
