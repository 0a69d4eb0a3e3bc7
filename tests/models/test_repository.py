"""A folder in open_clip's layout: open_clip loads what we write, and we load it with what only we know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.repository import write_repository
from hrzs.models.saving import WEIGHTS_FILE, save_model

ConfigFile = Callable[[str], Path]
TEXTS = ["a photo of a dog.", "Two  Cats"]


@pytest.fixture
def curved(config_file: ConfigFile) -> ClipModel:
    """With a hyperbolic head and a preprocessing that is not OpenAI's."""
    plain = load_model(str(config_file("plain")), "none", seed=1, mean=[0.5] * 3, std=[0.25] * 3)
    return ClipModel(plain.clip, plain.info, HyperbolicHead(scale_image=0.1, scale_text=0.2, beta=3.0))


@torch.no_grad()
def test_open_clip_loads_it(every_config: Path, tmp_path: Path) -> None:
    model = load_model(str(every_config), "none", seed=1, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bilinear")
    write_repository(model, tmp_path)
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert torch.equal(tokens, model.tokenize(TEXTS))
    assert clip.visual.image_mean == (0.5, 0.5, 0.5) or list(clip.visual.image_mean) == [0.5] * 3
    assert "bilinear" in str(preprocess)
    pixels = torch.rand(2, 3, model.image_size, model.image_size)
    torch.testing.assert_close(clip.eval().encode_text(tokens), model.encode_text(TEXTS), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip.encode_image(model.preprocess(pixels)), model.encode_image(pixels))


def test_what_open_clip_does_not_know_comes_along(curved: ClipModel, tmp_path: Path) -> None:
    write_repository(curved, tmp_path)
    for spec in (f"local-dir:{tmp_path}", str(tmp_path), str(tmp_path / "open_clip_config.json")):
        model = load_model(spec)
        assert model.geometry is not None
        assert curved.geometry is not None
        assert model.geometry.values() == curved.geometry.values()
        assert (model.info.source, model.info.mean) == (spec, (0.5, 0.5, 0.5))


def test_the_head_comes_along_from_the_hub(curved: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its cache on disk. open_clip's own loader drops the head in silence."""
    snapshot = tmp_path / "models--owner--robust" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--robust" / "refs").mkdir()
    (tmp_path / "models--owner--robust" / "refs" / "main").write_text("0123abc")
    write_repository(curved, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = load_model("hf-hub:owner/robust")
    assert model.geometry is not None
    assert curved.geometry is not None
    assert model.geometry.values() == curved.geometry.values()
    assert model.info.source == "hf-hub:owner/robust"


def test_the_weights_of_a_run_are_copied_to_the_bit(curved: ClipModel, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    out.mkdir()
    save_model(curved, run, half=True, method="hierarchical")
    write_repository(load_model(str(run)), out, run / WEIGHTS_FILE)
    assert (out / "open_clip_model.safetensors").read_bytes() == (run / WEIGHTS_FILE).read_bytes()
    again = load_model(str(out))
    assert again.info.digest == load_model(str(run)).info.digest
    assert again.info.run == {"method": "hierarchical"}


def test_another_preprocessing_is_another_model(curved: ClipModel, tmp_path: Path) -> None:
    """Whoever edits the config means it: open_clip obeys it too."""
    write_repository(curved, tmp_path)
    before = load_model(str(tmp_path))
    file = tmp_path / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["preprocess_cfg"]["interpolation"] = "bilinear"
    file.write_text(json.dumps(content))
    after = load_model(str(tmp_path))
    assert (before.info.interpolation, after.info.interpolation) == ("bicubic", "bilinear")
    assert before.info.digest != after.info.digest


def test_a_config_of_another_model_is_refused(curved: ClipModel, tmp_path: Path) -> None:
    write_repository(curved, tmp_path)
    file = tmp_path / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"]["quick_gelu"] = True
    file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"has another model than the header of open_clip_model\.safetensors"):
        load_model(str(tmp_path))


def test_metadata_of_strangers_is_left_alone(curved: ClipModel, tmp_path: Path) -> None:
    """Many repositories have a safetensors file whose header is theirs."""
    write_repository(curved, tmp_path)
    file = tmp_path / "open_clip_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "licence": "MIT, we think"})
    model = load_model(str(tmp_path))
    assert model.geometry is None
    assert torch.equal(model.encode_text(TEXTS), curved.encode_text(TEXTS))
