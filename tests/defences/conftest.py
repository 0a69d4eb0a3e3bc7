"""A small model in float64, whose parameters are frozen as in an attack: rounding flips no sign of a gradient."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from hrzs.defences import Undefended
    from hrzs.hierarchy.tree import Tree
    from hrzs.models.clip import ClipModel

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ClipModel]:
    """The model, with other entries of its config if asked for."""
    from hrzs.models.loading import load_model

    def made(**change: object) -> ClipModel:
        file = tmp_path_factory.mktemp("defences") / f"defences-{len(change)}.json"
        file.write_text(json.dumps(CONFIG | change))
        model = load_model(str(file), "none", seed=1).double().requires_grad_(False)
        model.clip.logit_scale.fill_(math.log(100))
        return model

    return made


@pytest.fixture(scope="session")
def undefended(make: Callable[..., ClipModel], tree: Tree) -> Undefended:
    from hrzs.defences import Undefended
    from hrzs.models.classifier import ZeroShotClassifier

    model = make()
    return Undefended(model, ZeroShotClassifier(model, tree))


@pytest.fixture(scope="session")
def pixels() -> Tensor:
    """Six images of 12 × 12, so that the model resizes them, with exact 0 and 1 among the pixels."""
    pixels = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pixels[:, :, 0], pixels[:, :, -1] = 0.0, 1.0
    return pixels
