from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a model that takes milliseconds."""
    file = tmp_path / "small.json"
    file.write_text(json.dumps(CONFIG))
    return file
