"""Faster versions of open_clip's modules, with the same parameters and the same results.

- `SelfAttention`: torch's module transposes the batch away before its input projection. Where the weights need no
  gradient, as in an attack, torch then multiplies position by position against copies of the weights: several times
  slower in bf16.
- `PatchConv`: where the kernel of a convolution is as large as its stride, as in the patch embedding of a ViT, each
  pixel is read once, so reordered pixels and a matrix product do the same. torch's convolution takes several times as
  long for the gradient with respect to the pixels, which an attack needs.
- `channels_last`: the layout that other convolutions prefer on CPUs and tensor cores.
- `PooledByToken`: nobody reads the patch tokens behind the last block of a ViT that pools by its class token, so that
  block computes the class token alone. Its MLP and two of its four projections cost nearly nothing.
- `OneQueryPool`: a ResNet of CLIP ends in attention, of which only the query of the mean is read. open_clip computes
  all queries. For one, the matrices of keys and values need not act on every position: they act on the query, and on
  the mixture of positions.

Only an attack may fold batch norms into convolutions: see `hrzs.models.folding`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import ResidualAttentionBlock, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def make_faster(module: nn.Module) -> None:
    """Apply all of these to ``module`` and the modules inside; the parameters stay as they are."""
    straighten(module)
    embed_by_product(module)
    channels_last(module)
    end_at_the_first_token(module)
    pool_by_one_query(module)


# -- attention --------------------------------------------------------------------------------------------------------


class SelfAttention(nn.MultiheadAttention):
    """The same parameters and results for ``attention(x, y, y, need_weights=False)``; other calls go to torch."""

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of ``query`` (B, M, W) to ``key`` (B, L, W), itself mostly; other arguments are torch's."""
        mask = options.pop("attn_mask", None)
        plain = (
            options == {"need_weights": False}
            and key is value
            and query.ndim == 3
            and self.batch_first
            and self.in_proj_weight is not None
            and self.bias_k is None
            and not (self.add_zero_attn or (self.training and self.dropout))
            and (mask is None or mask.is_floating_point())
        )
        if not plain:
            return super().forward(query, key, value, attn_mask=mask, **options)
        batch, length, width = query.shape
        if query is key:
            q, k, v = self._projected(key, 0, 3)
        else:
            (q,), (k, v) = self._projected(query, 0, 1), self._projected(key, 1, 3)
        if mask is not None:
            mask = mask.to(q.dtype)
            mask = mask.view(batch, self.num_heads, length, length) if mask.ndim == 3 else mask
        attended = _attend(q, k, v, mask)
        return self.out_proj(attended.transpose(1, 2).reshape(batch, length, width)), None

    def _projected(self, x: Float[Tensor, "B L W"], first: int, stop: int) -> Float[Tensor, "parts B heads L D"]:
        """The parts from ``first`` to ``stop`` (not included) of queries (0), keys (1) and values (2) of ``x``."""
        rows = slice(first * self.embed_dim, stop * self.embed_dim)
        bias = None if self.in_proj_bias is None else self.in_proj_bias[rows]
        found = F.linear(x, self.in_proj_weight[rows], bias)
        return found.view(*x.shape[:2], stop - first, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)


def _attend(
    q: Float[Tensor, "B heads M D"],
    k: Float[Tensor, "B heads L D"],
    v: Float[Tensor, "B heads L D"],
    mask: Float[Tensor, "... M L"] | None,
) -> Float[Tensor, "B heads M D"]:
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


# -- the last block ---------------------------------------------------------------------------------------------------


class PooledByToken(VisionTransformer):  # type: ignore[misc]
    """The same parameters and results; unless somebody asks for the patch tokens, they are not computed to the end."""

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Any:
        """The features, and the patch tokens beside them where ``output_tokens`` asks for those."""
        self.transformer.is_enough = not self.output_tokens
        return super().forward(x)


