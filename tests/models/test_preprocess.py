from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

import hrzs
from hrzs.errors import UsageError
from hrzs.models import loading, saving
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.preprocess import DEFAULTS, agreed, checked
from hrzs.models.saving import read_header, save_model, write_safetensors

ConfigFile = Callable[[str], Path]
OTHER = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "interpolation": "bilinear", "resize_mode": "squash"}


def prepared(model: ClipModel) -> dict[str, Any]:
    said = {key: getattr(model.info, key) for key in DEFAULTS}
    assert torch.equal(model.mean, torch.tensor(said["mean"]).view(3, 1, 1))
    assert torch.equal(model.std, torch.tensor(said["std"]).view(3, 1, 1))
    return said


@pytest.fixture
def plain(config_file: ConfigFile) -> ClipModel:
    return load_model(str(config_file("plain")), "none", seed=3)


@pytest.fixture
def weights(plain: ClipModel, tmp_path: Path) -> Path:
    file = tmp_path / "weights.pt"
    torch.save(plain.clip.state_dict(), file)
    return file


@pytest.fixture
def repository(plain: ClipModel, tmp_path: Path) -> Path:
    """A clone of a repository on the hub, with what transformers needs beside what open_clip needs."""
    folder = tmp_path / "ViT-of-somebody"
    folder.mkdir()
    content = {"model_cfg": plain.info.config, "preprocess_cfg": {**OTHER, "size": [16, 16], "fill_color": 0}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(plain.clip.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "model.safetensors").write_bytes(b"for transformers")
    return folder


# -- tags -----------------------------------------------------------------------------------------------------------


def test_tags_that_agree() -> None:
    assert agreed("MobileCLIP-S1") == {
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear", "resize_mode": "shortest",
    }  # fmt: skip
    assert agreed("ViT-B-16-SigLIP")["resize_mode"] == "squash"
    assert agreed("ViT-B-32") == DEFAULTS
    assert agreed("ViT-L-14") == {key: DEFAULTS[key] for key in ("interpolation", "resize_mode")}
    assert agreed("no-such-arch") == {}


@pytest.mark.parametrize("tags", ["agree", "differ", "none"])
def test_a_file_is_prepared_for_as_the_tags_are(
    tags: str, plain: ClipModel, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arch = "hrzs-test-tags"
    monkeypatch.setattr(
        open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | {arch: plain.info.config}
    )
    one, other = {**OTHER, "url": "https://example.invalid/1"}, {**OTHER, "url": "https://example.invalid/2"}
    if tags != "none":
        different = {"mean": (0.1, 0.1, 0.1)} if tags == "differ" else {}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, {"a": one, "b": other | different})
    with caplog.at_level(logging.WARNING):
        found = prepared(load_model(arch, str(weights)))
    unknown = {"agree": [], "differ": ["mean"], "none": list(DEFAULTS)}[tags]
    assert found == {key: DEFAULTS[key] if key in unknown else OTHER[key] for key in DEFAULTS}
    flags = ", ".join(f"--{key.replace('_', '-')}" for key in unknown)
    assert [record.getMessage() for record in caplog.records if "prepared" in record.getMessage()] == [
        f"--pretrained {weights}: nothing says how its images are to be prepared ({flags}); they are as for OpenAI's "
        "CLIP, and if that is wrong, so are all figures"
    ] * bool(unknown)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert prepared(load_model(arch, str(weights), **OTHER)) == OTHER
    assert "prepared" not in caplog.text


def test_a_tag_says_it_all(plain: ClipModel, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arch = "hrzs-test-tag"
    monkeypatch.setattr(
        open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | {arch: plain.info.config}
    )
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, {"a": {**OTHER, "url": "https://example.invalid/1"}})
    monkeypatch.setattr(loading, "download_pretrained", lambda _cfg: str(weights))
    model = load_model(arch, "a")
    assert prepared(model) == OTHER
    save_model(model, tmp_path)
    assert prepared(load_model(str(tmp_path))) == OTHER


# -- options --------------------------------------------------------------------------------------------------------


def test_options_go_before_what_the_model_says(config_file: ConfigFile, weights: Path) -> None:
    spec = str(config_file("plain"))
    model, same = load_model(spec, str(weights)), load_model(spec, str(weights), mean="0.1,0.2,0.3", std="0.5")
    assert prepared(same) == {**DEFAULTS, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    images = torch.rand(2, 3, 16, 16)
    assert not torch.equal(model.encode_image(images), same.encode_image(images))
    # Another model: nothing that was computed with the first is taken for it.
    assert model.info.digest == saving.file_digest(weights) != same.info.digest
    assert prepared(hrzs.load("tiny", **OTHER)) == OTHER
    assert prepared(hrzs.load(model.clip, arch=model.info.arch, **OTHER)) == OTHER


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": "0.5,0.5"}, "--mean '0.5,0.5': three numbers, for red"),
        ({"mean": "red"}, "--mean 'red': three numbers"),
        ({"mean": "nan"}, "--mean 'nan': three numbers"),
        ({"std": "0"}, "--std '0': three numbers more than 0"),
        ({"std": (1.0, 1.0, float("inf"))}, "--std .*three numbers"),
        ({"interpolation": "nearest"}, "--interpolation 'nearest': one of bicubic, bilinear"),
        ({"resize_mode": "longest"}, "--resize-mode 'longest': one of shortest, squash"),
    ],
)
def test_wrong_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model("tiny", **given)
    with pytest.raises(UsageError, match=r"x\.json: preprocess_cfg: (mean|std|interpolation|resize_mode) "):
        checked(given, "--model x.json: preprocess_cfg: ")


