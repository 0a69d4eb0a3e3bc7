from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hrzs.models.faster import (
    FirstToken,
    OneQueryPool,
    PatchConv,
    SelfAttention,
    channels_last,
    embed_by_product,
    end_at_the_first_token,
    make_faster,
    pool_by_one_query,
    straighten,
)


def both(**options: object) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """Torch's own, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, **options).eval()
    ours = nn.MultiheadAttention(16, 4, batch_first=True, **options).eval()
    ours.load_state_dict(theirs.state_dict())
    straighten(ours)
    assert type(ours) is SelfAttention
    return theirs, ours


CAUSAL = torch.full((5, 5), -torch.inf).triu(1)


@pytest.mark.parametrize(
    "mask", [None, CAUSAL, CAUSAL.expand(12, 5, 5), CAUSAL.isinf()], ids=["none", "LL", "NLL", "bool"]
)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 16, "vdim": 16}])
def test_attention_and_its_gradients_are_torchs(mask: torch.Tensor | None, options: dict[str, object]) -> None:
    if options.get("add_bias_kv") and mask is not None and mask.ndim == 3:
        pytest.skip("torch wants another mask there")
    outputs = []
    for module in both(**options):
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        out, weights = module(x, x, x, need_weights=False, attn_mask=mask)
        assert weights is None
        gradients = torch.autograd.grad(out.square().sum(), (x, module.out_proj.weight))
        outputs.append((out, *gradients))
    for theirs, ours in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"bias": False}])
def test_attention_of_one_token_to_all_is_torchs(options: dict[str, object]) -> None:
    outputs = []
    for module in both(**options):
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        out, _ = module(x[:, :1], x, x, need_weights=False)
        outputs.append((out, *torch.autograd.grad(out.square().sum(), (x, *module.parameters()))))
    for theirs, ours in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(image_size=16, patch_size=8, width=32, layers=2, heads=2, mlp_ratio=2, output_dim=8,
                             **options).eval()  # fmt: skip


@pytest.mark.parametrize(
    "options", [{}, {"ls_init_value": 0.5, "no_ln_pre": True}, {"final_ln_after_pool": True}], ids=["", "ls", "ln"]
)
@pytest.mark.parametrize("recomputed", [False, True])
def test_a_vit_that_ends_at_its_class_token_is_open_clips(options: dict[str, Any], recomputed: bool) -> None:
    theirs = vit(**options)
    ours = nn.Sequential(copy.deepcopy(theirs))
    make_faster(ours)
    (encoder,) = ours
    assert type(encoder.transformer) is FirstToken
    assert encoder.state_dict().keys() == theirs.state_dict().keys()
    encoder.set_grad_checkpointing(recomputed)
    pixels = torch.randn(3, 3, 16, 16)

    def outcome(module: nn.Module) -> list[Tensor]:
        x = pixels.clone().requires_grad_(True)
        out = module(x)
        return [out, *torch.autograd.grad(out.square().sum(), (x, *module.parameters()))]

    for found, expected in zip(outcome(encoder), outcome(theirs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # Whoever asks for the patch tokens still gets them, in either way.
    for found, expected in zip(*(m.forward_intermediates(pixels).values() for m in (encoder, theirs)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    encoder.output_tokens = theirs.output_tokens = True
    for found, expected in zip(encoder(pixels), theirs(pixels), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"pool_type": "avg"}, {"attentional_pool": True}, {"qk_norm": True}],
    ids=lambda options: next(iter(options)),
)
def test_other_vits_go_on_to_the_end(options: dict[str, Any]) -> None:
    encoder = vit(**options)
    end_at_the_first_token(encoder)
    assert type(encoder.transformer) is Transformer


def pools(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """open_clip's, with biases that are not zero, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = AttentionPool2d(3, 32, 4, 12)
    for bias in (p for p in theirs.parameters() if p.ndim == 1):
        nn.init.normal_(bias)
    theirs = theirs.to(dtype).eval()
    ours = copy.deepcopy(theirs)
    pool_by_one_query(ours)
    assert type(ours) is OneQueryPool
    return theirs, ours


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_pool_by_one_query_and_its_gradients_are_open_clips(layout: torch.memory_format) -> None:
    outputs = []
    for module in pools(torch.float64):
        x = torch.randn(5, 32, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = x.contiguous(memory_format=layout).requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):  # open_clip's has no second derivative elsewhere
            out = module(x)
            first = torch.autograd.grad(out.sin().sum(), (x, *module.parameters()), create_graph=True)
            (second,) = torch.autograd.grad(first[0].square().sum(), x)
        outputs.append((out, *first, second))
    assert outputs[0][0].shape == (5, 12)
    for theirs, ours in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_a_pool_by_one_query_in_bf16_is_as_near_to_the_truth_as_open_clips() -> None:
    theirs, ours = pools()
    x = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(1))
    truth = theirs(x)
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(module(x).float() - truth).square().mean().sqrt() for module in (theirs, ours)]
    assert errors[1] < 1.2 * errors[0]


