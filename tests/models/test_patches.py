from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrzs.models.patches import PatchConv, embed_by_product


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [4, (4, 2)])
@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_and_gradients_are_torchs(
    bias: bool, kernel: int | tuple[int, int], size: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv2d(3, 5, kernel, stride=kernel, bias=bias)
    ours = nn.Sequential(copy.deepcopy(theirs))
    embed_by_product(ours)
    assert type(ours[0]) is PatchConv
    assert ours[0].state_dict().keys() == theirs.state_dict().keys()
    pixels = torch.randn(2, 3, *size).to(memory_format=layout)

    def outcome(module: nn.Module) -> list[Tensor]:
        x = pixels.clone().requires_grad_(True)
        out = module(x)
        return [out, *torch.autograd.grad(out.square().sum(), (x, *module.parameters()))]

    for found, expected in zip(outcome(ours), outcome(theirs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 2, stride=2, padding=1),
        nn.Conv2d(4, 4, 2, stride=2, dilation=2),
        nn.Conv2d(4, 4, 2, stride=2, groups=2),
    ],
    ids=["overlapping", "1x1", "padded", "dilated", "grouped"],
)
def test_other_convolutions_stay_as_they_are(conv: nn.Conv2d) -> None:
    embed_by_product(conv)
    assert type(conv) is nn.Conv2d


def test_bf16_is_torchs() -> None:
    """Under autocast: the same products of the same rounded numbers, summed in another order."""
    theirs = nn.Conv2d(3, 5, 4, stride=4, bias=False)
    ours = copy.deepcopy(theirs)
    embed_by_product(ours)
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = ours(pixels), theirs(pixels)
    assert found.dtype == torch.bfloat16
    exact = F.conv2d(pixels, theirs.weight, stride=4)
    assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()
