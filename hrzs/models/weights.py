"""Files of weights, as people save them: read without running code, out of whatever they are wrapped in.

``--pretrained`` and ``--visual`` read through `read_tensors`. Training loops leave the weights in nested dictionaries
and under prefixes (``module.``, ``model.``, ``_orig_mod.``); `places` finds where known names stand.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.factory import (
    convert_state_dict,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hrzs.errors import UsageError, few


class _Unread:
    """Replaces what a checkpoint holds beside tensors, such as TeCoA's best accuracy; takes anything, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


class _Module(dict[str, Any]):
    """Replaces a module of a TorchScript archive: its attributes, by name."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


#: The names for which a file gets an `_Unread`, so that nothing behind them is called.
_UNREAD: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Unread, name)
    for name in (
        "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "argparse.Namespace",
        "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    )
]  # fmt: skip
#: Parts of names that torch.compile, FSDP and activation checkpoints leave anywhere in them.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def read_tensors(path: Path, option: str) -> dict[str, Tensor]:
    """Every tensor in a file of torch or safetensors, on the CPU; nested dictionaries become dotted names.

    Args:
        option: the option that names the file, for errors.

    Raises:
        UsageError: no such file, not a file of tensors, or one that holds more than ``weights_only`` lets through.
    """
    where = f"{option} {path}"
    if path.is_dir():
        raise UsageError(f"{where}: is a folder; give the file with the weights")
    if not path.is_file():
        raise UsageError(f"{where}: no such file")
    with path.open("rb") as file:
        if file.read(42).startswith(b"version https://git-lfs.github.com"):
            raise UsageError(f"{where}: stands for the weights, which are not here; `git lfs pull` fetches them")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    tensors = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value
        for name, value in read(path, where).items()
    }
    if not tensors:
        raise UsageError(f"{where}: holds no named tensors; give a state dict or a checkpoint with one")
    if any(re.search(r"(^|\.)lora_", name) for name in tensors):
        raise UsageError(
            f"{where}: LoRA adapters (peft), which mean nothing without the model that they change; merge them into it "
            "(`merge_and_unload`), and give the state dict of the result"
        )
    return tensors


def _read_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if where.startswith("--visual") and "geometry" in (file.metadata() or {}):
                raise UsageError(
                    f"{where}: a hyperbolic run of hrzs, whose image encoder means nothing without its head; "
                    f"give --model {path}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it has no iterator
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{where}: not a safetensors file ({error})") from error


def _read_torch(path: Path, where: str) -> dict[str, Tensor]:
    try:
        content, modules = _torchscript(path)
        with torch.serialization.safe_globals([*_UNREAD, *modules]):
            found = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own kinds
        raise UsageError(f"{where}: {_why_not_read(str(error) or repr(error))}") from error
    return dict(_flatten(found))


def _torchscript(path: Path) -> tuple[Path | io.BytesIO, list[Any]]:
    """The state of the modules in a TorchScript archive, such as OpenAI's, without their code, for ``torch.load``.

    ``torch.jit.load`` would let the code in the archive run. A file that is no such archive comes back as it is. The
    second value are the names of the modules, each with its replacement.
    """
    if not zipfile.is_zipfile(path):
        return path, []
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if not any(name.endswith("/constants.pkl") for name in entries):
            return path, []
        kept = io.BytesIO()
        state = b""
        with zipfile.ZipFile(kept, "w") as target:
            for name, entry in entries.items():
                # torch compresses nothing; what is compressed may be far larger than the file.
                if (
                    re.fullmatch(r"[^/]+/(data\.pkl|(\.data/)?version|byteorder|data/\d+)", name)
                    and not entry.compress_type
                ):
                    content = archive.read(name)
                    target.writestr(name, content)
                    state = content if name.endswith("/data.pkl") else state
    kept.seek(0)
    called = {str(value).replace(" ", ".") for op, value, _ in pickletools.genops(state) if op.name == "GLOBAL"}
    modules: list[Any] = [(_Module, name) for name in called if name.startswith("__torch__.")]
    return kept, [*modules, *((_Unread, name) for name in called if name.startswith("torch.jit._pickle."))]


def _why_not_read(reason: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", reason)
    if wanted:
        return (
            f"refused, since it is more than tensors ({wanted[1]}), and reading the rest could run code of its author. "
            "If you trust the file, save its tensors alone, torch.save(model.state_dict(), FILE), and give that file"
        )
    return f"not a file that torch saved ({' '.join(reason.split())})"


def _flatten(content: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, each mapping once: it may contain itself."""
    waiting: list[tuple[str, object, int]] = [("", content, 16)]
    seen: set[int] = set()
    while waiting:
        name, value, depth = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping) and depth and id(value) not in seen:
            seen.add(id(value))
            waiting += [(f"{name}.{key}" if name else str(key), each, depth - 1) for key, each in value.items()][::-1]


