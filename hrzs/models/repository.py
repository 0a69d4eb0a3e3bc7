"""A folder in the layout of open_clip's repositories on the Hugging Face hub: its config, its weights, its tokenizer.

``open_clip.create_model("local-dir:FOLDER")`` loads it, and once it is uploaded, ``hf-hub:OWNER/NAME``. That is not a
run folder, whose config is the model's alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrzs.errors import UsageError
from hrzs.files import replacing, write_text
from hrzs.models.clip import ClipModel
from hrzs.models.config import read_json
from hrzs.models.preprocess import DEFAULTS, checked
from hrzs.models.saving import CONFIG_FILE, save_weights

#: Where open_clip looks for the weights, the first of them counts.
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)  # fmt: skip
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def read_repository(folder: Path) -> dict[str, Any] | None:
    """The content of the config in a repository; None if ``folder`` is none."""
    try:
        content = read_json((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "model_cfg" in content else None


def preprocess_of(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """How images are prepared, says the config of a repository; open_clip's defaults where it says nothing.

    Raises:
        UsageError: it says so in another form.
    """
    said = content.get("preprocess_cfg") or {}
    if not isinstance(said, dict):
        raise UsageError(f"{where}: preprocess_cfg: an object is needed, not {type(said).__name__}")
    return DEFAULTS | checked(said, f"{where}: preprocess_cfg: ")


def weights_in(folder: Path, names: tuple[str, ...], where: str) -> Path:
    """The first of ``names`` that is a file in ``folder``.

    Raises:
        UsageError: none is.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    for name in names:
        if (folder / f"{name}.index.json").is_file():
            raise UsageError(
                f"{where}: its weights are in several parts ({name}.index.json); save them as one file, for instance "
                "by save_pretrained(FOLDER, max_shard_size='50GB')"
            )
    raise UsageError(f"{where}: has no weights, none of {', '.join(names)}")


def own_tokenizer(folder: Path, config: object) -> str | None:
    """``folder``, if the tokenizer that ``config`` asks for lies in it."""
    text = config.get("text_cfg") if isinstance(config, dict) else None
    wanted = isinstance(text, dict) and text.get("hf_tokenizer_name")
    return str(folder) if wanted and any((folder / name).is_file() for name in _TOKENIZER) else None


def write_repository(model: ClipModel, folder: Path, weights: Path | None = None) -> None:
    """Write ``model`` as such a repository; the config comes last.

    Args:
        weights: a file that hrzs wrote of this model, which is copied to the bit.

    Raises:
        HrzsError: a file cannot be written.
    """
    info = model.info
    if weights is None:
        save_weights(model, folder / WEIGHTS[0])
    else:
        with replacing(folder / WEIGHTS[0]) as aside:
            shutil.copyfile(weights, aside)
    if info.config["text_cfg"].get("hf_tokenizer_name"):  # open_clip looks for it here, whatever that name says
        model.tokenizer.save_pretrained(folder)
    preprocess = {key: getattr(info, key) for key in DEFAULTS}
    content = {"model_cfg": info.config, "preprocess_cfg": preprocess}
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
