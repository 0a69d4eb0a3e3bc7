"""Attacks at every level of a tree on any module that gives logits of the leaf classes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import Classifier, sum_leaves
from hrzs.models.encoder import ImageEncoder
from hrzs.models.exact import exact_fp32


class LogitModel(ImageEncoder):
    """An image encoder whose features are the logits of ``module``.

    Args:
        module: takes pixels in [0, 1], and normalises and resizes inside; it is not copied.

    Raises:
        UsageError: the module is in training mode.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if any(part.training for part in module.modules()):
            raise UsageError(
                f"{type(module).__name__} is in training mode, where batch norm and dropout change predictions from "
                "batch to batch; call its .eval() first"
            )
        self.module = module

    @exact_fp32()
    def encode_image(self, pixels: Float[Tensor, "B 3 H W"], precision: str | None = None) -> Float[Tensor, "B D"]:  # noqa: ARG002
        """The logits.

        Raises:
            UsageError: the module does not return one row of logits for each image.
        """
        logits = self.module(pixels)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(pixels):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(
                f"{type(self.module).__name__} gives {shape} for {len(pixels)} images; a tensor of logits is needed, "
                "images × classes"
            )
        return logits.float()


class LogitClassifier(Classifier):
    """The classifier of a `LogitModel`; superclasses have no prompt, so both scorings sum over leaves."""

    def __init__(self, tree: Tree, device: torch.device | str = "cpu") -> None:
        self.tree = tree
        self.ancestors = tree.ancestors.to(device)

    def logits(
        self, features: Float[Tensor, "B C"], level: int = 0, scoring: str = "prompt"  # noqa: ARG002
    ) -> Float[Tensor, "B nodes"]:  # fmt: skip
        """See `Classifier.logits`.

        Raises:
            UsageError: the number of logits is not that of the tree's classes.
        """
        if features.shape[1] != len(self.tree.classes):
            raise UsageError(
                f"the model gives {features.shape[1]} logits, the tree has {len(self.tree.classes)} classes; give the "
                "tree over the model's own classes, in the order of its logits"
            )
        return features if level == 0 else sum_leaves(features, self.ancestors[level], len(self.tree.levels[level]))
