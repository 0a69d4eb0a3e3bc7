"""A small model and a few shapes. hrzs is imported inside fixtures: jaxtyping's import hook comes first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hrzs.data import Batch, Dataset
    from hrzs.hierarchy.tree import Tree
    from hrzs.models.clip import ClipModel

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ClipModel]:
    """The same random model, anew at each call: training changes it."""
    from hrzs.models.loading import load_model

    file: Path = tmp_path_factory.mktemp("training") / "training-small.json"
    file.write_text(json.dumps(CONFIG))
    return lambda: load_model(str(file), "none", seed=0)


@pytest.fixture(scope="session")
def shapes() -> Dataset:
    """Two images of each of the 24 classes."""
    from hrzs.data import open_dataset, subset

    return subset(open_dataset("shapes", "train"), limit=48)


@pytest.fixture(scope="session")
def shapes_tree() -> Tree:
    """The published one: five levels, leaves pass through at every height."""
    from hrzs.hierarchy.published import find_tree
    from hrzs.hierarchy.yaml_form import load_tree

    path = find_tree("shapes")
    assert path is not None
    return load_tree(path)


@pytest.fixture(scope="session")
def batch(shapes: Dataset) -> Batch:
    """All 48 images of `shapes`."""
    from hrzs.data import loader

    return next(iter(loader(shapes, 48)))
