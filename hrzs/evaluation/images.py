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
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import Unit, budget_of, plan
from hrzs.models.classifier import SCORINGS, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.tasks import Task


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
    """One part of an attack: the images that it is given, attacked."""

    attack: Attack
    objective: Objective
    model: ClipModel
    seed: int
    place: int

    @property
    def cost(self) -> float:
        return self.attack.cost

    def __call__(self, batch: Batch) -> Made:
        images, labels = batch.images.to(self.model.device), batch.labels.to(self.model.device)
        seeds = further_seeds(sample_seeds(batch.ids, self.seed), self.place)
        found = self.attack(self.model, self.objective, images, labels, seeds)
        return Made(found.images, found.success.cpu(), (found.gradients, found.zero_gradients, found.bad_gradients))


class AttackedImages:
    """Attacks on the model that is evaluated; `hrzs.evaluation.saved.SavedImages` answers the same questions."""

    def __init__(
        self, model: ClipModel, task: Task, options: EvalOptions, classifier: ZeroShotClassifier, *, lenient: bool
    ) -> None:
        self.model, self.task, self.options, self.classifier = model, task, options, classifier
        self.units = plan(task, options, lenient=lenient)

    def budget(self, unit: Unit) -> Budget:
        """What the attack may spend."""
        assert unit.eps is not None
        return budget_of(self.options, unit.eps, attack_spec(unit.attack))

    def stops_early(self, unit: Unit) -> bool:
        """Do fooled images leave? What is scored away from its own aim stays, or transfer would be overstated."""
        return isinstance(unit.level, int) and not self.options.matrix

    def worth(self, unit: Unit, correct: Bool[Tensor, "s levels n"]) -> Bool[Tensor, "n"]:
        """The images to attack: those that can still be lost, given where they are right when clean."""
        if self.stops_early(unit) and isinstance(unit.level, int):
            return correct[SCORINGS.index(unit.scoring), unit.level]
        return correct.flatten(0, 1).any(0)

    def parts(self, unit: Unit) -> list[Search]:
        """What is done for one unit, in this order, each with the images that nothing fooled before."""
        attack, objective = self._attack(unit, early_stop=self.stops_early(unit))
        parts = attack.parts(objective)
        return [Search(*part, self.model, self.options.seed, place) for place, part in enumerate(parts)]

    def _attack(self, unit: Unit, *, early_stop: bool) -> tuple[Attack, Objective]:
        assert unit.level is not None
        spec = attack_spec(unit.attack)
        objective = spec.objective(self.classifier, unit.level, unit.scoring)
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
        return []

    def source_of(self, unit: Unit) -> tuple[str, str] | None:  # noqa: ARG002 -- the same for all
        """Name and digest of the model that saved images were made against; None: against the one evaluated."""
        return None

    def is_white_box(self, unit: Unit) -> bool:  # noqa: ARG002 -- the same for all
        """Were they made against the very model that is evaluated?"""
        return True

    def adversarial_images(self, unit: Unit, batch: Batch) -> Float[Tensor, "B 3 H W"]:
        """Those of a few images under one unit once more, as they were at every level."""
        attack, objective = self._attack(unit, early_stop=False)
        seeds = sample_seeds(batch.ids, self.options.seed)
        device = self.model.device
        return attack(self.model, objective, batch.images.to(device), batch.labels.to(device), seeds).images
