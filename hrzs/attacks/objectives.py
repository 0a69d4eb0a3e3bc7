"""What an adversary maximises, image by image, and when it has won."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.losses import LOSSES, STAND_IN
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import Classifier

Same = TypeVar("Same", bound="Objective")
#: Where an attack aims: one level, the leaves' is 0, or every one at once.
Level: TypeAlias = int | Literal["all"]


class Outcome(NamedTuple):
    """``loss`` to be maximised, and ``success``: is the prediction what the adversary wants?"""

    loss: Float[Tensor, "B"]
    success: Bool[Tensor, "B"]


class Objective(ABC):
    """A per-image loss on image features; sums over images, never means, so that batches cannot matter.

    An objective may hold something of its own for each image of a batch (a class to drive it towards). So where an
    optimiser drops images from the batch, it keeps `select` of the objective as it keeps that of the ball.
    """

    level: Level

    @abstractmethod
    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        """``labels`` are leaf labels; the objective looks up their ancestors."""

    def bound(self: Same, clean: Callable[[], Tensor], labels: Int[Tensor, "B"]) -> Same:  # noqa: ARG002
        """The objective for one batch; ``clean`` gives the features of its clean images, if they are wanted."""
        return self

    def select(self: Same, rows: Tensor | slice) -> Same:  # noqa: ARG002
        """The objective of these images of the batch only (indices, a mask or a slice)."""
        return self


class LevelObjective(Objective):
    """Away from the truth at one level under one scoring: leaf attacks at level 0, superclass attacks above.

    Won when the prediction at that level is wrong.

    Args:
        classifier: gives the logits.
        level: 0 … L-1.
        scoring: ``prompt`` or ``leaves``.
        loss: ``ce``, ``margin`` or ``dlr`` (see `hrzs.attacks.losses`). Where the level has too few classes for it,
            the margin loss stands in, and ``stands_in`` names it (else it is None).
    """

    def __init__(self, classifier: Classifier, level: int, scoring: str = "prompt", loss: str = "ce") -> None:
        self.classifier = classifier
        self.level: int = level
        self.scoring = scoring
        self.loss = loss
        self.stands_in = STAND_IN if self.classes < LOSSES[loss].classes_away else None

    @property
    def classes(self) -> int:
        """How many nodes stand at this level."""
        return len(self.classifier.tree.levels[self.level])

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B N"]:
        """Logits of this level under this scoring."""
        return self.classifier.logits(features, self.level, self.scoring)

    def targets(self, labels: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """The true node of each image at this level."""
        return self.classifier.labels(labels, self.level)

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        logits, truth = self.logits(features), self.targets(labels)
        return Outcome(LOSSES[self.stands_in or self.loss].away(logits, truth), logits.detach().argmax(1) != truth)

    def with_loss(self, loss: str) -> LevelObjective:
        """The same aim by another loss.

        Raises:
            UsageError: the aim is a targeted one, which goes with its own.
        """
        return LevelObjective(self.classifier, self.level, self.scoring, loss)

    def likeliest(self, most: int) -> list[TowardsObjective]:
        """The same aim by driving images towards their likeliest other nodes: first, second … when clean."""
        return [TowardsObjective(self, rank) for rank in range(min(most, self.classes - 1))]


class TowardsObjective(LevelObjective):
    """A targeted way to an untargeted aim, as in AutoAttack: driven towards ``goals``, won by any mistake.

    The goal of an image is the node that is the ``rank``-th likeliest other one (from 0) when it is clean.
    """

    def __init__(self, aim: LevelObjective, rank: int) -> None:
        super().__init__(aim.classifier, aim.level, aim.scoring, aim.loss)
        self.rank = rank
        self.goals: Tensor | None = None
        self.stands_in = STAND_IN if self.classes < LOSSES[self.loss].classes_towards else None

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        logits, truth = self.logits(features), self.targets(labels)
        # Not bound to a batch, the images at hand are taken for the clean ones.
        goals = self._goals(logits.detach(), truth) if self.goals is None else self.goals
        loss = LOSSES[self.stands_in or self.loss].towards(logits, truth, goals)
        return Outcome(loss, logits.detach().argmax(1) != truth)

    def _goals(self, logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        others = logits.scatter(1, truth[:, None], -torch.inf)
        return others.topk(self.rank + 1).indices[:, self.rank]

    def bound(self, clean: Callable[[], Tensor], labels: Int[Tensor, "B"]) -> TowardsObjective:
        return _with(self, goals=self._goals(self.logits(clean()), self.targets(labels)))

    def select(self, rows: Tensor | slice) -> TowardsObjective:
        return self if self.goals is None else _with(self, goals=self.goals[rows])


def of_level(objective: Objective, attack: str) -> LevelObjective:
    """``objective`` for an attack that drives towards the classes of one level.

    Raises:
        UsageError: it is about all levels at once.
    """
    if not isinstance(objective, LevelObjective):
        raise UsageError(f"{attack} drives towards the classes of one level: give --level a number")
    return objective


#: Which predictions an adversary wants, from the logits of clean images and the truth.
TargetSet = Callable[[Float[Tensor, "B N"], Int[Tensor, "B"]], Bool[Tensor, "B N"]]


class TargetedObjective(LevelObjective):
    """Towards certain mistakes and no others: won when the prediction is one of those wished for.

    The loss is the log-probability of all of them together; for a single one this is targeted cross-entropy.
    """

    def __init__(self, classifier: Classifier, level: int, scoring: str, target_set: TargetSet) -> None:
        super().__init__(classifier, level, scoring)
        self.target_set = target_set
        self.wanted: Tensor | None = None

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        logits = self.logits(features)
        # Not bound to a batch, the images at hand are taken for the clean ones.
        wanted = self.target_set(logits.detach(), self.targets(labels)) if self.wanted is None else self.wanted
        loss = logits.masked_fill(~wanted, -torch.inf).logsumexp(1) - logits.logsumexp(1)
        return Outcome(loss, wanted.gather(1, logits.detach().argmax(1, keepdim=True)).squeeze(1))

    def with_loss(self, loss: str) -> LevelObjective:
        raise UsageError(f"a targeted objective has a loss of its own and takes no {loss!r}: use pgd, fgsm or apgd-ce")

    def bound(self, clean: Callable[[], Tensor], labels: Int[Tensor, "B"]) -> TargetedObjective:
        return _with(self, wanted=self.target_set(self.logits(clean()), self.targets(labels)))

    def select(self, rows: Tensor | slice) -> TargetedObjective:
        return self if self.wanted is None else _with(self, wanted=self.wanted[rows])


def nearest(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
    """The most likely other node."""
    others = logits.scatter(1, truth[:, None], -torch.inf)
    return _one_hot(others.argmax(1), logits.shape[1])


def named(node: int) -> TargetSet:
    """The ``node``-th of its level; an image that belongs there already is to be any other."""

    def target_set(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
        wanted = _one_hot(torch.full_like(truth, node), logits.shape[1])
        return torch.where((truth == node)[:, None], ~wanted, wanted)

    return target_set


def by_lca(tree: Tree, *, largest: bool) -> TargetSet:
    """At the leaves: the mistakes whose lowest common ancestor with the truth stands lowest, or else highest."""
    leaves = torch.arange(len(tree.classes)).expand(len(tree.classes), -1)
    heights = tree.lca_height(leaves.T, leaves)
    if largest:
        wanted = heights == heights.amax(1, keepdim=True)
    else:
        mistakes = heights.masked_fill(heights == 0, tree.height + 1)
        wanted = mistakes == mistakes.amin(1, keepdim=True)

    def target_set(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
        return wanted.to(logits.device)[truth]

    return target_set


def _one_hot(index: Int[Tensor, "B"], classes: int) -> Bool[Tensor, "B N"]:
    return index[:, None] == torch.arange(classes, device=index.device)


class HierarchicalObjective(Objective):
    """All levels at once, weighted as in training (method.md, section 2); won when wrong at every level."""

    level = "all"

    def __init__(self, classifier: Classifier, scoring: str = "prompt") -> None:
        top = classifier.tree.height
        self.parts = [LevelObjective(classifier, level, scoring) for level in range(top)]
        self.weights = level_weights(top)

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        outcomes = [part(features, labels) for part in self.parts]
        loss = torch.stack([w * o.loss for w, o in zip(self.weights, outcomes, strict=True)]).sum(0)
        return Outcome(loss, torch.stack([o.success for o in outcomes]).all(0))


def level_weights(top: int) -> tuple[float, ...]:
    """``ω_l = 1 - l/(L+1)`` for l = 0 … L-1: leaves weigh most (method.md, section 2)."""
    return tuple(1 - level / (top + 1) for level in range(top))


def _with(objective: Same, **change: object) -> Same:
    changed = copy.copy(objective)
    changed.__dict__.update(change)
    return changed
