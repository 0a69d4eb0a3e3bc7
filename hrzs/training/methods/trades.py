"""`trades`: clean cross-entropy, and predictions that an attack does not move (Zhang et al., ICML 2019)."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from hrzs.training.methods.base import Loss
from hrzs.training.methods.cross_entropy import Clean, kl_divergence
from hrzs.training.options import TrainOptions
from hrzs.training.perturbation import perturb_images


class Trades(Clean):
    """``CE(x) + β KL(p(x) ‖ p(x̂))`` over the leaves, ``β = trades_beta``; the adversary maximises the divergence.

    At ``x̂ = x`` the divergence has no gradient: it is the random start that sets the attack in motion.
    """

    name = "trades"
    reads = Clean.reads | {"trades_beta"}
    description = "clean cross-entropy + divergence of PGD examples' predictions (Zhang et al., ICML 2019)"

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:
        return super().encodings(options, levels) + options.steps + 1

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o, prepared = self.options, self.texts()
        features = self.encode_image(images)
        clean = self.leaf_logits(features, prepared)
        target, texts = clean.detach(), prepared.detach()

        def moved(x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, ""]:
            return kl_divergence(target, self.leaf_logits(self.encode_image(x), texts))

        perturbed = perturb_images(self.model, moved, images, seeds, eps=o.eps, step_size=o.step_size, steps=o.steps)
        ce = self.cross_entropy(features, prepared, labels)
        kl = kl_divergence(clean, self.leaf_logits(self.encode_image(perturbed), prepared))
        return Loss(ce + o.trades_beta * kl, {"ce": ce.detach(), "kl": kl.detach()})
