"""`ImageEncoder`: what an attack needs of a model."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class ImageEncoder(nn.Module):
    """Image features of pixels in [0, 1], which a classifier scores."""

    #: ``bf16`` where gradients may be of that precision; what `encode_image` gives in ``fp32`` is the verdict.
    precision: str = "fp32"
    #: How many images an attack puts through at once (None: all it holds). It may hold more: as some are fooled, the
    #: others close ranks and batches stay full.
    at_once: int | None = None

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"], precision: str | None = None) -> Float[Tensor, "B D"]:
        """Float32 features; ``precision`` overrides the model's own."""
        raise NotImplementedError