def test_other_calls_go_to_torch() -> None:
    theirs, ours = both()
    x, y = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[False, False, False, True, True]] * 3)
    for query, key, options in ((x, y, {}), (x, x, {}), (x, x, {"need_weights": False, "key_padding_mask": padding})):
        for expected, found in zip(theirs(query, key, key, **options), ours(query, key, key, **options), strict=True):
            assert (found is expected is None) or torch.allclose(found, expected, atol=1e-6)


def test_dropout_in_training_is_torchs() -> None:
    _, ours = both(dropout=0.5)
    x = torch.ones(2, 5, 16)
    ours.train()
    torch.manual_seed(0)
    assert not torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])
    ours.eval()
    assert torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL.expand(12, 5, 5)], ids=["none", "LL", "NLL"])
def test_bf16_is_as_near_to_the_truth_as_torchs(mask: torch.Tensor | None) -> None:
    """Results and input gradients under autocast, where ours is not the kernel of torch."""
    outputs = []
    for module, bf16 in (*((module, True) for module in both()), (both()[0], False)):
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            out, _ = module(x, x, x, need_weights=False, attn_mask=mask)
        assert out.dtype == (torch.bfloat16 if bf16 else torch.float32)
        outputs.append((out.float(), *torch.autograd.grad(out.float().square().sum(), x)))
    for theirs, ours, exact in zip(*outputs, strict=True):
        assert (ours - exact).norm() <= 2 * (theirs - exact).norm() <= 0.1 * exact.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [4, (4, 2)])
@pytest.mark.parametrize("size", [(8, 12), (9, 12), (8, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_and_their_gradients_are_torchs(
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


@pytest.fixture
def convolutions() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 2, stride=2)
    ).eval()


def test_values_and_gradients_stay(convolutions: nn.Sequential) -> None:
    """Features and the gradients of pixels and weights are those of the usual layout."""
    usual, images = copy.deepcopy(convolutions), torch.rand(4, 3, 8, 8, requires_grad=True)
    channels_last(convolutions)
    expected, found = usual(images), convolutions(images)
    torch.testing.assert_close(found, expected)
    (before,) = torch.autograd.grad(expected.square().sum(), images, retain_graph=True)
    (after,) = torch.autograd.grad(found.square().sum(), images, retain_graph=True)
    torch.testing.assert_close(after, before)
    expected.square().sum().backward()
    found.square().sum().backward()
    for mine, other in zip(convolutions.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_activations_take_it_on(convolutions: nn.Sequential) -> None:
    """An image in the usual layout comes out channels last: one module after another keeps it."""
    channels_last(convolutions)
    assert convolutions(torch.rand(4, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


def test_patches_are_left_alone(convolutions: nn.Sequential) -> None:
    """A convolution that is computed as a matrix product wants its weight as a matrix, which it reads as a view."""
    embed_by_product(convolutions)
    channels_last(convolutions)
    patches = convolutions[3]
    assert isinstance(patches, PatchConv)
    assert patches.weight.is_contiguous()
    assert patches.weight.flatten(1).data_ptr() == patches.weight.data_ptr()
    assert convolutions[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_small_kernels_are_left_alone() -> None:
    """Those of 1 × 1 under the strides of channels last made torch write beyond its memory."""
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 1, groups=8))
    before = [conv.weight.stride() for conv in network]
    channels_last(network)
    after = [conv.weight.stride() for conv in network]
    assert after[1:] == before[1:]
    assert after[0] != before[0]
    assert network(torch.rand(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


TRAINS = """
import torch
from hrzs.models.loading import load_model
model = load_model("MobileCLIP-S1", "none")
for _ in range(2):
    model.encode_image(torch.rand(8, 3, 256, 256)).square().sum().backward()
print(all(bool(p.grad.isfinite().all()) for p in model.clip.visual.parameters()))
"""


@pytest.mark.soak
def test_mobileclip_trains() -> None:
    """In a process of its own: what went wrong ended it (free(): invalid next size)."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", TRAINS], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("True\n", 0)
