from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import open_clip.pretrained
import pytest
import torch
from huggingface_hub import constants
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hrzs.errors import HrzsError, UsageError
from hrzs.models import loading, saving
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.saving import read_header, save_model

ConfigFile = Callable[[str], Path]


def features(model: ClipModel) -> Tensor:
    side = model.image_size
    with torch.no_grad():
        pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
        return torch.cat([model.encode_image(pixels), model.encode_text(["a photo of a dog.", "bus"])])


@pytest.fixture
def saved(config_file: ConfigFile, tmp_path: Path) -> tuple[ClipModel, Path]:
    """A model and the run folder it was written to."""
    model = load_model(str(config_file("plain")), "none", seed=1)
    folder = tmp_path / "run"
    folder.mkdir()
    save_model(model, folder, method="clean", tree_digest="abc")
    return model, folder


def rewrite(folder: Path, **change: Any) -> None:
    """The same file with another header or other weights."""
    file = folder / "model.safetensors"
    tensors, header = load_file(file), read_header(file)
    tensors |= change.pop("tensors", {})
    saving.write_safetensors(tensors, file, header | change)


# -- what --model takes -------------------------------------------------------------------------------------------


def test_tiny_with_random_weights() -> None:
    one, same, other = (load_model("tiny", "none", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(features(one), features(same))
    assert not torch.allclose(features(one), features(other))
    assert one.info.source == "tiny:none"
    assert one.info.digest == "random:0"
    assert not one.training
    assert one.precision == "fp32"


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_config_with_weights(suffix: str, every_config: Path, tmp_path: Path) -> None:
    random = load_model(str(every_config), "none", seed=5)
    weights = tmp_path / f"weights.{suffix}"
    state = {key: value.contiguous().clone() for key, value in random.clip.state_dict().items()}
    save_file(state, weights) if suffix == "safetensors" else torch.save({"state_dict": state}, weights)
    loaded = load_model(str(every_config), str(weights))
    assert torch.equal(features(loaded), features(random))
    assert loaded.info.digest == saving.file_digest(weights)
    assert loaded.info.config == json.loads(every_config.read_text())


def test_config_without_weights(config_file: ConfigFile) -> None:
    with pytest.raises(UsageError, match=r"hrzs-test-plain\.json.*--pretrained FILE.*none"):
        load_model(str(config_file("plain")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable"),
        ("[]", "lacks embed_dim, vision_cfg, text_cfg"),
        ("5", "lacks embed_dim"),
        ('{"embed_dim": 8, "vision_cfg": {}}', "lacks text_cfg"),
        (
            '{"embed_dim": 8, "vision_cfg": {"patchsize": 2}, "text_cfg": {}}',
            "vision_cfg: 'patchsize' is no key.*did you mean patch_size",
        ),
    ],
)
def test_bad_config(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad-config.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"bad-config.*{message}"):
        load_model(str(file), "none")


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json.*not a readable"):
        load_model(str(tmp_path / "none.json"), "none")


def test_a_config_does_not_take_anothers_name(config_file: ConfigFile, tmp_path: Path) -> None:
    """A file called ViT-B-32.json that is no ViT-B-32 must not change what ViT-B-32 means."""
    before = open_clip.get_model_config("ViT-B-32")
    file = tmp_path / "ViT-B-32.json"
    shutil.copy(config_file("plain"), file)
    model = load_model(str(file), "none")
    assert model.info.arch.startswith("ViT-B-32-")
    assert open_clip.get_model_config("ViT-B-32") == before
    assert load_model(str(file), "none").info.arch == model.info.arch


@pytest.mark.parametrize(("spec", "near"), [("ViT-B32", "ViT-B-32"), ("tinny", "tiny"), ("RN5O", "RN50")])
def test_unknown_architecture_names_near_ones(spec: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"--model '{spec}'.*did you mean.*{near}.*--model list"):
        load_model(spec)


def test_unknown_tag_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"--pretrained 'laion3b'.*openai.*laion2b.*none"):
        load_model("ViT-B-32", "laion3b")


def test_missing_weights(config_file: ConfigFile) -> None:
    for spec in ("tiny", str(config_file("plain"))):
        with pytest.raises(UsageError, match=r"--pretrained nowhere\.pt: no such file"):
            load_model(spec, "nowhere.pt")


def test_list_has_every_form() -> None:
    forms = dict(loading.describe_models())
    assert {"tiny", "RUN_DIR | FILE.safetensors", "CONFIG.json", "hf-hub:OWNER/NAME"} < set(forms)
    assert "openai" in forms["ViT-B-32"]


# -- run folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["folder", "file"])
def test_run_folder_round_trip(by: str, saved: tuple[ClipModel, Path]) -> None:
    model, folder = saved
    spec = folder if by == "folder" else folder / "model.safetensors"
    loaded = load_model(str(spec))
    assert torch.equal(features(loaded), features(model))
    assert loaded.geometry is None
    assert (loaded.info.config, loaded.info.mean, loaded.info.std) == (
        model.info.config,
        model.info.mean,
        model.info.std,
    )
    assert loaded.info.run == {"method": "clean", "tree_digest": "abc"}
    assert loaded.info.source == str(spec)
    assert loaded.info.digest == saving.file_digest(folder / "model.safetensors")


def test_every_architecture_makes_the_round_trip(every_config: Path, tmp_path: Path) -> None:
    model = load_model(str(every_config), "none", seed=2)
    save_model(model, tmp_path)
    assert torch.equal(features(load_model(str(tmp_path))), features(model))


def test_geometry_is_kept(config_file: ConfigFile, tmp_path: Path) -> None:
    model = load_model(str(config_file("plain")), "none")
    model.geometry = HyperbolicHead(0.05, 0.07, (9.0, 7.0), 0.5, (1.0, 0.6, 0.25), image_depth=False)
    save_model(model, tmp_path)
    loaded = load_model(str(tmp_path))
    assert loaded.geometry is not None
    values = loaded.geometry.values()
    assert values.keys() == {"scale_image", "scale_text", "beta", "curvature", "depth", "image_depth"}
    for name, value in model.geometry.values().items():
        assert values[name] == pytest.approx(value, rel=1e-6)
    assert loaded.head().name == "hyperbolic"
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.clip.state_dict())


