"""Identities, parity with other implementations, and finite gradients of the Poincaré ball."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrzs.geometry import poincare

DTYPES = (torch.float32, torch.float64)
CURVATURES = st.sampled_from((0.25, 1.0, 2.5))
SEEDS = st.integers(0, 2**31 - 1)
RADII = (0.0, 1e-15, 1e-8, 1e-4, 0.1, 0.5, 0.9, 0.999, 1.0)
EXACT = 1e-7
untimed = settings(deadline=None)


def points(
    seed: int,
    count: int,
    curvature: float,
    radius: float = 0.9,
    dtype: torch.dtype = torch.float64,
    dim: int = 6,
) -> Tensor:
    """Points of random direction, and √r‖u‖ spread evenly up to ``radius``."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    length = radius * torch.rand(count, 1, generator=generator, dtype=torch.float64) / math.sqrt(curvature)
    return (length * direction / direction.norm(dim=-1, keepdim=True)).to(dtype)


def at_radius(radius: float, curvature: float, dtype: torch.dtype, count: int = 3, dim: int = 8) -> Tensor:
    """Points at √r‖u‖ = ``radius``; a radius of 1 is pulled back to the cap."""
    direction = torch.randn(count, dim, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    return poincare.project((radius / math.sqrt(curvature) * direction).to(dtype), curvature)


def naive_mobius_add(u: Tensor, v: Tensor, r: float) -> Tensor:
    uv, uu, vv = (u * v).sum(-1, True), (u * u).sum(-1, True), (v * v).sum(-1, True)
    return ((1 + 2 * r * uv + r * vv) * u + (1 - r * uu) * v) / (1 + 2 * r * uv + r**2 * uu * vv)


def naive_distance(u: Tensor, v: Tensor, r: float) -> Tensor:
    """method.md's form, as it stands."""
    return 2 / math.sqrt(r) * torch.atanh(math.sqrt(r) * naive_mobius_add(-u, v, r).norm(dim=-1))


def naive_midpoint(u: Tensor, weights: Tensor, r: float) -> Tensor:
    """method.md's form, as it stands."""
    uu = (u * u).sum(-1, keepdim=True)
    klein = 2 * u / (1 + r * uu)
    gamma = ((1 + r * uu) / (1 - r * uu)).squeeze(-1)
    mean = (weights * gamma) @ klein / (weights * gamma).sum(-1, keepdim=True)
    return mean / (1 + (1 - r * (mean * mean).sum(-1, keepdim=True)).sqrt())


def naive_scale(u: Tensor, factor: Tensor, r: float) -> Tensor:
    """Möbius scalar multiplication by its definition."""
    length = math.sqrt(r) * u.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, (factor * length.atanh()).tanh() * u / length, 0.0)


def scale(u: Tensor, factor: Tensor, r: poincare.Curvature) -> Tensor:
    """Möbius scalar multiplication: nested midpoints with one point a group."""
    eye = torch.eye(len(u), dtype=u.dtype)
    return poincare.nested_midpoints(u, (eye, eye), (factor,), r)[1]


def random_shares(seed: int, below: int, sizes: list[int]) -> list[Tensor]:
    """Weights of groups of groups; about a fourth of the rows are zero, the others sum to one."""
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for size in sizes:
        weights = torch.rand(size, below, generator=generator, dtype=torch.float64)
        present = torch.rand(size, 1, generator=generator) > 0.25
        members = weights * (weights > 0.4) * present
        shares.append(members / torch.where(members.sum(1, keepdim=True) > 0, members.sum(1, keepdim=True), 1.0))
        below = size
    return shares


# Identities


@untimed
@given(SEEDS, CURVATURES)
def test_mobius_addition_has_left_cancellation_and_a_neutral_element(seed: int, r: float) -> None:
    u, v = points(seed, 8, r), points(seed + 1, 8, r)
    torch.testing.assert_close(poincare.mobius_add(-u, poincare.mobius_add(u, v, r), r), v, atol=EXACT, rtol=0)
    torch.testing.assert_close(poincare.mobius_add(torch.zeros_like(v), v, r), v)
    torch.testing.assert_close(poincare.mobius_add(u, -u, r), torch.zeros_like(u))


