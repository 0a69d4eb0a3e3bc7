"""Batch norms folded into convolutions: the same function, and nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from hrzs.models.clip import ClipModel, frozen
from hrzs.models.folding import FoldableNorm, folded
from hrzs.models.loading import load_model
from hrzs.models.recompute import recompute_activations


@pytest.fixture
def resnet(config_file: Callable[[str], Path]) -> ClipModel:
    """With statistics and weights that a norm which was forgotten, or met twice, would show."""
    model = load_model(str(config_file("resnet")), "none")
    generator = torch.Generator().manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for value, low, high in (
                (part.running_mean, -0.5, 0.5), (part.running_var, 0.5, 2.0), (part.weight, 0.5, 1.5),
                (part.bias, -0.5, 0.5),
            ):  # fmt: skip
                assert value is not None
                value.data.uniform_(low, high, generator=generator)
    return model


def visual(model: ClipModel) -> nn.Module:
    return cast(nn.Module, cast(Any, model.clip).visual)


def features_and_gradient(encode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    features = encode(x)
    return features, torch.autograd.grad(features.square().sum(), x)[0]


def test_every_norm_is_folded_into_the_same_function(resnet: ClipModel) -> None:
    norms = [part for part in visual(resnet).modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(type(norm) is FoldableNorm for norm in norms)
    names = folded(visual(resnet))
    assert len(names) == 3 * len(norms)
    expected = features_and_gradient(visual(resnet))
    found = features_and_gradient(lambda x: cast(Tensor, functional_call(visual(resnet), names, x)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_an_attack_in_bf16_has_them_folded_and_leaves_no_trace(
    resnet: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a batch norm was computed")

    state = {name: value.clone() for name, value in resnet.state_dict().items()}
    exact = features_and_gradient(resnet.encode_image)
    resnet.precision = "bf16"
    with monkeypatch.context() as patch, frozen(resnet):
        patch.setattr(F, "batch_norm", refuse)
        found = features_and_gradient(resnet.encode_image)
        with pytest.raises(AssertionError, match="a batch norm was computed"):
            resnet.encode_image(torch.rand(1, 3, 32, 32), "fp32")
    for a, b in zip(found, exact, strict=True):
        assert F.cosine_similarity(a.flatten(1), b.flatten(1)).mean() > 0.95  # bf16 turns a ReLU here and there
    resnet.precision = "fp32"
    assert all(torch.equal(value, state[name]) for name, value in resnet.state_dict().items())
    assert all(conv.bias is None for conv in visual(resnet).modules() if isinstance(conv, nn.Conv2d))
    for a, b in zip(features_and_gradient(resnet.encode_image), exact, strict=True):
        assert torch.equal(a, b)


def test_blocks_that_are_computed_again_stay_as_they_are(resnet: ClipModel) -> None:
    """Their backward pass comes after the folded parameters are gone: it would compute another function."""
    resnet.precision = "bf16"
    recompute_activations(visual(resnet))
    expected = features_and_gradient(resnet.encode_image)
    with frozen(resnet):
        found = features_and_gradient(resnet.encode_image)
    for a, b in zip(found, expected, strict=True):
        assert F.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.99