def test_a_header_from_before_the_levels_had_depths_is_read(config_file: ConfigFile, tmp_path: Path) -> None:
    """One β and no depth factors: every level is scored as the leaves are, as it was when the run was made."""
    old = {"scale_image": 0.05, "scale_text": 0.07, "beta": 9.0, "curvature": 0.5}
    model = load_model(str(config_file("plain")), "none")
    model.geometry = HyperbolicHead(**old)
    save_model(model, tmp_path)
    file = tmp_path / "model.safetensors"
    header = {key: json.dumps(value) for key, value in read_header(file).items()}
    save_file(load_file(file), file, {"format": "pt"} | header | {"geometry": json.dumps(old)})
    assert read_header(file)["geometry"] == old
    head = load_model(str(tmp_path)).geometry
    assert head is not None
    assert head.depth.tolist() == [1.0]
    image, text = torch.randn(3, 24), torch.randn(4, 24)
    leaf = head.logits(image, head.prepare(text))
    assert torch.equal(head.logits(image, head.prepare(text, torch.full((4,), 2)), 2), leaf)


def test_header(saved: tuple[ClipModel, Path]) -> None:
    model, folder = saved
    header = read_header(folder / "model.safetensors")
    assert header["arch"] == "hrzs-test-plain"
    assert header["config"] == model.info.config
    assert header["preprocess"] == {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "size": 16,
    }
    assert header["run"] == {"method": "clean", "tree_digest": "abc"}
    assert {"hrzs", "licence", "training_data", "probe"} < set(header)
    assert "geometry" not in header
    assert json.loads((folder / "open_clip_config.json").read_text()) == model.info.config
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "open_clip_config.json"]