@untimed
@given(SEEDS, CURVATURES)
def test_distance_is_a_metric(seed: int, r: float) -> None:
    u, v, w = (points(seed + i, 8, r, radius=1.0) for i in range(3))
    uv, vw, uw = (poincare.distance(*pair, r) for pair in ((u, v), (v, w), (u, w)))
    torch.testing.assert_close(uv, poincare.distance(v, u, r))
    assert (uw <= uv + vw + EXACT).all()
    assert (poincare.distance(u, u, r) == 0).all()
    assert (uv > 0).all()


@untimed
@given(SEEDS, CURVATURES)
def test_distance_is_kept_by_translations(seed: int, r: float) -> None:
    u, v, w = (points(seed + i, 8, r, radius=0.8) for i in range(3))
    moved = poincare.distance(poincare.mobius_add(w, u, r), poincare.mobius_add(w, v, r), r)
    torch.testing.assert_close(moved, poincare.distance(u, v, r), atol=EXACT, rtol=EXACT)


@untimed
@given(SEEDS, CURVATURES)
def test_expmap0_keeps_directions_and_the_order_of_norms(seed: int, r: float) -> None:
    direction = torch.nn.functional.normalize(points(seed, 1, r), dim=-1)
    lengths = torch.logspace(-12, 4, 50, dtype=torch.float64).unsqueeze(-1) / math.sqrt(r)
    u = poincare.expmap0(lengths * direction, r)
    norms = poincare.norm(u)
    assert (norms.diff() >= -1e-15).all()
    assert (norms[:30].diff() > 0).all()
    assert norms.max() <= poincare.max_norm(torch.float64, r) * (1 + 1e-12)
    torch.testing.assert_close(u / norms.unsqueeze(-1), direction.expand_as(u))


@untimed
@given(SEEDS, CURVATURES)
def test_expmap0_doubles_the_length_it_is_given(seed: int, r: float) -> None:
    v = 2 * points(seed, 8, r)
    reached = poincare.distance(torch.zeros_like(v), poincare.expmap0(v, r), r)
    torch.testing.assert_close(reached, 2 * v.norm(dim=-1))


@untimed
@given(SEEDS, CURVATURES, st.floats(0, 3))
def test_scaling_multiplies_the_distance_from_the_origin(seed: int, r: float, factor: float) -> None:
    u = points(seed, 4, r)
    scaled = scale(u, torch.tensor(factor, dtype=torch.float64), r)
    origin = torch.zeros_like(u)
    torch.testing.assert_close(
        poincare.distance(origin, scaled, r), factor * poincare.distance(origin, u, r), rtol=1e-6, atol=1e-9
    )
    # The direction is kept.
    torch.testing.assert_close(scaled * u.norm(dim=-1, keepdim=True), u * scaled.norm(dim=-1, keepdim=True))


@untimed
@given(SEEDS, CURVATURES, st.floats(0, 1.5), st.floats(0, 1.5))
def test_scalings_compose(seed: int, r: float, first: float, second: float) -> None:
    u = points(seed, 4, r)
    a, b = (torch.tensor(factor, dtype=torch.float64) for factor in (first, second))
    eye = torch.eye(4, dtype=torch.float64)
    at_once = scale(u, a * b, r)
    torch.testing.assert_close(scale(scale(u, a, r), b, r), at_once, rtol=1e-8, atol=1e-10)
    whole, once, twice = poincare.nested_midpoints(u, (eye, eye, eye), (a, b), r)
    torch.testing.assert_close(whole, u)
    torch.testing.assert_close(once, scale(u, a, r))
    torch.testing.assert_close(twice, at_once, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(scale(u, torch.ones(()).double(), r), u)
    assert not scale(u, torch.zeros(()).double(), r).any()


@untimed
@given(SEEDS, CURVATURES)
def test_scaling_a_lifted_vector_lifts_the_scaled_one(seed: int, r: float) -> None:
    v = points(seed, 4, r)
    for factor in torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64):
        torch.testing.assert_close(scale(poincare.expmap0(v, r), factor, r), poincare.expmap0(factor * v, r))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("radius", RADII)
