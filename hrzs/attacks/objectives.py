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
#: Where an attack aims: at one level (0: the leaves), or at all levels at once.
Level: TypeAlias = int | Literal["all"]


class Outcome(NamedTuple):
    """``loss``, to be maximised, and ``success``: does the adversary get the prediction that it wants?"""

    loss: Float[Tensor, "B"]
    success: Bool[Tensor, "B"]


class Objective(ABC):
    """A per-image loss on image features; losses are summed, never averaged, so that batch size does not matter.

    An objective may hold data for each image of a batch, such as a target class. So an optimiser that drops images
    from the batch goes on with `select` of the objective, as with `select` of the ball.
    """

    level: Level

    @abstractmethod
    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        """Loss and success; ``labels`` are leaf labels, whose ancestors the objective looks up."""

    def bound(self: Same, clean: Callable[[], Tensor], labels: Int[Tensor, "B"]) -> Same:  # noqa: ARG002
        """The objective for one batch; ``clean`` computes the features of its clean images, if needed."""
        return self

    def select(self: Same, rows: Tensor | slice) -> Same:  # noqa: ARG002
        """The objective for some images of the batch only; ``rows`` are indices, a mask or a slice."""
        return self


class LevelObjective(Objective):
    """Away from the true node of one level under one scoring: leaf attacks at level 0, superclass attacks above.

    An image wins when the prediction at that level is wrong.

    Args:
        classifier: the classifier under attack.
        level: 0 … L-1.
        scoring: ``prompt`` or ``leaves``.
        loss: ``ce``, ``margin`` or ``dlr`` (see `hrzs.attacks.losses`). Where the level has too few classes for this
            loss, the margin loss replaces it; ``stands_in`` is the name of the replacement, or None.
    """

    def __init__(self, classifier: Classifier, level: int, scoring: str = "prompt", loss: str = "ce") -> None:
        self.classifier = classifier
        self.level: int = level
        self.scoring = scoring
        self.loss = loss
        self.stands_in = STAND_IN if self.classes < LOSSES[loss].classes_away else None

    @property
    def classes(self) -> int:
        """The number of nodes at this level."""
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
        """The same objective with another loss.

        Raises:
            UsageError: the objective is targeted, and has a loss of its own.
        """
        return LevelObjective(self.classifier, self.level, self.scoring, loss)

    def likeliest(self, most: int) -> list[TowardsObjective]:
        """The same aim by targeted losses: towards each clean image's likeliest wrong node, the second, …"""
        return [TowardsObjective(self, rank) for rank in range(min(most, self.classes - 1))]


class TowardsObjective(LevelObjective):
    """An untargeted aim by a targeted loss, as in AutoAttack: images move towards ``goals``, but any mistake wins.

    The goal of an image is the ``rank``-th likeliest wrong node (from 0) of the clean image.
    """

    def __init__(self, aim: LevelObjective, rank: int) -> None:
        super().__init__(aim.classifier, aim.level, aim.scoring, aim.loss)
        self.rank = rank
        self.goals: Tensor | None = None
        self.stands_in = STAND_IN if self.classes < LOSSES[self.loss].classes_towards else None

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        logits, truth = self.logits(features), self.targets(labels)
        # An objective that is not bound to a batch takes the images at hand for the clean ones.
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
    """``objective`` itself, for an attack that needs the classes of one level.

    Raises:
        UsageError: the objective spans all levels.
    """
    if not isinstance(objective, LevelObjective):
        raise UsageError(f"{attack} drives towards the classes of one level: give --level a number")
    return objective


#: From the logits of clean images and the true nodes to the predictions that the adversary wants.
TargetSet = Callable[[Float[Tensor, "B N"], Int[Tensor, "B"]], Bool[Tensor, "B N"]]


class TargetedObjective(LevelObjective):
    """Towards certain mistakes only: an image wins when its prediction is one of the wanted nodes.

    The loss is the log of the wanted nodes' total probability; for a single node this is targeted cross-entropy.
    """

    def __init__(self, classifier: Classifier, level: int, scoring: str, target_set: TargetSet) -> None:
        super().__init__(classifier, level, scoring)
        self.target_set = target_set
        self.wanted: Tensor | None = None

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        logits = self.logits(features)
        # An objective that is not bound to a batch takes the images at hand for the clean ones.
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
    """A `TargetSet`: the likeliest wrong node."""
    others = logits.scatter(1, truth[:, None], -torch.inf)
    return _one_hot(others.argmax(1), logits.shape[1])


def named(node: int) -> TargetSet:
    """The `TargetSet` of node number ``node`` of a level; for images of that node, every other node is wanted."""

    def target_set(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
        wanted = _one_hot(torch.full_like(truth, node), logits.shape[1])
        return torch.where((truth == node)[:, None], ~wanted, wanted)

    return target_set


def by_lca(tree: Tree, *, largest: bool) -> TargetSet:
    """The `TargetSet` of leaves whose lowest common ancestor with the true leaf is lowest, or ``largest``: highest."""
    leaves = torch.arange(len(tree.classes)).expand(len(tree.classes), -1)
    heights = tree.lca_height(leaves.T, leaves)
    if largest:
        wanted = heights == heights.amax(1, keepdim=True)
    else:
        mistakes = heights.masked_fill(heights == 0, tree.height + 1)
        wanted = mistakes == mistakes.amin(1, keepdim=True)

    def target_set(logits: Float[Tensor, "B N"], truth: Int[Tensor, "B"]) -> Bool[Tensor, "B N"]:
        return wanted.to(logits.device, non_blocking=True)[truth]

    return target_set


def _one_hot(index: Int[Tensor, "B"], classes: int) -> Bool[Tensor, "B N"]:
    return index[:, None] == torch.arange(classes, device=index.device)


class HierarchicalObjective(Objective):
    """All levels at once, weighted by `level_weights`; an image wins when it is wrong at every level."""

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
    """``ω_l = 1 - l/(L+1)`` for l = 0 … L-1: the paper's weights, of which the leaves' is largest."""
    return tuple(1 - level / (top + 1) for level in range(top))


def _with(objective: Same, **change: object) -> Same:
    changed = copy.copy(objective)
    changed.__dict__.update(change)
    return changed
