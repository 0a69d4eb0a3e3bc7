from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.attacks import Budget
from hrzs.attacks.ball import Ball, L2Ball, LinfBall, float_below

PIXELS = 12
clean = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0**-149, 2.0**-126, 1e-10, 0.5, 1 - 2.0**-24, 1 / 255, 254 / 255]),
    st.integers(0, 255).map(lambda k: k / 255),
    st.floats(0, 1, width=32),
)
anywhere = st.one_of(clean, st.floats(-3, 3, width=32))
radii = st.one_of(
    st.sampled_from([Fraction(k, 255) for k in (1, 2, 4, 8, 255)] + [Fraction(1, 10**9), Fraction(1, 2**30)]),
    st.fractions(0, 1, max_denominator=10**6).filter(lambda eps: eps > 0),
    st.floats(1e-6, 1).map(Fraction),
)


def image(pixels: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    rows = st.lists(pixels, min_size=PIXELS, max_size=PIXELS)
    return rows.map(lambda row: torch.tensor(row, dtype=torch.float32).view(1, 3, 2, 2))


seeds = st.integers(0, 2**56 - 1)


def exact(x: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in x.flatten().tolist()]


def assert_within(ball: Ball, x: Tensor) -> None:
    """Within ε and [0, 1], by rational arithmetic on the fp32 values: no tolerance."""
    delta = [a - b for a, b in zip(exact(x), exact(ball.centre), strict=True)]
    if isinstance(ball, LinfBall):
        assert max(map(abs, delta)) <= ball.eps
    else:
        # The judge's norm is a float64 sum: 12 squares, each rounded to 53 bits.
        assert sum(d * d for d in delta) <= ball.eps**2 * (1 + Fraction(1, 2**48))
        assert Fraction(ball.distance(x).item()) <= ball.eps
    assert all(0 <= v <= 1 for v in exact(x))
    assert ball.contains(x).all()


balls = pytest.mark.parametrize("kind", [LinfBall, L2Ball])


@balls
@given(centre=image(clean), eps=radii, x=image(anywhere), gradient=image(anywhere), seed=seeds)
def test_never_outside(
    kind: type[LinfBall | L2Ball], centre: Tensor, eps: Fraction, x: Tensor, gradient: Tensor, seed: int
) -> None:
    ball = kind(centre, eps)
    start = ball.random([seed])
    for point in (start, ball.project(x), ball.step(start, gradient, float(eps)), ball.step(x, gradient, 1 / 255)):
        assert_within(ball, point)


@balls
@given(centre=image(clean), eps=radii, x=image(anywhere))
def test_projection_is_idempotent(kind: type[LinfBall | L2Ball], centre: Tensor, eps: Fraction, x: Tensor) -> None:
    ball = kind(centre, eps)
    once = ball.project(x)
    assert torch.equal(ball.project(once), once)
    assert torch.equal(ball.project(centre), centre)


@given(centre=image(clean), eps=radii, x=image(anywhere))
def test_linf_projection_is_the_nearest_float(centre: Tensor, eps: Fraction, x: Tensor) -> None:
    """One ulp nearer to ``x`` lies outside: the box is rounded inward, but no further than it must be."""
    ball = LinfBall(centre, eps)
    projected = ball.project(x)
    nearer = torch.nextafter(projected, x)
    for c, wanted, got, beyond in zip(exact(centre), exact(x), exact(projected), exact(nearer), strict=True):
        assert got == wanted or abs(beyond - c) > eps or not 0 <= beyond <= 1


@given(centre=image(clean), eps=radii, x=image(anywhere))
def test_l2_projection_is_radial(centre: Tensor, eps: Fraction, x: Tensor) -> None:
    """Pixels outside [0, 1] are clipped first, then what is too far comes back along its own direction."""
    ball = L2Ball(centre, eps)
    clipped = x.clamp(0, 1).double()
    delta = clipped - centre.double()
    expected = centre.double() + delta * min(1.0, float(eps) / max(delta.norm().item(), 1e-300))
    assert torch.allclose(ball.project(x).double(), expected, rtol=0, atol=5e-7)


@balls
@given(centre=image(clean), eps=radii, x=image(anywhere), y=image(anywhere))
def test_projection_of_one_image_ignores_the_others(
    kind: type[LinfBall | L2Ball], centre: Tensor, eps: Fraction, x: Tensor, y: Tensor
) -> None:
    alone = kind(centre, eps).project(x)
    together = kind(centre.repeat(2, 1, 1, 1), eps).project(torch.cat([x, y]))
    assert torch.equal(together[:1], alone)


@balls
@given(seed=seeds, eps=radii)
def test_start_depends_on_its_own_seed_only(kind: type[LinfBall | L2Ball], seed: int, eps: Fraction) -> None:
    centre = torch.rand(3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    ball = kind(centre, eps)
    alone = ball.select(torch.tensor([False, True, False])).random([seed])
    assert torch.equal(ball.random([seed + 1, seed, seed + 2])[1:2], alone)
    assert torch.equal(ball.random([7, seed, 7])[1:2], alone)


@pytest.mark.parametrize("seed", [0, 1, 2**56 - 1])
def test_linf_start_is_uniform(seed: int) -> None:
    eps = Fraction(4, 255)
    centre = torch.full((1, 3, 64, 64), 0.5)
    share = (LinfBall(centre, eps).random([seed]) - centre) / float(eps)
    quantiles = share.flatten().sort().values
    assert (quantiles - torch.linspace(-1, 1, quantiles.numel())).abs().max() < 0.05


def test_l2_start_is_uniform() -> None:
    """The volume inside radius ρ grows as ρ^d: (ρ/ε)^d is uniform, and directions have no preference."""
    eps, count = Fraction(1, 4), 2000
    centre = torch.full((count, 3, 2, 2), 0.5)
    delta = L2Ball(centre, eps).random(list(range(count))) - centre
    volume = (delta.flatten(1).norm(dim=1) / float(eps)).pow(12).sort().values
    assert (volume - torch.linspace(0, 1, count)).abs().max() < 0.05
    assert delta.mean(0).abs().max() < 0.01


@given(x=image(st.floats(0.25, 0.75, width=32)), gradient=image(st.floats(-3, 3, width=32)))
def test_linf_step_follows_the_sign(x: Tensor, gradient: Tensor) -> None:
    stepped = LinfBall(x, Fraction(1, 4)).step(x, gradient, 0.125)
    assert torch.allclose(stepped - x, 0.125 * gradient.sign(), atol=1e-7)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-15, 1.0, 1e15, 1e30])
