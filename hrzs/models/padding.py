"""Texts without the padding that none of them needs.

open_clip pads every text to the length of the context, 77 tokens, where a prompt has some ten. Under a causal mask no
token sees those behind it, so what lies behind the token that is read changes nothing. Without it the text encoder of
CLIP is several times as fast.
"""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float, Int
from open_clip.model import CLIP
from open_clip.transformer import TextTransformer
from torch import Tensor, nn


def encode_tokens(clip: nn.Module, tokens: Int[Tensor, "P T"]) -> Float[Tensor, "P D"]:
    """What ``clip.encode_text(tokens)`` gives, but for rounding; text encoders of other kinds get all tokens."""
    text, length = text_encoder(clip), needed(clip, tokens)
    if length == tokens.shape[1]:
        return cast(Tensor, cast(Any, clip).encode_text(tokens))
    # An entry of __dict__ hides a parameter or buffer of the same name, and leaves the module's own as they are.
    shorter = {"positional_embedding": cast(Tensor, text.positional_embedding)[:length],
               "attn_mask": cast(Tensor, text.attn_mask)[:length, :length]}  # fmt: skip
    text.__dict__.update(shorter)
    try:
        return cast(Tensor, cast(Any, clip).encode_text(tokens[:, :length]))
    finally:
        for name in shorter:
            del text.__dict__[name]


def text_encoder(clip: nn.Module) -> nn.Module:
    """The module of an open_clip model that encodes texts: one of its own, or the model itself."""
    return cast(nn.Module, getattr(clip, "text", clip))


def needed(clip: nn.Module, tokens: Int[Tensor, "P T"]) -> int:
    """How many tokens the text encoder must see, from the first on, to read what it reads of all of them."""
    text = text_encoder(clip)
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    sees_ahead = getattr(text, "attn_mask", None) is None or getattr(text, "use_pad_mask", False)
    # CoCa's reads a token of its own, behind all others.
    if type(text) not in (CLIP, TextTransformer) or sees_ahead or getattr(text, "cls_emb", None) is not None:
        return tokens.shape[1]
    if pool == "argmax":
        read = tokens == tokens.amax(1, keepdim=True)
    elif pool == "eos":
        read = tokens.eq(cast(int, getattr(text, "text_eos_id", getattr(text, "eos_id", None))))
    else:
        return tokens.shape[1]
    if not (read.sum(1) == 1).all():  # which of several would be read is open_clip's affair
        return tokens.shape[1]
    return int(read.int().argmax(1).max()) + 1