def test_gradients_of_scaling_are_finite(radius: float, factor: float, dtype: torch.dtype) -> None:
    u = at_radius(radius, 0.5, dtype).requires_grad_()
    f = torch.tensor(factor, dtype=dtype, requires_grad=True)
    r = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    scaled = scale(u, f, r)
    assert scaled.dtype == dtype
    assert (0.5 * scaled.square().sum(-1) < 1).all()
    cap = poincare.max_norm(dtype, 0.5)
    assert (poincare.norm(scaled) <= cap * (1 + 8 * torch.finfo(dtype).eps)).all()
    weight = torch.randn(scaled.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    for gradient in torch.autograd.grad((scaled * weight).sum(), (u, f, r)):
        assert gradient.isfinite().all()
    # Near the origin it is a plain product.
    if 0 < radius < 1e-4:
        torch.testing.assert_close(scaled, factor * u, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("radius", RADII)
def test_gradients_of_nested_midpoints_are_finite_and_empty_groups_have_none(
    radius: float, factor: float, dtype: torch.dtype
) -> None:
    """Among the groups are one of equal points, one of antipodal ones, one that is empty, and one of empty ones."""
    v = at_radius(radius, 0.5, dtype)
    u = torch.cat([v, v, -v]).requires_grad_()
    f = torch.tensor(factor, dtype=dtype, requires_grad=True)
    r = torch.tensor(0.5, dtype=dtype, requires_grad=True)
    first = torch.zeros(5, 9, dtype=dtype)
    for row, members in enumerate([(0, 3), (1, 7), (), (0, 1, 2), (8,)]):
        first[row, list(members)] = 1 / max(len(members), 1)
    second = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0.5, 0.5]], dtype=dtype)
    third = torch.tensor([[0.5, 0, 0.5], [0, 0, 0]], dtype=dtype)
    found = poincare.nested_midpoints(u, (first, second, third), (f, f), r)
    empty = (2, 1, 1)
    cap = poincare.max_norm(dtype, 0.5) * (1 + 8 * torch.finfo(dtype).eps)
    for level, none in zip(found, empty, strict=True):
        assert level.dtype == dtype
        assert not level[none].any()
        assert (poincare.norm(level) <= cap).all()
        (gradient,) = torch.autograd.grad(level[none].sum(), u, retain_graph=True)
        assert not gradient.any()
    weights = [torch.randn(level.shape, generator=torch.Generator().manual_seed(1)).to(dtype) for level in found]
    total = sum(((level * weight).sum() for level, weight in zip(found, weights, strict=True)), torch.zeros(()))
    for gradient in torch.autograd.grad(total, (u, f, r)):
        assert gradient.isfinite().all()


@untimed
@given(SEEDS, CURVATURES, st.lists(st.integers(1, 5), min_size=1, max_size=4), st.floats(0, 1.5), st.floats(0, 1.5))
def test_nested_midpoints_are_midpoints_of_scaled_midpoints(
    seed: int, r: float, sizes: list[int], first: float, second: float
) -> None:
    """Level by level, by method.md's forms as they stand; rows of weights may be zero."""
    u = points(seed, 6, r, radius=0.8)
    shares = random_shares(seed, 6, sizes)
    factors = [torch.tensor(f, dtype=torch.float64) for f in (first, second, first)][: len(sizes) - 1]
    found = poincare.nested_midpoints(u, shares, factors, r)
    assert [len(level) for level in found] == sizes
    below = u
    for level, weights in enumerate(shares):
        if level:
            below = naive_scale(below, factors[level - 1], r)
        there = weights.sum(1) > 0
        below = torch.where(there[:, None], naive_midpoint(below, weights, r), 0.0)
        torch.testing.assert_close(found[level], below, rtol=1e-8, atol=1e-10)
    # With factors of one it is the midpoint again and again.
    found = poincare.nested_midpoints(u, shares, [torch.ones(()).double()] * (len(sizes) - 1), r)
    below = u
    for weights, level_points in zip(shares, found, strict=True):
        below = poincare.einstein_midpoint(below, weights, r)
        torch.testing.assert_close(level_points, below, rtol=1e-8, atol=1e-10)


@untimed
@given(SEEDS, CURVATURES)
def test_midpoint_of_equal_points_is_the_point(seed: int, r: float) -> None:
    u = points(seed, 1, r)
    weights = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    torch.testing.assert_close(poincare.einstein_midpoint(u.expand(4, -1), weights, r), u.expand(3, -1))


@untimed
@given(SEEDS, CURVATURES)
def test_midpoint_lies_in_every_ball_that_holds_the_points(seed: int, r: float) -> None:
    u, centre = points(seed, 6, r), points(seed + 1, 1, r)
    weights = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    middle = poincare.einstein_midpoint(u, weights, r)
    furthest = poincare.distance(u, centre, r).max()
    assert (poincare.distance(middle, centre, r) <= furthest + EXACT).all()


