"""A CLIPModel folder is read as what transformers makes of it, and transformers reads what we write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel, ModelInfo
from hrzs.models.loading import load_model
from hrzs.models.transformers_form import (
    config_of,
    from_transformers,
    is_clip_model,
    to_transformers,
    write_clip_model,
)

ConfigFile = Callable[[str], Path]
TEXTS = ["a photo of a dog.", "Two  Cats & one naïve cow, 3x!", "a " * 40]


@pytest.fixture
def plain(config_file: ConfigFile) -> ClipModel:
    return load_model(str(config_file("plain")), "none", seed=1)


def written(model: ClipModel, folder: Path) -> Path:
    folder.mkdir()
    write_clip_model(model, folder)
    return folder


def scores(model: ClipModel, images: Tensor) -> Tensor:
    image, text, scale = model.clip(model.preprocess(images), model.tokenize(TEXTS))
    return scale * image @ text.T


def reference(folder: Path, images: Tensor, model: ClipModel) -> Tensor:
    """The same by transformers, with its own tokenizer."""
    from transformers import AutoTokenizer, CLIPModel

    words = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    clip: Any = CLIPModel.from_pretrained(folder).eval()
    return clip(pixel_values=model.preprocess(images), **words).logits_per_image


@pytest.mark.parametrize("name", ["plain", "custom-text", "quick"])
@torch.no_grad()
def test_transformers_gives_the_same_logits(name: str, config_file: ConfigFile, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = json.loads(config_file("plain" if name == "quick" else name).read_text())
    if name == "quick":
        config |= {"quick_gelu": True}
        config["vision_cfg"] = config["vision_cfg"] | {"mlp_ratio": 2.0, "norm_kwargs": {"eps": 1e-3}}
    (tmp_path / f"{name}-tf.json").write_text(json.dumps(config))
    model = load_model(str(tmp_path / f"{name}-tf.json"), "none", seed=1)
    model.clip.logit_scale.fill_(2.0)
    images = torch.rand(3, 3, 16, 16)
    folder = written(model, tmp_path / "out")
    torch.testing.assert_close(reference(folder, images, model), scores(model, images), rtol=1e-5, atol=1e-5)
    # And back: open_clip has the very tensors.
    again = load_model(str(folder))
    assert torch.equal(scores(again, images), scores(model, images))
    assert again.info.source == str(folder)


@torch.no_grad()
def test_what_transformers_saved_is_read(tmp_path: Path) -> None:
    """Its own config leaves out what is its default, and its preprocessor is in a file of another name."""
    transformers = pytest.importorskip("transformers")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(0)
    clip = transformers.CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    squash = transformers.CLIPImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.25] * 3, resample=2, do_center_crop=False, size={"height": 16, "width": 16}
    )
    squash.save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert (model.info.interpolation, model.info.resize_mode, model.mean.flatten().tolist()) == (
        "bilinear", "squash", [0.5] * 3,
    )  # fmt: skip
    pixels, tokens = torch.rand(2, 3, 16, 16), model.tokenize(TEXTS)
    expected = clip(pixel_values=model.preprocess(pixels), input_ids=tokens).logits_per_image
    torch.testing.assert_close(scores(model, pixels), expected, rtol=1e-5, atol=1e-5)


def test_names_there_and_back(plain: ClipModel) -> None:
    ours = plain.clip.state_dict()
    back = from_transformers(to_transformers(ours), "test")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_tokens_are_those_of_open_clip(plain: ClipModel, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(written(plain, tmp_path / "out"))
    for text in TEXTS:
        own = plain.tokenize([text])[0]
        assert tokenizer(text, truncation=True)["input_ids"] == own[: own.argmax() + 1].tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act relu and quick_gelu"),
        ({"text_config": {"vocab_size": 30000}}, "vocab_size 30000"),
        ({"vision_config": {"num_attention_heads": 0}}, "no such model"),
        ({"vision_config": {"hidden_size": "wide"}}, "no such model"),
        ({"text_config": 3}, "no such model"),
    ],
)
def test_configs_that_open_clip_cannot_have(
    change: dict[str, Any], named: str, plain: ClipModel, tmp_path: Path
) -> None:
    folder = written(plain, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", **change}))
    with pytest.raises(UsageError, match=named) as failure:
        load_model(str(folder))
    assert f"--model {folder}" in str(failure.value)


def test_weights_in_parts(plain: ClipModel, tmp_path: Path) -> None:
    folder = written(plain, tmp_path / "out")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match=r"in several parts \(model.safetensors.index.json\).*max_shard_size"):
        load_model(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UsageError, match=r"has no weights, none of model.safetensors, pytorch_model.bin"):
        load_model(str(folder))
    with pytest.raises(UsageError, match="holds its own weights"):
        load_model(str(folder), "none")


@pytest.mark.parametrize(
    ("name", "foreign"),
    [("linear-projection", "proj_bias True"), ("no-projection", "proj_type 'none'"), ("resnet", "that is no ViT")],
)
def test_models_that_are_no_clip_model(name: str, foreign: str, config_file: ConfigFile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no CLIPModel, which has no") as failure:
        written(load_model(str(config_file(name)), "none"), tmp_path / "out")
    assert foreign in str(failure.value)
    assert not any((tmp_path / "out").iterdir())


def test_other_folders_are_none(tmp_path: Path) -> None:
    assert not is_clip_model(tmp_path)
    for text in ("[]", "{", '{"model_type": "siglip"}'):
        (tmp_path / "config.json").write_text(text)
        assert not is_clip_model(tmp_path)


def test_every_vit_of_openai_can_be_written() -> None:
    """By its config alone: nothing of these has no word in transformers."""
    for arch in ("ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-336"):
        vision = config_of(ModelInfo(arch, open_clip.get_model_config(arch), arch, (0.0,), (1.0,), "bicubic"))[
            "vision_config"
        ]
        assert vision["num_attention_heads"] * 64 == vision["hidden_size"]
