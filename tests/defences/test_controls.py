from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.defences import Quantise, Undefended
from hrzs.defences.controls import Noise


@given(values=st.integers(2, 256), seed=st.integers(0, 999))
def test_quantise_takes_the_nearest_of_so_many_values(undefended: Undefended, values: int, seed: int) -> None:
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = Quantise(values).purify(images, undefended, [0, 1])
    grid = [k / (values - 1) for k in range(values)]
    for old, new in zip(images.flatten().tolist(), found.flatten().tolist(), strict=True):
        nearest = min(grid, key=lambda value: abs(value - old))
        assert abs(abs(new - old) - abs(nearest - old)) < 1e-12
        assert min(abs(value - new) for value in grid) < 1e-12
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.allclose(Quantise(values).purify(found, undefended, [0, 1]), found, atol=1e-12)


def test_rounding_is_taken_for_the_identity(undefended: Undefended, pixels: Tensor) -> None:
    images, weights = pixels.clone().requires_grad_(), torch.rand_like(pixels)
    (gradient,) = torch.autograd.grad((Quantise(4).purify(images, undefended, range(6)) * weights).sum(), images)
    assert torch.equal(gradient, weights)


def test_moments_of_noise(undefended: Undefended) -> None:
    """Far from 0 and 1, where nothing is cut."""
    n, sigma = 64 * 3 * 32 * 32, 8 / 255
    images = torch.full((64, 3, 32, 32), 0.5)
    noise = (Noise().purify(images, undefended, range(64)) - images).double()
    assert noise.mean().item() == pytest.approx(0, abs=5 * sigma / math.sqrt(n))
    assert noise.std().item() == pytest.approx(sigma, rel=0.01)
    assert (noise.abs() < 1.959964 * sigma).double().mean().item() == pytest.approx(0.95, abs=0.003)
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 6 / math.sqrt(3 * 32 * 32)


def test_noise_stays_in_range_and_its_gradient_is_the_true_one(undefended: Undefended, pixels: Tensor) -> None:
    images = pixels.clone().requires_grad_()
    found = Noise(64.0).purify(images, undefended, range(6))
    assert found.min() == 0
    assert found.max() == 1
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert torch.equal(gradient, ((found > 0) & (found < 1)).double())
    assert torch.equal(Noise(0.0).purify(pixels, undefended, range(6)), pixels)
