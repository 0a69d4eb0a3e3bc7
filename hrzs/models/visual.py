"""Image encoders alone, from the files that papers on robust CLIP models publish.

RobustVLM saves the encoder's state dict; TeCoA and PMG-AFT a training checkpoint that holds it beside an optimiser and
a prompter; others a whole CLIP. Wrappers leave prefixes (``module.``, ``model.``, ``visual.``). OpenAI's CLIP and
open_clip name the tensors of an encoder alike, so the task is always the same: find the prefix in the file under
which the encoder's own names stand.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import list_pretrained_models_by_tag
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hrzs.errors import UsageError

logger = logging.getLogger(__name__)

#: Below this mean cosine between matrices, two encoders share no history (fine-tuning moves weights by little).
KIN = 0.5


class _Unread:
    """Replaces NumPy numbers in a checkpoint, such as TeCoA's best accuracy; takes any arguments, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


#: The names for which a file gets an `_Unread`, so that nothing of NumPy is called.
_UNREAD: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Unread, name) for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]


def replace_visual(visual: nn.Module, path: Path, arch: str, source: str) -> None:
    """Give the image encoder ``visual`` (of ``arch``, so far with the weights of ``source``) the weights in ``path``.

    Every tensor of the encoder must be there in its shape; floating-point types are cast, positional embeddings are
    not resized. A pickle is never executed. A warning is logged if the new weights cannot come from the old ones.

    Raises:
        UsageError: no such file, one that cannot be read as tensors, or weights that do not fit or are not finite.
    """
    before = visual.state_dict()
    after = _fitting(read_tensors(path), before, path, arch)
    kinship = _kinship(before, after)
    if kinship < KIN:
        logger.warning(
            "--visual %s: its weights do not come from those of %s (mean cosine %.2f), so neither text encoder nor "
            "activation may be the ones it was tuned with; most robust checkpoints want --pretrained openai",
            path, source, kinship,
        )  # fmt: skip
    visual.load_state_dict(after)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor in a file of torch or safetensors, on the CPU; nested dictionaries become dotted names.

    Raises:
        UsageError: no such file, not a file of tensors, or one that holds more than ``weights_only`` lets through.
    """
    if path.is_dir():
        raise UsageError(f"--visual {path}: is a folder; give the file with the image encoder's weights")
    if not path.is_file():
        raise UsageError(f"--visual {path}: no such file")
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not tensors:
        raise UsageError(f"--visual {path}: holds no named tensors; give a state dict or a checkpoint with one")
    return tensors


def holds_visual_only(path: Path, visual: nn.Module) -> bool:
    """Is this a file for ``--visual``? It has most names of ``visual``, and no ``logit_scale``, as a whole CLIP has."""
    try:
        tensors = read_tensors(path)
    except UsageError:
        return False
    names = visual.state_dict().keys()
    found = _places(tensors, names).most_common(1)
    whole = any(name.split(".")[-1] == "logit_scale" for name in tensors)
    return not whole and bool(found) and found[0][1] > len(names) / 2


# -- reading ------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if "geometry" in (file.metadata() or {}):
                raise UsageError(
                    f"--visual {path}: a hyperbolic run of hrzs, whose image encoder means nothing without its head; "
                    f"give --model {path}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it has no iterator
    except (OSError, SafetensorError) as error:
        raise UsageError(f"--visual {path}: not a safetensors file ({error})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_UNREAD):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own kinds
        raise UsageError(f"--visual {path}: {_why_not_read(str(error) or repr(error))}") from error
    return dict(_flatten(content))


def _why_not_read(reason: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", reason)
    if wanted or "TorchScript" in reason:
        return (
            f"refused, since it is more than tensors ({wanted[1] if wanted else 'a TorchScript archive'}), and reading "
            "the rest could run code of its author. If you trust the file, save its tensors alone, "
            "torch.save(encoder.state_dict(), FILE), and give that file"
        )
    return f"not a file that torch saved ({reason.strip().splitlines()[0][:200]})"


def _flatten(content: object, name: str = "", depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings; ``depth`` bounds those that contain themselves."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping) and depth:
        for key, value in content.items():
            yield from _flatten(value, f"{name}.{key}" if name else str(key), depth - 1)


# -- finding and fitting ------------------------------------------------------------------------------------------


def _places(tensors: Mapping[str, Tensor], names: Collection[str]) -> Counter[str]:
    """How many of ``names`` stand under each prefix (of whole components) in ``tensors``; shorter prefixes first."""
    hits: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        hits.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in names)
    return Counter({prefix: hits[prefix] for prefix in sorted(hits, key=len)})


def _fitting(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, arch: str) -> dict[str, Tensor]:
    """The tensors of ``expected``, by its names and in its types, from wherever they stand in ``tensors``."""
    places = _places(tensors, expected)
    if not places:
        raise UsageError(
            f"--visual {path}: holds no image encoder of {arch}, only {_few(sorted(tensors))}; "
            "give a file with the weights of CLIP's image encoder as OpenAI or open_clip name them"
        )
    whole = [prefix for prefix, count in places.items() if count == len(expected)]
    if len(whole) > 1:
        raise UsageError(
            f"--visual {path}: holds several image encoders, under {_few(whole)}; save the one that you mean alone"
        )
    prefix = places.most_common(1)[0][0]
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshaped": [
            f"{name} {_form(found[name])} for {_form(own)}"
            for name, own in expected.items()
            if name in found and _form(found[name]) != _form(own)
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{kind} {_few(names)}" for kind, names in faults.items() if names)
        fits = [name for name in _archs_of(found) if name != arch.removesuffix("-quickgelu")]
        raise UsageError(
            f"--visual {path}: does not fit the image encoder of {arch}: {told}. "
            + (f"It fits --model {' or '.join(fits)}" if fits else "Give the --model that it was tuned from")
        )
    found = {name: found[name].to(own.dtype) for name, own in expected.items()}
    bad = [name for name, value in found.items() if not value.isfinite().all()]
    if bad:
        raise UsageError(
            f"--visual {path}: not finite: {_few(bad)}; the file is damaged, or its training had diverged: give another"
        )
    return found


def _form(tensor: Tensor) -> str:
    """The properties that must agree: the shape, and floating-point or not (a quantised file is no file of weights)."""
    shape = "×".join(map(str, tensor.shape)) or "scalar"
    return shape if tensor.is_floating_point() else f"{shape} of integers"


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _archs_of(found: Mapping[str, Tensor]) -> list[str]:
    """OpenAI's ViTs (under their plain names) whose image encoder has the shapes of ``found``."""
    shapes = [found[name].shape for name in ("conv1.weight", "positional_embedding", "proj") if name in found]
    if [len(shape) for shape in shapes] != [4, 2, 2]:
        return []
    (width, _, _, patch), (tokens, _), (_, embed_dim) = shapes
    layers = sum(name.endswith(".attn.in_proj_weight") for name in found)

    def fits(arch: str) -> bool:
        config = open_clip.get_model_config(arch)
        vision = config["vision_cfg"]
        return (width, layers, patch, embed_dim, patch * int((tokens - 1) ** 0.5)) == (
            vision["width"], vision["layers"], vision["patch_size"], config["embed_dim"], vision["image_size"],
        )  # fmt: skip

    return [arch for arch in list_pretrained_models_by_tag("openai") if not arch.endswith("-quickgelu") and fits(arch)]


def _kinship(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The mean cosine between the same matrices: near 1 after fine-tuning, near 0 between strangers."""
    cosines = [
        F.cosine_similarity(value.flatten().float(), after[name].flatten().float(), dim=0)
        for name, value in before.items()
        if value.ndim >= 2
    ]
    return torch.stack(cosines).mean().item() if cosines else 1.0
