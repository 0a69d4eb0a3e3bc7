"""What an evaluation consists of: units of ε × attack × level × scoring, from its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from hrzs.attacks import AttackSpec, Budget, Level, attack_spec
from hrzs.attacks.budget import default_step_size, exact_eps, format_eps
from hrzs.errors import UsageError
from hrzs.evaluation.options import OF_CERTIFICATES, OF_DEFENCES, EvalOptions
from hrzs.option import listed
from hrzs.tasks import Task

DEFAULT_EPS = Fraction(1, 255)
#: The two adversaries of a model behind defences: one does not know them, one does.
STATIC, ADAPTIVE = "static", "adaptive"


def settle(given: Mapping[str, Any]) -> EvalOptions:
    """The defaults, then what was given: names, numbers and texts as the command line or Python has them.

    Args:
        given: options by the names of `EvalOptions`; None is not given.

    Raises:
        UsageError: a value is none of its option.
    """
    values = {name: value for name, value in given.items() if value is not None}
    norm = values.get("norm", "linf")
    if "defence" in values:
        values["defence"] = listed(values["defence"])
    for names, about, without, remedy in (
        (OF_CERTIFICATES, "certificates", values.get("certify") is None, "--certify SIGMA"),
        (OF_DEFENCES, "defences", not values.get("defence"), "--defence NAME"),
    ):
        for name in names if without else ():
            if name in values:
                raise UsageError(f"--{name} {values[name]}: it is about {about}; give {remedy}, or leave it out")
    if values.get("certify") is not None:
        values.setdefault("attack", "none")
    if "attack" in values:
        values["attack"] = listed(values["attack"])
    if "level" in values and values["level"] != "all":
        text = str(values["level"])
        if not text.isdecimal():
            raise UsageError(f"--level {text}: a number, the leaves are level 0, or all")
        values["level"] = int(text)
    if "eps" in values:
        values["eps"] = tuple(dict.fromkeys(exact_eps(eps, norm=norm) for eps in listed(values["eps"])))
    if "step_size" in values:
        values["step_size"] = exact_eps(values["step_size"], option="--step-size", norm=norm)
    return EvalOptions(**values)


@dataclass(frozen=True)
class Unit:
    """One pass over the images: an attack at a level through a scoring; ``attack`` "none" is the clean pass."""

    attack: str
    level: Level | None = None
    scoring: str = "prompt"
    eps: Fraction | None = None
    #: Of a model behind defences: ``static``, an attack on the model without them, or ``adaptive``, on the whole.
    adversary: str | None = None

    @property
    def key(self) -> str:
        adversary = "" if self.adversary is None else f"|{self.adversary}"
        return f"{self.attack}|{self.level}|{self.scoring}|{self.eps}{adversary}"

    @property
    def title(self) -> str:
        if self.eps is None:
            return "clean"
        scoring = "" if self.scoring == "prompt" else f" through {self.scoring}"
        adversary = "" if self.adversary is None else f", {self.adversary}"
        return f"{self.attack} at level {self.level}{scoring}, ε {format_eps(self.eps)}{adversary}"

    @property
    def as_static(self) -> Unit:
        """The same attack, made against the model without its defences."""
        return replace(self, adversary=STATIC)


def plan(task: Task, options: EvalOptions, *, lenient: bool = False) -> list[Unit]:
    """The attacks on one dataset: ε by ε, attack by attack, level by level.

    Args:
        lenient: leave out superclass attacks where the tree has no superclass, instead of refusing.

    Raises:
        UsageError: an unknown attack or norm, a level that no attack of the list concerns, or superclass attacks on a
            tree that has no superclass.
    """
    units: list[Unit] = []
    eps = options.eps or (task.data.default_eps or DEFAULT_EPS,)
    missing = not_applicable(task, options)
    if missing and not lenient:
        raise UsageError(
            f"--attack {missing[0]}: the tree of {task.data.name} has no level between leaves and root, so no "
            "superclass to attack; give a deeper one with --tree"
        )
    attacks = [attack_spec(name) for name in options.attack if name not in ("none", *missing)]
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
                adversaries = (STATIC, ADAPTIVE) if options.defence else (None,)
                units += [Unit(spec.name, level, scoring, radius, a) for scoring in own for a in adversaries]
    return units


def not_applicable(task: Task, options: EvalOptions) -> list[str]:
    """The attacks of the list that this tree has no level for."""
    if task.tree.height > 1:
        return []
    return [name for name in options.attack if name != "none" and attack_spec(name).aim == "superclass"]


def budget_of(options: EvalOptions, eps: Fraction, spec: AttackSpec) -> Budget:
    """The adversary's budget at this ε."""
    steps = spec.steps if options.steps is None else options.steps
    step_size = options.step_size or default_step_size(eps)
    return Budget(eps, step_size, steps, options.norm, options.restarts, options.random_start)
