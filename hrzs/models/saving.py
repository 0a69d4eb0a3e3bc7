"""Models as files: a safetensors file that open_clip reads, with all that hrzs knows of the model in its header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrzs._version import __version__
from hrzs.errors import HrzsError, UsageError
from hrzs.files import replacing, write_text
from hrzs.models.clip import ClipModel
from hrzs.models.config import read_json

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "open_clip_config.json"


def save_model(model: ClipModel, folder: Path, *, half: bool = False, **run: Any) -> None:
    """Write ``model.safetensors`` (`save_weights`) and ``open_clip_config.json``, the config of the model."""
    save_weights(model, folder / WEIGHTS_FILE, half=half, **run)
    write_text(folder / CONFIG_FILE, json.dumps(model.info.config, indent=1) + "\n")


def save_weights(model: ClipModel, path: Path, *, half: bool = False, **run: Any) -> None:
    """Write the open_clip state dict and nothing else, with a header that `hrzs.models.loading.load_model` reads.

    ``run`` (method, tree digest, base model, …) goes into the header beside architecture,
    preprocessing and geometry; ``half`` stores float16.
    """
    info = model.info
    header = {
        "hrzs": __version__,
        "arch": info.arch,
        "config": info.config,
        "preprocess": {
            "mean": info.mean,
            "std": info.std,
            "interpolation": info.interpolation,
            "resize_mode": info.resize_mode,
            "size": model.image_size,
        },
        "licence": info.licence,
        "training_data": info.training_data,
        "run": run or info.run,
        "probe": probe(model).tolist(),
    }
    if model.geometry is not None:
        header["geometry"] = model.geometry.values()
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.clip.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    write_safetensors(state, path, header)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, Any]) -> None:
    """Write tensors with a header of JSON values; the file is whole or untouched (`replacing`).

    Raises:
        HrzsError: the file cannot be written.
    """
    try:
        with replacing(path) as aside:
            save_file(dict(tensors), aside, pack_header(header))
            _sort_header(aside)
            aside.chmod(0o666 & ~_umask())  # safetensors lets the owner alone read it
    except SafetensorError as error:
        raise HrzsError(f"{path}: cannot be written ({error}); what was there is untouched") from error


def _umask() -> int:
    mask = os.umask(0)  # there is no way to ask without setting it
    os.umask(mask)
    return mask


def _sort_header(path: Path) -> None:
    """Put the metadata in the order of their names: safetensors writes them in a random one, and digests would differ.

    The file begins with the length of a JSON object in 8 bytes and that object, which blanks may follow.
    """
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def pack_header(header: Mapping[str, Any]) -> dict[str, str]:
    """JSON values as the metadata of a safetensors file, which `read_header` reads back."""
    return {"format": "pt", **{key: json.dumps(value) for key, value in header.items()}}


def read_header(path: Path) -> dict[str, Any]:
    """The header that `write_safetensors` wrote, or `pack_header` packed.

    Raises:
        UsageError: not a safetensors file, or its header was not written by hrzs.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a safetensors file ({error})") from error
    try:
        return {key: read_json(value) for key, value in metadata.items() if key != "format"}
    except ValueError as error:
        raise UsageError(f"{path}: its header was not written by hrzs ({error})") from error


def is_ours(path: Path) -> bool:
    """Is it a model that `save_weights` wrote?"""
    try:
        return path.suffix == ".safetensors" and "config" in read_header(path)
    except UsageError:  # whoever loads it says what it is
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()


@torch.no_grad()
def probe(model: ClipModel) -> Tensor:
    """Features of one fixed image: recorded on writing, compared on loading (a lost QuickGELU shows here)."""
    ramp = torch.linspace(0, 1, model.image_size, device=model.device)
    image = torch.stack([ramp.expand(len(ramp), -1), ramp.expand(len(ramp), -1).T, ramp.flip(0).expand(len(ramp), -1)])
    return model.encode_image(image[None], "fp32")[0, :16].cpu()
