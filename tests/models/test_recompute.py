"""The same gradients, with fewer activations kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.models.recompute import recompute_activations

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISUAL = {
    "vit": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "convnext": {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
}


@pytest.fixture(params=VISUAL.items(), ids=VISUAL)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ClipModel:
    name, visual = request.param
    file = tmp_path / f"recompute-{name}.json"
    file.write_text(json.dumps({"embed_dim": 16, "vision_cfg": visual, "text_cfg": TEXT}))
    return load_model(str(file), "none", seed=0)


def gradients(model: ClipModel, images: Tensor) -> tuple[dict[str, Tensor], int]:
    """Of every parameter, and how many numbers were kept for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model.encode_image(images).square().sum()
    loss.backward()
    found = {name: p.grad for name, p in model.clip.visual.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found, kept


def test_same_gradients_in_less_memory(model: ClipModel) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, much = gradients(model, images)
    recompute_activations(model.clip.visual)
    again, little = gradients(model, images)
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, msg=name)
    assert little < 0.8 * much
