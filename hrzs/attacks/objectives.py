"""What an adversary maximises, image by image, and when it has won."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.models.classifier import ZeroShotClassifier


class Outcome(NamedTuple):
    """``loss`` to be maximised, and ``won``: is the prediction that the attack aims at wrong?"""

    loss: Float[Tensor, "B"]
    won: Bool[Tensor, "B"]


class Objective(ABC):
    """A per-image loss on image features; sums over images, never means, so that batches cannot matter."""

    level: int | str

    @abstractmethod
    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        """``labels`` are leaf labels; the objective looks up their ancestors."""


class LevelObjective(Objective):
    """Cross-entropy at one level under one scoring: leaf attacks at level 0, superclass attacks above."""

    def __init__(self, classifier: ZeroShotClassifier, level: int, scoring: str = "prompt") -> None:
        self.classifier = classifier
        self.level: int = level
        self.scoring = scoring

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        logits = self.classifier.logits(features, self.level, self.scoring)
        target = self.classifier.labels(labels, self.level)
        return Outcome(F.cross_entropy(logits, target, reduction="none"), logits.detach().argmax(1) != target)


class HierarchicalObjective(Objective):
    """All levels at once, weighted as in training (method.md, section 2); won when wrong at every level."""

    level = "all"

    def __init__(self, classifier: ZeroShotClassifier, scoring: str = "prompt") -> None:
        top = classifier.tree.top
        self.parts = [LevelObjective(classifier, level, scoring) for level in range(top)]
        self.weights = level_weights(top)

    def __call__(self, features: Float[Tensor, "B D"], labels: Int[Tensor, "B"]) -> Outcome:
        outcomes = [part(features, labels) for part in self.parts]
        loss = torch.stack([w * o.loss for w, o in zip(self.weights, outcomes, strict=True)]).sum(0)
        return Outcome(loss, torch.stack([o.won for o in outcomes]).all(0))


def level_weights(top: int) -> tuple[float, ...]:
    """``ω_l = 1 - l/(L+1)`` for l = 0 … L-1: leaves weigh most (method.md, section 2)."""
    return tuple(1 - level / (top + 1) for level in range(top))