def test_l2_step_has_its_size_whatever_the_gradient(scale: float) -> None:
    """The gradient of a saturated softmax is tiny: its squares underflow in fp32, its direction still counts."""
    x = torch.full((1, 3, 2, 2), 0.5)
    direction = torch.linspace(-1, 1, PIXELS).view(1, 3, 2, 2)
    delta = L2Ball(x, Fraction(1, 4)).step(x, direction * scale, 0.125) - x
    assert delta.norm().item() == pytest.approx(0.125, rel=1e-4)
    assert torch.cosine_similarity(delta.flatten(), direction.flatten(), dim=0) > 0.9999


@balls
def test_no_gradient_no_step(kind: type[LinfBall | L2Ball]) -> None:
    x = torch.full((1, 3, 2, 2), 0.5)
    assert torch.equal(kind(x, Fraction(1, 4)).step(x, torch.zeros_like(x), 0.125), x)


@balls
@given(centre=image(clean), eps=radii)
def test_contains_knows_the_edge(kind: type[LinfBall | L2Ball], centre: Tensor, eps: Fraction) -> None:
    ball = kind(centre, eps)
    assert ball.contains(centre).all()
    for outside in (centre + 2 * float(eps) + 1e-6, centre - 2 * float(eps) - 1e-6, centre * math.nan):
        assert not ball.contains(outside).any()


@given(st.fractions(max_denominator=10**9))
def test_float_below(value: Fraction) -> None:
    below = float_below(value)
    assert Fraction(below) <= value
    assert Fraction(math.nextafter(below, math.inf)) > value


def test_norm_chooses_the_ball() -> None:
    centre, eps = torch.zeros(1, 3, 2, 2), Fraction(1, 255)
    assert isinstance(Ball.of(centre, Budget(eps, eps, 1)), LinfBall)
    assert isinstance(Ball.of(centre, Budget(eps, eps, 1, "l2")), L2Ball)
