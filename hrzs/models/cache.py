"""Tensors that are costly to compute, kept on disk under a digest of all that they depend on.

They lie in ``$XDG_CACHE_HOME/hrzs`` (by default ``~/.cache/hrzs``), which may be deleted at any time. ``HRZS_CACHE=0``
turns it off. A cache never makes a run fail: what cannot be read is computed anew, what cannot be written is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

logger = logging.getLogger(__name__)


def cache_folder() -> Path | None:
    """Where hrzs keeps what it has computed; None if that is turned off or there is no home."""
    if os.environ.get("HRZS_CACHE") == "0":
        return None
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # A relative path is to be ignored, says the XDG base directory specification.
        return (given if given.is_absolute() else Path.home() / ".cache") / "hrzs"
    except RuntimeError:
        return None


def kept(kind: str, about: Mapping[str, Any], rows: int, compute: Callable[[], Tensor]) -> Float[Tensor, "rows D"]:
    """``compute()``, or what it gave when ``about`` was the same; from the disk it comes on the CPU.

    Args:
        kind: the subfolder.
        about: all that the tensor depends on, as JSON.
        rows: how many it has; a file that holds anything else is written anew.
    """
    folder = cache_folder()
    if folder is None:
        return compute()
    text = json.dumps(about, sort_keys=True)
    file = folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    found = _read(file, text, rows)
    if found is None:
        found = compute()
        _write(file, text, found)
    return found


def _read(file: Path, about: str, rows: int) -> Tensor | None:
    try:
        with safe_open(file, framework="pt") as content:
            tensor: Tensor = content.get_tensor("tensor")
            intact = (content.metadata() or {}).get("about") == about
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        logger.info("%s is damaged (%s) and is written anew", file, error)
        return None
    if intact and tensor.ndim == 2 and len(tensor) == rows and bool(tensor.isfinite().all()):
        return tensor
    logger.info("%s does not hold what it should and is written anew", file)
    return None


def _write(file: Path, about: str, tensor: Tensor) -> None:
    aside: str | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: several processes may be writing the same file.
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".", delete=False) as out:
            aside = out.name
            out.write(save({"tensor": tensor.detach().cpu().contiguous()}, {"about": about}))
        Path(aside).replace(file)
    except OSError as error:
        logger.info("%s cannot be written (%s); it will be computed again next time", file, error)
        if aside is not None:
            Path(aside).unlink(missing_ok=True)
