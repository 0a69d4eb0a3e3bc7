"""Loading models: ``--model``, ``--pretrained``, ``--visual``."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import msgspec
import open_clip
import torch
from huggingface_hub import constants
from open_clip.factory import load_checkpoint
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from torch import Tensor

from hrzs.errors import HrzsError, UsageError
from hrzs.models import tiny
from hrzs.models.cache import digest_of
from hrzs.models.clip import ClipModel, ModelInfo
from hrzs.models.config import check_config, check_text_encoder, read_json
from hrzs.models.heads import HyperbolicHead
from hrzs.models.preprocess import DEFAULTS, agreed, checked
from hrzs.models.repository import WEIGHTS as REPOSITORY_WEIGHTS
from hrzs.models.repository import own_tokenizer, preprocess_of, read_repository, weights_in
from hrzs.models.saving import CONFIG_FILE, WEIGHTS_FILE, file_digest, is_ours, probe, read_header
from hrzs.models.transformers_form import WEIGHTS as CLIP_MODEL_WEIGHTS
from hrzs.models.transformers_form import from_transformers, is_clip_model, read_config
from hrzs.models.visual import holds_visual_only, replace_visual
from hrzs.models.weights import check_finite, fit_whole, read_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Given:
    """What the user says in place of a file; ``preprocess`` has values of `hrzs.models.preprocess.DEFAULTS`."""

    tokenizer: str | None = None
    preprocess: Mapping[str, Any] = field(default_factory=dict)


def describe_models() -> list[tuple[str, str]]:
    """Name and one line for each form that ``--model`` takes."""
    forms = [
        ("tiny", "embedded: a small ViT trained on `shapes`; works offline"),
        ("RUN_DIR | FILE.safetensors", "what `hrzs finetune` wrote"),
        ("CONFIG.json", "an open_clip model config; its weights with --pretrained FILE"),
        ("hf-hub:OWNER/NAME", "a model on the Hugging Face hub in open_clip's layout"),
        (
            "FOLDER | local-dir:FOLDER",
            "what `hrzs export` wrote, or a clone of such a model",
        ),
        ("FOLDER", "a CLIPModel of transformers"),
    ]
    for arch in open_clip.list_models():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(arch))
        forms.append((arch, f"open_clip; --pretrained {tags or 'FILE'}"))
    return forms


def load_model(
    spec: str = "tiny",
    pretrained: str | None = None,
    *,
    visual: str | Path | None = None,
    tokenizer: str | Path | None = None,
    mean: str | Sequence[float] | None = None,
    std: str | Sequence[float] | None = None,
    interpolation: str | None = None,
    resize_mode: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    seed: int = 0,
) -> ClipModel:
    """The model that ``--model SPEC --pretrained … --visual …`` names, in evaluation mode on ``device``.

    No code in a file or a repository is run.

    Args:
        visual: a file whose image encoder takes the place of the model's own (see `hrzs.models.visual`).
        tokenizer: a folder or a repository on the hub that takes the place of the tokenizer that the model names.
        mean, std, interpolation, resize_mode: how images are prepared, in place of what the model says.

    Raises:
        UsageError: no such model, file or tag, or a checkpoint that does not fit the architecture.
        HrzsError: the weights could not be fetched.
    """
    path = Path(spec)
    preprocess = {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": resize_mode}
    given = _Given(None if tokenizer is None else str(tokenizer), checked(preprocess, "--"))
    folder = Path(spec.removeprefix("local-dir:"))
    if spec == "tiny":
        model = _load_tiny(pretrained, seed, given)
    elif spec.startswith("local-dir:") or read_repository(folder) is not None:
        model = _load_repository(folder, spec, pretrained, given)
    elif is_clip_model(folder):
        model = _load_transformers(folder, spec, pretrained, given)
    elif path.is_dir() or path.suffix == ".safetensors":
        model = _load_run(path, pretrained, given)
    elif path.suffix == ".json":
        model = _load_config(path, pretrained, seed, given)
    elif spec.startswith("hf-hub:"):
        model = _load_hub(spec, given)
    elif spec in open_clip.list_models():
        model = _load_arch(spec, pretrained, seed, given)
    else:
        near = difflib.get_close_matches(spec, ["tiny", *open_clip.list_models()], 3, 0.4)
        raise UsageError(
            f"--model {spec!r}: no such file, folder or open_clip architecture"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
            + "; `--model list` prints what it takes"
        )
    if visual is not None:
        _take_visual(model, Path(visual), spec, pretrained)
    _prepare(model, given)
    model.precision = precision
    model.info = replace(model.info, origin=(spec, pretrained))
    return model.to(device)


def file_of(spec: str) -> Path | None:
    """The file that hrzs wrote of the model that ``--model SPEC`` names; None if it wrote none."""
    folder = Path(spec.removeprefix("local-dir:"))
    files = (
        [tiny.WEIGHTS] if spec == "tiny" else [folder, *(folder / name for name in (*REPOSITORY_WEIGHTS, WEIGHTS_FILE))]
    )
    return next((file for file in files if file.is_file() and is_ours(file)), None)


def _prepare(model: ClipModel, given: _Given) -> None:
    """Let images be prepared as the user says. Then it is another model, with another digest."""
    said = dict(given.preprocess) | ({"tokenizer": given.tokenizer} if given.tokenizer else {})
    if said:
        digest = hashlib.sha256(f"{model.info.digest} {json.dumps(said, sort_keys=True)}".encode()).hexdigest()
        model.info = replace(model.info, digest=digest, **given.preprocess)
        model.mean, model.std = (torch.tensor(each).view(3, 1, 1) for each in (model.info.mean, model.info.std))


def wrap_model(
    clip: torch.nn.Module,
    arch: str | None,
    *,
    preprocess: Mapping[str, Any] | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> ClipModel:
    """A `ClipModel` around an open_clip model in memory, which is not copied.

    Args:
        arch: open_clip's name of the architecture, whose config gives the tokenizer and is saved with the model.
        preprocess: how images are prepared, in place of what the model says (`hrzs.models.preprocess.DEFAULTS`).

    Raises:
        UsageError: no such architecture, or the model is of another one.
    """
    config = None if arch is None else open_clip.get_model_config(arch)
    if arch is None or config is None:
        near = difflib.get_close_matches(arch or "", open_clip.list_models(), 3, 0.4)
        raise UsageError(
            f"arch {arch!r}: open_clip's name for the architecture of this {type(clip).__name__} is needed, such as "
            f"{' or '.join(near or ['ViT-B-32'])}"
        )
    with torch.device("meta"):  # names and shapes, no memory
        expected = _instantiate(arch, None, "meta").state_dict()
    found = clip.state_dict()
    differing = [name for name in {**expected, **found} if _shape(expected, name) != _shape(found, name)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"arch {arch!r}: this {type(clip).__name__} is no such model: {len(differing)} of its tensors differ; "
            f"{name}, for one, has the shape {_shape(found, name)}, not {_shape(expected, name)}"
        )
    own = getattr(cast(Any, clip).visual, "preprocess_cfg", None) or {}
    model = ClipModel(clip, _info(arch, config, f"{arch} in memory", digest_of(found.items()), **own))
    _prepare(model, _Given(preprocess=checked(preprocess or {}, "--")))
    model.precision = precision
    return model.to(device)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None


# -- the forms of --model -------------------------------------------------------------------------------------


def _load_tiny(pretrained: str | None, seed: int, given: _Given) -> ClipModel:
    config = json.loads(tiny.CONFIG.read_text())
    if pretrained is None:
        if not tiny.WEIGHTS.is_file():
            raise HrzsError(f"{tiny.WEIGHTS} is missing from this installation; `make tiny` in the checkout makes it")
        return replace_source(_load_run(tiny.WEIGHTS, None, given), "tiny")
    return _build(tiny.ARCH, config, "tiny", pretrained, seed, given, DEFAULTS)


def _load_config(path: Path, pretrained: str | None, seed: int, given: _Given) -> ClipModel:
    try:
        content = read_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--model {path}: not a readable open_clip model config: {error}") from error
    where, name = f"--model {path}", path.stem
    known: dict[str, Any] = {}
    if isinstance(content, dict) and "model_cfg" in content:  # that of a repository on the hub
        if pretrained is None and any((path.parent / file).is_file() for file in REPOSITORY_WEIGHTS):
            return _load_repository(path.parent, str(path), None, given)
        name = path.parent.resolve().name or path.stem
        known, content = preprocess_of(content, where), content["model_cfg"]
    config = check_config(content, where, given.tokenizer)
    if pretrained is None:
        raise UsageError(
            f"{where}: a config has no weights; add --pretrained FILE, or --pretrained none to start random"
        )
    return _build(name, config, str(path), pretrained, seed, given, known)


def _load_repository(folder: Path, spec: str, pretrained: str | None, given: _Given) -> ClipModel:
    where = f"--model {spec}"
    content = read_repository(folder)
    if content is None:
        raise UsageError(
            f"{where}: no clone of a repository in open_clip's layout, it has no {CONFIG_FILE} with a model_cfg"
        )
    if pretrained is not None:
        raise UsageError(f"--pretrained {pretrained!r}: {folder} holds its own weights; leave --pretrained out")
    weights = weights_in(folder, REPOSITORY_WEIGHTS, where)
    given = replace(given, tokenizer=given.tokenizer or own_tokenizer(folder, content["model_cfg"]))
    return _build_repository(content, weights, folder.resolve().name, spec, given)


def _build_repository(content: Mapping[str, Any], weights: Path, name: str, spec: str, given: _Given) -> ClipModel:
    """The model of a repository with these weights; what hrzs wrote into their header comes with it."""
    where = f"--model {spec}"
    config = check_config(content["model_cfg"], where, given.tokenizer)
    known = preprocess_of(content, where)
    if not is_ours(weights):
        return replace_source(_build(name, config, spec, str(weights), 0, given, known), spec)
    model = _load_run(weights, None, given, where)
    if model.info.config != config:
        raise UsageError(f"{where}: {CONFIG_FILE} has another model than the header of {weights.name}; export it again")
    changed = {key: value for key, value in known.items() if getattr(model.info, key) != value}
    _prepare(model, _Given(preprocess=changed))
    return replace_source(model, spec)


def _load_transformers(folder: Path, spec: str, pretrained: str | None, given: _Given) -> ClipModel:
    where = f"--model {spec}"
    if pretrained is not None:
        raise UsageError(f"--pretrained {pretrained!r}: {folder} holds its own weights; leave --pretrained out")
    weights = weights_in(folder, CLIP_MODEL_WEIGHTS, where)
    config, said = read_config(folder, where)
    known = checked(said, f"{where}: its preprocessor, ")
    name = folder.resolve().name
    return replace_source(_build(name, check_config(config, where), spec, str(weights), 0, given, known), spec)


def _load_arch(arch: str, pretrained: str | None, seed: int, given: _Given) -> ClipModel:
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if pretrained is None:
        if not tags:
            raise UsageError(f"--model {arch}: open_clip lists no weights for it; add --pretrained FILE or none")
        pretrained = "openai" if "openai" in tags else tags[0]
    config = open_clip.get_model_config(arch)
    if pretrained == "none" or Path(pretrained).is_file():
        return _build(arch, config, arch, pretrained, seed, given, agreed(arch))
    if pretrained not in tags:
        tag = f"a tag ({', '.join(tags)}), " if tags else ""
        raise UsageError(f"--pretrained {pretrained!r}: for {arch} give {tag}an existing file, or `none`")
    cfg = get_pretrained_cfg(arch, pretrained)
    if cfg.get("quick_gelu") and not config.get("quick_gelu"):
        # The activation follows the tag: OpenAI's weights under GELU would be a different, worse model.
        named = f"{arch}-quickgelu"
        arch, config = named, open_clip.get_model_config(named) or config | {"quick_gelu": True}
    file = _fetch(cfg, f"the weights {pretrained!r} of {arch}")
    known = DEFAULTS | checked(cfg, f"--pretrained {pretrained}: ")
    # The source is the tag, not where this machine keeps its downloads.
    return replace_source(_build(arch, config, arch, file, seed, given, known), f"{arch}:{pretrained}")


def _load_hub(spec: str, given: _Given) -> ClipModel:
    _fail_fast_without_hub()
    repository = spec.removeprefix("hf-hub:")
    try:
        config_file = download_pretrained_from_hf(repository, filename=CONFIG_FILE)
        weights = download_pretrained_from_hf(repository)
        content = read_json(Path(config_file).read_bytes())
    except Exception as error:  # whatever the hub's client raises: none of it is ours to fix
        raise HrzsError(_cannot_fetch(f"{spec}", error)) from error
    if not isinstance(content, dict) or "model_cfg" not in content:
        raise UsageError(f"--model {spec}: its {CONFIG_FILE} has no model_cfg; it is not in open_clip's layout")
    model = _build_repository(content, Path(weights), repository.replace("/", "-"), spec, given)
    # One day the same name may stand for other weights.
    model.info = replace(model.info, digest=digest_of(model.clip.state_dict().items()))
    return model


def _load_run(path: Path, pretrained: str | None, given: _Given, where: str = "") -> ClipModel:
    where = where or f"--model {path}"
    if pretrained is not None:
        raise UsageError(f"--pretrained {pretrained!r}: {path} holds its own weights; leave --pretrained out")
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{where}: {file} does not exist; is the run finished? `hrzs finetune --resume` goes on")
    content = read_header(file)
    if "config" not in content:
        raise UsageError(
            f"{where}: not written by hrzs (its header has no model config); "
            f"name the architecture instead: --model ARCH --pretrained {path}"
        )
    try:
        header = msgspec.convert(content, _Header)
        head = None if header.geometry is None else HyperbolicHead(**msgspec.structs.asdict(header.geometry))
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"{where}: its header was not written by hrzs ({error})") from error
    config = check_config(header.config, where, given.tokenizer)
    info = ModelInfo(
        arch=_register(header.arch, config),
        config=config,
        source=str(path),
        **(DEFAULTS | checked(header.preprocess, f"{where}: in its header, ")),
        licence=header.licence,
        training_data=header.training_data,
        digest=file_digest(file),
        run=content.get("run", {}),
        tokenizer=given.tokenizer,
    )
    model = ClipModel(_instantiate(info.arch, str(file), option="--model"), info, head)
    found, expected = probe(model), torch.tensor(header.probe)
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()
    ):
        raise UsageError(f"{where}: its features differ from those recorded when it was written; it is damaged")
    return model


class _Geometry(msgspec.Struct):
    """The arguments of a `HyperbolicHead`, in a header."""

    scale_image: float
    scale_text: float
    beta: float | list[float]
    curvature: float = 1.0
    depth: list[float] = msgspec.field(default_factory=lambda: [1.0])
    image_depth: bool = True


class _Base(msgspec.Struct):
    """The model that a run started from."""

    model: str
    pretrained: str | None
    digest: str


class _Run(msgspec.Struct):
    """What is read of how a run was made."""

    base: _Base | None = None


class _Header(msgspec.Struct):
    """The header of a run, as `save_model` writes it; older ones lack what has a default."""

    arch: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    probe: list[float]
    geometry: _Geometry | None = None
    licence: str = "unknown"
    training_data: str = "unknown"
    run: _Run = msgspec.field(default_factory=_Run)


def _take_visual(model: ClipModel, file: Path, spec: str, pretrained: str | None) -> None:
    """Put the image encoder in ``file`` into ``model``, and say so in its ``info``."""
    info = model.info
    if model.geometry is not None:
        raise UsageError(
            f"--visual {file}: {spec} has a hyperbolic head, learnt for the image encoder it has; "
            "give the --model that the file was tuned from"
        )
    replace_visual(cast(Any, model.clip).visual, file, info.arch, info.source)
    if pretrained == "none" or Path(pretrained or "").is_file():  # a tag would have said it
        _warn_of_activation(f"--visual {file}", info.arch)
    # The untouched model is the one without the file; for a run, the one that the run started from.
    base = info.run.get("base")
    if not base or base["pretrained"] == "none":
        base = {"model": spec, "pretrained": pretrained, "digest": info.digest}
    model.info = replace(
        info,
        source=f"{info.source} + {file}",
        visual=str(file),
        digest=hashlib.sha256(f"{info.digest} {file_digest(file)}".encode()).hexdigest(),
        licence="unknown",
        training_data="unknown",
        run={"base": base},
    )


def _build(
    arch: str,
    config: dict[str, Any],
    source: str,
    weights: str,
    seed: int,
    given: _Given,
    known: Mapping[str, Any],
) -> ClipModel:
    """An architecture with weights from a file, or random when ``weights`` is ``none``.

    Args:
        known: how images are prepared, as far as it is known for these weights.
    """
    if weights != "none" and not Path(weights).is_file():
        raise UsageError(f"--pretrained {weights}: no such file; give an existing one, or `none` to start random")
    name = _register(arch, config)
    if weights == "none":
        torch.manual_seed(seed)
        clip, digest = _instantiate(name, None), f"random:{seed}"
    else:
        clip, digest = _instantiate(name, weights), file_digest(Path(weights))
        if unknown := [key for key in DEFAULTS if key not in {*known, *given.preprocess}]:
            flags = ", ".join(f"--{key.replace('_', '-')}" for key in unknown)
            logger.warning(
                "--pretrained %s: nothing says how its images are to be prepared (%s); they are as for OpenAI's CLIP, "
                "and if that is wrong, so are all figures", weights, flags,
            )  # fmt: skip
    info = _info(name, config, f"{source}:{weights}" if weights != source else source, digest, **known)
    return ClipModel(clip, replace(info, tokenizer=given.tokenizer))


def _info(arch: str, config: dict[str, Any], source: str, digest: str, **known: Any) -> ModelInfo:
    return ModelInfo(arch, config, source, digest=digest, **(DEFAULTS | checked(known, f"{source}: ")))


def _instantiate(arch: str, weights: str | None, device: str = "cpu", option: str = "--pretrained") -> torch.nn.Module:
    # open_clip warns through the root logger that it loaded no weights; they are loaded below, or were not wanted.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        if encoder := open_clip.get_model_config(arch)["text_cfg"].get("hf_model_name"):
            check_text_encoder(encoder, f"--model {arch}")
        clip: torch.nn.Module = open_clip.create_model(
            arch, pretrained=None, pretrained_image=False, pretrained_text=False, device=device
        )
    except UsageError:
        raise
    except Exception as error:  # a config of somebody's own may be wrong in any way
        raise UsageError(f"--model {arch}: open_clip cannot build it from its config: {error}") from error
    finally:
        root.setLevel(level)
    if weights is not None:
        _fill(clip, Path(weights), arch, option)
    return clip


def _fill(clip: torch.nn.Module, file: Path, arch: str, option: str) -> None:
    """Give ``clip`` the weights in ``file``."""
    where = f"{option} {file}"
    if file.suffix in (".npz", ".npy"):  # Google's big_vision, which open_clip reads without pickles
        try:
            load_checkpoint(clip, str(file), strict=True, weights_only=True)
        except Exception as error:  # open_clip and NumPy each raise their own kinds
            raise UsageError(f"{where}: not a checkpoint of {arch}: {str(error) or repr(error)}") from error
        check_finite(clip.state_dict(), where)
        return
    saved = read_tensors(file, option)
    tensors = from_transformers(saved, where)
    if tensors is not saved or any(name.endswith("input_resolution") for name in saved):
        _warn_of_activation(where, arch)
    if holds_visual_only(tensors, cast(Any, clip).visual):
        raise UsageError(
            f"{where}: not a checkpoint of {arch}: it holds an image encoder alone: give it as --visual {file}, "
            "with --pretrained openai or a local file of the whole model"
        )
    clip.load_state_dict(fit_whole(tensors, clip, where, arch))


def _warn_of_activation(where: str, arch: str) -> None:
    """No file of weights says which activation they were trained under; OpenAI's were under QuickGELU."""
    quick = f"{arch}-quickgelu"
    if not (open_clip.get_model_config(arch) or {}).get("quick_gelu") and quick in open_clip.list_models():
        logger.warning(
            "%s: runs under GELU; weights of OpenAI, or tuned from them, need --model %s or --pretrained openai",
            where, quick,
        )  # fmt: skip


