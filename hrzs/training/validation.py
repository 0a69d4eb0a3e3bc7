"""A small look at held-out images while training: clean and robust accuracy at every level, and which model is best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from hrzs.attacks import ATTACKS, Budget, sample_seeds
from hrzs.data import Dataset, loader
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.training.options import TrainOptions


@dataclass(frozen=True)
class Validation:
    """Right or not, of each image at each level; ``robust``: right when clean and when that level is attacked.

    Superclasses are scored by their own prompt, by the head the model is trained with.
    """

    clean: Bool[Tensor, "levels N"]
    robust: Bool[Tensor, "levels N"]

    def criterion(self, name: str) -> float:
        """The accuracy called ``name``, in [0, 1]; what may be asked for is `CRITERIA`.

        ``clean``: the mean over levels; ``leaf``: robust at the leaves; ``levels``: robust, the mean over levels;
        ``any-level``: right at every level whichever is attacked; ``balanced``: the mean of ``clean`` and ``levels``.
        """
        values: dict[str, Callable[[], Tensor]] = {
            "clean": lambda: self.clean.double().mean(),
            "leaf": lambda: self.robust[0].double().mean(),
            "levels": lambda: self.robust.double().mean(),
            "any-level": lambda: self.robust.all(0).double().mean(),
            "balanced": lambda: (self.clean.double().mean() + self.robust.double().mean()) / 2,
        }
        return values[name]().item()

    def as_row(self, name: str) -> dict[str, Any]:
        """What ``metrics.jsonl`` keeps: accuracies by level, and the criterion."""
        return {
            "clean": [round(level, 6) for level in self.clean.double().mean(1).tolist()],
            "robust": [round(level, 6) for level in self.robust.double().mean(1).tolist()],
            "any_level": round(self.criterion("any-level"), 6),
            "n": self.clean.shape[1],
            "criterion": round(self.criterion(name), 6),
        }


def validate(model: ClipModel, data: Dataset, tree: Tree, options: TrainOptions) -> Validation:
    """PGD of ``val_steps`` steps at the training ε against every level in turn; the same seeds each time.

    Verdicts are in fp32; an image that is wrong when clean is not attacked.
    """
    classifier = ZeroShotClassifier(model, tree, options.template)
    attack = ATTACKS["leaf-pgd"].optimiser(Budget(options.eps, options.step_size, options.val_steps))
    objectives = [ATTACKS["leaf-pgd"].objective(classifier, level) for level in range(tree.top)]
    clean, robust = [], []
    for batch in loader(data, options.batch_size):
        images, labels = batch.images.to(model.device), batch.labels.to(model.device)
        seeds = sample_seeds(batch.ids, options.seed, "validation")
        truth = torch.stack([classifier.labels(labels, level) for level in range(tree.top)])
        with torch.no_grad():
            right = classifier.predict(model.encode_image(images, "fp32"))[0] == truth
        held = right.clone()
        for level, objective in enumerate(objectives):
            rows = right[level].nonzero().squeeze(1)
            if len(rows):
                here = [seeds[row] for row in rows.tolist()]
                held[level, rows] = ~attack(model, objective, images[rows], labels[rows], here).won
        clean.append(right.cpu())
        robust.append(held.cpu())
    return Validation(torch.cat(clean, 1), torch.cat(robust, 1))
