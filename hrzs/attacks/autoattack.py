"""Attacks in a row, each on the images that are left: `aa-2`, and AutoAttack "standard" (Croce & Hein, ICML 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from hrzs.attacks.apgd import APGD, APGDT
from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Attack, AttackResult, further_seeds
from hrzs.attacks.fab import FABT
from hrzs.attacks.objectives import LevelObjective, Objective
from hrzs.attacks.square import Square
from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel


class InTurn(Attack):
    """One attack after the other; a fooled image goes to none of the following.

    ``turns`` says which, on what loss, and how many of its own steps stand for one step of the budget. Without
    ``early_stop`` an attack takes a fooled image to the end of its run.
    """

    turns: ClassVar[tuple[tuple[type[Attack], str, int], ...]]

    def run(
        self,
        model: ClipModel,
        objective: Objective,
        ball: Ball,
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        """As the contract says.

        Raises:
            UsageError: the objective is not about one level.
        """
        if not isinstance(objective, LevelObjective):
            raise UsageError(f"{type(self).__name__} attacks one level: give --level a number")
        result = AttackResult.of(ball.centre)
        for turn, (kind, loss, scale) in enumerate(self.turns):
            left = (~result.won).nonzero().squeeze(1)
            if not len(left):
                break
            attack = kind(replace(self.budget, steps=scale * self.budget.steps), early_stop=self.early_stop)
            fresh = further_seeds([seeds[i] for i in left.tolist()], turn)
            part = attack.run(model, objective.with_loss(loss), ball.select(~result.won), labels[left], fresh)
            result.merge(left, part)
        return result


class AA2(InTurn):
    """APGD on the cross-entropy, then APGD-T: the two that find nearly all. Never to be called AutoAttack."""

    turns = ((APGD, "ce", 1), (APGDT, "dlr", 1))


class AutoAttack(InTurn):
    """The "standard" version: 100 steps are 100 iterations each of APGD-CE, APGD-T and FAB-T, and 5,000 of Square."""

    turns = (*AA2.turns, (FABT, "ce", 1), (Square, "margin", 50))
