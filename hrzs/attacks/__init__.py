"""Attacks by name: an objective joined to an optimiser. A new attack is one file and one line of `ATTACKS`."""

from __future__ import annotations

from dataclasses import dataclass

from hrzs.attacks.base import Attack, AttackResult, sample_seeds
from hrzs.attacks.budget import Budget
from hrzs.attacks.objectives import HierarchicalObjective, LevelObjective, Objective
from hrzs.attacks.pgd import PGD
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import ZeroShotClassifier

__all__ = ["ATTACKS", "Attack", "AttackResult", "AttackSpec", "Budget", "attack_spec", "sample_seeds"]


@dataclass(frozen=True)
class AttackSpec:
    """A named attack: which levels it may aim at and which optimiser it uses."""

    name: str
    description: str
    aim: str  # leaf, superclass or all
    optimiser: type[Attack]

    def levels(self, tree: Tree, level: str | None) -> tuple[int | str, ...]:
        """The levels that ``--level`` (a number, ``all``, or None for the default) means for this attack.

        Empty where the tree has no superclass, or where a number does not concern this attack.

        Raises:
            UsageError: not a level of this tree.
        """
        if level not in (None, "all") and not (str(level).isdecimal() and int(str(level)) < tree.top):
            raise UsageError(f"--level {level}: this tree has levels 0 … {tree.top - 1} to attack; or `all`")
        if self.aim == "all":
            return ("all",)
        possible = (0,) if self.aim == "leaf" else tuple(range(1, tree.top))
        if level == "all" or not possible:
            return possible
        chosen = possible[0] if level is None else int(level)
        return (chosen,) if chosen in possible else ()

    def objective(self, classifier: ZeroShotClassifier, level: int | str, scoring: str = "prompt") -> Objective:
        """What this attack maximises when aimed at ``level``."""
        if isinstance(level, str):
            return HierarchicalObjective(classifier, scoring)
        return LevelObjective(classifier, level, scoring)


ATTACKS: dict[str, AttackSpec] = {
    spec.name: spec
    for spec in (
        AttackSpec("leaf-pgd", "PGD on the cross-entropy of the leaf classes", "leaf", PGD),
        AttackSpec("superclass-pgd", "PGD on the cross-entropy of one superclass level", "superclass", PGD),
        AttackSpec("hierarchical-pgd", "PGD on the weighted cross-entropy of all levels at once", "all", PGD),
    )
}

#: The fixed suite behind any-level robust accuracy: one optimiser, every aim, every level.
SUITE = ("leaf-pgd", "superclass-pgd", "hierarchical-pgd")


def attack_spec(name: str) -> AttackSpec:
    """The attack called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in ATTACKS:
        raise UsageError(f"--attack {name!r}: one of {', '.join(ATTACKS)}; `--attack list` explains them")
    return ATTACKS[name]
