"""Image encoders alone, from the files that papers on robust CLIP models publish.

RobustVLM saves the encoder's state dict; TeCoA and PMG-AFT a training checkpoint that holds it beside an optimiser and
a prompter; others a whole CLIP. Wrappers leave prefixes (``module.``, ``model.``, ``visual.``). OpenAI's CLIP and
open_clip name the tensors of an encoder alike, so the task is always the same: find the prefix in the file under
which the encoder's own names stand.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from open_clip.pretrained import list_pretrained_models_by_tag
from torch import Tensor, nn

from hrzs.errors import UsageError, few
from hrzs.models.transformers_form import from_transformers
from hrzs.models.weights import check_finite, faults, place_of, places, read_tensors, under

logger = logging.getLogger(__name__)

#: Below this mean cosine between matrices, two encoders share no history (fine-tuning moves weights by little).
KIN = 0.5


def replace_visual(visual: nn.Module, path: Path, arch: str, source: str) -> None:
    """Give the image encoder ``visual`` (of ``arch``, so far with the weights of ``source``) the weights in ``path``.

    Every tensor of the encoder must be there in its shape; floating-point types are cast, positional embeddings are
    not resized. A pickle is never executed. A warning is logged if the new weights cannot come from the old ones.

    Raises:
        UsageError: no such file, one that cannot be read as tensors, or weights that do not fit or are not finite.
    """
    before = visual.state_dict()
    tensors = from_transformers(read_tensors(path, "--visual"), f"--visual {path}")
    after = _fitting(tensors, before, path, arch)
    kinship = _kinship(before, after)
    if kinship < KIN:
        logger.warning(
            "--visual %s: its weights do not come from those of %s (mean cosine %.2f), so neither text encoder nor "
            "activation may be the ones it was tuned with; most robust checkpoints want --pretrained openai",
            path, source, kinship,
        )  # fmt: skip
    visual.load_state_dict(after)


def holds_visual_only(tensors: Mapping[str, Tensor], visual: nn.Module) -> bool:
    """Is this a file for ``--visual``? It has most names of ``visual``, and nothing of a text encoder."""
    names = visual.state_dict().keys()
    found = places(tensors, names).most_common(1)
    whole = any(name.endswith(("logit_scale", "token_embedding.weight", "text_projection")) for name in tensors)
    return not whole and bool(found) and found[0][1] > len(names) / 2


# -- finding and fitting ------------------------------------------------------------------------------------------


def _fitting(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, arch: str) -> dict[str, Tensor]:
    """The tensors of ``expected``, by its names and in its types, from wherever they stand in ``tensors``."""
    found_at = places(tensors, expected)
    if not found_at:
        raise UsageError(
            f"--visual {path}: holds no image encoder of {arch}, only {few(sorted(tensors))}; "
            "give a file with the weights of CLIP's image encoder as OpenAI or open_clip name them"
        )
    found = under(tensors, place_of(found_at, len(expected), f"--visual {path}", "image encoders"))
    if told := faults(found, expected):
        fits = [name for name in _archs_of(found) if name != arch.removesuffix("-quickgelu")]
        raise UsageError(
            f"--visual {path}: does not fit the image encoder of {arch}: {told}. "
            + (f"It fits --model {' or '.join(fits)}" if fits else "Give the --model that it was tuned from")
        )
    found = {name: found[name].to(own.dtype) for name, own in expected.items()}
    check_finite(found, f"--visual {path}")
    return found


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