class FirstToken(Transformer):  # type: ignore[misc]
    """The same parameters; where that ``is_enough``, the last block returns the first token alone."""

    is_enough = False

    def forward(self, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B M W"]:
        """The tokens behind all blocks, or the first of them."""
        if not self.is_enough:
            tokens: Tensor = super().forward(x)
            return tokens
        *before, last = self.resblocks
        for block in (*before, partial(_first_token, last)):
            x = checkpoint(block, x, use_reentrant=False) if self.grad_checkpointing else block(x)
        return x


def _first_token(block: Any, x: Float[Tensor, "B L W"]) -> Float[Tensor, "B 1 W"]:
    """The first token of what a `ResidualAttentionBlock` makes of ``x``."""
    normed = block.ln_1(x)
    first = x[:, :1] + block.ls_1(block.attn(normed[:, :1], normed, normed, need_weights=False)[0])
    found: Tensor = first + block.ls_2(block.mlp(block.ln_2(first)))
    return found


def end_at_the_first_token(module: nn.Module) -> None:
    """Make every ViT inside ``module`` that pools by its class token a `PooledByToken`."""
    for part in module.modules():
        if type(part) is not VisionTransformer or part.attn_pool is not None:
            continue
        blocks = part.transformer
        plain = type(blocks) is Transformer and blocks.batch_first and len(blocks.resblocks) > 0
        if part.pool_type == "tok" and plain and type(blocks.resblocks[-1]) is ResidualAttentionBlock:
            part.__class__, blocks.__class__ = PooledByToken, FirstToken


# -- the last pooling of a ResNet ------------------------------------------------------------------------------------


class OneQueryPool(AttentionPool2d):  # type: ignore[misc]
    """The same parameters and results."""

    def forward(self, x: Float[Tensor, "B W h w"]) -> Float[Tensor, "B D"]:
        """What the mean of all positions finds among itself and them."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        x = x + self.positional_embedding.to(x.dtype)
        batch, _, width = x.shape
        heads = (self.num_heads, width // self.num_heads)
        query = self.q_proj(x[:, 0]).view(batch, *heads) * heads[1] ** -0.5
        # q · (K x + b) = (Kᵀ q) · x + q · b. The second term changes no weight; it is here for the gradient of b.
        toward = torch.einsum("bhd,hdw->bhw", query, self.k_proj.weight.view(*heads, width))
        scores = toward @ x.transpose(1, 2) + (query * self.k_proj.bias.view(*heads)).sum(2, keepdim=True)
        # The weights add up to 1: their mean of V x + b is V of their mean, and b.
        mixed = scores.softmax(2).to(x.dtype) @ x
        values = torch.einsum("bhw,hdw->bhd", mixed, self.v_proj.weight.view(*heads, width)).flatten(1)
        pooled: Tensor = self.c_proj(values + self.v_proj.bias)
        return pooled


def pool_by_one_query(module: nn.Module) -> None:
    """Make every `AttentionPool2d` inside ``module`` a `OneQueryPool`; parameters stay as they are."""
    for part in module.modules():
        if type(part) is AttentionPool2d:
            part.__class__ = OneQueryPool


# -- convolutions -----------------------------------------------------------------------------------------------------


class PatchConv(nn.Conv2d):
    """The same parameters and results; torch handles images that are no whole number of patches."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """A matrix product with a row for each patch."""
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


def channels_last(module: nn.Module) -> None:
    """Give the convolutions of ``module`` the layout channels last, which their outputs, and so later layers, take on.

    The values stay as they are. A `PatchConv` is a matrix product, and is left alone. So is a kernel of 1 × 1: it has
    the same bytes in both layouts, and under the strides of this one torch's backward pass writes beyond its memory in
    some networks (MobileCLIP's). It takes the layout of its input in any case.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and not isinstance(part, PatchConv) and part.kernel_size != (1, 1):
            cast(nn.Module, part).to(memory_format=torch.channels_last)
