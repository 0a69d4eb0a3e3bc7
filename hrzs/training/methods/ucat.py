"""`ucat`: TeCoA, with the evidence for each class held to the original model's (Lu et al., ICML 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods.base import Loss
from hrzs.training.methods.cross_entropy import Clean, TeCoA
from hrzs.training.options import TrainOptions
from hrzs.training.original import Original


class UCAT(TeCoA):
    """``CE(x̂) + w KL(Dir(α(x̂)) ‖ Dir(α_orig(x))) / α_max`` over the leaves, adversary of TeCoA.

    An image's cosines are the evidence for each class, the concentrations of a Dirichlet distribution:

        α = exp((cos + 1)/τ),    α_max = 1 + exp(2/τ)

    with ``τ = ucat_temperature`` and ``w = ucat_weight``. A softmax keeps the ratios of the ``α`` alone; the Dirichlet
    distribution also has their sum, which says how sure the model is. ``α_max`` is the largest possible evidence
    (and 1), so that ``w`` means much the same at every ``τ``. The paper is arXiv 2512.12997.
    """

    name = "ucat"
    reads = Clean.reads | {"ucat_weight", "ucat_temperature"}
    description = "TeCoA + Dirichlet evidence held to the original's on clean images (Lu et al., ICML 2026)"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        self.original = Original(model)
        self.original_texts = self.head.prepare(self.bank.features(model, normalise=True))[self.leaves].detach()

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:
        return super().encodings(options, levels) + 1 / 3

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o, prepared = self.options, self.texts()
        features = self.encode_image(self.adversary(images, labels, prepared.detach(), seeds))
        ce = self.cross_entropy(features, prepared, labels)
        with torch.no_grad():
            target = self.concentrations(self.over_batch(self.original.encode_image, images), self.original_texts)
        divergence = dirichlet_divergence(self.concentrations(features, prepared[self.leaves]), target).mean()
        kl = (o.ucat_weight / (1 + math.exp(2 / o.ucat_temperature)) * divergence).to(ce.dtype)
        return Loss(ce + kl, {"ce": ce.detach(), "kl": kl.detach()})

    def concentrations(self, features: Float[Tensor, "B D"], prepared: Float[Tensor, "C D"]) -> Float[Tensor, "B C"]:
        """``α`` in float64: at τ = 0.07 they are around 1e8, and log Γ of them has no digit after the point in fp32."""
        cosines = F.normalize(features, dim=1) @ prepared.T
        return ((cosines.double() + 1) / self.options.ucat_temperature).exp()


def dirichlet_divergence(p: Float[Tensor, "B C"], q: Float[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """``KL(Dir(p) ‖ Dir(q))`` of each row of concentrations, in nats.

    The density of ``Dir(p)`` is ``Γ(p₀)/Π Γ(p_c) Π x_c^(p_c - 1)``, an exponential family with ``p₀ = Σ p_c``. So with
    ``D(p, q) = log Γ(q) - log Γ(p) - (q - p) ψ(p)`` the divergence is ``Σ D(p_c, q_c) - D(p₀, q₀)``.
    """
    return _bregman(p, q).sum(dim=1) - _bregman(p.sum(dim=1), q.sum(dim=1))


def _bregman(p: Float[Tensor, "*shape"], q: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the convex ``log Γ(q)`` exceeds its tangent at ``p`` by."""
    return torch.lgamma(q) - torch.lgamma(p) - (q - p) * torch.digamma(p)
