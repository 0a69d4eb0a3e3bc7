"""What an evaluation consists of: its options, and the units (ε × attack × level × scoring) that they come to."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from hrzs.attacks import SUITE, AttackSpec, Budget, attack_spec
from hrzs.attacks.budget import default_step_size, format_eps
from hrzs.errors import UsageError
from hrzs.models.classifier import SCORINGS
from hrzs.tasks import Task

DEFAULT_EPS = Fraction(1, 255)


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation; names are those of the command line.

    ``eps`` None means the data's own default, ``step_size`` None the larger of 1/255 and ε/4. With ``matrix`` every
    attack is scored at every level, and images are attacked for all steps; without it at its own level only, and
    fooled images leave the batch.
    """

    attacks: tuple[str, ...] = SUITE
    level: str | None = None
    eps: tuple[Fraction, ...] | None = None
    step_size: Fraction | None = None
    steps: int | None = None  # each attack its own number
    norm: str = "linf"
    restarts: int = 1
    random_start: bool = True
    template: str = "photo"
    scorings: tuple[str, ...] = SCORINGS
    matrix: bool = True
    head: str | None = None
    # Leave out superclass attacks where a tree has no superclass, instead of refusing.
    lenient: bool = False
    seed: int = 0
    batch_size: int = 128
    workers: int = 0


@dataclass(frozen=True)
class Unit:
    """One pass over the images: an attack at a level through a scoring; ``attack`` "none" is the clean pass."""

    attack: str
    level: int | str | None = None
    scoring: str = "prompt"
    eps: Fraction | None = None

    @property
    def key(self) -> str:
        return f"{self.attack}|{self.level}|{self.scoring}|{self.eps}"

    @property
    def title(self) -> str:
        if self.eps is None:
            return "clean"
        scoring = "" if self.scoring == "prompt" else f" through {self.scoring}"
        return f"{self.attack} at level {self.level}{scoring}, ε {format_eps(self.eps)}"


def plan(task: Task, options: EvalOptions) -> list[Unit]:
    """The units of one dataset, the clean pass first.

    Raises:
        UsageError: an unknown attack or norm, a level that no attack of the list concerns, or superclass attacks on a
            tree that has no superclass.
    """
    units = [Unit("none")]
    eps = options.eps or (task.data.default_eps or DEFAULT_EPS,)
    missing = not_applicable(task, options)
    if missing and not options.lenient:
        raise UsageError(
            f"--attack {missing[0]}: the tree of {task.data.name} has no level between leaves and root, so no "
            "superclass to attack; give a deeper one with --tree"
        )
    attacks = [attack_spec(name) for name in options.attacks if name not in ("none", *missing)]
    levels = {spec.name: spec.levels(task.tree, options.level) for spec in attacks}
    for spec in attacks:
        if not levels[spec.name] and len(attacks) == 1:
            raise UsageError(f"--level {options.level}: {spec.name} does not attack that level")
    for radius in eps:
        for spec in attacks:
            budget_of(options, radius, spec)  # refused here, not after the clean pass
            for level in levels[spec.name]:
                # At the leaves both scorings are one; aiming at all levels is done by prompt.
                own = options.scorings if isinstance(level, int) and level > 0 else ("prompt",)
                units += [Unit(spec.name, level, scoring, radius) for scoring in own]
    return units


def not_applicable(task: Task, options: EvalOptions) -> list[str]:
    """The attacks of the list that this tree has no level for."""
    if task.tree.top > 1:
        return []
    return [name for name in options.attacks if name != "none" and attack_spec(name).aim == "superclass"]


def budget_of(options: EvalOptions, eps: Fraction, spec: AttackSpec) -> Budget:
    """The adversary's budget at this ε."""
    steps = spec.steps if options.steps is None else options.steps
    step_size = options.step_size or default_step_size(eps)
    return Budget(eps, step_size, steps, options.norm, options.restarts, options.random_start)
