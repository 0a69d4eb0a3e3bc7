from __future__ import annotations

import logging
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hrzs import load
from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.saving import file_digest, save_model
from hrzs.models.weights import read_tensors

ConfigFile = Callable[[str], Path]
State = dict[str, Tensor]
Layout = Callable[[ClipModel], object]


def image_features(model: ClipModel) -> Tensor:
    side = model.image_size
    with torch.no_grad():
        return model.encode_image(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))


def text_features(model: ClipModel) -> Tensor:
    with torch.no_grad():
        return model.encode_text(["a photo of a dog.", "bus"])


def whole(model: ClipModel) -> State:
    return {name: value.clone() for name, value in model.clip.state_dict().items()}


def visual(model: ClipModel) -> State:
    return {name[7:]: value for name, value in whole(model).items() if name.startswith("visual.")}


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def training_checkpoint(model: ClipModel, best: object) -> dict[str, Any]:
    """What TeCoA's and PMG-AFT's training saves: the prompter has no weights, the optimiser momenta of its own."""
    weights = [nn.Parameter(value) for value in visual(model).values() if value.is_floating_point()]
    optimizer = torch.optim.SGD(weights, lr=1e-5, momentum=0.9)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return {
        "epoch": 1,
        "state_dict": OrderedDict(),
        "add_prompter": OrderedDict({"module.prompt": torch.zeros(1, 0, 768)}),
        "vision_encoder_state_dict": OrderedDict(visual(model)),
        "best_acc1": best,
        "optimizer": optimizer.state_dict(),
    }


LAYOUTS: dict[str, Layout] = {
    "RobustVLM": visual,
    "RobustVLM-wrapped": lambda model: under("model.", visual(model)),
    "RobustVLM-DataParallel": lambda model: under("module.model.", visual(model)),
    "TeCoA-mid-epoch": lambda model: training_checkpoint(model, 0),
    "TeCoA-best": lambda model: training_checkpoint(model, np.mean([38.18, 55.97])),
    "visual": lambda model: under("visual.", visual(model)),
    "whole": whole,
    "whole-OpenAI": lambda model: whole(model) | {"input_resolution": torch.tensor(16), "vocab_size": torch.tensor(9)},
    "whole-open_clip-training": lambda model: {"epoch": 2, "name": "run", "state_dict": under("module.", whole(model))},
    "compiled": lambda model: under("_orig_mod.visual.", visual(model)),
}


@pytest.fixture(params=["plain", "custom-text", "resnet"])
def pair(request: pytest.FixtureRequest, config_file: ConfigFile, tmp_path: Path) -> tuple[ClipModel, ClipModel, Path]:
    """A model (also as a file), and another of the same architecture whose image encoder it is to take."""
    config = str(config_file(request.param))
    base, donor = (load_model(config, "none", seed=seed) for seed in (1, 2))
    torch.save(whole(base), tmp_path / "base.pt")
    return base, donor, Path(config)


@pytest.fixture
def plain(config_file: ConfigFile) -> ClipModel:
    return load_model(str(config_file("plain")), "none", seed=2)


@pytest.fixture
def refused(config_file: ConfigFile) -> Callable[..., str]:
    """The message with which a file is refused as the image encoder of the plain model."""

    def message(file: Path, model: str = "plain") -> str:
        with pytest.raises(UsageError) as error:
            load_model(str(config_file(model)), "none", visual=file)
        assert f"--visual {file}: " in str(error.value)
        return str(error.value)

    return message


# -- what projects publish ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, pair: tuple[ClipModel, ClipModel, Path], tmp_path: Path) -> None:
    base, donor, config = pair
    file = tmp_path / "robust.pt"
    torch.save(LAYOUTS[layout](donor), file)
    loaded = load_model(str(config), str(tmp_path / "base.pt"), visual=file)
    assert torch.equal(image_features(loaded), image_features(donor))
    assert not torch.allclose(image_features(loaded), image_features(base))
    assert torch.equal(text_features(loaded), text_features(base))
    assert not torch.allclose(text_features(loaded), text_features(donor))
    taken = {name: value for name, value in whole(donor).items() if name.startswith("visual.")}
    expected = whole(base) | taken
    assert [name for name, value in whole(loaded).items() if not torch.equal(value, expected[name])] == []


