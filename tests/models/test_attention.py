from __future__ import annotations

import pytest
import torch
from torch import nn

from hrzs.models.attention import SelfAttention, straighten


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
def test_results_and_gradients_are_torchs(mask: torch.Tensor | None, options: dict[str, object]) -> None:
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
