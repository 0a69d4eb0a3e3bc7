from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import Normalize

from hrzs.errors import HrzsError, UsageError
from hrzs.models.clip import ClipModel, frozen
from hrzs.models.folding import folded
from hrzs.models.heads import CosineHead, HyperbolicHead
from hrzs.models.loading import load_model

from .conftest import CONFIGS

PROMPTS = ["a photo of a dog.", "a photo of a cat.", "thing"]


@pytest.fixture
def any_model(every_config: Path) -> ClipModel:
    return load_model(str(every_config), "none", seed=3)


def plain(model: ClipModel) -> nn.Module:
    """The same weights in a model that open_clip made, with nothing of ours around it."""
    clip: nn.Module = open_clip.create_model(model.info.arch, pretrained=None).eval()
    clip.load_state_dict(model.clip.state_dict())
    return clip


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'transformers'"), r"pip install 'hrzs\[hub\]'"),
        (OSError("offline"), r"timm/ViT-B-16-SigLIP, could not be loaded \(offline\); --tokenizer FOLDER"),
    ],
)
def test_a_tokenizer_that_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    def refuse(_: str, **__: object) -> None:
        raise error

    monkeypatch.setattr("open_clip.tokenizer.HFTokenizer", refuse)
    plain = CONFIGS["plain"]
    config = tmp_path / "hrzs-test-tokenizer-of-a-hub.json"
    text = plain["text_cfg"] | {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    config.write_text(json.dumps(plain | {"text_cfg": text}))
    with pytest.raises(HrzsError, match=message):
        load_model(str(config), "none")


def test_image_features_are_open_clips(any_model: ClipModel) -> None:
    pixels = torch.rand(3, 3, any_model.image_size, any_model.image_size)
    normalise = Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.no_grad():
        expected = plain(any_model).encode_image(normalise(pixels))
        assert torch.allclose(any_model.encode_image(pixels), expected, atol=1e-6)
    assert expected.abs().max() > 1e-3


def test_text_features_are_open_clips(any_model: ClipModel) -> None:
    tokens = open_clip.get_tokenizer(any_model.info.arch)(PROMPTS)
    with torch.no_grad():
        expected = plain(any_model).encode_text(tokens)
        assert torch.allclose(any_model.encode_text(PROMPTS), expected, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_text_is_trunk_then_projection(any_model: ClipModel, batch_size: int) -> None:
    before = {key: value.clone() for key, value in any_model.clip.state_dict().items()}
    trunk = any_model.encode_text_trunk(PROMPTS, batch_size)
    assert not trunk.requires_grad
    assert trunk.shape == (3, 16)
    assert torch.allclose(any_model.project_text(trunk), any_model.encode_text(PROMPTS), atol=1e-5)
    after = any_model.clip.state_dict()
    assert list(after) == list(before)  # the projection is back where it was
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_projection_returns_when_encoding_fails(any_model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    projection = any_model.text_projection

    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(any_model.clip, "encode_text", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        any_model.encode_text_trunk(PROMPTS)
    assert any_model.text_projection is projection


@pytest.mark.parametrize(
    ("name", "count"), [("plain", 1), ("custom-text", 1), ("linear-projection", 2), ("no-projection", 0), ("resnet", 1)]
)
def test_only_the_projection_learns(name: str, count: int, config_file: Callable[[str], Path]) -> None:
    model = load_model(str(config_file(name)), "none")
    parameters = model.text_projection_parameters()
    assert len(parameters) == count
    model.project_text(model.encode_text_trunk(PROMPTS)).sum().backward() if count else None
    touched = {id(p) for p in model.parameters() if p.grad is not None}
    assert touched == {id(p) for p in parameters}


@pytest.mark.parametrize("size", [(12, 12), (40, 40), (20, 30)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_resizing_is_inside_and_differentiable(size: tuple[int, int], mode: str, any_model: ClipModel) -> None:
    any_model.info = replace(any_model.info, interpolation=mode)
    pixels = torch.rand(2, 3, *size, requires_grad=True)
    features = any_model.encode_image(pixels)
    side = any_model.image_size
    resized = F.interpolate(pixels, (side, side), mode=mode, antialias=True)
    assert torch.allclose(features, any_model.encode_image(resized), atol=1e-5)
    (gradient,) = torch.autograd.grad(features.square().sum(), pixels)
    assert gradient.shape == pixels.shape
    assert gradient.isfinite().all()
    # Every native pixel counts.
    assert (gradient != 0).float().mean() > 0.9


def test_native_size_is_not_resampled(any_model: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("resampled")

    monkeypatch.setattr(F, "interpolate", refuse)
    side = any_model.image_size
    any_model.encode_image(torch.rand(1, 3, side, side))
    with pytest.raises(AssertionError, match="resampled"):
        any_model.encode_image(torch.rand(1, 3, side + 1, side))


def test_bf16_gives_float32_near_the_truth(model: ClipModel, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        full, half = model.encode_image(images), model.encode_image(images, "bf16")
        assert half.dtype == torch.float32
        assert not torch.equal(half, full)
        assert F.cosine_similarity(half, full).min() > 0.99
        monkeypatch.setattr(model, "precision", "bf16")
        assert torch.equal(model.encode_image(images), half)
        assert torch.equal(model.encode_image(images, "fp32"), full)


def test_stays_in_evaluation_mode(config_file: Callable[[str], Path]) -> None:
    """Frozen batch-norm statistics: what an image scores depends on no other image."""
    model = load_model(str(config_file("resnet")), "none")
    assert not model.training
    assert model.train() is model
    assert not any(module.training for module in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pixels = torch.rand(4, 3, 32, 32)
    together = model.encode_image(pixels)
    assert torch.allclose(together[:1], model.encode_image(pixels[:1]), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_frozen_gives_back_what_it_took(config_file: Callable[[str], Path]) -> None:
    model = load_model(str(config_file("plain")), "none")
    parameters = list(model.parameters())
    parameters[1].requires_grad_(False)
    flags = [p.requires_grad for p in parameters]
    with contextlib.suppress(KeyError), frozen(model):
        with frozen(model):
            pass
        assert not any(p.requires_grad for p in parameters)
        raise KeyError
    assert [p.requires_grad for p in parameters] == flags


def test_weights_cast_once_are_autocasts(any_model: ClipModel) -> None:
    """In bf16, inside `frozen`: the same features and input gradients as autocast gives, to the bit.

    A ResNet's batch norms are folded there (test_folding.py), which rounds otherwise.
    """
    any_model.precision = "bf16"
    pixels = torch.rand(3, 3, any_model.image_size, any_model.image_size)

    def features_and_gradient() -> tuple[Tensor, Tensor]:
        x = pixels.clone().requires_grad_(True)
        features = any_model.encode_image(x)
        return features, torch.autograd.grad(features.square().sum(), x)[0]

    expected = features_and_gradient()
    with frozen(any_model):
        assert any_model._bf16_weights
        found = features_and_gradient()
        exact = any_model.encode_image(pixels, "fp32")
    assert any_model._bf16_weights is None
    for a, b in zip(found, expected, strict=True):
        if folded(any_model.clip):
            assert F.cosine_similarity(a.flatten(1), b.flatten(1)).min() > 0.99
        else:
            torch.testing.assert_close(a, b, atol=0, rtol=0)
    any_model.precision = "fp32"
    assert torch.equal(exact, any_model.encode_image(pixels))
    assert not torch.equal(exact, found[0])


def test_state_holds_no_preprocessing(any_model: ClipModel) -> None:
    """What is saved is open_clip's state dict, and nothing of ours."""
    assert set(any_model.state_dict()) == {f"clip.{key}" for key in any_model.clip.state_dict()}


def test_heads(config_file: Callable[[str], Path]) -> None:
    model = load_model(str(config_file("linear-projection")), "none")
    cosine = model.head()
    assert isinstance(cosine, CosineHead)
    assert cosine.logit_scale is model.clip.logit_scale
    assert cosine.logit_bias is model.clip.logit_bias
    with pytest.raises(UsageError, match=r"--head hyperbolic: .*cosine"):
        model.head("hyperbolic")
    model.geometry = HyperbolicHead(0.1, 0.1, 1.0)
    assert model.head() is model.geometry
    assert isinstance(model.head("cosine"), CosineHead)
    with pytest.raises(UsageError, match="--head dot"):
        model.head("dot")
