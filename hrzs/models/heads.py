"""Heads: how image and text features become logits. A head prepares the text once, then scores images against it."""

from __future__ import annotations

from abc import abstractmethod
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hrzs.geometry import euclidean, poincare


class Head(nn.Module):
    """From features before L2 normalisation to logits over any set of prepared texts."""

    name: str

    @abstractmethod
    def prepare(self, text: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What `logits` needs of projected text features; done once, not once per batch."""

    @abstractmethod
    def logits(self, image: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
        """Unnormalised log-probabilities."""


class CosineHead(Head):
    """CLIP's own: cosines times the model's ``logit_scale`` (never a constant), plus SigLIP's bias if it has one."""

    name = "cosine"

    def __init__(self, logit_scale: Float[Tensor, ""], logit_bias: Float[Tensor, ""] | None = None) -> None:
        super().__init__()
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    def prepare(self, text: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return F.normalize(text, dim=-1)

    def logits(self, image: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
        logits = self.logit_scale.exp() * F.normalize(image, dim=-1) @ prepared.T
        return logits if self.logit_bias is None else logits + self.logit_bias


class HyperbolicHead(Head):
    """Negative scaled Poincaré distance between ``φ = exp0(s_img f)`` and ``ψ = exp0(s_txt g)`` (method.md, section 1).

    Its four positive scalars are learnt as logarithms: ``scale_image``, ``scale_text``, ``beta``, ``curvature``
    (the last only when asked for). A curvature of 0 stays 0: flat space, the ablation, and the head is ``euclidean``.
    """

    log_beta: nn.Parameter
    log_curvature: nn.Parameter
    PARAMETERS = ("scale_image", "scale_text", "beta", "curvature")

    def __init__(self, scale_image: float, scale_text: float, beta: float, curvature: float = 1.0) -> None:
        super().__init__()
        self.is_flat = curvature == 0
        values = (scale_image, scale_text, beta, curvature)
        for name, value in zip(self.PARAMETERS, values, strict=True):
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(value).log()))
        self.log_curvature.requires_grad_(False)

    @property
    def name(self) -> str:  # type: ignore[override]  # decided by the curvature, where other heads have a constant
        return "euclidean" if self.is_flat else "hyperbolic"

    @property
    def space(self) -> ModuleType:
        """The functions of its geometry: `hrzs.geometry.poincare` or, of the same names, `hrzs.geometry.euclidean`."""
        return euclidean if self.is_flat else poincare

    def value(self, name: str) -> Float[Tensor, ""]:
        """The positive scalar itself."""
        return cast(Tensor, getattr(self, f"log_{name}")).exp()

    def values(self) -> dict[str, float]:
        """All four, as plain numbers: what a checkpoint's header keeps."""
        return {name: self.value(name).item() for name in self.PARAMETERS}

    def radius(self, points: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        """How far out points lie: the share of the ball's radius, ``√r‖u‖``; in flat space the norm itself."""
        norm = cast(Tensor, self.space.norm(points))
        return norm if self.is_flat else self.value("curvature").sqrt() * norm

    def embed_image(self, image: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``φ``: points of the ball."""
        return cast(Tensor, self.space.expmap0(self.value("scale_image") * image, self.value("curvature")))

    def prepare(self, text: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """``ψ``: points of the ball."""
        return cast(Tensor, self.space.expmap0(self.value("scale_text") * text, self.value("curvature")))

    def point_logits(self, points: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
        """``-β d`` for images that are points of the ball already (class means, for example)."""
        return -self.value("beta") * cast(
            Tensor, self.space.pairwise_distance(points, prepared, self.value("curvature"))
        )

    def logits(self, image: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"]) -> Float[Tensor, "B N"]:
        return self.point_logits(self.embed_image(image), prepared)
