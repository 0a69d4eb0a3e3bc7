"""Convolutions whose windows do not overlap, as matrix products: the patch embedding of a ViT is one.

Where the kernel is as large as the stride, each pixel is read once, and reordering does the whole of the sliding.
torch's convolution takes several times as long for the gradient to the pixels, which is what an attack wants.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchConv(nn.Conv2d):
    """The same parameters and results; images that are no whole number of patches go to torch."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """One patch, one row of a matrix product."""
        (batch, channels, height, width), (down, across) = input.shape, self.kernel_size
        if height % down or width % across:
            return super().forward(input)
        patches = input.view(batch, channels, height // down, down, width // across, across)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def embed_by_product(module: nn.Module) -> None:
    """Make every convolution inside ``module`` whose windows tile its input a `PatchConv`; parameters stay the same."""
    for part in module.modules():
        if type(part) is nn.Conv2d and part.kernel_size == part.stride != (1, 1) and _plain(part):
            cast(nn.Module, part).__class__ = PatchConv


def _plain(conv: nn.Conv2d) -> bool:
    return conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1) and conv.groups == 1
