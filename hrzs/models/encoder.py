"""`ImageEncoder`: what an attack needs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor, nn

Same = TypeVar("Same", bound="ImageEncoder")


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

    # -- what is random in it, if anything is (`hrzs.defences`) -------------------------------------------------------

    @property
    def base(self) -> ImageEncoder:
        """The model behind all defences."""
        return self

    def select(self: Same, rows: Tensor | slice) -> Same:  # noqa: ARG002
        """The encoder for some images of the batch only; ``rows`` are indices, a mask or a slice."""
        return self

    def advance(self) -> None:
        """Draw anew from here on, in all that `select` has made of this encoder too."""

    def draws(self) -> Sequence[ImageEncoder]:
        """The encoders over which an attack averages a gradient, one for each draw."""
        return (self,)
