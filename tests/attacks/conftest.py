from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from hrzs.hierarchy.tree import Tree
    from hrzs.models.classifier import ZeroShotClassifier
    from hrzs.models.clip import ClipModel

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """A small ViT in float64: rounding does not flip the sign of a small gradient."""
    from hrzs.models.loading import load_model

    file: Path = tmp_path_factory.mktemp("attacks") / "attacks-small.json"
    file.write_text(json.dumps(CONFIG))
    return load_model(str(file), "none", seed=1).double()


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """Eight images of 12 × 12, so that the model's own resizing is under attack too."""
    return torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def spread(classifier: ZeroShotClassifier, model: ClipModel, pixels: Tensor) -> ZeroShotClassifier:
    """``classifier`` with texts on which an untrained model does not give every image the same class.

    Features of an untrained model share one large direction; texts at right angles to it are told apart by the rest.
    """
    noise = torch.randn(classifier.prepared.shape, generator=torch.Generator().manual_seed(0)).to(classifier.prepared)
    with torch.no_grad():
        common = F.normalize(F.normalize(model.encode_image(pixels), dim=-1).mean(0), dim=0)
    classifier.prepared = F.normalize(noise - (noise @ common)[:, None] * common, dim=-1)
    return classifier


@pytest.fixture(scope="session")
def classifier(small_model: ClipModel, tree: Tree, pixels: Tensor) -> ZeroShotClassifier:
    from hrzs.models.classifier import ZeroShotClassifier

    return spread(ZeroShotClassifier(small_model, tree), small_model, pixels)
