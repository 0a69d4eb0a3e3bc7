"""Projected gradient descent (Madry et al., ICLR 2018): random start, steepest ascent, projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, AttackResult, judge
from hrzs.attacks.objectives import Objective
from hrzs.models.clip import ClipModel


class PGD(Attack):
    """The result of an image is its last winning iterate, or its last iterate where none won."""

    def run(
        self,
        model: ClipModel,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        x = ball.random(seeds)
        result = AttackResult(x.clone(), torch.zeros_like(labels, dtype=torch.bool))
        active = torch.arange(len(labels), device=labels.device)
        for step in range(self.budget.steps + 1):
            if not len(active):
                break
            last = step == self.budget.steps
            x.requires_grad_(not last)
            # The last forward only judges: in fp32 whatever the precision of the gradients.
            outcome = objective(model.encode_image(x, "fp32" if last else None), labels)
            x_here, won = x.detach(), outcome.won
            if model.precision != "fp32" and not last and won.any():
                won = won.clone()
                won[won.clone()] = judge(model, objective, x_here[won], labels[won])
            # A later iterate replaces an earlier one unless that would turn a win into a loss.
            better = won | ~result.won[active]
            result.images[active[better]] = x_here[better]
            result.won[active[won]] = True
            if last:
                break
            (gradient,) = torch.autograd.grad(outcome.loss.sum(), x)
            flat = gradient.flatten(1)
            finite = flat.isfinite().all(1)
            result.gradients += len(flat)
            result.zero_gradients += int((flat == 0).all(1).sum())
            result.bad_gradients += int((~finite).sum())
            x = ball.step(x_here, gradient.nan_to_num(0.0, 0.0, 0.0), float(self.budget.step_size))
            if self.early_stop and won.any():
                keep = ~won
                active, x, labels, ball = active[keep], x[keep], labels[keep], ball.select(keep)
        return result
