from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
from safetensors.torch import load_file

from hrzs.errors import UsageError
from hrzs.models.config import check_config, check_text_encoder, read_json
from hrzs.models.loading import load_model
from hrzs.models.saving import read_header, save_model, write_safetensors

ConfigFile = Callable[[str], Path]
Asked = list[dict[str, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What transformers would have been asked to load a tokenizer from; it is not asked."""
    calls: Asked = []

    def stand_in(name: str, **options: Any) -> Any:
        calls.append({"name": name, **options})
        return open_clip.SimpleTokenizer(context_length=options["context_length"])

    monkeypatch.setattr(open_clip.tokenizer, "HFTokenizer", stand_in)
    monkeypatch.setattr(open_clip.factory, "HFTokenizer", stand_in)
    return calls


@pytest.fixture
def with_text(config_file: ConfigFile, tmp_path: Path) -> Callable[..., list[tuple[str, str | None]]]:
    """The same text_cfg in a JSON config and in the header of a run: ``--model`` and ``--pretrained`` of both."""

    def write(**text: Any) -> list[tuple[str, str | None]]:
        model = load_model(str(config_file("plain")), "none", seed=1)
        save_model(model, tmp_path)
        file = tmp_path / "model.safetensors"
        header = read_header(file)
        header["config"]["text_cfg"] |= text
        write_safetensors(load_file(file), file, header)
        (tmp_path / "config.json").write_text(json.dumps(header["config"]))
        return [(str(file), None), (str(tmp_path / "config.json"), "none")]

    return write


# -- no code --------------------------------------------------------------------------------------------------------


def test_every_published_config_is_let_through() -> None:
    for arch in open_clip.list_models():
        config = open_clip.get_model_config(arch)
        assert check_config(config, arch) == config


@pytest.mark.parametrize("kwargs", [{"trust_remote_code": True}, {"code_revision": "main"}, {"clean": ["lower"]}])
def test_a_file_says_nothing_to_from_pretrained(
    kwargs: dict[str, Any], with_text: Callable[..., list[tuple[str, str | None]]], asked: Asked
) -> None:
    for spec, pretrained in with_text(hf_tokenizer_name="owner/name", tokenizer_kwargs=kwargs):
        with pytest.raises(UsageError, match=rf"--model .*text_cfg: tokenizer_kwargs: '?{next(iter(kwargs))}"):
            load_model(spec, pretrained)
    assert asked == []


def test_a_folder_is_read_on_the_users_word_alone(
    with_text: Callable[..., list[tuple[str, str | None]]],
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tokenizer").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "tokenizer"), "tokenizer", "../elsewhere", "C:\\elsewhere", "~/tokenizer"):
        for spec, pretrained in with_text(hf_tokenizer_name=name):
            with pytest.raises(UsageError, match=r"hf_tokenizer_name .*a folder of this machine.*--tokenizer FOLDER"):
                load_model(spec, pretrained)
    assert asked == []
    model = load_model(spec, pretrained, tokenizer=tmp_path / "tokenizer")
    assert [(call["name"], call["trust_remote_code"]) for call in asked] == [(str(tmp_path / "tokenizer"), False)]
    assert model.info.tokenizer == str(tmp_path / "tokenizer")


def test_the_tokenizer_of_a_repository_runs_no_code(
    with_text: Callable[..., list[tuple[str, str | None]]], asked: Asked
) -> None:
    """As SigLIP has it: what open_clip itself does with a tokenizer may be said."""
    for spec, pretrained in with_text(hf_tokenizer_name="owner/name", tokenizer_kwargs={"clean": "canonicalize"}):
        load_model(spec, pretrained)
    expected = {"name": "owner/name", "context_length": 16, "clean": "canonicalize", "trust_remote_code": False}
    assert asked == [expected, expected]


def test_clips_own_tokenizer_is_not_replaced(config_file: ConfigFile) -> None:
    with pytest.raises(UsageError, match="--tokenizer elsewhere: hrzs-test-plain has CLIP's own"):
        load_model(str(config_file("plain")), "none", tokenizer="elsewhere")


@pytest.mark.parametrize("name", ["/tmp", "./folder", "a/b/c", ""])
def test_text_encoders_are_no_folders(name: str, with_text: Callable[..., list[tuple[str, str | None]]]) -> None:
    for spec, pretrained in with_text(hf_model_name=name):
        with pytest.raises(UsageError, match=r"hf_model_name .*a folder of this machine"):
            load_model(spec, pretrained)


def test_text_encoders_with_code_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(name: str, **options: Any) -> SimpleNamespace:
        asked.append(options)
        return SimpleNamespace(**({"auto_map": {"AutoModel": "code.Model"}} if name == "with/code" else {}))

    auto = SimpleNamespace(AutoConfig=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", auto)
    check_text_encoder("without/code", "--model x")
    with pytest.raises(UsageError, match="--model x: the text encoder with/code needs code"):
        check_text_encoder("with/code", "--model x")
    assert asked == [{"trust_remote_code": False}] * 2


@pytest.mark.parametrize("name", ["hf-hub:owner/name", "local-dir:/tmp", "no_such_model", "/tmp"])
def test_image_encoders_are_those_of_timm(name: str, config_file: ConfigFile, tmp_path: Path) -> None:
    config = json.loads(config_file("plain").read_text())
    config["vision_cfg"]["timm_model_name"] = name
    (tmp_path / "timm.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"timm\.json: vision_cfg: timm_model_name .*timm has no such model"):
        load_model(str(tmp_path / "timm.json"), "none")


@pytest.mark.parametrize("arch", ["hf-hub:owner", "local-dir:folder", "a/b", "x" * 300, "a\x1b[31m", ""])
def test_an_architecture_is_no_place(arch: str, with_text: Callable[..., list[tuple[str, str | None]]]) -> None:
    (spec, _), _ = with_text()
    file = Path(spec)
    write_safetensors(load_file(file), file, read_header(file) | {"arch": arch})
    with pytest.raises(UsageError, match="is no name of an architecture"):
        load_model(spec)


# -- wrong values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision": {}}, "'vision' is no key.*did you mean vision_cfg"),
        ({"output_dict": True}, "'output_dict' is no key"),
        ({"embed_dim": "24"}, "embed_dim: Expected `int`"),
        ({"embed_dim": 10**400}, "embed_dim: "),
        ({"embed_dim": 1 << 40}, "embed_dim: holds a number"),
        ({"text_cfg": []}, "text_cfg: Expected `object`"),
        ({"text_cfg": {"layers": 10**7}}, "text_cfg: layers: holds a number"),
        ({"text_cfg": {"width": True}}, "text_cfg: width: Expected `int`"),
        ({"vision_cfg": {"mlp_ratio": float("nan")}}, "vision_cfg: mlp_ratio: holds a number that is NaN"),
        ({"vision_cfg": {"layers": [1, 1, 1]}}, "vision_cfg: layers: "),
        ({"vision_cfg": {"layers": [1, 1, 1, 1 << 20]}}, "vision_cfg: layers: holds a number"),
    ],
)
def test_wrong_values(change: dict[str, Any], message: str, config_file: ConfigFile) -> None:
    config = json.loads(config_file("plain").read_text())
    with pytest.raises(UsageError, match=f"--model x: {message}"):
        check_config(config | change, "--model x")


def test_json() -> None:
    assert read_json('{"a": [1]}') == {"a": [1]}
    for text, reason in (
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there more than once"),
        ("[" * 100_000, "too deeply"),
        ("9" * 5000, "digits"),
        (b"\xff", "decode"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_json(text)
