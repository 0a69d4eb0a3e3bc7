"""`agft`: attacked images keep the predictions that the original gave clean ones (Cui et al., CVPR 2026)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods.base import Loss
from hrzs.training.methods.cross_entropy import Clean
from hrzs.training.options import TrainOptions
from hrzs.training.original import Original
from hrzs.training.perturbation import perturb_images


class AGFT(Clean):
    """``H(q, p(x̂))``: cross-entropy with the original model's softened prediction as its target; no labels.

    Over the leaves, with ``z`` for CLIP's logits (cosines times the model's ``logit_scale``), ``k = agft_scale`` and
    ``r = agft_ratio``:

        q = softmax(r k z_orig(x)),    p(x̂) = softmax(k z(x̂))

    The adversary maximises the same loss with the same ``q``. The temperature of ``q`` is the original's own and is not
    trained. The paper is arXiv 2603.29410.
    """

    name = "agft"
    reads = frozenset({"agft_scale", "agft_ratio"})
    description = "PGD examples held to the original's softened predictions on clean images (Cui et al., CVPR 2026)"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        self.original = Original(model)
        self.original_head = copy.deepcopy(self.head).requires_grad_(False)
        texts = self.original_head.prepare(self.bank.features(model, normalise=True))
        self.original_texts = texts[self.leaves].detach()

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:  # noqa: ARG003
        return 1.0 + options.steps + 1 / 3

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:  # noqa: ARG002
        o, prepared = self.options, self.texts()
        target, texts = self.target(images), prepared.detach()

        def moved(x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, ""]:
            return self.soft_cross_entropy(self.encode_image(x), texts, target)

        perturbed = perturb_images(self.model, moved, images, seeds, eps=o.eps, step_size=o.step_size, steps=o.steps)
        total = self.soft_cross_entropy(self.encode_image(perturbed), prepared, target)
        # The entropy of the target is a constant of the batch: what training can lower is the divergence.
        entropy = torch.special.entr(target).sum(dim=1).mean()
        return Loss(total, {"kl": total.detach() - entropy, "target_entropy": entropy})

    @torch.no_grad()
    def target(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "B C"]:
        """``q`` of the whole batch."""
        features = self.over_batch(self.original.encode_image, images)
        logits = self.original_head.logits(features, self.original_texts)
        return (self.options.agft_ratio * self.options.agft_scale * logits).softmax(dim=1)

    def soft_cross_entropy(
        self, features: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], target: Float[Tensor, "B C"]
    ) -> Float[Tensor, ""]:
        """``-Σ q log p``, the mean over the batch."""
        return F.cross_entropy(self.options.agft_scale * self.leaf_logits(features, prepared), target)
