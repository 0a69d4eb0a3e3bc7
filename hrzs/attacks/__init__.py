"""Attacks by name: an objective joined to an optimiser. A new attack is one file and one line of `ATTACKS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from hrzs.attacks.apgd import APGD, APGDT
from hrzs.attacks.autoattack import AA2, AutoAttack
from hrzs.attacks.base import Attack, AttackResult, sample_seeds
from hrzs.attacks.budget import Budget
from hrzs.attacks.fab import FABT
from hrzs.attacks.losses import LOSSES, STAND_IN
from hrzs.attacks.objectives import (
    HierarchicalObjective,
    Level,
    LevelObjective,
    Objective,
    TargetedObjective,
    TargetSet,
    by_lca,
    named,
    nearest,
)
from hrzs.attacks.pgd import FGSM, PGD
from hrzs.attacks.square import Square
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import Classifier

__all__ = ["ATTACKS", "Attack", "AttackResult", "AttackSpec", "Budget", "Level", "attack_spec", "sample_seeds"]


@dataclass(frozen=True)
class AttackSpec:
    """A named attack: which levels it may aim at, what it maximises there and by which optimiser.

    ``optimiser`` is called with a budget and ``early_stop``; ``steps`` is its default number of steps.
    ``target_set`` gives, for a tree and a level, the mistakes that count as a win; None: every mistake counts.
    """

    name: str
    description: str
    aim: str  # leaf, superclass, level (any one level) or all (all levels at once)
    optimiser: Callable[..., Attack]
    steps: int = 20
    loss: str = "ce"
    target_set: Callable[[Tree, int], TargetSet] | None = None

    def levels(self, tree: Tree, level: Level | None) -> tuple[Level, ...]:
        """The levels that this attack aims at for a ``--level``: a number, ``all``, or None for the attack's default.

        Empty where the attack cannot aim at that level, or needs a superclass level and the tree has none.

        Raises:
            UsageError: the number is no level of this tree below the root.
        """
        if isinstance(level, int) and not 0 <= level < tree.height:
            raise UsageError(f"--level {level}: this tree has levels 0 … {tree.height - 1} to attack; or `all`")
        if self.aim == "all":
            return ("all",)
        first, last = {"leaf": (0, 1), "superclass": (1, tree.height), "level": (0, tree.height)}[self.aim]
        possible = tuple(range(first, last))
        if level == "all" or not possible:
            return possible
        chosen = possible[0] if level is None else level
        return (chosen,) if chosen in possible else ()

    def objective(self, classifier: Classifier, level: Level, scoring: str = "prompt") -> Objective:
        """The objective that this attack maximises when it aims at ``level``."""
        if isinstance(level, str):
            return HierarchicalObjective(classifier, scoring)
        if self.target_set is not None:
            return TargetedObjective(classifier, level, scoring, self.target_set(classifier.tree, level))
        return LevelObjective(classifier, level, scoring, self.loss)

    def stands_in(self, tree: Tree, level: Level) -> str | None:
        """A note that another loss replaces targeted DLR, for which ``level`` has too few classes; else None."""
        if self.optimiser not in DLR or isinstance(level, str):
            return None
        classes, needed = len(tree.levels[level]), LOSSES["dlr"].classes_towards
        return None if classes >= needed else f"{STAND_IN} for targeted DLR: {classes} classes, it needs {needed}"


#: The optimisers that choose the targeted DLR loss themselves.
DLR = (APGDT, AA2, AutoAttack)

ATTACKS: dict[str, AttackSpec] = {
    spec.name: spec
    for spec in (
        AttackSpec("leaf-pgd", "PGD on the cross-entropy of the leaf classes", "leaf", PGD),
        AttackSpec("superclass-pgd", "PGD on the cross-entropy of one superclass level", "superclass", PGD),
        AttackSpec("hierarchical-pgd", "PGD on the weighted cross-entropy of all levels at once", "all", PGD),
        AttackSpec("fgsm", "one step of size ε from the clean image", "level", FGSM, steps=1),
        AttackSpec("cw", "PGD on the margin of Carlini and Wagner", "level", PGD, loss="margin"),
        AttackSpec("apgd-ce", "Auto-PGD on the cross-entropy", "level", APGD, steps=100),
        AttackSpec("apgd-t", "Auto-PGD on the targeted DLR loss, towards 9 classes in turn", "level", APGDT, steps=100),
        AttackSpec("fab-t", "FAB towards 9 classes in turn: the nearest mistake", "level", FABT, steps=100),
        AttackSpec(
            "square", "Square Attack on the margin: random search, no gradients", "level", Square,
            steps=5000, loss="margin",
        ),
        AttackSpec("aa-2", "apgd-ce, then apgd-t on the images that are left", "level", AA2, steps=100),
        AttackSpec("autoattack", "AutoAttack standard: apgd-ce, apgd-t, fab-t, square", "level", AutoAttack, steps=100),
        AttackSpec(
            "targeted-pgd", "PGD towards the nearest other class, or towards NAME (`targeted-pgd:NAME`)", "level", PGD,
            target_set=lambda _tree, _level: nearest,
        ),
        AttackSpec(
            "smallest-mistake-pgd", "PGD towards the wrong leaves nearest in the tree", "leaf", PGD,
            target_set=lambda tree, _level: by_lca(tree, largest=False),
        ),
        AttackSpec(
            "largest-mistake-pgd", "PGD towards the wrong leaves farthest in the tree", "leaf", PGD,
            target_set=lambda tree, _level: by_lca(tree, largest=True),
        ),
    )
}  # fmt: skip


def attack_spec(name: str) -> AttackSpec:
    """The attack called ``name``; in ``targeted-pgd:NAME``, NAME is the name or the id of the target class.

    Raises:
        UsageError: no attack has this name.
    """
    known, colon, goal = name.partition(":")
    if known not in ATTACKS or (colon and known != "targeted-pgd"):
        raise UsageError(f"--attack {name!r}: one of {', '.join(ATTACKS)}; `--attack list` explains them")
    spec = ATTACKS[known]
    return replace(spec, name=name, target_set=partial(_towards, goal)) if colon else spec


def _towards(goal: str, tree: Tree, level: int) -> TargetSet:
    nodes = tree.levels[level]
    found = [i for i, node in enumerate(nodes) if goal in (node.id, node.class_id)]
    found = found or [i for i, node in enumerate(nodes) if node.name == goal]
    if len(found) != 1:
        fault = "give an id, since several nodes have this name at" if found else "no node has this name or id at"
        shown = ", ".join(node.name for node in nodes[:5]) + (", …" if len(nodes) > 5 else "")
        raise UsageError(f"--attack targeted-pgd:{goal}: {fault} level {level} ({shown}); --level picks another level")
    return named(found[0])
