"""Heads: how image and text features become logits. A head prepares the text once, then scores images against it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hrzs.geometry import euclidean, poincare


class Head(nn.Module):
    """From features before L2 normalisation to logits over any set of prepared texts."""

    name: str

    @abstractmethod
    def prepare(self, text: Float[Tensor, "N D"], levels: Int[Tensor, "N"] | None = None) -> Float[Tensor, "N D"]:
        """Projected text features of these levels in the form that `logits` takes; done once, not once per batch."""

    @abstractmethod
    def logits(
        self, image: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], level: int = 0
    ) -> Float[Tensor, "B N"]:
        """Unnormalised log-probabilities of images seen at ``level``."""


class CosineHead(Head):
    """CLIP's own: cosines times the model's ``logit_scale`` (never a constant), plus SigLIP's bias if it has one."""

    name = "cosine"

    def __init__(self, logit_scale: Float[Tensor, ""], logit_bias: Float[Tensor, ""] | None = None) -> None:
        super().__init__()
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    def prepare(
        self,
        text: Float[Tensor, "N D"],
        levels: Int[Tensor, "N"] | None = None,  # noqa: ARG002 -- a cosine knows no depth
    ) -> Float[Tensor, "N D"]:
        return F.normalize(text, dim=-1)

    def logits(
        self,
        image: Float[Tensor, "B D"],
        prepared: Float[Tensor, "N D"],
        level: int = 0,  # noqa: ARG002
    ) -> Float[Tensor, "B N"]:
        logits = self.logit_scale.exp() * F.normalize(image, dim=-1) @ prepared.T
        return logits if self.logit_bias is None else logits + self.logit_bias


