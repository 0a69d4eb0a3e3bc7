"""The set an adversary may move in: an ε-ball around each image, cut by the pixel range [0, 1].

Bounds are exact: ε is a rational, the fp32 box is rounded inward from ``x ± ε``, so that no result needs a tolerance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hrzs.attacks import counter
from hrzs.attacks.budget import Budget

#: What replaces torch's draws where numbers are hashed.
_HASHED = {torch.rand: counter.uniform, torch.randn: counter.normal}


def float_below(value: Fraction) -> float:
    """The largest float64 that is at most ``value``."""
    nearest = float(value)
    return math.nextafter(nearest, -math.inf) if Fraction(nearest) > value else nearest


class Ball(ABC):
    """All images within ε of ``centre`` and within [0, 1].

    Args:
        centre: clean images, float32 in [0, 1].
        eps: the exact radius.
    """

    def __init__(self, centre: Float[Tensor, "B 3 H W"], eps: Fraction) -> None:
        self.centre = centre
        self.eps = eps

    @staticmethod
    def of(centre: Float[Tensor, "B 3 H W"], budget: Budget) -> Ball:
        return (LinfBall if budget.norm == "linf" else L2Ball)(centre, budget.eps)

    @abstractmethod
    def select(self, rows: Tensor) -> Ball:
        """The balls of these images only; ``rows`` are indices or a mask."""

    @abstractmethod
    def project(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """A point of the ball near ``x`` (the nearest for L∞)."""

    @abstractmethod
    def random(self, seeds: Sequence[int]) -> Float[Tensor, "B 3 H W"]:
        """Uniform random points of the ball; one seed per image, so that a point does not depend on the batch."""

    @staticmethod
    @abstractmethod
    def direction(gradient: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """The direction, of length 1 in this norm, in which a loss with this gradient rises most."""

    def step(
        self, x: Float[Tensor, "B 3 H W"], gradient: Float[Tensor, "B 3 H W"], size: float
    ) -> Float[Tensor, "B 3 H W"]:
        """Steepest ascent by ``size`` in this norm, then projection."""
        return self.project(x + size * self.direction(gradient))

    @abstractmethod
    def distance(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        """``‖x - centre‖`` in float64, which `contains` compares with ε."""

    def contains(self, x: Float[Tensor, "B 3 H W"]) -> Bool[Tensor, "B"]:
        """Does each image lie within ε and within [0, 1]? Without tolerance."""
        in_range = ((x >= 0) & (x <= 1)).flatten(1).all(1)
        return in_range & (self.distance(x) <= float_below(self.eps))


class LinfBall(Ball):
    """‖x - centre‖∞ ≤ ε."""

    def __init__(
        self,
        centre: Float[Tensor, "B 3 H W"],
        eps: Fraction,
        bounds: tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"]] | None = None,
    ) -> None:
        super().__init__(centre, eps)
        self.lower, self.upper = bounds or self._box()

    def _box(self) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"]]:
        exact, radius = self.centre.double(), float_below(self.eps)
        lower, upper = (exact - radius).float(), (exact + radius).float()
        # Rounding to fp32 may have gone outward: one ulp back in where it did.
        lower = torch.where(exact - lower.double() > radius, torch.nextafter(lower, self.centre), lower)
        upper = torch.where(upper.double() - exact > radius, torch.nextafter(upper, self.centre), upper)
        return lower.clamp_(min=0), upper.clamp_(max=1)

    def select(self, rows: Tensor) -> LinfBall:
        return LinfBall(self.centre[rows], self.eps, (self.lower[rows], self.upper[rows]))

    def project(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return torch.clamp(x, self.lower, self.upper)

    def random(self, seeds: Sequence[int]) -> Float[Tensor, "B 3 H W"]:
        noise = _noise(self.centre, seeds, torch.rand)
        return self.project(self.centre + (2 * noise - 1) * float(self.eps))

    @staticmethod
    def direction(gradient: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return gradient.sign()

    def distance(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        distance: Tensor = (x.double() - self.centre.double()).abs().flatten(1).amax(1)
        return distance


class L2Ball(Ball):
    """‖x - centre‖₂ ≤ ε."""

    def select(self, rows: Tensor) -> L2Ball:
        return L2Ball(self.centre[rows], self.eps)

    def project(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        x = x.clamp(0, 1)
        centre, distance = self.centre.double(), self.distance(x)
        outside = (distance > float_below(self.eps)).view(-1, 1, 1, 1)
        # A little less than ε, since the sum of squares in float64 is rounded.
        shrink = float(self.eps) * (1 - 1e-9) / distance.clamp_min(torch.finfo(torch.float64).tiny)
        delta = (x.double() - centre) * shrink.view(-1, 1, 1, 1)
        near = (centre + delta).float()
        # Rounding to fp32 may have gone outward: one ulp back in where it did. Other pixels must not move.
        near = torch.where((near.double() - centre).abs() > delta.abs(), torch.nextafter(near, self.centre), near)
        return torch.where(outside, near, x)

    def random(self, seeds: Sequence[int]) -> Float[Tensor, "B 3 H W"]:
        direction = _noise(self.centre, seeds, torch.randn)
        radius = _noise(self.centre[:, :1, :1, :1], [s ^ 1 for s in seeds], torch.rand)
        norm = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        exponent = 1 / self.centre.shape[1:].numel()
        return self.project(self.centre + direction / norm * radius**exponent * float(self.eps))

    @staticmethod
    def direction(gradient: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        # In float64: the squares of a saturated softmax's gradient underflow in fp32.
        norm = gradient.double().flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        direction: Tensor = (gradient / norm.view(-1, 1, 1, 1)).float()
        return direction

    def distance(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B"]:
        distance: Tensor = torch.linalg.vector_norm((x.double() - self.centre.double()).flatten(1), dim=1)
        return distance


def _noise(like: Tensor, seeds: Sequence[int], draw: Callable[..., Tensor]) -> Tensor:
    """Random numbers in the shape of ``like``, each image's from its own seed."""
    if counter.is_used_on(like.device):
        return _HASHED[draw](seeds, like.shape[1:], like.device).to(like.dtype)
    rows = [draw(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(like.device) if rows else torch.empty_like(like)