# -- finding and comparing --------------------------------------------------------------------------------------------


def places(tensors: Mapping[str, Tensor], names: Collection[str]) -> Counter[str]:
    """How many of ``names`` stand under each prefix (of whole components) in ``tensors``; shorter prefixes first."""
    hits: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        hits.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    return Counter({prefix: hits[prefix] for prefix in sorted(hits, key=len)})


def place_of(found_at: Counter[str], size: int, where: str, what: str) -> str:
    """The prefix under which most of ``size`` names stand.

    Raises:
        UsageError: all of them stand under several.
    """
    whole = [prefix for prefix, count in found_at.items() if count >= size]
    # open_clip reads what stands there; what a file has beside it is for going on with its training.
    chosen = [prefix for prefix in whole if prefix.startswith("state_dict.")] or whole
    if len(chosen) > 1:
        raise UsageError(f"{where}: holds several {what}, under {few(chosen)}; save the one that you mean alone")
    return chosen[0] if chosen else found_at.most_common(1)[0][0] if found_at else ""


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def faults(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """How ``found`` differs from ``expected`` in names and shapes, in words; empty if it does not."""
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshaped": [
            f"{name} {_form(found[name])} for {_form(own)}"
            for name, own in expected.items()
            if name in found and _form(found[name]) != _form(own)
        ],
    }
    return "; ".join(f"{kind} {few(names)}" for kind, names in kinds.items() if names)


def _form(tensor: Tensor) -> str:
    """The properties that must agree: the shape, and floating-point or not (a quantised file is no file of weights)."""
    shape = "×".join(map(str, tensor.shape)) or "scalar"
    return shape if tensor.is_floating_point() else f"{shape} of integers"


def check_finite(found: Mapping[str, Tensor], where: str) -> None:
    """
    Raises:
        UsageError: a tensor holds NaN or infinity.
    """
    if bad := [name for name, value in found.items() if not value.isfinite().all()]:
        raise UsageError(
            f"{where}: not finite: {few(bad)}; the file is damaged, or its training had diverged: give another"
        )


# -- whole models -----------------------------------------------------------------------------------------------------

#: What OpenAI's files and older transformers save beside the weights.
_BESIDE = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask",
           "text.transformer.embeddings.position_ids"}  # fmt: skip


def fit_whole(tensors: Mapping[str, Tensor], clip: nn.Module, where: str, arch: str) -> dict[str, Tensor]:
    """The state dict of ``clip`` (an open_clip model of ``arch``), from wherever it stands in ``tensors``.

    What open_clip converts is converted: Apple's names of MobileCLIP, text encoders by their old names, positional
    embeddings of another size, a scale with a dimension.

    Raises:
        UsageError: it is not there, or not finite.
    """
    expected = clip.state_dict()
    names = expected.keys() | {name.removeprefix("text.") for name in expected}
    found_at = places(tensors, names)
    prefix = place_of(found_at, len(expected), where, "models")
    found: dict[str, Any] = {name: value for name, value in under(tensors, prefix).items() if name not in _BESIDE}
    model: Any = clip
    try:
        found = convert_state_dict(model, found)
        if "positional_embedding" in found and not hasattr(model, "positional_embedding"):
            found = convert_to_custom_text_state_dict(found)
        for name in ("logit_scale", "logit_bias"):
            if name in found and name in expected and found[name].numel() == 1:
                found[name] = found[name].reshape(expected[name].shape)
        if "logit_bias" in expected and "logit_scale" in found:
            found.setdefault("logit_bias", torch.zeros_like(expected["logit_bias"]))
        resize_pos_embed(found, model)
        resize_text_pos_embed(found, model)
    except Exception as error:  # they take the shapes of the architecture for granted
        told = faults(found, expected) or repr(error)
        raise UsageError(f"{where}: not a checkpoint of {arch}: {told}; {_OTHER}") from error
    if told := faults(found, expected):
        raise UsageError(f"{where}: not a checkpoint of {arch}: {told}; {_OTHER}")
    check_finite(found, where)
    return found


_OTHER = "give the file that belongs to this architecture"
