"""Model configs of open_clip that come from files: they are checked before open_clip sees them.

open_clip hands parts of a config on to ``from_pretrained`` of transformers and to timm, which load folders and
repositories, and with ``trust_remote_code`` run the code in them. So only keys that open_clip's own configs have get
through; and a name in a file may stand for a repository on the hub, not for a folder of this machine.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import timm
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from hrzs.errors import UsageError

#: The keys of a config, besides its sections, and their types.
_TOP: dict[str, Any] = {
    "embed_dim": int, "quick_gelu": bool, "custom_text": bool, "init_logit_scale": float, "init_logit_bias": float,
    "nonscalar_logit_scale": bool,
}  # fmt: skip
_SECTIONS: dict[str, Any] = {"vision_cfg": CLIPVisionCfg, "text_cfg": CLIPTextCfg, "multimodal_cfg": MultimodalCfg}
#: What open_clip itself does with a tokenizer; anything else would reach ``from_pretrained``.
_TOKENIZER_KWARGS: dict[str, Any] = {"clean": str, "strip_sep_token": bool}
#: The keys whose values are looked up by name.
_NAMES = {"timm_model_name", "hf_model_name", "hf_tokenizer_name"}
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
#: Larger numbers make no model, but fill the memory.
_LARGEST = 1 << 14
_LARGEST_OF = {"vocab_size": 1 << 21, "layers": 256}


def read_json(text: str | bytes) -> Any:
    """JSON, each key of an object once.

    Raises:
        ValueError: it is not; or it is nested too deeply, or a number has too many digits.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice[:80]!r} is there more than once")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_config(config: object, where: str, tokenizer: str | None = None) -> dict[str, Any]:
    """``config``, if it is a model config that open_clip can be given.

    Args:
        where: the beginning of an error: the option and the file.
        tokenizer: the tokenizer that the user names; then the one that the file names is of no account.

    Raises:
        UsageError: a key is unknown, a value of another type or too large, or a name stands for a folder.
    """
    keys: dict[str, Any] = config if isinstance(config, dict) else {}
    if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in keys]:
        raise UsageError(f"{where}: not an open_clip model config, it lacks {', '.join(missing)}")
    _check(keys, _TOP | dict.fromkeys(_SECTIONS, dict[str, Any]), where, "")
    for name, kind in _SECTIONS.items():
        section = keys.get(name) or {}
        _check(section, get_type_hints(kind), where, f"{name}: ")
        _check(section.get("tokenizer_kwargs") or {}, _TOKENIZER_KWARGS, where, f"{name}: tokenizer_kwargs: ")
        for key in _NAMES & section.keys():
            if section[key] is not None and not (tokenizer and key == "hf_tokenizer_name"):
                _check_name(key, section[key], f"{where}: {name}: ")
    return {**keys}


def _check(values: Mapping[str, Any], types: Mapping[str, Any], where: str, inside: str) -> None:
    """Are these keys of ``types``, each with a value of its type?"""
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{where}: {inside}{key[:80]!r} is no key that a file may set in a model config{hint}")
        if value is None:  # several published configs leave something open so
            continue
        try:
            msgspec.convert(value, types[key])
        except msgspec.ValidationError as error:
            raise UsageError(f"{where}: {inside}{key}: {error}") from error
        most = _LARGEST_OF.get(key, _LARGEST)
        if any(abs(number) > most or number != number for number in _numbers(value)):  # NaN differs from itself
            raise UsageError(f"{where}: {inside}{key}: holds a number that is NaN or beyond ±{most}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each)


def _check_name(key: str, name: str, where: str) -> None:
    """Does ``name`` stand for a model that timm has, or for a repository on the hub?"""
    if key == "timm_model_name":
        if ":" in name or not timm.is_model(name):  # with a colon timm would read a config from a folder or the hub
            raise UsageError(f"{where}{key} {name[:200]!r}: timm has no such model")
    elif not _REPOSITORY.fullmatch(name) or Path(name).exists():
        remedy = (
            "if you trust it, name it yourself: --tokenizer FOLDER"
            if key == "hf_tokenizer_name"
            else "give a model whose text encoder is a repository on the hub"
        )
        raise UsageError(
            f"{where}{key} {name[:200]!r}: is no repository on the hub but a folder of this machine, which a file of "
            f"somebody else may not have loaded; {remedy}"
        )


def check_text_encoder(name: str, where: str) -> None:
    """Is the text encoder ``name`` on the hub one that transformers has the code of?

    open_clip asks for it without saying ``trust_remote_code``, so that transformers would ask the user.

    Raises:
        UsageError: it needs code of its repository.
    """
    try:
        from transformers import AutoConfig  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return  # open_clip says what is missing
    if getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "auto_map", None):
        raise UsageError(f"{where}: the text encoder {name} needs code of its repository, which hrzs never runs")