def _fetch(cfg: Mapping[str, Any], what: str) -> str:
    _fail_fast_without_hub()
    try:
        return str(download_pretrained(dict(cfg)))
    except Exception as error:  # a hub's client raises many kinds, and all mean that the fetch failed
        raise HrzsError(_cannot_fetch(what, error)) from error


def _fail_fast_without_hub(timeout: float = 3.0) -> None:
    """Where the hub cannot be reached, use its cache only: its client would retry for a minute before saying so."""
    host = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies().get(host.scheme):
        return
    try:
        port = host.port or (443 if host.scheme == "https" else 80)
        socket.create_connection((host.hostname or "", port), timeout).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _cannot_fetch(what: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"{what} could not be fetched ({reason[-1][:200] if reason else repr(error)}). "
        "Give a local file with --pretrained FILE, or --pretrained none to start from random weights"
    )


def _register(arch: str, config: dict[str, Any]) -> str:
    """Register ``config`` with open_clip, as ``arch`` or, if that is another model, under a new name."""
    # open_clip reads a file of this name below, and takes "hf-hub:" and "local-dir:" for places to read others from.
    if not arch or Path(arch).name != arch or ":" in arch or len(arch) > 200 or not arch.isprintable():
        raise UsageError(f"--model: {arch[:200]!r} is no name of an architecture, but a path or a place")
    if open_clip.get_model_config(arch) == config:
        return arch
    if arch in open_clip.list_models():
        arch = f"{arch}-{hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{arch}.json"
        file.write_text(json.dumps(config))
        open_clip.add_model_config(file)
    return arch


def replace_source(model: ClipModel, source: str) -> ClipModel:
    """``model``, with ``source`` as the name that it was loaded by."""
    model.info = replace(model.info, source=source)
    return model


def describe(model: ClipModel) -> dict[str, Any]:
    """The fields of a report about the model."""
    info = asdict(model.info)
    config = info.pop("config")
    del info["origin"]
    return {**info, "image_size": model.image_size, "embed_dim": config.get("embed_dim"),
            "geometry": model.geometry.values() if model.geometry else None}  # fmt: skip