# -- clones of repositories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "local-dir", "config", "config and weights"])
def test_a_clone(form: str, repository: Path, plain: ClipModel, weights: Path) -> None:
    spec = {"folder": str(repository), "local-dir": f"local-dir:{repository}"}.get(
        form, str(repository / "open_clip_config.json")
    )
    model = load_model(spec, str(weights) if form == "config and weights" else None)
    assert prepared(model) == OTHER
    assert model.info.arch == "ViT-of-somebody" or model.info.arch.startswith("ViT-of-somebody-")
    assert model.info.source == (spec if form != "config and weights" else f"{spec}:{weights}")
    images = torch.rand(2, 3, 16, 16)
    plain.mean, plain.std = model.mean, model.std
    assert torch.equal(model.encode_image(images), plain.encode_image(images))


def test_open_clip_reads_a_clone_alike(repository: Path) -> None:
    model, theirs = load_model(str(repository)), open_clip.create_model(f"local-dir:{repository}").eval()
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(
        model.encode_image(images), theirs.encode_image((images - model.mean) / model.std), atol=1e-6, rtol=1e-6
    )
    cfg = theirs.visual.preprocess_cfg
    assert {key: tuple(cfg[key]) if isinstance(cfg[key], list) else cfg[key] for key in DEFAULTS} == OTHER


def test_a_clone_with_a_tokenizer_of_its_own(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the one that the user named."""
    asked = []
    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", lambda name, **options: asked.append((name, options)))
    content = json.loads((repository / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "owner/name"}
    (repository / "open_clip_config.json").write_text(json.dumps(content))
    load_model(str(repository))
    (repository / "tokenizer.json").write_text("{}")
    load_model(str(repository))
    assert [name for name, _ in asked] == ["owner/name", str(repository)]
    assert all(options["trust_remote_code"] is False for _, options in asked)


def test_a_clone_without(repository: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds its own weights; leave --pretrained out"):
        load_model(str(repository), str(weights))
    (repository / "open_clip_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no weights, none of open_clip_model\.safetensors"):
        load_model(str(repository))
    with pytest.raises(UsageError, match=r"a config has no weights; add --pretrained"):
        load_model(str(repository / "open_clip_config.json"))
    with pytest.raises(UsageError, match=r"local-dir:.*no clone of a repository"):
        load_model(f"local-dir:{tmp_path}")


def test_a_clone_may_say_nothing_to_from_pretrained(repository: Path) -> None:
    content = json.loads((repository / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] |= {"tokenizer_kwargs": {"trust_remote_code": True}}
    (repository / "open_clip_config.json").write_text(json.dumps(content))
    for spec in (repository, f"local-dir:{repository}", repository / "open_clip_config.json"):
        with pytest.raises(UsageError, match="'trust_remote_code' is no key"):
            load_model(str(spec))


# -- headers of runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": 5}, r"Expected `str`, got `int` - at `\$\.arch`"),
        ({"config": []}, "Expected `object`"),
        ({"preprocess": {"mean": "red"}}, "in its header, mean 'red': three numbers"),
        ({"preprocess": {"std": [0, 1, 1]}}, "in its header, std .*three numbers more than 0"),
        ({"preprocess": {"interpolation": ["bicubic"]}}, "in its header, interpolation"),
        ({"probe": {}}, "Expected `array`"),
        ({"probe": []}, "features differ"),
        ({"probe": ["a"]}, "Expected `float`"),
        ({"run": {"base": "tiny"}}, "Expected `object"),
        ({"run": {"base": {"model": 5, "pretrained": None, "digest": ""}}}, "Expected `str`"),
        ({"licence": 3}, "Expected `str`"),
        ({"geometry": {"scale_image": "1"}}, "Expected `float`"),
        ({"geometry": {"curvature": -1.0}}, "curvature of the head is -1.0: it must be more than 0"),
        ({"geometry": {"curvature": float("nan")}}, "curvature of the head is nan"),
        ({"geometry": {"scale_text": float("inf")}}, "scale_text of the head is inf"),
        ({"geometry": {"beta": [1.0, 0.0]}}, "beta of the head"),
        ({"geometry": {"depth": []}}, "depth factor is None"),
        ({"geometry": {"depth": [1.0, -0.5]}}, "depth of the head"),
    ],
)
def test_headers_of_strangers(change: dict[str, Any], message: str, plain: ClipModel, tmp_path: Path) -> None:
    plain.geometry = HyperbolicHead(0.05, 0.07, 9.0, 0.5)
    save_model(plain, tmp_path)
    file = tmp_path / "model.safetensors"
    header = read_header(file)
    if "geometry" in change:
        change = {"geometry": header["geometry"] | change["geometry"]}
    write_safetensors(load_file(file), file, header | change)
    with pytest.raises(UsageError, match=f"--model {tmp_path}: .*{message}"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000, '{"a": 1, "a": 2}', "{"])
def test_headers_that_are_no_json(value: str, plain: ClipModel, tmp_path: Path) -> None:
    save_file(plain.clip.state_dict(), tmp_path / "odd.safetensors", {"config": value})
    with pytest.raises(UsageError, match=r"odd\.safetensors: its header was not written by hrzs \("):
        load_model(str(tmp_path / "odd.safetensors"))


def test_flat_heads_stay() -> None:
    assert HyperbolicHead(0.05, 0.07, 9.0, 0.0).name == "euclidean"
