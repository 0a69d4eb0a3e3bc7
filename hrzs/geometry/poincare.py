"""The Poincaré ball: pure functions on tensors (docs/method.md).

Conventions, for every function here:

- ``curvature`` is r > 0, a float or a 0-d tensor (which may be learnt); the ball's sectional curvature is
  ``-r``, and the ball is ``D_r = {u : r‖u‖² < 1}``. Norms are Euclidean; distances are in the ball's own
  metric: ``d(0, u) = (2/√r) artanh(√r‖u‖)``.
- Points lie along the last dimension.
- Everything is computed in float32 or wider, also under ``torch.autocast``: half and bfloat16 inputs are
  widened, float64 stays float64. Every epsilon comes from that dtype.
- Points are kept at ``√r‖u‖ ≤ 1 - √eps`` (`max_norm`). A point at that cap has no radial gradient, and
  looks robust to an attack for that reason: watch `cap_share`.

Source: Dong et al., CVPR 2026, arXiv 2604.18867; the numerically stable forms are derived in docs/method.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available

__all__ = [
    "Curvature",
    "cap_share",
    "distance",
    "einstein_midpoint",
    "expmap0",
    "lorentz_factor",
    "max_norm",
    "mobius_add",
    "nested_midpoints",
    "norm",
    "pairwise_distance",
    "project",
]

Curvature: TypeAlias = float | Float[Tensor, ""]

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off and its half-precision tensors, also those in lists, widened to float32."""

    def widened(value: object) -> object:
        if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            return value.float()
        return [widened(part) for part in value] if isinstance(value, (tuple, list)) else value

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        wide_args = [widened(value) for value in args]
        wide_kwargs = {name: widened(value) for name, value in kwargs.items()}
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if not is_autocast_available(device):
            return function(*wide_args, **wide_kwargs)  # type: ignore[arg-type]
        with torch.autocast(device, enabled=False):
            return function(*wide_args, **wide_kwargs)  # type: ignore[arg-type]

    return wrapper


def _root(curvature: Curvature) -> Curvature:
    return curvature.sqrt() if isinstance(curvature, Tensor) else math.sqrt(curvature)


def _cap(dtype: torch.dtype) -> float:
    """The largest √r‖u‖ allowed: 1 - √eps, so that 1 - r‖u‖² still has half of the dtype's digits."""
    wide = torch.promote_types(dtype, torch.float32)
    return 1 - math.sqrt(torch.finfo(wide).eps)


def _gap(squared_norm: Tensor, curvature: Curvature) -> Tensor:
    """1 - r‖u‖², never below its value at the cap, so that quotients by it stay finite."""
    return (1 - curvature * squared_norm).clamp_min(1 - _cap(squared_norm.dtype) ** 2)


def max_norm(dtype: torch.dtype, curvature: Curvature) -> Curvature:
    """The largest norm a point of ``dtype`` may have: ``(1 - √eps)/√r``; for half dtypes, float32's.

    Returns:
        A float for a float curvature, a 0-d tensor for a tensor.
    """
    return _cap(dtype) / _root(curvature)


