"""`ImageEncoder`: what an attack needs of a model."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Image features of pixels in [0, 1], which a classifier scores."""

    #: ``bf16`` if gradients may be computed in bf16; verdicts come from `encode_image` in ``fp32``.
    precision: str = "fp32"
    #: How many images an attack sends through the model at once (None: all that it holds). It may hold more, so that
    #: batches stay full while fooled images leave.
    at_once: int | None = None

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"], precision: str | None = None) -> Float[Tensor, "B D"]:
        """Float32 features; ``precision`` overrides the model's own."""
        raise NotImplementedError
