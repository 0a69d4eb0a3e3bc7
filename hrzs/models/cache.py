"""A disk cache of tensors and JSON values that are costly to compute, under a digest of all that they depend on.

It lies in ``$XDG_CACHE_HOME/hrzs`` (by default ``~/.cache/hrzs``), which may be deleted at any time. ``HRZS_CACHE=0``
turns it off. The version of hrzs is part of every digest. A cache never makes a run fail: what cannot be read is
computed anew, what cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hrzs._version import __version__
from hrzs.errors import HrzsError
from hrzs.files import replacing

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


def cache_folder() -> Path | None:
    """The folder of the cache; None if the cache is turned off or there is no home folder."""
    if os.environ.get("HRZS_CACHE") == "0":
        return None
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # A relative path is to be ignored, says the XDG base directory specification.
        return (given if given.is_absolute() else Path.home() / ".cache") / "hrzs"
    except RuntimeError:
        return None


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named tensors: names, types, shapes and every bit."""
    sha = hashlib.sha256()
    for name, value in tensors:
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def kept(kind: str, about: Mapping[str, Any], rows: int, compute: Callable[[], Tensor]) -> Float[Tensor, "rows D"]:
    """The tensor of ``compute()``; if one with the same ``about`` is on disk, that one, on the CPU.

    Args:
        kind: the subfolder.
        about: all that the tensor depends on, as JSON.
        rows: its number of rows; a file that holds anything else is written anew.
    """
    return _kept(kind, about, _TENSOR, compute, lambda t: t.ndim == 2 and len(t) == rows and bool(t.isfinite().all()))


def kept_json(
    kind: str, about: Mapping[str, Any], compute: Callable[[], Any], fits: Callable[[Any], bool] = lambda _: True
) -> Any:
    """As `kept`, for a JSON value (tuples come back as lists); what ``fits`` rejects is neither stored nor used."""
    return _kept(kind, about, _JSON, compute, fits)


@dataclass(frozen=True)
class _Form(Generic[Value]):
    """How a value and its ``about`` lie in a file; ``read`` raises one of `_UNREADABLE`."""

    suffix: str
    read: Callable[[Path], tuple[Value, str | None]]
    write: Callable[[Value, str], bytes]


_UNREADABLE = (OSError, SafetensorError, ValueError, LookupError, TypeError)


def _read_tensor(file: Path) -> tuple[Tensor, str | None]:
    with safe_open(file, framework="pt") as content:
        tensor = content.get_tensor("tensor")
        digest, _, about = (content.metadata() or {})["about"].partition(" ")
    _check_digest(digest, digest_of([("tensor", tensor)]))
    return tensor, about


def _write_tensor(tensor: Tensor, about: str) -> bytes:
    tensor = tensor.detach().cpu().contiguous()
    # In one entry, for safetensors writes several in a random order.
    return bytes(save({"tensor": tensor}, {"about": f"{digest_of([('tensor', tensor)])} {about}"}))


def _read_json(file: Path) -> tuple[Any, str | None]:
    content = json.loads(file.read_text(encoding="utf-8"))
    _check_digest(content["digest"], _digest_of_json(content["value"]))
    return content["value"], content["about"]


def _write_json(value: Any, about: str) -> bytes:
    return json.dumps({"about": about, "digest": _digest_of_json(value), "value": value}).encode()


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _check_digest(said: object, found: str) -> None:
    """A disk may give back other bytes than it was given, zeros for one, after the power has failed."""
    if said != found:
        raise ValueError("its digest is another")


_TENSOR = _Form[Tensor]("safetensors", _read_tensor, _write_tensor)
_JSON = _Form[Any]("json", _read_json, _write_json)


def _kept(
    kind: str,
    about: Mapping[str, Any],
    form: _Form[Value],
    compute: Callable[[], Value],
    fits: Callable[[Value], bool],
) -> Value:
    folder = cache_folder()
    if folder is None:
        return compute()
    text = json.dumps({"hrzs": __version__, **about}, sort_keys=True)
    file = folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()}.{form.suffix}"
    try:
        value, said = form.read(file)
        if said == text and fits(value):
            return value
        logger.info("%s does not hold what it should and is written anew", file)
    except FileNotFoundError:
        pass
    except _UNREADABLE as error:
        logger.info("%s is damaged (%s) and is written anew", file, error)
    value = compute()
    if fits(value):
        _write(file, form.write(value, text))
    return value


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as aside:
            aside.write_bytes(content)
    except (OSError, HrzsError) as error:
        logger.info("%s; it will be computed again next time", error)
