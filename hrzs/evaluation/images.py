"""Where the adversarial images of an evaluation come from: attacks on its model, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from hrzs.attacks import Attack, Budget, attack_spec, sample_seeds
from hrzs.attacks.base import further_seeds
from hrzs.attacks.objectives import Objective
from hrzs.data import Batch
from hrzs.defences import Defended
from hrzs.errors import UsageError
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import ADAPTIVE, STATIC, Unit, budget_of, plan
from hrzs.models.classifier import SCORINGS, Classifier, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.tasks import Task

#: What the seeds are salted with from which defences draw when they judge an image.
VERDICT = "verdict"


@dataclass(frozen=True)
class Made:
    """Adversarial images, and where they got what they were made for (None: the predictions tell).

    ``gradients`` counts those taken per image, those exactly zero and those not finite.
    """

    images: Float[Tensor, "B 3 H W"]
    success: Bool[Tensor, "B"] | None = None
    gradients: Sequence[int] = (0, 0, 0)


@runtime_checkable
class Part(Protocol):
    """One search of an attack, or a look at what is there; ``cost`` in forward and backward passes of an image."""

    @property
    def cost(self) -> float: ...

    def __call__(self, batch: Batch) -> Made: ...


@dataclass(frozen=True)
class Search:
    """One part of an attack: the images that it is given, attacked.

    Where ``is_judged`` is False, what the attack makes is to be judged on another model, or under another draw. An
    attack on a model behind defences ``knows_draw`` by which they will judge, or meets others only.
    """

    attack: Attack
    objective: Objective
    model: ClipModel | Defended
    seed: int
    place: int
    is_judged: bool = True
    knows_draw: bool = False

    @property
    def cost(self) -> float:
        if not isinstance(self.model, Defended):
            return self.attack.cost
        # A step that costs less than a gradient takes none: it is a query.
        by_query = self.attack.step_cost < 1
        return self.attack.cost * (1 + self.model.passes if by_query else self.model.attack_passes)

    def __call__(self, batch: Batch) -> Made:
        model: ClipModel | Defended = self.model
        if isinstance(model, Defended):
            salt = VERDICT if self.knows_draw else f"adversary {self.place}"
            model = model.of(sample_seeds(batch.ids, self.seed, salt), stays=self.knows_draw)
        images, labels = batch.images.to(model.device), batch.labels.to(model.device)
        seeds = further_seeds(sample_seeds(batch.ids, self.seed), self.place)
        found = self.attack(model, self.objective, images, labels, seeds)
        counts = (found.gradients, found.zero_gradients, found.bad_gradients)
        return Made(found.images, found.success.cpu() if self.is_judged else None, counts)


class AttackedImages:
    """Attacks on the model that is evaluated; `hrzs.evaluation.saved.SavedImages` answers the same questions.

    Raises:
        UsageError: an adaptive attack takes fewer gradients than the defences do.
    """

    def __init__(
        self,
        model: ClipModel,
        task: Task,
        options: EvalOptions,
        classifier: ZeroShotClassifier,
        defended: Defended | None = None,
        *,
        lenient: bool,
    ) -> None:
        self.model, self.task, self.options, self.classifier = model, task, options, classifier
        self.defended = defended
        self.units = plan(task, options, lenient=lenient)
        for unit in self.units if defended is not None else ():
            self._check_gradients(unit)

    def _check_gradients(self, unit: Unit) -> None:
        assert self.defended is not None
        attack, objective = self._attack(unit, early_stop=False)
        for part, _ in attack.parts(objective):
            taken = part.budget.steps * self.defended.eot
            if unit.adversary == ADAPTIVE and part.step_cost >= 1 and taken < self.defended.gradients:
                raise UsageError(
                    f"--attack {unit.attack}: takes {taken} gradients of an image and {self.defended.title} "
                    f"{self.defended.gradients}; an adversary must have as many: give more --steps"
                )

    def budget(self, unit: Unit) -> Budget:
        """What the attack may spend."""
        assert unit.eps is not None
        return budget_of(self.options, unit.eps, attack_spec(unit.attack))

    def stops_early(self, unit: Unit) -> bool:
        """Do fooled images leave? What is scored away from its own aim stays, or transfer would be overstated.

        Nor do they leave where they are judged behind defences: what just crosses a boundary may not cross it there.
        """
        return self._is_scored_at_aim(unit) and self.defended is None

    def _is_scored_at_aim(self, unit: Unit) -> bool:
        return isinstance(unit.level, int) and not self.options.matrix

    def worth(self, unit: Unit, correct: Bool[Tensor, "s levels n"]) -> Bool[Tensor, "n"]:
        """The images to attack: those that can still be lost, given where they are right when clean."""
        if self._is_scored_at_aim(unit) and isinstance(unit.level, int):
            return correct[SCORINGS.index(unit.scoring), unit.level]
        return correct.flatten(0, 1).any(0)

    def parts(self, unit: Unit) -> list[Search]:
        """What is done for one unit, in this order, each with the images that nothing fooled before."""
        attack, objective = self._attack(unit, early_stop=self.stops_early(unit))
        model, judged = self._victim(unit)[0], self.defended is None
        return [
            Search(*part, model, self.options.seed, place, judged, self.options.draw == "known")
            for place, part in enumerate(attack.parts(objective))
        ]

    def _victim(self, unit: Unit) -> tuple[ClipModel | Defended, Classifier]:
        """What the attack of this unit is made against."""
        if self.defended is None or unit.adversary == STATIC:
            return self.model, self.classifier
        return self.defended, self.defended.classifier

    def _attack(self, unit: Unit, *, early_stop: bool) -> tuple[Attack, Objective]:
        assert unit.level is not None
        spec = attack_spec(unit.attack)
        objective = spec.objective(self._victim(unit)[1], unit.level, unit.scoring)
        return spec.optimiser(self.budget(unit), early_stop=early_stop), objective

    def stand_ins(self) -> list[str]:
        """Which loss stands in for which where a level has too few classes for it, a sentence each."""
        found = [
            f"{unit.attack} at level {unit.level}: {fault}"
            for unit in self.units
            if unit.level is not None and (fault := attack_spec(unit.attack).stands_in(self.task.tree, unit.level))
        ]
        return list(dict.fromkeys(found))

    def identity(self) -> list[str]:
        """What the images depend on beyond model, data and options."""
        return [] if self.defended is None else [str(self.defended)]

    def source_of(self, unit: Unit) -> tuple[str, str] | None:  # noqa: ARG002 -- the same for all
        """Name and digest of the model that saved images were made against; None: against the one evaluated."""
        return None

    def is_white_box(self, unit: Unit) -> bool:
        """Were they made against the very model that is evaluated, with its defences?"""
        return unit.adversary != STATIC

    def adversarial_images(self, unit: Unit, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        """Those of a few images under one unit once more, as they were at every level."""
        attack, objective = self._attack(unit, early_stop=False)
        model = self._victim(unit)[0]
        known = self.options.draw == "known"
        return Search(attack, objective, model, self.options.seed, 0, knows_draw=known)(batch).images
