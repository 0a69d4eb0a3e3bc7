from __future__ import annotations

import argparse
import logging
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model

ConfigFile = Callable[[str], Path]
State = dict[str, Tensor]


def whole(model: ClipModel) -> State:
    return {name: value.clone() for name, value in model.clip.state_dict().items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def transformers_names(model: ClipModel) -> State:
    """As a CLIPModel names them: what `CLIPModel(config).state_dict()` gives, written down tensor by tensor."""
    ours = whole(model)
    theirs = {
        "logit_scale": ours["logit_scale"],
        "text_projection.weight": ours["text_projection"].T,
        "visual_projection.weight": ours["visual.proj"].T,
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "text_model.embeddings.token_embedding.weight": ours["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": ours["positional_embedding"],
        "text_model.final_layer_norm.weight": ours["ln_final.weight"],
        "text_model.final_layer_norm.bias": ours["ln_final.bias"],
        "vision_model.embeddings.class_embedding": ours["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": ours["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": ours["visual.positional_embedding"],
    }
    for end in ("weight", "bias"):
        theirs[f"vision_model.pre_layrnorm.{end}"] = ours[f"visual.ln_pre.{end}"]
        theirs[f"vision_model.post_layernorm.{end}"] = ours[f"visual.ln_post.{end}"]
        for tower, block in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
            layer, ours_in = f"{tower}.encoder.layers.0", f"{block}.resblocks.0"
            joined = ours[f"{ours_in}.attn.in_proj_{end}"]
            for part, value in zip("qkv", joined.chunk(3), strict=True):
                theirs[f"{layer}.self_attn.{part}_proj.{end}"] = value
            for name, own in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                              ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                theirs[f"{layer}.{name}.{end}"] = ours[f"{ours_in}.{own}.{end}"]
    return {name: value.contiguous() for name, value in theirs.items()}


WRAPPED: dict[str, Callable[[ClipModel], object]] = {
    "plain": whole,
    "compiled": lambda model: under("_orig_mod.", whole(model)),
    "compiled encoder": lambda model: {n.replace("visual.", "visual._orig_mod."): v for n, v in whole(model).items()},
    "FSDP": lambda model: {n.replace("visual.", "visual._fsdp_wrapped_module."): v for n, v in whole(model).items()},
    "DataParallel": lambda model: under("module.", whole(model)),
    "model": lambda model: {"model": whole(model)},
    "state_dict": lambda model: {"state_dict": whole(model), "epoch": 3, "ema": whole(model)},
    "open_clip's training": lambda model: {"state_dict": under("module.", whole(model)), "optimizer": {"state": {}}},
    "Lightning": lambda model: {
        "state_dict": under("model.", whole(model)) | {"loss.scale": torch.zeros(2)},
        "hyper_parameters": {"lr": 1e-3},
    },
    "Namespace": lambda model: {"model": whole(model), "args": argparse.Namespace(lr=1e-3, out=Path("out"))},
    "NumPy": lambda model: {"state_dict": whole(model), "best_acc1": np.float64(38.18)},
    "OpenAI": lambda model: whole(model) | {"input_resolution": torch.tensor(16), "vocab_size": torch.tensor(9)},
    "transformers": transformers_names,
    "transformers, compiled": lambda model: {"model": under("_orig_mod.", transformers_names(model))},
    "halves": lambda model: {name: value.half().float().half() for name, value in whole(model).items()},
}


@pytest.fixture
def plain(config_file: ConfigFile) -> ClipModel:
    return load_model(str(config_file("plain")), "none", seed=2)


@pytest.fixture
def refused(config_file: ConfigFile) -> Callable[..., str]:
    """The message with which a file is refused as the weights of the plain model."""

    def message(file: Path) -> str:
        with pytest.raises(UsageError) as error:
            load_model(str(config_file("plain")), str(file))
        assert f"--pretrained {file}: " in str(error.value)
        return str(error.value)

    return message


# -- wrappers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", WRAPPED)
def test_wrappers(how: str, plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    file = tmp_path / "wrapped.pt"
    torch.save(WRAPPED[how](plain), file)
    for loaded in (
        load_model(str(config_file("plain")), str(file)),
        load_model(str(config_file("plain")), "none", visual=file),
    ):
        visual = loaded.info.visual is not None
        for name, value in whole(plain).items():
            expected = value.half().float() if how == "halves" else value
            assert not (name.startswith("visual.") or not visual) or torch.equal(whole(loaded)[name], expected), name


def test_torchscript(plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    """What OpenAI itself distributes: read without the code that is in it."""
    file = tmp_path / "script.pt"
    clip = open_clip.create_model(plain.info.arch).eval()  # without our modules, which torch.jit cannot compile
    clip.load_state_dict(plain.clip.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(clip).save(str(file))
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(broken, "w") as target:
        for entry in source.infolist():
            is_code = "/code/" in entry.filename
            target.writestr(entry, b"this is no code" if is_code else source.read(entry))
    for each in (file, broken):
        loaded = load_model(str(config_file("plain")), str(each))
        assert all(torch.equal(value, whole(plain)[name]) for name, value in whole(loaded).items())


def test_a_torchscript_archive_has_no_other_names(refused: Callable[..., str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "trap.pt", "w") as archive:
        archive.writestr("trap/data.pkl", b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85R.")
        archive.writestr("trap/constants.pkl", b"\x80\x02).")
        archive.writestr("trap/version", b"3\n")
    assert "refused, since it is more than tensors (posix.system)" in refused(tmp_path / "trap.pt")


@pytest.mark.parametrize("form", ["OpenAI", "transformers", "plain"])
def test_weights_that_do_not_say_their_activation(
    form: str, plain: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"hrzs-test-act": plain.info.config, "hrzs-test-act-quickgelu": plain.info.config | {"quick_gelu": True}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | known)
    torch.save(WRAPPED[form](plain), tmp_path / "weights.pt")
    with caplog.at_level(logging.WARNING):
        load_model("hrzs-test-act", str(tmp_path / "weights.pt"))
    assert ("need --model hrzs-test-act-quickgelu" in caplog.text) is (form != "plain")
    caplog.clear()
    load_model("hrzs-test-act-quickgelu", str(tmp_path / "weights.pt"))
    assert "need --model" not in caplog.text


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite(value: float, plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    state = whole(plain)
    state["ln_final.weight"][3] = value
    torch.save(state, tmp_path / "diverged.pt")
    assert "not finite: ln_final.weight; the file is damaged" in refused(tmp_path / "diverged.pt")


def test_no_logit_scale(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    state = whole(plain)
    del state["logit_scale"]
    torch.save(state, tmp_path / "scale.pt")
    assert refused(tmp_path / "scale.pt").endswith(
        "not a checkpoint of hrzs-test-plain: missing logit_scale; give the file that belongs to this architecture"
    )


def test_names_that_do_not_fit(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    state = whole(plain) | {"prompt": torch.zeros(2), "text_projection": torch.zeros(3, 3)}
    for name in [name for name in state if name.startswith("ln_final")]:
        del state[name]
    torch.save({"model": state}, tmp_path / "other.pt")
    message = refused(tmp_path / "other.pt")
    assert (
        "missing ln_final.weight, ln_final.bias; unexpected prompt; misshaped text_projection 3×3 for 16×24" in message
    )


def test_shapes_that_open_clip_takes_for_granted(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    """Its conversions end in assertions, which say less than the shapes do."""
    torch.save(whole(plain) | {"positional_embedding": torch.zeros(16, 7)}, tmp_path / "narrow.pt")
    assert "hrzs-test-plain: misshaped positional_embedding 16×7 for 16×16; give" in refused(tmp_path / "narrow.pt")


def test_two_models(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    torch.save({"model": whole(plain), "ema": whole(plain)}, tmp_path / "both.pt")
    assert "holds several models, under ema., model.; save the one" in refused(tmp_path / "both.pt")


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
def test_adapters(prefix: str, refused: Callable[..., str], tmp_path: Path, config_file: ConfigFile) -> None:
    layer = "vision_model.encoder.layers.0.self_attn.q_proj"
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"{prefix}{layer}.lora_{x}.weight": torch.zeros(2, 4) for x in "AB"}, file)
    assert "LoRA adapters (peft)" in refused(file)
    with pytest.raises(UsageError, match=r"--visual .*LoRA adapters.*merge_and_unload"):
        load_model(str(config_file("plain")), "none", visual=file)


def test_other_models_of_transformers(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    siglip = transformers_names(plain) | {"vision_model.head.probe": torch.zeros(1, 1, 32)}
    torch.save(siglip, tmp_path / "siglip.pt")
    assert "no whole CLIPModel (vision_model.head.probe)" in refused(tmp_path / "siglip.pt")
    part: dict[str, Any] = transformers_names(plain)
    del part["text_model.encoder.layers.0.self_attn.k_proj.weight"]
    torch.save(part, tmp_path / "part.pt")
    assert "missing transformer.resblocks.0.attn.in_proj_weight" in refused(tmp_path / "part.pt")


def test_a_pointer_of_git_lfs(refused: Callable[..., str], tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.bin"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
        assert "`git lfs pull` fetches them" in refused(tmp_path / name)


def test_mappings_within_each_other_end(refused: Callable[..., str], tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content |= {str(i): content for i in range(50)}
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "endless.pt")
    assert "holds no named tensors" in refused(tmp_path / "endless.pt")