def test_numbers_of_an_older_numpy(plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    """The published checkpoints were written under NumPy 1, which pickled the same numbers under another name."""
    new, old = tmp_path / "new.tar", tmp_path / "model_best.pth.tar"
    torch.save(training_checkpoint(plain, np.float64(38.18)), new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray\n" in content
                content = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
            target.writestr(entry, content)
    loaded = load_model(str(config_file("plain")), "none", visual=old)
    assert torch.equal(image_features(loaded), image_features(plain))


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_formats(suffix: str, plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    file = tmp_path / f"robust.{suffix}"
    save_file(visual(plain), file) if suffix == "safetensors" else torch.save(visual(plain), file)
    loaded = load(config_file("plain"), "none", visual=str(file))
    assert torch.equal(image_features(loaded), image_features(plain))


def test_format_of_old_torch(plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save(visual(plain), file, _use_new_zipfile_serialization=False)
    loaded = load_model(str(config_file("plain")), "none", visual=file)
    assert torch.equal(image_features(loaded), image_features(plain))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(
    dtype: torch.dtype, plain: ClipModel, config_file: ConfigFile, tmp_path: Path
) -> None:
    file = tmp_path / "half.pt"
    torch.save({name: value.to(dtype) for name, value in visual(plain).items()}, file)
    loaded = load_model(str(config_file("plain")), "none", visual=file)
    assert {value.dtype for value in visual(loaded).values()} == {torch.float32}
    assert all(torch.equal(value, visual(plain)[name].to(dtype).float()) for name, value in visual(loaded).items())


# -- what the model says of itself --------------------------------------------------------------------------------


def test_info_names_both_files(pair: tuple[ClipModel, ClipModel, Path], tmp_path: Path) -> None:
    base, donor, config = pair
    weights, one, other = (tmp_path / name for name in ("base.pt", "one.pt", "other.pt"))
    torch.save(visual(donor), one)
    torch.save(visual(base), other)
    info = load_model(str(config), str(weights), visual=one).info
    assert info.source == f"{config}:{weights} + {one}"
    assert info.visual == str(one)
    assert info.run == {"base": {"model": str(config), "pretrained": str(weights), "digest": file_digest(weights)}}
    digests = [
        load_model(str(config), pretrained, visual=file, seed=3).info.digest
        for pretrained in (str(weights), "none")
        for file in (one, other)
    ]
    assert len(set(digests)) == 4
    assert digests[0] == info.digest
    assert file_digest(weights) not in digests


def test_licence_and_data_of_the_old_encoder_do_not_pass_on(
    plain: ClipModel, config_file: ConfigFile, tmp_path: Path
) -> None:
    model = load_model("tiny")
    assert model.info.licence != "unknown"
    torch.save(visual(model), tmp_path / "robust.pt")
    loaded = load_model("tiny", visual=tmp_path / "robust.pt")
    assert (loaded.info.licence, loaded.info.training_data) == ("unknown", "unknown")


def test_round_trip(plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    torch.save(visual(plain), tmp_path / "robust.pt")
    model = load_model(str(config_file("plain")), "none", visual=tmp_path / "robust.pt")
    save_model(model, tmp_path)
    assert torch.equal(image_features(load_model(str(tmp_path))), image_features(plain))


# -- run folders --------------------------------------------------------------------------------------------------


def test_a_cosine_run_takes_another_encoder(plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    """Then untouched is what the run started from: the run itself may be robust."""
    started_from = {"model": "ViT-B-32", "pretrained": "openai", "digest": "abc"}
    save_model(load_model(str(config_file("plain")), "none", seed=1), tmp_path, method="tecoa", base=started_from)
    torch.save(visual(plain), tmp_path / "robust.pt")
    loaded = load_model(str(tmp_path), visual=tmp_path / "robust.pt")
    assert torch.equal(image_features(loaded), image_features(plain))
    assert loaded.info.run == {"base": started_from}


def test_a_hyperbolic_run_does_not(plain: ClipModel, config_file: ConfigFile, tmp_path: Path) -> None:
    model = load_model(str(config_file("plain")), "none")
    model.geometry = HyperbolicHead(0.05, 0.07, 9.0, 0.5)
    save_model(model, tmp_path)
    torch.save(visual(plain), tmp_path / "robust.pt")
    with pytest.raises(UsageError, match=r"robust\.pt: .*hyperbolic head.*give the --model"):
        load_model(str(tmp_path), visual=tmp_path / "robust.pt")


def test_a_hyperbolic_run_gives_no_encoder_away(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    plain.geometry = HyperbolicHead(0.05, 0.07, 9.0, 0.5)
    save_model(plain, tmp_path)
    file = tmp_path / "model.safetensors"
    assert f"give --model {file}" in refused(file)
    plain.geometry = None
    save_model(plain, tmp_path)
    assert set(read_tensors(file, "--visual")) == set(whole(plain))


# -- files that do not fit ----------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshaped(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    state = visual(plain)
    del state["ln_pre.weight"], state["ln_pre.bias"], state["ln_post.weight"], state["ln_post.bias"]
    state["prompt_pos_embedding"] = torch.zeros(2, 32)
    state["proj"] = torch.zeros(32, 8)
    torch.save(state, tmp_path / "other.pt")
    message = refused(tmp_path / "other.pt")
    assert "does not fit the image encoder of hrzs-test-plain: " in message
    assert "missing ln_pre.weight, ln_pre.bias, ln_post.weight and 1 more; " in message
    assert "unexpected prompt_pos_embedding; " in message
    assert "misshaped proj 32×8 for 32×24. " in message
    assert "Give the --model that it was tuned from" in message


def test_positions_are_not_resized(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    torch.save(visual(plain) | {"positional_embedding": torch.zeros(10, 32)}, tmp_path / "larger.pt")
    assert "misshaped positional_embedding 10×32 for 5×32" in refused(tmp_path / "larger.pt")


def test_quantised_weights_are_no_weights(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    torch.save(visual(plain) | {"proj": torch.zeros(32, 24, dtype=torch.int8)}, tmp_path / "int8.pt")
    assert "misshaped proj 32×24 of integers for 32×24" in refused(tmp_path / "int8.pt")


def test_encoder_of_another_kind(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    torch.save(visual(plain), tmp_path / "vit.pt")
    assert "does not fit the image encoder of hrzs-test-resnet" in refused(tmp_path / "vit.pt", "resnet")


@pytest.mark.parametrize(
    ("arch", "width", "layers", "patch", "tokens", "dim"),
    [
        ("ViT-B-32", 768, 12, 32, 50, 512),
        ("ViT-L-14", 1024, 24, 14, 257, 768),
        ("ViT-L-14-336", 1024, 24, 14, 577, 768),
    ],
)
def test_the_model_that_would_fit_is_named(
    arch: str, width: int, layers: int, patch: int, tokens: int, dim: int, refused: Callable[..., str], tmp_path: Path
) -> None:
    shapes = {
        "conv1.weight": (width, 3, patch, patch),
        "positional_embedding": (tokens, width),
        "proj": (width, dim),
    } | {f"transformer.resblocks.{i}.attn.in_proj_weight": (3 * width, width) for i in range(layers)}
    # One number behind all of a tensor: the file stays small.
    torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path / "large.pt")
    assert refused(tmp_path / "large.pt").endswith(f"It fits --model {arch}")


def test_no_encoder_in_it(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"module.pad_up": torch.zeros(3)}}, tmp_path / "prompter.pt")
    assert "holds no image encoder of hrzs-test-plain, only state_dict.module.pad_up" in refused(
        tmp_path / "prompter.pt"
    )
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "holds no named tensors" in refused(tmp_path / "empty.pt")


def test_two_encoders_in_it(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    both = {"model": whole(plain), "ema": whole(plain)}
    torch.save(both, tmp_path / "both.pt")
    assert "several image encoders, under ema.visual., model.visual.; save the one" in refused(tmp_path / "both.pt")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite(value: float, plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    state = visual(plain)
    state["transformer.resblocks.0.mlp.c_fc.weight"][3, 1] = value
    torch.save(state, tmp_path / "diverged.pt")
    assert "not finite: transformer.resblocks.0.mlp.c_fc.weight;" in refused(tmp_path / "diverged.pt")


def test_what_is_not_finite_elsewhere_does_not_matter(
    plain: ClipModel, config_file: ConfigFile, tmp_path: Path
) -> None:
    state = whole(plain)
    state["logit_scale"].fill_(torch.nan)
    torch.save(state, tmp_path / "whole.pt")
    loaded = load_model(str(config_file("plain")), "none", visual=tmp_path / "whole.pt")
    assert torch.equal(image_features(loaded), image_features(plain))


# -- files that cannot be read ------------------------------------------------------------------------------------


def test_no_file(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.pt")
    assert "is a folder" in refused(tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_not_a_file_of_weights(suffix: str, refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / f"page.{suffix}"
    file.write_text("<html>404</html>")
    assert ("not a safetensors file" if suffix == "safetensors" else "not a file that torch saved") in refused(file)


def test_truncated(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    for name, save in (("half.pt", torch.save), ("half.safetensors", save_file)):
        save(visual(plain), tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-5000])
        assert "not a" in refused(tmp_path / name)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch", "beside the weights"])
def test_pickles_are_not_run(how: str, plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    file, touched = tmp_path / "trap.pt", tmp_path / "touched"
    if how == "pickle":
        file.write_bytes(pickle.dumps(Trap(touched), protocol=2))
    else:
        torch.save((visual(plain) if how == "beside the weights" else {}) | {"trap": Trap(touched)}, file)
    message = refused(file)
    assert not touched.exists()
    assert "refused, since it is more than tensors (" in message
    assert "save its tensors alone" in message
    torch.load(file, weights_only=False) if how != "pickle" else pickle.loads(file.read_bytes())
    assert touched.exists()  # the trap works


def test_numbers_of_numpy_are_not_made(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    """Only those that checkpoints of this field hold are passed over: an array of objects is refused."""
    torch.save(visual(plain) | {"log": np.array([{}], dtype=object)}, tmp_path / "objects.pt")
    before = set(torch.serialization.get_safe_globals())
    assert "refused, since it is more than tensors (numpy" in refused(tmp_path / "objects.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_whole_modules_are_refused(plain: ClipModel, refused: Callable[..., str], tmp_path: Path) -> None:
    torch.save(plain.clip.visual, tmp_path / "module.pt")
    assert "refused, since it is more than tensors (" in refused(tmp_path / "module.pt")


def test_a_dictionary_within_itself_ends(refused: Callable[..., str], tmp_path: Path) -> None:
    content: dict[str, object] = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "endless.pt")
    assert "holds no named tensors" in refused(tmp_path / "endless.pt")


# -- given as --pretrained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["RobustVLM", "RobustVLM-DataParallel", "TeCoA-mid-epoch", "TeCoA-best", "visual"])
def test_an_encoder_alone_is_no_pretrained(
    layout: str, plain: ClipModel, config_file: ConfigFile, tmp_path: Path
) -> None:
    file = tmp_path / "robust.pt"
    torch.save(LAYOUTS[layout](plain), file)
    with pytest.raises(
        UsageError, match=r"robust\.pt: not a checkpoint.*--visual .*robust\.pt, with --pretrained openai"
    ):
        load_model(str(config_file("plain")), str(file))


def test_a_whole_model_that_does_not_fit_is_no_encoder(
    plain: ClipModel, config_file: ConfigFile, tmp_path: Path
) -> None:
    state = whole(plain)
    del state["text_projection"]
    torch.save(state, tmp_path / "whole.pt")
    with pytest.raises(UsageError, match=r"not a checkpoint.*belongs to this architecture"):
        load_model(str(config_file("plain")), str(tmp_path / "whole.pt"))


# -- doubts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strange", [False, True])
def test_weights_that_come_from_another_model(
    strange: bool, pair: tuple[ClipModel, ClipModel, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fine-tuning moves weights by little: far from the base, text encoder and activation are somebody else's."""
    base, donor, config = pair
    near = {n: v + 0.3 * v.std() * torch.randn_like(v) if v.ndim > 1 else v for n, v in visual(base).items()}
    torch.save(visual(donor) if strange else near, tmp_path / "robust.pt")
    with caplog.at_level(logging.WARNING):
        load_model(str(config), str(tmp_path / "base.pt"), visual=tmp_path / "robust.pt")
    assert ("do not come from" in caplog.text) is strange
    assert ("want --pretrained openai" in caplog.text) is strange


@pytest.mark.parametrize("quick", [False, True], ids=["GELU", "QuickGELU"])
@pytest.mark.parametrize("pretrained", ["none", "file", "tag"])
def test_activation_of_weights_without_a_tag(
    quick: bool,
    pretrained: str,
    plain: ClipModel,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """OpenAI's weights want QuickGELU, which only a tag can say; with `none` or a file it is for the user to know."""
    arch = "hrzs-test-gelu"
    config = {**plain.info.config}
    known = {arch: config, f"{arch}-quickgelu": config | {"quick_gelu": True}}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", open_clip.factory._MODEL_CONFIGS | known)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, arch, {"laion": {"url": "https://example.invalid/l.pt"}})
    torch.save(whole(plain), tmp_path / "base.pt")
    torch.save(visual(plain), tmp_path / "robust.pt")
    monkeypatch.setattr("hrzs.models.loading.download_pretrained", lambda _cfg: str(tmp_path / "base.pt"))
    if quick and pretrained == "tag":
        monkeypatch.setitem(
            open_clip.pretrained._PRETRAINED, f"{arch}-quickgelu", open_clip.pretrained._PRETRAINED[arch]
        )
    with caplog.at_level(logging.WARNING):
        load_model(
            f"{arch}-quickgelu" if quick else arch,
            {"none": "none", "file": str(tmp_path / "base.pt"), "tag": "laion"}[pretrained],
            visual=tmp_path / "robust.pt",
        )
    wanted = not quick and pretrained != "tag"
    assert (f"need --model {arch}-quickgelu" in caplog.text) is wanted
