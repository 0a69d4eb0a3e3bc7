"""Flat space under the names of `hrzs.geometry.poincare`: what its functions tend to as the curvature vanishes.

It serves an ablation, in which a method changes nothing but its geometry. The curvature is an argument only for the
sake of the common signature, and is 0. As r → 0, ``d(u, v) → 2‖u - v‖``. That limit is the distance here, so margins
in units of distance (``ζ_vic``) mean the same near the origin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hrzs.geometry.poincare import Curvature, full_precision, norm

__all__ = ["cap_share", "distance", "expmap0", "nested_midpoints", "norm", "pairwise_distance"]


def expmap0(v: Float[Tensor, "... D"], curvature: Curvature = 0.0) -> Float[Tensor, "... D"]:  # noqa: ARG001
    """``v`` itself, in float32 or wider: a tangent vector at the origin is the point that it leads to."""
    return v.float() if v.dtype in (torch.float16, torch.bfloat16) else v


@full_precision
def cap_share(u: Float[Tensor, "... D"], curvature: Curvature = 0.0) -> Float[Tensor, ""]:  # noqa: ARG001
    """Flat space has no boundary: always 0."""
    return u.detach().new_zeros(())


@full_precision
def distance(
    u: Float[Tensor, "... D"],
    v: Float[Tensor, "... D"],
    curvature: Curvature = 0.0,  # noqa: ARG001
) -> Float[Tensor, "..."]:
    """``2‖u - v‖``, broadcast over leading dimensions; at coincident points its gradient is zero."""
    return 2 * norm(u - v)


@full_precision
def pairwise_distance(
    u: Float[Tensor, "N D"],
    v: Float[Tensor, "M D"],
    curvature: Curvature = 0.0,  # noqa: ARG001
) -> Float[Tensor, "N M"]:
    """All distances between two sets of points, through one matrix product; pairs closer than its resolution get this
    resolution, as in `hrzs.geometry.poincare.pairwise_distance`."""
    info = torch.finfo(u.dtype)
    uu, vv = u.square().sum(-1), v.square().sum(-1)
    squared = torch.addmm(uu.unsqueeze(1) + vv, u, v.T, alpha=-2)
    return 2 * squared.clamp(min=(4 * info.eps * uu.detach() + info.tiny).unsqueeze(1)).sqrt()


@full_precision
def nested_midpoints(
    u: Float[Tensor, "N D"],
    shares: Sequence[Float[Tensor, "_ _"]],
    factors: Sequence[Float[Tensor, ""]],
    curvature: Curvature = 0.0,  # noqa: ARG001
) -> tuple[Float[Tensor, "_ D"], ...]:
    """Means of means, each multiplied by its level's factor first; see `hrzs.geometry.poincare.nested_midpoints`."""
    found = [shares[0] @ u]
    for weights, factor in zip(shares[1:], factors, strict=True):
        found.append(weights @ (factor * found[-1]))
    return tuple(found)
