"""Auto-PGD: step sizes that no one has to tune (Croce & Hein, ICML 2020, section 3, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, AttackResult, Composite, features_of, probe
from hrzs.attacks.objectives import Objective, of_level
from hrzs.models.encoder import ImageEncoder

#: Weight of the gradient step against the last move (α), and the share of steps that must raise the loss (ρ).
MOMENTUM, RHO = 0.75, 0.75
#: Targets of the targeted form: the most likely other classes.
TARGETS = 9


def checkpoints(steps: int) -> list[int]:
    """After which steps the step size is looked at: ``⌈p_j N⌉``, ever closer (section 3.1).

    ``p_0 = 0``, ``p_1 = 0.22``, ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``.
    """
    before, share, found = Fraction(0), Fraction(22, 100), []
    while share < 1:
        found.append(math.ceil(share * steps))
        before, share = share, share + max(share - before - Fraction(3, 100), Fraction(6, 100))
    return sorted(set(found))


@dataclass
class _Climb:
    """Where each image of the batch stands; every field has one entry per image."""

    rows: Int[Tensor, "b"]
    labels: Int[Tensor, "b"]
    x: Float[Tensor, "b 3 H W"]
    before: Float[Tensor, "b 3 H W"]
    gradient: Float[Tensor, "b 3 H W"]
    loss: Float[Tensor, "b"]
    size: Float[Tensor, "b 1 1 1"]
    best_x: Float[Tensor, "b 3 H W"]
    best_gradient: Float[Tensor, "b 3 H W"]
    best_loss: Float[Tensor, "b"]
    # Since the last checkpoint: how many steps raised the loss; at it: the best loss, and whether the size was halved.
    rises: Int[Tensor, "b"]
    checked_loss: Float[Tensor, "b"]
    halved: Bool[Tensor, "b"]

    def select(self, rows: Bool[Tensor, "b"]) -> _Climb:
        return _Climb(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def note(self, loss: Float[Tensor, "b"], gradient: Float[Tensor, "b 3 H W"]) -> None:
        """Loss and gradient at ``x``, which may be the best so far."""
        better = loss > self.best_loss
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best_x = torch.where(_wide(better), self.x, self.best_x)
        self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)

    def check(self, steps: int) -> None:
        """At a checkpoint, ``steps`` after the one before: halve the size and go back to the best point, or go on.

        Halved where too few steps raised the loss (condition 1), or where the best has not changed although the size
        was left as it was at the checkpoint before (condition 2).
        """
        unchanged = ~self.halved & (self.best_loss <= self.checked_loss)
        self.halved = (self.rises < RHO * steps) | unchanged
        self.size = torch.where(_wide(self.halved), self.size / 2, self.size)
        self.x = torch.where(_wide(self.halved), self.best_x, self.x)
        self.gradient = torch.where(_wide(self.halved), self.best_gradient, self.gradient)
        self.loss = torch.where(self.halved, self.best_loss, self.loss)
        self.checked_loss = self.best_loss
        self.rises = torch.zeros_like(self.rises)


def _wide(rows: Bool[Tensor, "b"]) -> Bool[Tensor, "b 1 1 1"]:
    return rows.view(-1, 1, 1, 1)


class APGD(Attack):
    """Momentum, and a step size per image: 2ε at first, halved at a checkpoint where the loss stopped rising.

    An image whose step size is halved goes on from its best point. An image's result is its last winning iterate, or,
    where none won, the one of the highest loss. ``step_size`` of the budget has no say.
    """

    def run(
        self,
        model: ImageEncoder,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        result = AttackResult.of(ball.centre)
        at = self._start(ball.random(seeds), labels)
        checks, checked = checkpoints(self.budget.steps), 0
        for step in range(self.budget.steps):
            if not len(at.rows):
                return result
            (loss, won), gradient = probe(model, objective, at.x, at.labels, result)
            result.record(at.rows, at.x, won)
            at.note(loss, gradient)
            if step in checks:
                at.check(step - checked)
                checked = step
            x = ball.project(at.x + at.size * steepest(at.gradient, self.budget.norm))
            if step > 0:
                x = ball.project(at.x + MOMENTUM * (x - at.x) + (1 - MOMENTUM) * (at.x - at.before))
            at.before, at.x = at.x, x
            if self.early_stop and won.any():
                at, objective, ball = at.select(~won), objective.select(~won), ball.select(~won)
        if len(at.rows):
            with torch.no_grad():
                loss, won = objective(features_of(model, at.x), at.labels)
            result.record(at.rows, at.x, won)
            at.note(loss, at.gradient)
            result.record(at.rows, at.best_x, torch.zeros_like(won))
        return result

    def _start(self, x: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"]) -> _Climb:
        below = torch.full(labels.shape, -torch.inf, device=x.device)
        none = torch.zeros_like(x)
        size = torch.full((len(labels), 1, 1, 1), 2 * float(self.budget.eps), device=x.device)
        return _Climb(
            rows=torch.arange(len(labels), device=x.device), labels=labels, size=size,
            x=x, before=x, gradient=none, loss=-below,
            best_x=x, best_gradient=none, best_loss=below,
            rises=torch.zeros_like(labels), checked_loss=below, halved=torch.ones_like(labels, dtype=torch.bool),
        )  # fmt: skip


class APGDT(Composite):
    """APGD on the targeted DLR loss, towards one class after another (section 4.2): the most likely others first.

    The objective is taken at its level, whatever its loss.
    """

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """One for each class.

        Raises:
            UsageError: the objective is not about one level.
        """
        attack = APGD(replace(self.budget, restarts=1), early_stop=self.early_stop)
        return [(attack, aim) for aim in of_level(objective, "apgd-t").with_loss("dlr").likeliest(TARGETS)]


def steepest(gradient: Float[Tensor, "B 3 H W"], norm: str) -> Float[Tensor, "B 3 H W"]:
    """The direction of length 1 in ``norm`` along which a loss with this gradient rises most."""
    if norm == "linf":
        return gradient.sign()
    # In float64: the squares of a saturated softmax's gradient underflow in fp32.
    length = gradient.double().flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    direction: Tensor = (gradient / length.view(-1, 1, 1, 1)).float()
    return direction
