"""ET3: descend the energy of the image (Mirza et al., "A Provable Energy-Guided Test-Time Defense", CVPR 2026).

The energy of an image is ``-log Σ exp(logit)`` over the leaf classes: the surer the classifier is of any of them, the
lower it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hrzs.defences.base import Purifier, Undefended
from hrzs.errors import UsageError


@dataclass(frozen=True)
class ET3(Purifier):
    """``steps`` steps of length ``size`` down the gradient of the energy, within ``eps`` 255ths of the image (ℓ∞).

    The constants are the defaults of the authors' command for CLIP (their script for ImageNet gives it ``eps=5`` and
    ``steps=2``). Theirs is the ℓ2 length of a step on an image of 224 × 224 pixels; it is scaled to an image of another
    size so that a pixel moves as far.

    ``unroll`` is about the adversary alone: 1 differentiates through the steps, 0 holds their change of the image
    constant (BPDA), at about a third of the cost.
    """

    size: float = 2.5
    eps: float = 10.0
    steps: int = 5
    unroll: int = 1

    name: ClassVar[str] = "et3"
    description: ClassVar[str] = "a few steps down the energy of the logits (Mirza et al., CVPR 2026)"
    adversary: ClassVar[str] = (
        "All steps are differentiated through, with second derivatives of the model; with unroll=0 their change of the "
        "image is held constant (BPDA)."
    )

    def __post_init__(self) -> None:
        if self.eps < 0 or self.size < 0 or self.steps < 0:
            raise UsageError(f"--defence {self}: eps, size and steps cannot be negative")
        if self.unroll not in (0, 1):
            raise UsageError(f"--defence {self}: unroll is 1 (yes) or 0 (no)")

    @property
    def passes(self) -> float:
        return 3.0 * self.steps

    @property
    def attack_passes(self) -> float:
        return (3.75 if self.unroll else 1.0) * self.steps  # with the second derivative; measured on a ViT

    @property
    def gradients(self) -> int:
        return self.steps

    def purify(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]  # noqa: ARG002
    ) -> Float[Tensor, "B 3 H W"]:  # fmt: skip
        unrolled = self.unroll == 1 and torch.is_grad_enabled() and images.requires_grad
        length = self.size * math.sqrt(images.shape[-2] * images.shape[-1]) / 224
        x = images
        # Fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if unrolled else nullcontext():
            for _ in range(self.steps):
                x = x if unrolled else x.detach().requires_grad_()
                energy = -undefended.logits(x).logsumexp(1)
                (gradient,) = torch.autograd.grad(energy.sum(), x, create_graph=unrolled)
                norm = gradient.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1, 1)
                x = (x - length * gradient / norm).clamp(0, 1)
                x = (images + (x - images).clamp(-self.eps / 255, self.eps / 255)).clamp(0, 1)
        return x if unrolled else x.detach() + (images - images.detach())
