"""Steps of a fixed size: FGSM, and projected gradient descent (random start, steepest ascent, projection)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, AttackResult, further_seeds, judge, probe
from hrzs.attacks.objectives import Objective
from hrzs.models.clip import ClipModel


class PGD(Attack):
    """Madry et al., ICLR 2018. An image's result is its last winning iterate, or its last one where none won.

    Restarts are for the images that no run before has fooled.
    """

    def run(
        self,
        model: ClipModel,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        result = AttackResult.of(ball.centre)
        for restart in range(self.budget.restarts):
            left = (~result.won).nonzero().squeeze(1)
            if not len(left):
                break
            here = ball.select(~result.won)
            start = here.random([further_seeds(seeds, restart)[i] for i in left.tolist()])
            self.climb(model, objective.select(left), here, labels[left], start, left, result)
        return result

    def climb(
        self,
        model: ClipModel,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "b"],
        x: Tensor,
        rows: Int[Tensor, "b"],
        result: AttackResult,
    ) -> None:
        """One run from ``x``; what comes of it goes to ``rows`` of ``result``."""
        for _ in range(self.budget.steps):
            if not len(rows):
                return
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


class FGSM(Attack):
    """One step of size ε from the clean image (Goodfellow et al., ICLR 2015); neither steps nor seeds matter."""

    def run(
        self,
        model: ClipModel,
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
