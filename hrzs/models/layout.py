"""How the weights of convolutions lie in memory: channels last, which convolutions on CPUs and tensor cores prefer."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from hrzs.models.patches import PatchConv


def channels_last(module: nn.Module) -> None:
    """Lay out the convolutions of ``module`` channels last; their outputs, and so what follows, take that on.

    The values stay as they are. A `PatchConv` is a matrix product, and is left alone.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and not isinstance(part, PatchConv):
            cast(nn.Module, part).to(memory_format=torch.channels_last)