@untimed
@given(SEEDS, CURVATURES, st.permutations(range(6)))
def test_midpoint_ignores_order_and_the_scale_of_weights(seed: int, r: float, order: list[int]) -> None:
    u = points(seed, 6, r)
    weights = torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    expected = poincare.einstein_midpoint(u, weights, r)
    torch.testing.assert_close(poincare.einstein_midpoint(u[order], weights[:, order], r), expected)
    torch.testing.assert_close(poincare.einstein_midpoint(u, 1e-3 * weights, r), expected)


@untimed
@given(SEEDS, CURVATURES)
def test_midpoint_of_two_points_is_equally_far_from_both_and_on_their_geodesic(seed: int, r: float) -> None:
    u = points(seed, 2, r)
    middle = poincare.einstein_midpoint(u, torch.ones(1, 2, dtype=torch.float64), r)
    to_first, to_second = poincare.distance(u, middle, r)
    between = poincare.distance(u[0], u[1], r)
    torch.testing.assert_close(to_first, to_second)
    torch.testing.assert_close(to_first + to_second, between)


@pytest.mark.parametrize("dtype", DTYPES)
def test_midpoint_without_members_is_the_origin_and_has_finite_gradients(dtype: torch.dtype) -> None:
    u = points(0, 3, 1.0, dtype=dtype).requires_grad_()
    middle = poincare.einstein_midpoint(u, torch.tensor([[0, 0, 0], [1, 1, 0]], dtype=dtype), 1.0)
    assert (middle[0] == 0).all()
    assert (middle[1] != 0).any()
    middle.sum().backward()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert (u.grad[2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_midpoint_of_equal_points_at_the_cap_stays_in_the_ball(dtype: torch.dtype) -> None:
    u = at_radius(1.0, 1.0, dtype, count=1, dim=512)
    middle = poincare.einstein_midpoint(u.expand(64, -1), torch.ones(1, 64, dtype=dtype), 1.0)
    cap = poincare.max_norm(dtype, 1.0)
    assert poincare.norm(middle) <= cap * (1 + 8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(middle, u, atol=1 - cap, rtol=0)


# Parity


@untimed
@given(SEEDS, CURVATURES)
def test_forms_agree_with_the_definitions(seed: int, r: float) -> None:
    u, v = points(seed, 8, r), points(seed + 1, 5, r)
    weights = torch.rand(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.01
    expected = naive_distance(u.unsqueeze(1), v, r)
    torch.testing.assert_close(poincare.distance(u.unsqueeze(1), v, r), expected)
    torch.testing.assert_close(poincare.pairwise_distance(u, v, r), expected)
    torch.testing.assert_close(poincare.mobius_add(u[:5], v, r), naive_mobius_add(u[:5], v, r))
    torch.testing.assert_close(poincare.einstein_midpoint(u, weights, r), naive_midpoint(u, weights, r))


@pytest.mark.parametrize("curvature", [0.25, 1.0, 2.5])
def test_parity_with_geoopt(curvature: float) -> None:
    with warnings.catch_warnings():
        # geoopt compiles itself with torch.jit.script, which newer releases of torch deprecate, as one or the
        # other category.
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, message=r".*torch\.jit\.")
        import geoopt

        ball = geoopt.PoincareBall(c=curvature).to(torch.float64)
    u, v = points(0, 50, curvature), points(1, 50, curvature)
    torch.testing.assert_close(poincare.distance(u, v, curvature), ball.dist(u, v))
    torch.testing.assert_close(poincare.mobius_add(u, v, curvature), ball.mobius_add(u, v))
    torch.testing.assert_close(poincare.expmap0(2 * u, curvature), ball.expmap0(2 * u))
    for factor in (0.2, 1.0, 1.7):
        f = torch.tensor(factor, dtype=torch.float64)
        torch.testing.assert_close(scale(u, f, curvature), ball.mobius_scalar_mul(f, u))
    expected = ball.weighted_midpoint(u, weights=None, reducedim=[0])
    middle = poincare.einstein_midpoint(u, torch.ones(1, 50, dtype=torch.float64), curvature)
    torch.testing.assert_close(middle.squeeze(0), expected)


@pytest.mark.parametrize("radius", RADII)
def test_float32_distance_agrees_with_float64(radius: float) -> None:
    u, v = at_radius(radius, 1.0, torch.float32), points(3, 3, 1.0, radius=0.7, dtype=torch.float32, dim=8)
    expected = poincare.distance(u.double(), v.double(), 1.0)
    # At the cap 1 - r‖u‖² has lost half of its digits, that is 1e-4 of an absolute distance of about 9.
    torch.testing.assert_close(poincare.distance(u, v, 1.0).double(), expected, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(
        poincare.pairwise_distance(u, v, 1.0).diagonal().double(), expected, atol=1e-3, rtol=1e-5
    )


def test_float32_distance_is_accurate_between_points_that_nearly_coincide() -> None:
    u = points(0, 20, 1.0, dtype=torch.float32)
    v = u + 1e-5 * points(1, 20, 1.0, dtype=torch.float32)
    torch.testing.assert_close(
        poincare.distance(u, v, 1.0).double(), naive_distance(u.double(), v.double(), 1.0), atol=0, rtol=1e-5
    )


def test_pairwise_distance_resolves_coincident_points_as_documented() -> None:
    u = points(0, 40, 1.0, dtype=torch.float32, dim=512)
    resolution = 2 * math.sqrt(torch.finfo(torch.float32).eps) * u.norm(dim=-1)
    largest = 2 * torch.asinh(2 * resolution / (1 - u.square().sum(-1)))
    assert (poincare.pairwise_distance(u, u, 1.0).diagonal() <= largest).all()


# Gradients


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("other", RADII)
def test_gradients_are_finite(radius: float, other: float, dtype: torch.dtype) -> None:
    curvature = torch.tensor(1.7, dtype=dtype, requires_grad=True)
    u = at_radius(radius, 1.7, dtype).requires_grad_()
    # The other points share directions with u: they coincide with it, are collinear, or are antipodal.
    v = torch.cat([at_radius(other, 1.7, dtype), -at_radius(other, 1.7, dtype)]).requires_grad_()
    w = torch.cat([u, v])
    cumulative = torch.eye(9, dtype=dtype).cumsum(0) / torch.arange(1, 10, dtype=dtype)[:, None]
    results = {
        "expmap0": poincare.expmap0(4 * w, curvature),
        "norm": poincare.norm(w),
        "project": poincare.project(2 * w, curvature),
        "mobius_add": poincare.mobius_add(u.unsqueeze(1), v, curvature),
        "distance": poincare.distance(u.unsqueeze(1), v, curvature),
        "pairwise_distance": poincare.pairwise_distance(u, v, curvature),
        "einstein_midpoint": poincare.einstein_midpoint(w, torch.eye(9, dtype=dtype).cumsum(0), curvature),
        "nested_midpoints": torch.cat(
            poincare.nested_midpoints(w, (cumulative, cumulative), (torch.tensor(0.6, dtype=dtype),), curvature)
        ),
    }
    for name, result in results.items():
        assert result.isfinite().all(), name
        gradients = torch.autograd.grad(
            result.sum(), (u, v, curvature), retain_graph=True, materialize_grads=True, allow_unused=True
        )
        assert all(gradient.isfinite().all() for gradient in gradients), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", [1e-15, 1e-8, 1e-4, 0.1, 0.5, 0.9, 0.999])
def test_gradients_of_the_distance_to_the_origin_are_those_of_the_formula(radius: float, dtype: torch.dtype) -> None:
    u = at_radius(radius, 1.0, dtype).requires_grad_()
    origin = torch.zeros(1, 8, dtype=dtype)
    expected = 2 / (1 - radius**2) * u.detach() / radius
    for result in (
        poincare.distance(u, origin, 1.0),
        poincare.pairwise_distance(u, origin, 1.0),
        poincare.pairwise_distance(origin, u, 1.0),
    ):
        (gradient,) = torch.autograd.grad(result.sum(), u)
        torch.testing.assert_close(gradient, expected, atol=0, rtol=1e-3)


@pytest.mark.parametrize("distance", [poincare.distance, poincare.pairwise_distance])
def test_derivatives_agree_with_finite_differences(distance: object) -> None:
    u, v = points(0, 4, 0.8).requires_grad_(), points(1, 4, 0.8).requires_grad_()
    curvature = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(distance, (u, v, curvature))


def test_derivatives_of_maps_agree_with_finite_differences() -> None:
    u, v = points(0, 4, 0.8).requires_grad_(), points(1, 4, 0.8).requires_grad_()
    curvature = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(poincare.expmap0, (u, curvature))
    assert torch.autograd.gradcheck(poincare.mobius_add, (u, v, curvature))
    assert torch.autograd.gradcheck(poincare.einstein_midpoint, (u, weights, curvature))
    shares = random_shares(2, 4, [5, 3, 2])
    assert any(not row.any() for row in torch.cat([level.sum(1) for level in shares])[:, None])
    assert shares[2].any()
    factors = [torch.tensor(f, dtype=torch.float64, requires_grad=True) for f in (0.6, 1.3)]

    def nested(u: Tensor, first: Tensor, second: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        return poincare.nested_midpoints(u, shares, (first, second), r)

    assert torch.autograd.gradcheck(nested, (u, *factors, curvature))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_vanish_at_the_origin_and_between_coincident_points(dtype: torch.dtype) -> None:
    for start in (torch.zeros(1, 8, dtype=dtype), at_radius(0.5, 1.0, dtype, count=1)):
        u = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(poincare.distance(u, start, 1.0).sum(), u)
        assert (gradient == 0).all()
        (gradient,) = torch.autograd.grad(poincare.pairwise_distance(u, start, 1.0).sum(), u)
        assert gradient.norm() < 10 * math.sqrt(torch.finfo(dtype).eps)
    origin = torch.zeros(8, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(poincare.norm(origin), origin)
    assert (gradient == 0).all()


# The cap and the dtypes


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cap_separates_points_from_the_boundary(dtype: torch.dtype) -> None:
    u = poincare.expmap0(torch.full((1, 512), 10.0, dtype=dtype), 1.0)
    assert poincare.norm(u) < 1
    assert poincare.distance(u, -u, 1.0) > 4 * math.atanh(0.999)
    torch.testing.assert_close(poincare.project(torch.ones(512, dtype=dtype), 1.0), u.squeeze(0))
    inside = points(0, 10, 1.0, dtype=dtype)
    assert torch.equal(poincare.project(inside, 1.0), inside)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curvature", [0.25, 1.0, 2.5])
def test_cap_share_counts_capped_points(dtype: torch.dtype, curvature: float) -> None:
    direction = torch.nn.functional.normalize(points(0, 4, curvature, dtype=dtype, dim=512), dim=-1)
    lengths = torch.tensor([0.0, 0.5, 2.0, 50.0], dtype=dtype).unsqueeze(-1) / math.sqrt(curvature)
    u = poincare.expmap0(lengths * direction, curvature)
    assert poincare.cap_share(u, curvature).item() == 0.25
    assert poincare.cap_share(u[:3], curvature).item() == 0


def test_max_norm_follows_the_dtype_and_the_curvature() -> None:
    assert poincare.max_norm(torch.float32, 1.0) < poincare.max_norm(torch.float64, 1.0) < 1
    assert poincare.max_norm(torch.bfloat16, 1.0) == poincare.max_norm(torch.float32, 1.0)
    assert poincare.max_norm(torch.float32, 4.0) == poincare.max_norm(torch.float32, 1.0) / 2
    learnt = poincare.max_norm(torch.float32, torch.tensor(4.0, requires_grad=True))
    assert isinstance(learnt, Tensor)
    assert learnt.requires_grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_inputs_under_autocast_give_the_float32_results(half: torch.dtype) -> None:
    u, v = points(0, 5, 1.0, dim=64).to(half), points(1, 5, 1.0, dim=64).to(half)
    weights = torch.eye(5, dtype=half).cumsum(0)
    calls = {
        "expmap0": lambda u, _v, _w: poincare.expmap0(u, 1.0),
        "norm": lambda u, _v, _w: poincare.norm(u),
        "project": lambda u, _v, _w: poincare.project(2 * u, 1.0),
        "mobius_add": lambda u, v, _w: poincare.mobius_add(u, v, 1.0),
        "distance": lambda u, v, _w: poincare.distance(u, v, 1.0),
        "pairwise_distance": lambda u, v, _w: poincare.pairwise_distance(u, v=v, curvature=1.0),
        "lorentz_factor": lambda u, _v, _w: poincare.lorentz_factor(u, 1.0),
        "einstein_midpoint": lambda u, _v, w: poincare.einstein_midpoint(u, w, 1.0),
        "nested_midpoints": lambda u, _v, w: poincare.nested_midpoints(u, (w / 8, w / 8), (w[0, 0],), 1.0)[1],
    }
    for name, call in calls.items():
        expected = call(u.float(), v.float(), weights.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = call(u, v, weights)
            widest = call(u.double(), v.double(), weights.double())
        assert result.dtype == torch.float32, name
        assert torch.equal(result, expected), name
        assert widest.dtype == torch.float64, name