def test_plain_open_clip_reads_it(saved: tuple[ClipModel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip #771, #915: what we write works without us."""
    model, folder = saved
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(folder / "open_clip_config.json")
    clip = open_clip.create_model("open_clip_config", pretrained=str(folder / "model.safetensors")).eval()
    pixels = torch.rand(2, 3, 16, 16)
    tokens = open_clip.get_tokenizer("open_clip_config")(["bus"])
    with torch.no_grad():
        theirs = clip.encode_image((pixels - model.mean) / model.std)
        torch.testing.assert_close(model.encode_image(pixels), theirs, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(model.encode_text(["bus"]), clip.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_run_folder_takes_no_other_weights(saved: tuple[ClipModel, Path]) -> None:
    with pytest.raises(UsageError, match="holds its own weights; leave --pretrained out"):
        load_model(str(saved[1]), "openai")


def test_unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.safetensors does not exist.*--resume"):
        load_model(str(tmp_path))


def test_interrupted_writing_leaves_the_old_file(
    saved: tuple[ClipModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = saved
    before = (folder / "model.safetensors").read_bytes()

    def full(_tensors: object, path: Path, _metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(HrzsError, match=r"No space left.*untouched"):
        save_model(model, folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


# -- files that are not what they should be -----------------------------------------------------------------------


def test_truncated_file(saved: tuple[ClipModel, Path]) -> None:
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"model\.safetensors: not a safetensors file"):
        load_model(str(saved[1]))


def test_foreign_file(saved: tuple[ClipModel, Path], tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain.safetensors", tmp_path / "odd.safetensors"
    state = load_file(saved[1] / "model.safetensors")
    save_file(state, plain)
    with pytest.raises(UsageError, match=r"plain\.safetensors: not written by hrzs.*--model ARCH --pretrained"):
        load_model(str(plain))
    save_file(state, odd, {"author": "somebody"})
    with pytest.raises(UsageError, match=r"odd\.safetensors.*not written by hrzs"):
        load_model(str(odd))


@pytest.mark.parametrize("damage", ["weights", "nan"])
def test_damage_shows_in_the_probe(damage: str, saved: tuple[ClipModel, Path]) -> None:
    name, folder = "visual.proj", saved[1]
    tensor = load_file(folder / "model.safetensors")[name]
    rewrite(folder, tensors={name: tensor.roll(1, 1).contiguous() if damage == "weights" else tensor * torch.nan})
    with pytest.raises(UsageError, match=r"run.*(not finite: visual\.proj|features differ.*damaged)"):
        load_model(str(folder))


def test_lost_activation_shows_in_the_probe(tmp_path: Path) -> None:
    """open_clip #771: trained weights under the other GELU (an untrained model would hardly tell the two apart)."""
    model = load_model("tiny")
    save_model(model, tmp_path)
    rewrite(tmp_path, config=model.info.config | {"quick_gelu": True}, arch="hrzs-test-quick")
    with pytest.raises(UsageError, match=r"features differ.*damaged"):
        load_model(str(tmp_path))


def test_header_cannot_name_a_path(saved: tuple[ClipModel, Path], tmp_path: Path) -> None:
    """The architecture becomes a file name while open_clip reads it: never one outside our own folder."""
    rewrite(saved[1], arch=str(tmp_path / "escaped"))
    with pytest.raises(UsageError, match=r"escaped.*path"):
        load_model(str(saved[1]))
    assert not (tmp_path / "escaped.json").exists()


def test_checkpoint_of_another_architecture(config_file: ConfigFile, saved: tuple[ClipModel, Path]) -> None:
    weights = saved[1] / "model.safetensors"
    with pytest.raises(
        UsageError, match=r"model\.safetensors: not a checkpoint of hrzs-test-resnet.*this architecture"
    ):
        load_model(str(config_file("resnet")), str(weights))


def test_truncated_weights(config_file: ConfigFile, saved: tuple[ClipModel, Path], tmp_path: Path) -> None:
    torch.save(load_file(saved[1] / "model.safetensors"), tmp_path / "half.pt")
    for name, whole in (("half.pt", tmp_path / "half.pt"), ("half.safetensors", saved[1] / "model.safetensors")):
        (tmp_path / name).write_bytes(whole.read_bytes()[:10_000])
        with pytest.raises(UsageError, match=f"--pretrained .*{name}: not a (file that torch saved|safetensors file)"):
            load_model(str(config_file("plain")), str(tmp_path / name))


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", [pickle.dumps, None], ids=["pickle", "torch"])
def test_pickles_are_not_run(writer: Callable[[object], bytes] | None, config_file: ConfigFile, tmp_path: Path) -> None:
    file, touched = tmp_path / "trap.pt", tmp_path / "touched"
    if writer is None:
        torch.save({"state_dict": Trap(touched)}, file)
    else:
        file.write_bytes(writer(Trap(touched)))
    with pytest.raises(UsageError, match=r"--pretrained .*trap\.pt: (refused, since|not a file that torch saved)"):
        load_model(str(config_file("plain")), str(file))
    assert not touched.exists()


# -- tags ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_arch(config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An architecture whose `openai` tag wants QuickGELU, as open_clip lists it; its weights lie in a file."""
    arch = "hrzs-test-fake"
    config = json.loads(config_file("plain").read_text())
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | {arch: config})
    tags = {
        "laion": {"url": "https://example.invalid/laion.pt", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)},
        "openai": {"url": "https://example.invalid/openai.pt", "quick_gelu": True},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, tags)
    weights = tmp_path / "openai.safetensors"
    save_file(load_model(str(config_file("plain")), "none", seed=9).clip.state_dict(), weights)
    monkeypatch.setattr(loading, "download_pretrained", lambda _cfg: str(weights))
    return arch


def activations(model: ClipModel) -> set[type[nn.Module]]:
    return {type(m) for m in model.modules() if isinstance(m, QuickGELU | nn.GELU)}


@pytest.mark.parametrize("named", [False, True], ids=["no such arch", "arch-quickgelu exists"])
def test_activation_follows_the_tag(named: bool, fake_arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip #771, #915: OpenAI's weights under GELU are another, worse model, and open_clip only warns."""
    quick = f"{fake_arch}-quickgelu"
    config = open_clip.get_model_config(fake_arch) | {"quick_gelu": True}
    if named:
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, quick, config)
    model = load_model(fake_arch)  # `openai` is the default where it is listed
    assert activations(model) == {QuickGELU}
    assert model.info.arch == quick
    assert model.info.config == config
    assert model.info.source == f"{quick}:openai"
    assert activations(load_model(fake_arch, "laion")) == {nn.GELU}


def test_activation_survives_the_round_trip(fake_arch: str, tmp_path: Path) -> None:
    model = load_model(fake_arch, "openai")
    save_model(model, tmp_path)
    loaded = load_model(str(tmp_path))
    assert activations(loaded) == {QuickGELU}
    assert torch.equal(features(loaded), features(model))


def test_normalisation_follows_the_tag(fake_arch: str) -> None:
    model = load_model(fake_arch, "laion")
    assert model.info.mean == (0.1, 0.2, 0.3)
    assert torch.allclose(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert load_model(fake_arch, "openai").info.mean == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize("error", [OSError("Network is unreachable"), RuntimeError("404"), ValueError("")])
def test_no_network(error: Exception, fake_arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(_cfg: object) -> None:
        raise error

    monkeypatch.setattr(loading, "download_pretrained", offline)
    with pytest.raises(HrzsError, match=r"weights 'laion'.*could not be fetched.*--pretrained FILE.*none") as failure:
        load_model(fake_arch, "laion")
    assert not isinstance(failure.value, UsageError)
    assert str(error) in str(failure.value)


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(loading, "download_pretrained_from_hf", offline)
    with pytest.raises(HrzsError, match=r"hf-hub:owner/name could not be fetched \(offline\).*--pretrained FILE"):
        load_model("hf-hub:owner/name")


def test_hub(config_file: ConfigFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of the hub in open_clip's layout, from the hub's cache on disk; its own preprocessing counts."""
    origin = load_model(str(config_file("plain")), "none", seed=3)
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0123abc")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "size": 16}
    config = {"model_cfg": origin.info.config, "preprocess_cfg": preprocess}
    (snapshot / "open_clip_config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in origin.clip.state_dict().items()}
    save_file(state, snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = load_model("hf-hub:owner/name")
    assert (loaded.info.source, loaded.info.interpolation) == ("hf-hub:owner/name", "bilinear")
    assert loaded.mean.flatten().tolist() == [0.5] * 3
    images = torch.rand(2, 3, 16, 16)
    origin.mean, origin.std = loaded.mean, loaded.std
    assert torch.equal(loaded.encode_image(images), origin.encode_image(images))
    assert torch.equal(loaded.encode_text(["a dog"]), origin.encode_text(["a dog"]))

    digest = loaded.info.digest
    state["logit_scale"] += 1
    save_file(state, snapshot / "open_clip_model.safetensors")
    assert (
        load_model("hf-hub:owner/name").info.digest != digest
    )  # a name on the hub may stand for other weights one day
