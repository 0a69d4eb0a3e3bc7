"""Validation while training, on held-out images: clean and robust accuracy at every level, and which model is best.

Accuracies are per image and *balanced*: over the nodes of a level, each of which counts alike however few images it has
(`hrzs.results.metrics.node_weights`). In a lopsided tree, a model that always names the largest node is right about
most images of a level, but only about one of its K nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hrzs.attacks import ATTACKS, Budget, sample_seeds
from hrzs.data import Batch, Dataset, read
from hrzs.distributed import ALONE, Group
from hrzs.errors import HrzsError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import PROMPT, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.results.metrics import balanced, constant_answer, node_weights, weights_over_levels
from hrzs.training.options import TrainOptions


@dataclass(frozen=True)
class Validation:
    """Is each image right at each level? ``robust`` means right when clean and also when that level is attacked.

    Superclasses are scored by their own prompt, with the head that the model is trained with. ``truth`` is the true
    node of each image at each level, by which accuracies are balanced.
    """

    clean: Bool[Tensor, "levels N"]
    robust: Bool[Tensor, "levels N"]
    truth: Int[Tensor, "levels N"]

    def criterion(self, name: str) -> float:
        """The accuracy called ``name``, one of `CRITERIA`, in [0, 1].

        ``clean``: the mean over levels; ``leaf``: robust at the leaves; ``levels``: robust, the mean over levels;
        ``any-level``: right at every level, whichever is attacked; ``balanced``: the mean of ``clean`` and ``levels``.

        Each that spans levels is balanced over the nodes of every level (``any-level`` in the mean over levels);
        ``leaf`` is per image.
        """
        values: dict[str, Callable[[], float]] = {
            "clean": lambda: fmean(self._balanced(self.clean)),
            "leaf": lambda: self.robust[0].double().mean().item(),
            "levels": lambda: fmean(self._balanced(self.robust)),
            "any-level": lambda: balanced(self.robust.all(0), weights_over_levels(self.truth)),
            "balanced": lambda: fmean(self._balanced(self.clean) + self._balanced(self.robust)),
        }
        return values[name]()

    def _balanced(self, correct: Bool[Tensor, "levels N"]) -> list[float]:
        return [balanced(hit, node_weights(nodes)) for hit, nodes in zip(correct, self.truth, strict=True)]

    def as_row(self, name: str) -> dict[str, Any]:
        """The row of ``metrics.jsonl``: accuracies by level, the criterion, and what a constant answer scores.

        ``clean``, ``robust`` and ``any_level`` are per image, the same with ``_balanced`` balanced over nodes;
        ``constant`` is what the best constant answer scores per image at each level (balanced, one of K nodes).
        """

        def rounded(levels: list[float]) -> list[float]:
            return [round(level, 6) for level in levels]

        return {
            "clean": rounded(self.clean.double().mean(1).tolist()),
            "robust": rounded(self.robust.double().mean(1).tolist()),
            "clean_balanced": rounded(self._balanced(self.clean)),
            "robust_balanced": rounded(self._balanced(self.robust)),
            "constant": rounded([constant_answer(nodes) for nodes in self.truth]),
            "any_level": round(self.robust.all(0).double().mean().item(), 6),
            "any_level_balanced": round(self.criterion("any-level"), 6),
            "n": self.clean.shape[1],
            "criterion": round(self.criterion(name), 6),
        }


@exact_fp32()
def validate(model: ClipModel, data: Dataset, tree: Tree, options: TrainOptions, group: Group = ALONE) -> Validation:
    """Accuracies under PGD of ``val_steps`` steps at the training ε against each level in turn; seeds never change.

    Verdicts are in fp32; an image that is wrong when clean is not attacked. The processes of ``group`` share each
    batch.

    Raises:
        ImageError: an image cannot be read.
        Stopped: a signal asked for it.
    """
    classifier = ZeroShotClassifier(model, tree, options.template)
    attack = ATTACKS["leaf-pgd"].optimiser(Budget(options.eps, options.step_size, options.val_steps))
    objectives = [ATTACKS["leaf-pgd"].objective(classifier, level) for level in range(tree.height)]

    def look(batch: Batch) -> Int[Tensor, "3 levels b"]:
        """Right when clean, right under attack, and the true node, of each image at each level."""
        images, labels = batch.images, batch.labels.to(model.device)
        seeds = sample_seeds(batch.ids, options.seed, "validation")
        truth = torch.stack([classifier.labels(labels, level) for level in range(tree.height)])
        with torch.no_grad():
            correct = classifier.predict(model.encode_image(images, "fp32"))[PROMPT] == truth
        held = correct.clone()
        for level, objective in enumerate(objectives):
            rows = correct[level].nonzero().squeeze(1)
            if len(rows):
                here = [seeds[row] for row in rows.tolist()]
                held[level, rows] = ~attack(model, objective, images[rows], labels[rows], here).success
        return torch.stack([correct.to(truth.dtype), held.to(truth.dtype), truth]).cpu()

    starts = range(0, len(data), options.batch_size)
    whole = [range(len(data))[start : start + options.batch_size] for start in starts]
    own = [rows[group.part(len(rows))] for rows in whole]
    batches = read(data, [list(rows) for rows in own if rows], device=model.device)
    found: list[Tensor] = []
    for rows in own:
        fault = None
        try:
            found.append(look(next(batches)) if rows else torch.zeros(3, tree.height, 0, dtype=torch.long))
        except HrzsError as error:
            fault = error
        group.agree(fault)
    shares = zip(*group.collect(found), strict=True)
    clean, robust, truth = torch.cat([part for batch in shares for part in batch], dim=2)
    return Validation(clean.bool(), robust.bool(), truth)
