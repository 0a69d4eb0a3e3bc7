"""Activation checkpointing of any image encoder: activations are computed again in the backward pass, not kept."""

from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import Bottleneck
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class RecomputedBottleneck(Bottleneck):  # type: ignore[misc]
    """The same block, recomputed in the backward pass; open_clip's own switch for this has no effect in its ResNets."""

    def forward(self, x: Tensor) -> Any:
        """``x``: (B, C, H, W)."""
        return checkpoint(super().forward, x, use_reentrant=False)


def recompute_activations(visual: Any) -> None:
    """Trade time (about a third more) for the memory of all activations inside of the blocks of ``visual``."""
    blocks = [part for part in visual.modules() if type(part) is Bottleneck]
    for block in blocks:
        block.__class__ = RecomputedBottleneck
    if not blocks:
        visual.set_grad_checkpointing(True)
