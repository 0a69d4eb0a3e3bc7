from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrzs.attacks import counter
from hrzs.defences import ET3, Undefended

SEEDS = [0] * 6


def energy(undefended: Undefended, images: Tensor) -> Tensor:
    with torch.no_grad():
        return -undefended.logits(images).exp().sum(1).log()


@pytest.mark.parametrize("one", [ET3(), ET3(size=0.5, steps=1), ET3(eps=2.0)], ids=str)
def test_energy_falls_on_every_image(undefended: Undefended, pixels: Tensor, one: ET3) -> None:
    found = one.purify(pixels, undefended, SEEDS)
    assert (energy(undefended, found) < energy(undefended, pixels)).all()


def test_more_steps_descend_further(undefended: Undefended, pixels: Tensor) -> None:
    few, many = (energy(undefended, ET3(size=0.5, steps=n).purify(pixels, undefended, SEEDS)) for n in (2, 8))
    assert (many < few).all()


def test_length_and_direction_of_a_step(undefended: Undefended) -> None:
    """A step on an image of another size moves a pixel as far as one of 224 × 224."""
    for side in (12, 24):
        images = 0.25 + 0.5 * torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
        change = ET3(size=1.0, steps=1, eps=255.0).purify(images, undefended, SEEDS[:3]) - images
        assert torch.allclose(change.flatten(1).norm(dim=1), torch.tensor(side / 224).double())
        probe = images.clone().requires_grad_()
        undefended.logits(probe).exp().sum(1).log().sum().backward()
        assert probe.grad is not None
        assert torch.allclose(torch.cosine_similarity(change.flatten(1), probe.grad.flatten(1)), torch.ones(3).double())


@settings(max_examples=15)
@given(
    eps=st.floats(0, 255), size=st.floats(0, 100), steps=st.integers(0, 3), seed=st.integers(0, 2**56 - 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_within_eps_and_the_range_of_pixels(
    undefended: Undefended, eps: float, size: float, steps: int, seed: int, dtype: torch.dtype
) -> None:
    images = counter.uniform([seed], (3, 12, 12), torch.device("cpu")).to(dtype)
    found = ET3(size, eps, steps).purify(images, undefended, [seed])
    assert found.dtype == dtype
    assert (found - images).abs().max() <= eps / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("one", [ET3(steps=0), ET3(size=0.0), ET3(eps=0.0)], ids=str)
def test_nothing_to_do(undefended: Undefended, pixels: Tensor, one: ET3) -> None:
    assert torch.equal(one.purify(pixels, undefended, SEEDS), pixels)
    images = pixels.clone().requires_grad_()
    assert torch.equal(one.purify(images, undefended, SEEDS), pixels)


def test_unrolled_steps_are_the_same_steps(undefended: Undefended, pixels: Tensor) -> None:
    unrolled = ET3().purify(pixels.clone().requires_grad_(), undefended, SEEDS)
    assert unrolled.requires_grad
    for plain in (ET3().purify(pixels, undefended, SEEDS), _verdict(undefended, pixels)):
        assert not plain.requires_grad
        assert torch.allclose(plain, unrolled, rtol=0, atol=1e-12)


@torch.no_grad()
def _verdict(undefended: Undefended, pixels: Tensor) -> Tensor:
    return ET3().purify(pixels.clone().requires_grad_(), undefended, SEEDS)


@pytest.mark.parametrize("one", [ET3(steps=2), ET3(steps=3, eps=1.0)], ids=str)
def test_the_gradient_is_that_of_all_steps(undefended: Undefended, pixels: Tensor, one: ET3) -> None:
    """Finite differences, at random pixels off the ends of their range; with ``eps=1`` most pixels are at its bound."""
    inner = (0.1 + 0.8 * pixels).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    weights, direction = torch.randn(2, *pixels.shape, generator=generator, dtype=torch.float64)
    found = one.purify(inner, undefended, SEEDS)
    (gradient,) = torch.autograd.grad((found * weights).sum(), inner)

    def along(step: float) -> Tensor:
        return (one.purify(inner.detach() + step * direction, undefended, SEEDS) * weights).flatten(1).sum(1)

    h = 1e-6
    slope = (along(h) - along(-h)) / (2 * h)
    exact = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose(exact, slope, rtol=1e-5, atol=1e-5)
    straight = (weights * direction).flatten(1).sum(1)
    assert ((exact - straight).abs() > 1e-3).all()  # it is not the identity's


def test_an_adversary_who_does_not_unroll_holds_the_change_constant(undefended: Undefended, pixels: Tensor) -> None:
    images = pixels.clone().requires_grad_()
    weights = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ET3(unroll=0).purify(images, undefended, SEEDS)
    assert torch.equal(found, ET3().purify(pixels, undefended, SEEDS))
    (gradient,) = torch.autograd.grad((found * weights).sum(), images)
    assert torch.equal(gradient, weights)


def test_energy_is_that_of_the_leaves(undefended: Undefended, pixels: Tensor) -> None:
    """The defence descends the energy of leaf logits alone: along its step that energy falls as fast as it can."""
    image = 0.25 + 0.5 * pixels[:1]
    change = ET3(size=0.01, steps=1).purify(image, undefended, [0]) - image
    random = torch.randn(20, *image.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    random *= change.norm() / random.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    before = energy(undefended, image)
    fall = before - energy(undefended, image + change)
    others = before - energy(undefended, image + random)
    assert math.isfinite(fall.item())
    assert (fall > others.abs()).all()
