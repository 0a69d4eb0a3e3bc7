from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor

from hrzs.models.padding import encode_tokens, needed

VISION = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
PROMPTS = ["a photo of a cat.", "a dog", "a photo of a sign that says hello."]


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return open_clip.get_tokenizer("ViT-B-32", context_length=TEXT["context_length"])(PROMPTS)


def made(own_tower: bool, **text: Any) -> CLIP | CustomTextCLIP:
    torch.manual_seed(0)
    kind = CustomTextCLIP if own_tower else CLIP
    return kind(8, VISION, TEXT | text).double().eval()


EOS = {"pool_type": "eos", "eos_id": 49407}


@pytest.mark.parametrize("own_tower", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("text", [{}, EOS], ids=["argmax", "eos"])
def test_features_and_gradients_are_open_clips(own_tower: bool, text: dict[str, Any], tokens: Tensor) -> None:
    clip = made(own_tower, **text)
    names, parameters = zip(*clip.named_parameters(), strict=True)
    found = [
        (f, *torch.autograd.grad(f.sin().sum(), parameters, allow_unused=True, materialize_grads=True))
        for f in (clip.encode_text(tokens), encode_tokens(clip, tokens))
    ]
    for name, theirs, ours in zip(("features", *names), *found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize("own_tower", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_padding_is_not_encoded(own_tower: bool, tokens: Tensor) -> None:
    clip, seen = made(own_tower), list[int]()
    clip.get_submodule("text.transformer" if own_tower else "transformer").register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    encode_tokens(clip, tokens)
    encode_tokens(clip, tokens[1:2])
    assert seen == [11, 4]  # start, words, full stop, end


@pytest.mark.parametrize("own_tower", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_the_model_stays_as_it_was_whatever_happens(own_tower: bool, tokens: Tensor) -> None:
    def parts() -> list[tuple[str, int]]:
        return [(name, id(part)) for name, part in (*clip.named_parameters(), *clip.named_buffers())]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    clip = made(own_tower)
    before, expected = parts(), clip.encode_text(tokens)
    encode_tokens(clip, tokens)
    hook = clip.get_submodule("text.ln_final" if own_tower else "ln_final").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        encode_tokens(clip, tokens)
    hook.remove()
    assert parts() == before
    assert torch.equal(clip.encode_text(tokens), expected)


@pytest.mark.parametrize(
    "text",
    [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}, {"embed_cls": True}],
    ids=["sees ahead", "reads the last", "reads the first", "reads its own"],
)
def test_other_text_encoders_get_all_tokens(text: dict[str, Any], tokens: Tensor) -> None:
    clip = made(True, **text)
    assert needed(clip, tokens) == TEXT["context_length"]
    assert torch.equal(encode_tokens(clip, tokens), clip.encode_text(tokens))


def test_a_text_whose_end_is_not_plain_gets_all_tokens(tokens: Tensor) -> None:
    tokens = tokens.clone()
    tokens[1, 8] = tokens.max()
    assert needed(made(False), tokens) == TEXT["context_length"]
    tokens[tokens == tokens.max()] = 5
    assert needed(made(True, **EOS), tokens) == TEXT["context_length"]


def test_a_text_that_fills_the_context(tokens: Tensor) -> None:
    full = tokens.clone()
    full[0, 1:-1], full[0, -1] = 7, tokens.max()
    clip = made(False)
    assert torch.equal(encode_tokens(clip, full), clip.encode_text(full))
