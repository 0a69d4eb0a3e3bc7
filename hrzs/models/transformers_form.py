"""A CLIPModel of transformers: its config and its weights, in open_clip's terms and back.

Its folder has ``config.json``, ``model.safetensors``, the files of the tokenizer and ``preprocessor_config.json``. Not
every model of open_clip is a CLIPModel: what a CLIPModel has no word for is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from hrzs.errors import UsageError, few
from hrzs.files import write_text
from hrzs.models.clip import ClipModel, ModelInfo
from hrzs.models.config import read_json
from hrzs.models.saving import write_safetensors

CONFIG = "config.json"
#: Where a CLIPModel has its weights, the first of them counts.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PREPROCESSOR = "preprocessor_config.json"

#: What transformers calls the parts of a CLIPModel, and what open_clip calls them.
_RENAMED = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_projection.weight", "text_projection"),
    (".layer_norm1.", ".ln_1."), (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."), (".self_attn.", ".attn."),
)  # fmt: skip


def from_transformers(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """``tensors`` by open_clip's names, if they are those of a CLIPModel of transformers; else ``tensors`` itself.

    Raises:
        UsageError: they are those of another model of transformers, or not all.
    """
    if not any("vision_model.embeddings." in name for name in tensors):
        return tensors
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)
        turned = name.endswith(("visual.proj", "text_projection")) and value.ndim == 2
        if not name.endswith("position_ids"):
            renamed[name] = value.T if turned else value
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{part}_proj."), None) for part in "qkv"]
        if all(part is not None for part in parts):
            renamed[name.replace("q_proj.", "in_proj_")] = torch.cat([part for part in parts if part is not None])
    if left := [name for name in renamed if re.search(r"(vision|text)_model\.|\.[qkv]_proj\.", name)]:
        raise UsageError(
            f"{where}: has the names that transformers gives to an image-text model, but it is no whole CLIPModel "
            f"({few(left)}); give open_clip's file of the model"
        )
    return renamed


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an open_clip model by the names of a CLIPModel: `from_transformers` backwards."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        name = name.removeprefix("text.")
        for theirs, ours in _RENAMED:
            if name.startswith(ours) or (ours.startswith(".") and ours in name):
                name = name.replace(ours, theirs, 1)
        turned = name in ("visual_projection.weight", "text_projection.weight")
        if ".in_proj_" in name:
            for part, share in zip("qkv", value.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{part}_proj.")] = share.contiguous()
        else:
            renamed[name] = (value.T if turned else value).contiguous()
    return renamed


# -- config -----------------------------------------------------------------------------------------------------------

#: What a config of transformers leaves out when it is this.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {
        "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "vision_config": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
#: The keys of open_clip's config that have a counterpart; any other must have its default.
_TOP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale"}
_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "norm_kwargs"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs"}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}


def is_clip_model(folder: Path) -> bool:
    """Does ``folder`` hold a CLIPModel of transformers?"""
    try:
        content = read_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("model_type") == "clip"


def read_config(folder: Path, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """open_clip's config of the CLIPModel in ``folder``, and how its images are prepared, as far as it says.

    Args:
        where: the beginning of an error: the option and the folder.

    Raises:
        UsageError: open_clip has no such model.
    """
    content = read_json((folder / CONFIG).read_bytes())
    try:
        text, vision = (
            default | content.get(name, {}) | (content.get(f"{name}_dict") or {}) for name, default in _DEFAULTS.items()
        )
        if text["hidden_act"] != vision["hidden_act"] or text["hidden_act"] not in ("quick_gelu", "gelu"):
            raise ValueError(
                f"hidden_act {text['hidden_act']} and {vision['hidden_act']}, not quick_gelu or gelu in both"
            )
        if text["vocab_size"] != _DEFAULTS["text_config"]["vocab_size"]:
            raise ValueError(f"vocab_size {text['vocab_size']}: its tokenizer is not CLIP's, which has 49408 words")
        config = {
            "embed_dim": content.get("projection_dim", 512),
            "quick_gelu": text["hidden_act"] == "quick_gelu",
            "vision_cfg": {
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
                "head_width": vision["hidden_size"] // vision["num_attention_heads"],
                **_tower(vision),
            },
            "text_cfg": {
                "context_length": text["max_position_embeddings"],
                "vocab_size": text["vocab_size"],
                "heads": text["num_attention_heads"],
                **_tower(text),
            },
        }
        return config, _preprocess(folder)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise UsageError(
            f"{where}: open_clip has no such model: {error}; give the weights in open_clip's form, if there are any"
        ) from error


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    eps = config["layer_norm_eps"]
    return {
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        **({} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}),
    }


def _preprocess(folder: Path) -> dict[str, Any]:
    """transformers writes this as a file of its own, and since version 5 as a part of another."""
    for name in (_PREPROCESSOR, "processor_config.json"):
        if (folder / name).is_file():
            said = read_json((folder / name).read_bytes())
            said = said.get("image_processor", said)
            if {"image_mean", "image_std"} <= said.keys():
                size = said.get("size", {})
                squash = isinstance(size, dict) and "height" in size and not said.get("do_center_crop", True)
                return {
                    "mean": said["image_mean"],
                    "std": said["image_std"],
                    "interpolation": _RESAMPLE.get(said.get("resample", 3), f"resample {said.get('resample')}"),
                    "resize_mode": "squash" if squash else "shortest",
                }
    return {}


def write_clip_model(model: ClipModel, folder: Path) -> None:
    """Write ``model`` as a CLIPModel, with CLIP's tokenizer and the preprocessing of its images.

    The hyperbolic head of a hierarchical run stays behind: a CLIPModel scores by cosine.

    Raises:
        UsageError: a CLIPModel cannot be this model.
        HrzsError: a file cannot be written.
    """
    config = config_of(model.info)
    write_safetensors(to_transformers(model.clip.state_dict()), folder / WEIGHTS[0], {})
    _write_tokenizer(folder, config["text_config"]["max_position_embeddings"])
    info, size = model.info, model.image_size
    squash = info.resize_mode == "squash"
    _write(folder / _PREPROCESSOR, {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_resize": True,
        "size": {"height": size, "width": size} if squash else {"shortest_edge": size},
        "resample": next(number for number, name in _RESAMPLE.items() if name == info.interpolation),
        "do_center_crop": not squash, "crop_size": {"height": size, "width": size},
        "do_normalize": True, "image_mean": info.mean, "image_std": info.std,
    })  # fmt: skip
    _write(folder / CONFIG, config)


def config_of(info: ModelInfo) -> dict[str, Any]:
    """The ``config.json`` of a CLIPModel that is this model.

    Raises:
        UsageError: none can be.
    """
    config, where = info.config, f"--format transformers: {info.arch}"
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    foreign = [f"{key} {config[key]!r}" for key in config.keys() - _TOP if config[key]]
    for own, kind, known in ((vision, CLIPVisionCfg(), _VISION), (text, CLIPTextCfg(), _TEXT)):
        norm = asdict(own)["norm_kwargs"]
        foreign += [f"{key} {value!r}" for key, value in asdict(own).items()
                    if key not in known and value != getattr(kind, key)]  # fmt: skip
        foreign += [f"norm_kwargs {norm!r}"] if norm and norm.keys() != {"eps"} else []
    if not isinstance(vision.layers, int) or not isinstance(vision.image_size, int):
        foreign.append("an image encoder that is no ViT over squares")
    if text.vocab_size != _DEFAULTS["text_config"]["vocab_size"]:
        foreign.append(f"vocab_size {text.vocab_size}")
    if foreign:
        raise UsageError(f"{where} is no CLIPModel, which has no {few(sorted(foreign))}; leave this format out")

    def tower(width: int, layers: int, heads: int, ratio: float, norm: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            "hidden_size": width, "intermediate_size": int(width * ratio), "num_hidden_layers": layers,
            "num_attention_heads": heads, "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
            "layer_norm_eps": (norm or {}).get("eps", 1e-5), "projection_dim": config["embed_dim"],
        }  # fmt: skip

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config["embed_dim"],
        "text_config": {
            "model_type": "clip_text_model",
            **tower(text.width, text.layers, text.heads, text.mlp_ratio, text.norm_kwargs),
            "vocab_size": text.vocab_size, "max_position_embeddings": text.context_length,
            "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **tower(vision.width, vision.layers, vision.width // vision.head_width, vision.mlp_ratio,
                    vision.norm_kwargs),
            "image_size": vision.image_size, "patch_size": vision.patch_size, "num_channels": 3,
        },
    }  # fmt: skip


def _write_tokenizer(folder: Path, length: int) -> None:
    """CLIP's tokenizer, from the list of merges that open_clip carries: both have the same 49,408 words."""
    tokenizer = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    _write(folder / "vocab.json", {ends.get(word, word): number for word, number in tokenizer.encoder.items()})
    merges = [" ".join(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    start, end = ends.values()
    _write(folder / "tokenizer_config.json", {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True,
        "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end,
    })  # fmt: skip


def _write(file: Path, content: Mapping[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=2) + "\n")