class HyperbolicHead(Head):
    """Negative scaled Poincaré distance between ``φ = exp0(s_img f)`` and ``ψ = exp0(s_txt g)`` (docs/method.md).

    Each level l of a tree has a depth factor ``a_l`` (``a_0 = 1``) and an inverse temperature ``β_l``. A text of level
    l is ``ψ^l = exp0(a_l s_txt g)``. An image seen at level l is ``φ^l = exp0(a_l s_img f)``: the point of the geodesic
    from the origin to ``φ`` at that level's depth. The logits of level l are ``-β_l d(φ^l, ψ^l)``. Levels
    beyond the last factor use the last one.

    All of these positive scalars are learnt as logarithms; the curvature only when asked for. A curvature of 0 stays 0:
    it means flat space, for ablations, and the head is called ``euclidean``.

    Args:
        scale_image: ``s_img``.
        scale_text: ``s_txt``.
        beta: ``β_l`` from the leaves upwards, or one for all levels.
        curvature: r ≥ 0.
        depth: ``a_l`` from the leaves upwards; the first is 1.
        image_depth: whether images, too, are placed at the depth of the level; if not, they stay at the leaves'.
    """

    log_beta: nn.Parameter
    log_depth: nn.Parameter
    log_curvature: nn.Parameter

    def __init__(
        self,
        scale_image: float,
        scale_text: float,
        beta: float | Sequence[float],
        curvature: float = 1.0,
        depth: Sequence[float] = (1.0,),
        image_depth: bool = True,
    ) -> None:
        super().__init__()
        self.is_flat = curvature == 0
        self.image_depth = image_depth
        betas = [beta] if isinstance(beta, (int, float)) else list(beta)
        if list(depth[:1]) != [1]:
            first = depth[0] if depth else None
            raise ValueError(f"the leaves' depth factor is {first}: it must be 1, since the scales set their radius")
        for name, value in (
            ("scale_image", scale_image), ("scale_text", scale_text), ("beta", betas), ("curvature", curvature),
            ("depth", list(depth[1:])),
        ):  # fmt: skip
            numbers = value if isinstance(value, list) else [value]
            if not (all(0 < number < math.inf for number in numbers) or (name == "curvature" and self.is_flat)):
                raise ValueError(f"{name} of the head is {value}: it must be more than 0, and finite")
            # In float64, here and in `values`: near 1 a value in float32 is coarser than its logarithm, and a loaded
            # model must equal the saved one.
            logarithm = torch.tensor(value, dtype=torch.float64).log().to(torch.get_default_dtype())
            self.register_parameter(f"log_{name}", nn.Parameter(logarithm))
        self.log_curvature.requires_grad_(False)

    @property
    def name(self) -> str:  # type: ignore[override]  # decided by the curvature, where other heads have a constant
        return "euclidean" if self.is_flat else "hyperbolic"

    @property
    def space(self) -> ModuleType:
        """The functions of its geometry: `hrzs.geometry.poincare` or, by the same names, `hrzs.geometry.euclidean`."""
        return euclidean if self.is_flat else poincare

    def value(self, name: str) -> Float[Tensor, "..."]:
        """The positive value itself: a 0-d tensor for scales and curvature, one entry a level for ``beta``."""
        return cast(Tensor, getattr(self, f"log_{name}")).exp()

    @property
    def depth(self) -> Float[Tensor, "levels"]:
        """``a_l``, the leaves' 1 first."""
        return torch.cat([self.log_depth.new_ones(1), self.value("depth")])

    def beta(self, level: int | Int[Tensor, "B"]) -> Float[Tensor, "..."]:
        """``β_l`` of one level, or of each row's level."""
        return self.value("beta")[_up_to(level, len(self.log_beta) - 1)]

    def image_factor(self, level: int | Int[Tensor, "B"]) -> Float[Tensor, "..."]:
        """The depth factor of images seen at ``level``, or at each row's level."""
        return self.depth[_up_to(level, len(self.log_depth) if self.image_depth else 0)]

    def values(self) -> dict[str, Any]:
        """The constructor's arguments, as plain values: what a checkpoint's header keeps."""
        exact = {name: getattr(self, f"log_{name}").detach().cpu().double().exp().tolist()
                 for name in ("scale_image", "scale_text", "beta", "curvature", "depth")}  # fmt: skip
        return {**exact, "depth": [1.0, *exact["depth"]], "image_depth": self.image_depth}

    def radius(self, points: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        """How far out points lie: the share of the ball's radius, ``√r‖u‖``; in flat space the norm itself."""
        norm = cast(Tensor, self.space.norm(points))
        return norm if self.is_flat else self.value("curvature").sqrt() * norm

    def embed_image(self, image: Float[Tensor, "B D"], level: int | Int[Tensor, "B"] = 0) -> Float[Tensor, "B D"]:
        """``φ^l``: images as points of the ball, all at one level or each at its own."""
        scale = self.image_factor(level) * self.value("scale_image")
        return cast(Tensor, self.space.expmap0(_by_row(scale) * image, self.value("curvature")))

    def prepare(self, text: Float[Tensor, "N D"], levels: Int[Tensor, "N"] | None = None) -> Float[Tensor, "N D"]:
        """``ψ``: texts as points of the ball, each at the depth of its level (by default the leaves')."""
        scaled = self.value("scale_text") * text
        if levels is not None:
            scaled = _by_row(self.depth[_up_to(levels, len(self.log_depth))]) * scaled
        return cast(Tensor, self.space.expmap0(scaled, self.value("curvature")))

    def point_logits(
        self, points: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], level: int | Int[Tensor, "B"] = 0
    ) -> Float[Tensor, "B N"]:
        """``-β_l d`` for images that are points of the ball already (class means, for example)."""
        distance = cast(Tensor, self.space.pairwise_distance(points, prepared, self.value("curvature")))
        return -_by_row(self.beta(level)) * distance

    def logits(
        self, image: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], level: int = 0
    ) -> Float[Tensor, "B N"]:
        return self.point_logits(self.embed_image(image, level), prepared, level)


def _up_to(level: int | Int[Tensor, "B"], last: int) -> int | Int[Tensor, "B"]:
    """``level``, or ``last`` for levels beyond it."""
    return level.clamp_max(last) if isinstance(level, Tensor) else min(level, last)


def _by_row(value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return value.unsqueeze(1) if value.ndim else value
