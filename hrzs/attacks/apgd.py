"""Auto-PGD: step sizes that no one has to tune (Croce & Hein, ICML 2020, section 3, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.base import Attack, AttackResult, Composite, Search, unfooled
from hrzs.attacks.objectives import Objective, of_level

#: Weight of the gradient step against the last move (α), and the share of steps that must raise the loss (ρ).
MOMENTUM, RHO = 0.75, 0.75
#: Targets of the targeted form: the most likely other classes.
TARGETS = 9


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are checked, at ever shorter intervals: ``⌈p_j N⌉`` (section 3.1).

    ``p_0 = 0``, ``p_1 = 0.22``, ``p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)``.
    """
    before, share, found = Fraction(0), Fraction(22, 100), []
    while share < 1:
        found.append(math.ceil(share * steps))
        before, share = share, share + max(share - before - Fraction(3, 100), Fraction(6, 100))
    return sorted(set(found))


@dataclass
class _Climb:
    """The state of the search; every field has one entry per image."""

    x: Float[Tensor, "b 3 H W"]
    before: Float[Tensor, "b 3 H W"]
    gradient: Float[Tensor, "b 3 H W"]
    loss: Float[Tensor, "b"]
    size: Float[Tensor, "b 1 1 1"]
    best_x: Float[Tensor, "b 3 H W"]
    best_gradient: Float[Tensor, "b 3 H W"]
    best_loss: Float[Tensor, "b"]
    # Steps that raised the loss since the last checkpoint; the best loss there; was the step size halved there?
    rises: Int[Tensor, "b"]
    checked_loss: Float[Tensor, "b"]
    halved: Bool[Tensor, "b"]

    def select(self, places: Int[Tensor, "n"]) -> _Climb:
        return _Climb(**{field.name: getattr(self, field.name)[places] for field in fields(self)})

    def note(self, loss: Float[Tensor, "b"], gradient: Float[Tensor, "b 3 H W"]) -> None:
        """Store the loss and the gradient at ``x``; where the loss is the highest so far, ``x`` is the best point."""
        better = loss > self.best_loss
        self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best_x = torch.where(_wide(better), self.x, self.best_x)
        self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)

    def check(self, steps: int) -> None:
        """At a checkpoint, halve the step size of images whose search stalls, and return them to their best point.

        A search stalls if too few of the ``steps`` since the last checkpoint raised the loss (condition 1), or if the
        best loss is unchanged although the last checkpoint did not halve the step size (condition 2).
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
    """PGD with momentum and a step size per image: 2ε at first, halved at checkpoints where the loss stopped rising.

    An image whose step size is halved goes on from its best point. An image's result is its last winning iterate, or
    its iterate with the highest loss if none won. The budget's ``step_size`` is not used.
    """

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        result = AttackResult.of(search.clean)
        at = self._start(search.ball.random(seeds))
        checks, checked = checkpoints(self.budget.steps), 0
        for step in range(self.budget.steps):
            if not len(search):
                return result
            (loss, success), gradient = search.probe(at.x, result)
            result.record(search.rows, at.x, success)
            at.note(loss, gradient)
            if step in checks:
                at.check(step - checked)
                checked = step
            ball = search.ball
            x = ball.project(at.x + at.size * ball.direction(at.gradient))
            if step > 0:
                x = ball.project(at.x + MOMENTUM * (x - at.x) + (1 - MOMENTUM) * (at.x - at.before))
            at.before, at.x = at.x, x
            if self.early_stop and len(left := unfooled(success)) < len(search):
                search, at = search.select(left), at.select(left)
        if len(search):
            loss, success = search.outcome(at.x)
            result.record(search.rows, at.x, success)
            at.note(loss, at.gradient)
            result.record(search.rows, at.best_x, torch.zeros_like(success))
        return result

    def _start(self, x: Float[Tensor, "B 3 H W"]) -> _Climb:
        below = x.new_full((len(x),), -torch.inf)
        none = torch.zeros_like(x)
        return _Climb(
            x=x, before=x, gradient=none, loss=-below, size=x.new_full((len(x), 1, 1, 1), 2 * float(self.budget.eps)),
            best_x=x, best_gradient=none, best_loss=below, checked_loss=below,
            rises=below.new_zeros(len(x), dtype=torch.long), halved=below.new_ones(len(x), dtype=torch.bool),
        )  # fmt: skip


class APGDT(Composite):
    """APGD on the targeted DLR loss, towards the likeliest other class, the second likeliest, … (section 4.2).

    The objective gives the level and the scoring; its own loss is not used.
    """

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """One part for each target class.

        Raises:
            UsageError: the objective spans all levels, or is targeted itself.
        """
        attack = APGD(replace(self.budget, restarts=1), early_stop=self.early_stop)
        return [(attack, aim) for aim in of_level(objective, "apgd-t").with_loss("dlr").likeliest(TARGETS)]
