"""Flat space is what the Poincaré ball tends to, and has the same functions."""

from __future__ import annotations

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.geometry import euclidean, poincare

SEEDS = st.integers(0, 2**31 - 1)
NEARLY_FLAT = 1e-8


def points(seed: int, count: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", euclidean.__all__)
def test_signatures_are_those_of_the_ball(name: str) -> None:
    flat, curved = (inspect.signature(getattr(space, name)) for space in (euclidean, poincare))
    assert [p.name for p in flat.parameters.values()] == [p.name for p in curved.parameters.values()]


@given(SEEDS)
def test_the_limit_of_vanishing_curvature(seed: int) -> None:
    u, v = points(seed, 4), points(seed + 1, 3)
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(euclidean.expmap0(u), poincare.expmap0(u, NEARLY_FLAT), **close)
    torch.testing.assert_close(euclidean.distance(u[:3], v), poincare.distance(u[:3], v, NEARLY_FLAT), **close)
    torch.testing.assert_close(
        euclidean.pairwise_distance(u, v), poincare.pairwise_distance(u, v, NEARLY_FLAT), **close
    )
    shares = (weights / weights.sum(1, keepdim=True), torch.tensor([[0.3, 0.7], [0.0, 0.0], [1.0, 0.0]]).double())
    nested = [space.nested_midpoints(u, shares, (weights[0, 0],), NEARLY_FLAT) for space in (euclidean, poincare)]
    assert [len(level) for level in nested[0]] == [2, 3]
    for flat, curved in zip(*nested, strict=True):
        torch.testing.assert_close(flat, curved, **close)


@given(SEEDS)
def test_nested_midpoints_are_means_of_multiplied_means(seed: int) -> None:
    u = points(seed, 4)
    first, second = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    eye = torch.eye(4, dtype=torch.float64)
    once, twice = euclidean.nested_midpoints(u, (eye, eye, eye), (first, second))[1:]
    torch.testing.assert_close(once, first * u)
    torch.testing.assert_close(twice, first * second * u)
    origin = torch.zeros_like(u)
    torch.testing.assert_close(euclidean.distance(origin, once), first * euclidean.distance(origin, u))
    pairs = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75], [0, 0, 0, 0]], dtype=torch.float64)
    both = torch.tensor([[0.5, 0.5, 0]], dtype=torch.float64)
    means, mean = euclidean.nested_midpoints(u, (pairs, both), (first,))
    expected = torch.stack([(u[0] + u[1]) / 2, u[2] / 4 + 3 * u[3] / 4, origin[0]])
    torch.testing.assert_close(means, expected)
    torch.testing.assert_close(mean, first * (expected[:1] + expected[1:2]) / 2)


@given(SEEDS)
def test_pairwise_distances_are_the_distances(seed: int) -> None:
    u, v = points(seed, 4), points(seed + 1, 3)
    naive = torch.stack([euclidean.distance(a.expand_as(v), v) for a in u])
    torch.testing.assert_close(euclidean.pairwise_distance(u, v), naive)
    torch.testing.assert_close(naive, 2 * torch.cdist(u, v))


def test_gradients_are_finite_at_coincident_points() -> None:
    u = torch.ones(2, 3, requires_grad=True)
    for distances in (euclidean.distance(u, u.detach()), euclidean.pairwise_distance(u, u.detach())):
        (gradient,) = torch.autograd.grad(distances.sum(), u)
        assert gradient.isfinite().all()


def test_half_precision_is_widened_and_nothing_lies_at_a_boundary() -> None:
    far = torch.full((2, 3), 1e4, dtype=torch.bfloat16)
    assert euclidean.expmap0(far).dtype == torch.float32
    half = torch.eye(2, dtype=torch.bfloat16)
    assert euclidean.nested_midpoints(far, (half, half), (torch.tensor(0.5),))[1].dtype == torch.float32
    assert euclidean.cap_share(far) == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert euclidean.pairwise_distance(far.float(), far.float()).dtype == torch.float32
