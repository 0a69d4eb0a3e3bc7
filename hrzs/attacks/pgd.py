"""Steps of a fixed size: FGSM, and projected gradient descent (random start, steepest ascent, projection)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, AttackResult, judge, probe
from hrzs.attacks.objectives import Objective
from hrzs.models.encoder import ImageEncoder


class PGD(Attack):
    """Madry et al., ICLR 2018. An image's result is its last winning iterate, or its last one where none won."""

    def run(
        self,
        model: ImageEncoder,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        result = AttackResult.of(ball.centre)
        rows = torch.arange(len(labels), device=labels.device)
        x = ball.random(seeds) if self.budget.random_start else ball.centre
        for _ in range(self.budget.steps):
            if not len(rows):
                return result
            outcome, gradient = probe(model, objective, x, labels, result)
            result.record(rows, x, outcome.won)
            x = ball.step(x, gradient, float(self.budget.step_size))
            if self.early_stop and outcome.won.any():
                keep = ~outcome.won
                rows, x, labels, objective, ball = (
                    rows[keep],
                    x[keep],
                    labels[keep],
                    objective.select(keep),
                    ball.select(keep),
                )
        if len(rows):
            result.record(rows, x, judge(model, objective, x, labels))
        return result


class FGSM(Attack):
    """One step of size ε from the clean image (Goodfellow et al., ICLR 2015); neither steps nor seeds matter."""

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """One, however many restarts the budget has: they would all be the same."""
        return [(self.with_budget(steps=1, restarts=1), objective)]

    def run(
        self,
        model: ImageEncoder,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],  # noqa: ARG002 -- nothing about it is random
    ) -> AttackResult:
        result = AttackResult.of(ball.centre)
        _, gradient = probe(model, objective, ball.centre, labels, result)
        x = ball.step(ball.centre, gradient, float(self.budget.eps))
        result.record(torch.arange(len(labels), device=labels.device), x, judge(model, objective, x, labels))
        return result
