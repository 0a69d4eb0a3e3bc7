"""Batch norms folded into the convolutions before them, which saves an attack a third of its time in a ResNet.

With frozen statistics a batch norm scales and shifts each channel, as the weights and the bias of a convolution can.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from jaxtyping import Float
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class FoldableNorm(nn.BatchNorm2d):
    """The same parameters and results; where ``weight`` is empty, the convolution before it has done its work."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """``input`` normalised, or as it is if the norm is folded."""
        return super().forward(input) if self.weight.numel() else input


def make_foldable(module: nn.Module) -> None:
    """Make the batch norms of every ResNet of open_clip inside ``module`` foldable; parameters stay the same."""
    for _, _, _, norm in _pairs(module):
        norm.__class__ = FoldableNorm


def folded(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that change when every batch norm is folded, by name, for `torch.func.functional_call`.

    Blocks that are computed again in the backward pass (`hrzs.models.recompute`) are not folded: by then these
    parameters are gone.
    """
    found: dict[str, Tensor] = {}
    for conv_name, conv, norm_name, norm in _pairs(module):
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var), norm.eps,
            norm.weight, norm.bias,
        )  # fmt: skip
        found |= {f"{conv_name}.weight": weight.detach(), f"{conv_name}.bias": bias.detach()}
        found[f"{norm_name}.weight"] = norm.weight.new_empty(0)
    return found


def _pairs(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Convolutions with the batch norms that follow them, each with its name in ``module``."""
    for name, part in module.named_modules():
        if type(part) not in (Bottleneck, ModifiedResNet):
            continue
        inside: Any = dict(part.named_modules(prefix=name))
        prefix = f"{name}." * bool(name)
        for conv, norm in (*((f"conv{i}", f"bn{i}") for i in (1, 2, 3)), ("downsample.0", "downsample.1")):
            if prefix + conv in inside:
                yield prefix + conv, inside[prefix + conv], prefix + norm, inside[prefix + norm]
