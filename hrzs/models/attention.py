"""Self-attention on contiguous activations: what `torch.nn.MultiheadAttention` computes, without its detour.

torch's module transposes the batch away before its input projection. Where the weights need no gradient, as in an
attack, torch then multiplies position by position against copies of the weights: several times slower in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SelfAttention(nn.MultiheadAttention):
    """The same parameters and results for ``attention(x, x, x, need_weights=False)``; other calls go to torch."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """``query``: (B, L, W), or as torch has it."""
        mask = options.pop("attn_mask", None)
        plain = (
            options == {"need_weights": False}
            and query is key is value
            and query.ndim == 3
            and self.batch_first
            and self.bias_k is None
            and not (self.add_zero_attn or (self.training and self.dropout))
            and (mask is None or mask.is_floating_point())
        )
        if not plain:
            return super().forward(query, key, value, attn_mask=mask, **options)
        batch, length, width = query.shape
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if mask is not None:
            mask = mask.to(q.dtype)
            mask = mask.view(batch, self.num_heads, length, length) if mask.ndim == 3 else mask
        attended = _attend(q, k, v, mask)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width)), None


def _attend(
    q: Float[Tensor, "B heads L D"],
    k: Float[Tensor, "B heads L D"],
    v: Float[Tensor, "B heads L D"],
    mask: Float[Tensor, "... L L"] | None,
) -> Float[Tensor, "B heads L D"]:
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # torch's fused bf16 kernel for CPUs is slower than fp32 in the backward pass, and several times slower than this.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    attended: Tensor = (scores if mask is None else scores + mask).softmax(-1) @ v
    return attended


def straighten(module: nn.Module) -> None:
    """Make every `torch.nn.MultiheadAttention` inside ``module`` a `SelfAttention`; parameters stay as they are."""
    for part in module.modules():
        if type(part) is nn.MultiheadAttention:
            part.__class__ = SelfAttention
