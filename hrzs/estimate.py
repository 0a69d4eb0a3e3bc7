"""What ``--dry-run`` measures: the cost of one image, from two small forward-backward passes."""

from __future__ import annotations

import time
from typing import Any

import torch

from hrzs.data import Dataset, loader
from hrzs.models.clip import ClipModel, frozen


def seconds_per_image(model: ClipModel, data: Dataset, batch_size: int = 4) -> tuple[float, float]:
    """Seconds of a forward and input-gradient per image, and the MB of activations it keeps, on this machine."""
    images = next(iter(loader(data, min(batch_size, len(data))))).images.to(model.device)
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    seconds = 0.0
    with frozen(model), torch.autograd.graph.saved_tensors_hooks(count, _same):
        for _ in range(2):  # the first warms up
            kept, began = 0, time.monotonic()
            x = images.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model.encode_image(x).sum(), x)
            gradient.sum().item()  # a GPU is done only when it has been asked for a number
            seconds = time.monotonic() - began
    return seconds / len(images), kept / len(images) / 1e6


def _same(tensor: Any) -> Any:
    return tensor
