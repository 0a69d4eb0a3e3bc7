from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from hrzs.models.clip import ClipModel


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Times are CPU times: of one thread they count no waiting, whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """The image encoder of ViT-B-32. The text transformer has one layer: it runs once per run, never in a step."""
    import open_clip

    from hrzs.models.loading import load_model

    torch.set_flush_denormal(True)
    config = open_clip.get_model_config("ViT-B-32")
    config["text_cfg"]["layers"] = 1
    file = tmp_path_factory.mktemp("model") / "ViT-B-32-short-text.json"
    file.write_text(json.dumps(config))
    return load_model(str(file), "none")
