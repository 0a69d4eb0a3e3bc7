"""`clean` and `tecoa`: cross-entropy of CLIP's own cosine logits, on clean or on adversarial images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.text import TextBank
from hrzs.training.alignment import LevelAlignment
from hrzs.training.methods.base import Loss, Method
from hrzs.training.options import TrainOptions
from hrzs.training.original import Anchor
from hrzs.training.perturbation import perturb_images


def kl_divergence(p: Float[Tensor, "B C"], q: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """``KL(p ‖ q)`` of two predictions given as logits, the mean over the batch; gradients go to both."""
    return torch.nn.functional.kl_div(
        q.log_softmax(dim=1), p.log_softmax(dim=1), reduction="batchmean", log_target=True
    )


class Clean(Method):
    """Cross-entropy on clean images, at the leaves or (``every_level``) at every level with weights ``ω_l``.

    ``level_balance`` says whether the mean of a superclass level weighs images or nodes alike.
    """

    name = "clean"
    description = "cross-entropy on clean images"
    reads = frozenset({"every_level", "level_weights", "level_balance"})

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        # A model from a hierarchical run loses its head: the head that is trained here is the cosine head.
        model.geometry = None
        self.head = model.head("cosine")
        self.bank = TextBank(model, tree, options.template)
        self.alignment = LevelAlignment(
            tree, self.bank.index, "none", model.device, options.level_weights, options.level_balance
        )
        self.leaves = self.bank.index.columns[0].to(model.device)
        self.prepared = None if self.tune in ("all", "image+projection") else self._prepare().detach()

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:  # noqa: ARG003
        return 1.0

    def _prepare(self) -> Float[Tensor, "N D"]:
        return self.head.prepare(self.text_features(self.bank, normalise=True)[self.bank.index.owner])

    def texts(self) -> Float[Tensor, "N D"]:
        """The prepared texts of all nodes; computed once if no part of the text encoder is trained."""
        return self._prepare() if self.prepared is None else self.prepared

    def leaf_logits(self, features: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"]) -> Float[Tensor, "B C"]:
        """Logits over the classes, at the model's own temperature."""
        return self.head.logits(features, prepared[self.leaves])

    def cross_entropy(
        self, features: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], labels: Int[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """The loss at the leaves, or over all levels (``every_level``); a mean over the batch."""
        if self.options.every_level:
            logits = self.head.logits(features, prepared)
            levels = self.alignment.levels()
            return self.alignment.loss(logits.repeat(len(levels), 1), self.alignment.of_images(labels, levels))
        return torch.nn.functional.cross_entropy(self.leaf_logits(features, prepared), labels)

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        prepared = self.texts()
        images = self.adversary(images, labels, prepared.detach(), seeds)
        total = self.cross_entropy(self.encode_image(images), prepared, labels)
        return Loss(total, {"ce": total.detach()})

    def adversary(
        self,
        images: Float[Tensor, "b 3 H W"],
        labels: Int[Tensor, "B"],  # noqa: ARG002 -- for methods that attack
        prepared: Float[Tensor, "N D"],  # noqa: ARG002
        seeds: Sequence[int],  # noqa: ARG002
    ) -> Float[Tensor, "b 3 H W"]:
        """The images to train on."""
        return images


class TeCoA(Clean):
    """Text-guided contrastive adversarial training (Mao et al., ICLR 2023): cross-entropy on PGD examples.

    By default the text encoder is frozen; logits are cosines times the model's own ``logit_scale``. ``lambda_anchor``
    adds FARE's loss, which the paper does not have.
    """

    name = "tecoa"
    description = "cross-entropy at the leaves on PGD examples, text frozen (Mao et al., ICLR 2023)"
    reads = Clean.reads | {"lambda_anchor"}

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        self.anchor = Anchor(model, options.lambda_anchor, self.over_batch)

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:  # noqa: ARG003
        return 1.0 + options.steps + (options.lambda_anchor > 0) / 3

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        prepared = self.texts()
        features = self.encode_image(self.adversary(images, labels, prepared.detach(), seeds))
        ce = self.cross_entropy(features, prepared, labels)
        anchor, share = self.anchor(features, images)
        return Loss(ce + anchor, {"ce": ce.detach(), **share})

    def adversary(
        self,
        images: Float[Tensor, "b 3 H W"],
        labels: Int[Tensor, "B"],
        prepared: Float[Tensor, "N D"],
        seeds: Sequence[int],
    ) -> Float[Tensor, "b 3 H W"]:
        o = self.options

        def loss(x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, ""]:
            return self.cross_entropy(self.encode_image(x), prepared, labels)

        return perturb_images(self.model, loss, images, seeds, eps=o.eps, step_size=o.step_size, steps=o.steps)
