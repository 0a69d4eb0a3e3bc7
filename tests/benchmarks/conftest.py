from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from measures import Batch

    from hrzs.hierarchy.tree import Tree
    from hrzs.models.clip import ClipModel

# Tests are imported without touching sys.path, but a module beside them is no package of theirs.
sys.path.insert(0, str(Path(__file__).parent))
#: Images of a step.
BATCH = 8


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


@pytest.fixture(scope="session")
def tree() -> Tree:
    """Over 1000 synsets, five levels below the root."""
    from measures import wordnet_ids

    from hrzs.sources import ClassSpec
    from hrzs.sources.build import build_trees

    return build_trees([ClassSpec(i, None) for i in wordnet_ids(1000)])[0][0]


@pytest.fixture(scope="session")
def batch() -> Batch:
    from hrzs.attacks import sample_seeds

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, 224, 224, generator=generator)
    return images, torch.randint(1000, (BATCH,), generator=generator), sample_seeds([str(i) for i in range(BATCH)], 0)