@full_precision
def norm(u: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
    """The Euclidean norm, which measures depth; its gradient at the origin is zero."""
    length: Tensor = torch.linalg.vector_norm(u, dim=-1)
    return length


@full_precision
def project(u: Float[Tensor, "... D"], curvature: Curvature) -> Float[Tensor, "... D"]:
    """Pull points outside of `max_norm` radially back onto it; the others stay as they are."""
    cap = _cap(u.dtype)
    radius = _root(curvature) * norm(u)
    return u * (cap / radius.clamp_min(cap)).unsqueeze(-1)


@full_precision
def cap_share(u: Float[Tensor, "... D"], curvature: Curvature) -> Float[Tensor, ""]:
    """The share (0 to 1) of points at `max_norm`, where the radial gradient is zero; carries no gradient."""
    # Half a cap's width of slack: rounding may leave a capped point a little inside of the cap.
    threshold = 1 - 1.5 * (1 - _cap(u.dtype))
    return (_root(curvature) * norm(u.detach()) >= threshold).to(u.dtype).mean().detach()


@full_precision
def expmap0(v: Float[Tensor, "... D"], curvature: Curvature) -> Float[Tensor, "... D"]:
    """The exponential map at the origin (docs/method.md), capped at `max_norm`.

    ``tanh(√r‖v‖) v / (√r‖v‖)``, and the origin at ``v = 0``.

    Args:
        v: Tangent vectors at the origin.
        curvature: r > 0.
    """
    radius = (_root(curvature) * norm(v)).clamp_min(torch.finfo(v.dtype).tiny)
    return v * (radius.tanh().clamp_max(_cap(v.dtype)) / radius).unsqueeze(-1)


@full_precision
def mobius_add(u: Float[Tensor, "... D"], v: Float[Tensor, "... D"], curvature: Curvature) -> Float[Tensor, "... D"]:
    """Möbius addition ``u ⊕ v``, broadcast over leading dimensions, capped at `max_norm` (docs/method.md)."""
    # Written with s = u + v, every term of the denominator is positive: it cannot cancel, even where v = -u.
    s = u + v
    ss = curvature * s.square().sum(-1, keepdim=True)
    gap_u = _gap(u.square().sum(-1, keepdim=True), curvature)
    gap_v = _gap(v.square().sum(-1, keepdim=True), curvature)
    return project((gap_u * s + ss * u) / (gap_u * gap_v + ss), curvature)


@full_precision
def distance(u: Float[Tensor, "... D"], v: Float[Tensor, "... D"], curvature: Curvature) -> Float[Tensor, "..."]:
    """The geodesic distance, broadcast over leading dimensions (docs/method.md).

    ``(2/√r) asinh(√r‖u - v‖ / √((1 - r‖u‖²)(1 - r‖v‖²)))``, the same as ``(2/√r) artanh(√r‖(-u) ⊕ v‖)``.
    Accurate down to coincident points, where the distance and its gradient are zero.
    """
    root = _root(curvature)
    gaps = _gap(u.square().sum(-1), curvature) * _gap(v.square().sum(-1), curvature)
    return 2 / root * (root * norm(u - v) / gaps.sqrt()).asinh()


@full_precision
def pairwise_distance(u: Float[Tensor, "N D"], v: Float[Tensor, "M D"], curvature: Curvature) -> Float[Tensor, "N M"]:
    """All distances between two sets of points, through one matrix product.

    ``‖u - v‖²`` is taken as ``‖u‖² + ‖v‖² - 2⟨u, v⟩``, which resolves points further apart than
    ``2√eps ‖u‖``. Closer pairs get that resolution as their ``‖u - v‖``, and a gradient of the same order
    instead of order one; `distance` has no such limit. TF32 matrix products
    (``torch.set_float32_matmul_precision``) would coarsen it to a few percent of ``‖u‖``: leave them off.
    """
    info = torch.finfo(u.dtype)
    uu, vv = u.square().sum(-1), v.square().sum(-1)
    squared = torch.addmm(uu.unsqueeze(1) + vv, u, v.T, alpha=-2)
    # Below this the difference is rounding noise, whose square root would have a wild gradient.
    resolution = (4 * info.eps * uu.detach() + info.tiny).unsqueeze(1)
    scale_u, scale_v = curvature / _gap(uu, curvature), 1 / _gap(vv, curvature)
    q = squared.clamp(min=resolution) * scale_u.unsqueeze(1) * scale_v
    # 2 asinh(√q) in elementary functions: on a CPU torch's asinh costs more than the matrix product.
    return torch.log1p(2 * (q + torch.addcmul(q, q, q).sqrt())) / _root(curvature)


@full_precision
def lorentz_factor(u: Float[Tensor, "... D"], curvature: Curvature) -> Float[Tensor, "..."]:
    """The Lorentz factor γ of a point, ``(1 + r‖u‖²)/(1 - r‖u‖²)``: its weight in the Einstein midpoint."""
    squared = u.square().sum(-1)
    return (1 + curvature * squared) / _gap(squared, curvature)


@full_precision
def einstein_midpoint(
    u: Float[Tensor, "N D"], weights: Float[Tensor, "M N"], curvature: Curvature
) -> Float[Tensor, "M D"]:
    """M hyperbolic averages of N points, called HypAvg (docs/method.md).

    Args:
        u: The points.
        weights: Non-negative membership of every point in every average; only the proportions within a row count.
        curvature: r > 0.

    Returns:
        One point per row of ``weights``; the origin where the row is zero.
    """
    totals = weights.sum(-1, keepdim=True)
    shares = weights / torch.where(totals > 0, totals, torch.ones_like(totals))
    time = shares @ lorentz_factor(u, curvature).unsqueeze(-1)
    space = shares @ (2 * u / _gap(u.square().sum(-1, keepdim=True), curvature))
    # time = Σγ and space = Σγk, so √(1 - r‖k̄‖²) = √(time² - r‖space‖²)/time. That difference of squares is at
    # least one (the hyperboloid's reversed triangle inequality): the bound holds where rounding does not.
    spread = (time.square() - curvature * space.square().sum(-1, keepdim=True)).clamp_min(1)
    return project(space / (time + spread.sqrt()), curvature)


@full_precision
def nested_midpoints(
    u: Float[Tensor, "N D"],
    shares: Sequence[Float[Tensor, "_ _"]],
    factors: Sequence[Float[Tensor, ""]],
    curvature: Curvature,
) -> tuple[Float[Tensor, "_ D"], ...]:
    """HypAvg level by level: a point of a level is the midpoint of points of the level below, brought to its depth.

    Möbius scalar multiplication brings a point to another depth: along its geodesic from the origin, to ``factor``
    times the distance. Both steps are done on the hyperboloid, where a midpoint is a sum (docs/method.md).

    Args:
        u: The points that the lowest averages are taken over.
        shares: For each level the weights of the points below in each average; a row sums to one, or is zero.
        factors: For each level above the first, what the distances of the points below are multiplied by.
        curvature: r > 0.

    Returns:
        For each level one point per row of its shares, at `max_norm` at most; the origin where the row is zero.
    """
    root = _root(curvature)
    gap = _gap(u.square().sum(-1, keepdim=True), curvature)
    space, time = 2 * u / gap, 2 / gap - 1
    furthest = 2 * math.atanh(_cap(u.dtype))
    found = []
    for level, weights in enumerate(shares):
        if level:
            sinh = (root * norm(space)).unsqueeze(-1).clamp_min(torch.finfo(u.dtype).tiny)
            rapidity = (factors[level - 1] * sinh.asinh()).clamp_max(furthest)
            space, time = space * (rapidity.sinh() / sinh), rapidity.cosh()
        space, time = weights @ space, weights @ time
        # The hyperboloid's reversed triangle inequality: at least one, also where rounding says less.
        spread = (time.square() - curvature * space.square().sum(-1, keepdim=True)).clamp_min(1).sqrt()
        found.append(space / (time + spread))
        space = space / spread
    return tuple(found)
