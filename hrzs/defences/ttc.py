"""TTC: counter-attack the image (Xing, Zhao & Sebe, "CLIP is Strong Enough to Fight Back", CVPR 2025, section 4).

An attacked image is falsely stable: noise hardly moves its features. There the defence takes a few steps of PGD that
move the features as far as they go. Where noise moves them much, as on most clean images, it only adds the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hrzs.attacks import counter
from hrzs.defences.base import Purifier, Undefended
from hrzs.errors import UsageError


@dataclass(frozen=True)
class TTC(Purifier):
    """Counter-attack of ``steps`` steps of ``size`` within ``eps`` (both in 255ths), where features are stable.

    They are where uniform noise within ``eps`` moves them by less than ``tau`` of their norm. The result is the mean
    of the noise and all later perturbations k = 0 … steps, with weights ``exp(beta k)``. All constants are the paper's,
    for CLIP ViT-B/32 at 224 pixels; ``tau`` belongs to a model, and others need another.

    The paper takes the stability of the original CLIP where the model was fine-tuned; here it is that of the model.
    """

    eps: float = 4.0
    size: float = 1.0
    steps: int = 2
    tau: float = 0.2
    beta: float = 2.0

    name: ClassVar[str] = "ttc"
    description: ClassVar[str] = "counter-attack where features are falsely stable (Xing et al., CVPR 2025)"
    adversary: ClassVar[str] = (
        "The counter-attack is computed anew at every step and then held constant, for the derivative of its signs is "
        "zero (BPDA); its noise is averaged over (EOT)."
    )
    needs_eot: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.eps < 0 or self.size < 0 or self.steps < 0:
            raise UsageError(f"--defence {self}: eps, size and steps cannot be negative")

    @property
    def passes(self) -> float:
        return 1.0 + 3 * self.steps if self.steps else 0.0

    @property
    def gradients(self) -> int:
        return self.steps

    def purify(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]
    ) -> Float[Tensor, "B 3 H W"]:
        noise = 2 * counter.uniform(seeds, images.shape[1:], images.device) - 1
        delta = counter_attack(self, images.detach(), undefended, noise.to(images.dtype) * self.eps / 255)
        return images + delta


@torch.enable_grad()
def counter_attack(
    settings: TTC, x: Float[Tensor, "B 3 H W"], undefended: Undefended, noise: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B 3 H W"]:
    """The perturbation that the defence adds to ``x``, from ``noise`` as its start; without a gradient.

    Both are in units of pixels in [0, 1]. Noise beyond ``eps`` or beyond that range is cut first.
    """

    def cut(delta: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return delta.clamp(-settings.eps / 255, settings.eps / 255).clamp(-x, 1 - x)

    deltas = [cut(noise)]
    if not settings.steps:
        return deltas[0]
    with torch.no_grad():
        before = undefended.features(x)
    for step in range(settings.steps):
        delta = deltas[-1].detach().requires_grad_()
        change = undefended.features(x + delta) - before
        if step == 0:
            stable = change.detach().norm(dim=1) / before.norm(dim=1) < settings.tau
        (gradient,) = torch.autograd.grad(change.square().sum(), delta)
        deltas.append(cut(delta.detach() + settings.size / 255 * gradient.sign()))
    weights = (settings.beta * torch.arange(len(deltas), device=x.device, dtype=x.dtype)).softmax(0)
    mixed = cut(torch.stack(deltas, -1) @ weights)  # the weights add up to 1 but for rounding
    return torch.where(stable.view(-1, 1, 1, 1), mixed, deltas[0])
