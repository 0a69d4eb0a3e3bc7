"""`pmg-aft`: TeCoA, with predictions held to the original model's (Wang et al., CVPR 2024)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods.base import Loss
from hrzs.training.methods.cross_entropy import Clean, TeCoA, kl_divergence
from hrzs.training.options import TrainOptions
from hrzs.training.original import Original


class PMGAFT(TeCoA):
    """``CE(x̂) + pmg_original KL(p_orig(x̂), p(x̂)) + pmg_clean KL(p(x), p(x̂))`` over the leaves, adversary of TeCoA.

    ``pmg_direction`` says under which prediction a divergence is an expectation: ``target-first`` is ``KL(p' ‖ p(x̂))``.
    ``pmg_reduction`` says whether divergences are summed over the batch, beside a mean cross-entropy, or averaged.
    Each prediction has its own model's temperature; the original's temperature is not trained.
    """

    name = "pmg-aft"
    reads = Clean.reads | {"pmg_original", "pmg_clean", "pmg_direction", "pmg_reduction"}
    description = "TeCoA + divergences from the original's and from the clean prediction (Wang et al., CVPR 2024)"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        self.original = Original(model)
        self.original_head = copy.deepcopy(self.head).requires_grad_(False)
        self.original_texts = self.original_head.prepare(self.bank.features(model, normalise=True))[
            self.leaves
        ].detach()

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:
        return super().encodings(options, levels) + 1 + 1 / 3

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o, prepared = self.options, self.texts()
        perturbed = self.adversary(images, labels, prepared.detach(), seeds)
        features = self.encode_image(perturbed)
        with torch.no_grad():
            target = self.original_head.logits(
                self.over_batch(self.original.encode_image, perturbed), self.original_texts
            )
        ce = self.cross_entropy(features, prepared, labels)
        adversarial = self.leaf_logits(features, prepared)
        original = self._divergence(target, adversarial)
        clean = self._divergence(self.leaf_logits(self.encode_image(images), prepared), adversarial)
        log = {"ce": ce, "kl_original": original, "kl_clean": clean}
        total = ce + o.pmg_original * original + o.pmg_clean * clean
        return Loss(total, {name: value.detach() for name, value in log.items()})

    def _divergence(self, target: Float[Tensor, "B C"], adversarial: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
        o = self.options
        pair = (target, adversarial) if o.pmg_direction == "target-first" else (adversarial, target)
        mean = kl_divergence(*pair)
        return mean if o.pmg_reduction == "mean" else len(target) * mean
