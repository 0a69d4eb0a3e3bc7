from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
#: The shapes that text encoders and image encoders of open_clip take.
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "custom-text": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True},
    "linear-projection": {
        "embed_dim": 24,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"proj_bias": True},
        "custom_text": True,
        "init_logit_bias": -10,
    },
    "no-projection": {
        "embed_dim": 16,
        "vision_cfg": VISION,
        "text_cfg": TEXT | {"proj_type": "none"},
        "custom_text": True,
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
}


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the model config of that name (of `CONFIGS`) lies."""
    folder = tmp_path_factory.mktemp("configs")

    def write(name: str) -> Path:
        file = folder / f"hrzs-test-{name}.json"
        if not file.exists():
            file.write_text(json.dumps(CONFIGS[name]))
        return file

    return write


@pytest.fixture(params=list(CONFIGS))
def every_config(request: pytest.FixtureRequest, config_file: Callable[[str], Path]) -> Path:
    return config_file(request.param)
