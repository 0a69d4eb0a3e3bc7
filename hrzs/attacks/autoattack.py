"""Attacks in turn, each on the images not yet fooled: ``aa-2`` and AutoAttack "standard" (Croce & Hein, ICML 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hrzs.attacks.apgd import APGD, APGDT
from hrzs.attacks.base import Attack, Composite
from hrzs.attacks.fab import FABT
from hrzs.attacks.objectives import Objective, of_level
from hrzs.attacks.square import Square


class InTurn(Composite):
    """One attack after the other; a fooled image goes to none of the attacks that follow.

    An entry of ``turns`` is an attack, its loss, and how many of its steps stand for one step of the budget. Without
    ``early_stop`` an attack still finishes its own run on an image that it has fooled.
    """

    turns: ClassVar[tuple[tuple[type[Attack], str, int], ...]]

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """The parts of each turn.

        Raises:
            UsageError: the objective spans all levels, or is targeted itself.
        """
        aim = of_level(objective, type(self).__name__)
        budgets = [replace(self.budget, steps=scale * self.budget.steps, restarts=1) for _, _, scale in self.turns]
        return [
            part
            for (kind, loss, _), budget in zip(self.turns, budgets, strict=True)
            for part in kind(budget, early_stop=self.early_stop).parts(aim.with_loss(loss))
        ]


class AA2(InTurn):
    """APGD on the cross-entropy, then APGD-T: they find nearly all that AutoAttack finds, but are not AutoAttack."""

    turns = ((APGD, "ce", 1), (APGDT, "dlr", 1))


class AutoAttack(InTurn):
    """The "standard" version: 100 steps mean 100 iterations each of APGD-CE, APGD-T and FAB-T, and 5,000 of Square."""

    turns = (*AA2.turns, (FABT, "ce", 1), (Square, "margin", 50))
