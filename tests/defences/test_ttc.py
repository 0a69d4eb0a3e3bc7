from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrzs.attacks import counter
from hrzs.defences import TTC, Undefended
from hrzs.defences.ttc import counter_attack

SEEDS = [3, 1, 4, 15, 9, 2**56 - 1]


def stability(undefended: Undefended, image: Tensor, noise: Tensor) -> float:
    with torch.no_grad():
        before, after = undefended.features(torch.stack([image, image + noise]))
    return ((after - before).square().sum().sqrt() / before.square().sum().sqrt()).item()


def naive(one: TTC, undefended: Undefended, image: Tensor, seed: int) -> Tensor:
    """Section 4 of the paper, for one image, with a loop over everything."""
    eps, size = one.eps / 255, one.size / 255

    def allowed(delta: Tensor) -> Tensor:
        delta = torch.minimum(torch.maximum(delta, torch.full_like(delta, -eps)), torch.full_like(delta, eps))
        return torch.minimum(torch.maximum(image + delta, torch.zeros(())), torch.ones(())) - image

    uniform = counter.uniform([seed], image.shape, image.device)[0].double()
    deltas = [allowed((2 * uniform - 1) * eps)]
    if one.steps and stability(undefended, image, deltas[0]) < one.tau:
        with torch.no_grad():
            before = undefended.features(image[None])
        for _ in range(one.steps):
            delta = deltas[-1].clone().requires_grad_()
            distance = (undefended.features((image + delta)[None]) - before).norm()
            distance.backward()
            assert delta.grad is not None
            deltas.append(allowed(deltas[-1] + size * delta.grad.sign()))
    weights = [math.exp(one.beta * k) for k in range(len(deltas))]
    return image + sum(w / sum(weights) * d for w, d in zip(weights, deltas, strict=True))


@pytest.mark.parametrize("one", [TTC(), TTC(steps=0), TTC(eps=8.0, size=3.0, steps=4, beta=0.5)], ids=str)
def test_same_as_a_naive_one(undefended: Undefended, pixels: Tensor, one: TTC) -> None:
    """At a tau that some images are below and some above, and at the ends."""
    noise = (2 * counter.uniform(SEEDS, pixels.shape[1:], pixels.device).double() - 1) * one.eps / 255
    noise = (pixels + noise).clamp(0, 1) - pixels
    ratios = sorted(stability(undefended, x, n) for x, n in zip(pixels, noise, strict=True))
    for tau in (0.0, (ratios[2] + ratios[3]) / 2, 2 * ratios[-1]):
        at = replace(one, tau=tau)
        found = at.purify(pixels, undefended, SEEDS)
        expected = torch.stack([naive(at, undefended, x, s) for x, s in zip(pixels, SEEDS, strict=True)])
        assert (found - expected).abs().max() < 1e-12
        only_noise = ((found - pixels - noise).abs() < 1e-12).flatten(1).all(1)
        assert int(only_noise.sum()) == (sum(ratio >= tau for ratio in ratios) if one.steps else 6)


def test_the_counter_attack_moves_features_further_than_noise(undefended: Undefended, pixels: Tensor) -> None:
    def moved(one: TTC) -> Tensor:
        return (undefended.features(one.purify(pixels, undefended, SEEDS)) - undefended.features(pixels)).norm(dim=1)

    assert (moved(TTC(tau=9.0)) > moved(TTC(tau=0.0))).all()


@settings(max_examples=25)
@given(
    eps=st.floats(0, 255), size=st.floats(0, 255), steps=st.integers(0, 3), tau=st.sampled_from([0.0, 0.2, 9.0]),
    beta=st.floats(-2, 4), seed=st.integers(0, 2**56 - 1), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_within_eps_and_the_range_of_pixels(
    undefended: Undefended, eps: float, size: float, steps: int, tau: float, beta: float, seed: int, dtype: torch.dtype
) -> None:
    images = counter.uniform([seed, seed + 1], (3, 12, 12), torch.device("cpu")).to(dtype)
    images = images.where(images > 0.3, images**8).where(images < 0.7, 1 - (1 - images) ** 8)
    found = TTC(eps, size, steps, tau, beta).purify(images, undefended, [seed, seed + 1])
    assert found.dtype == dtype
    assert (found - images).abs().max() <= eps / 255 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_counter_attack_is_held_constant(undefended: Undefended, pixels: Tensor) -> None:
    images, weights = pixels.clone().requires_grad_(), torch.rand_like(pixels)
    found = TTC(tau=9.0).purify(images, undefended, SEEDS)
    (gradient,) = torch.autograd.grad((found * weights).sum(), images)
    assert torch.equal(gradient, weights)
    with torch.no_grad():  # a verdict has no graph, and the same image
        assert torch.equal(TTC(tau=9.0).purify(pixels, undefended, SEEDS), found)


def test_noise_is_uniform(undefended: Undefended) -> None:
    images = torch.full((50, 3, 12, 12), 0.5, dtype=torch.float64)
    noise = 255 * (TTC(steps=0).purify(images, undefended, range(50)) - images)
    n = noise.numel()
    assert noise.mean().item() == pytest.approx(0, abs=5 * 4 / math.sqrt(3 * n))
    assert noise.std().item() == pytest.approx(4 / math.sqrt(3), rel=0.02)
    assert -4 <= noise.min() < -3.9
    assert 3.9 < noise.max() < 4 + 1e-9


def test_noise_may_be_given(undefended: Undefended, pixels: Tensor) -> None:
    """A start out of bounds is cut before the first step."""
    noise = torch.full_like(pixels, 1.0)
    delta = counter_attack(TTC(tau=0.0), pixels, undefended, noise)
    assert torch.equal(delta, torch.minimum(torch.full_like(pixels, 4 / 255), 1 - pixels))
