"""`hierarchical`: the paper's method (Dong et al., CVPR 2026; method.md, sections 1 to 4)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import CosineHead, HyperbolicHead
from hrzs.models.text import TextBank
from hrzs.training.alignment import ClassMeans, LevelAlignment, norm_gap, text_edges, vicinity
from hrzs.training.methods.base import Loss, Method
from hrzs.training.options import TrainOptions
from hrzs.training.perturbation import perturb_universally

logger = logging.getLogger(__name__)


#: β starts at this share of what would give the hyperbolic logits the spread of the model's own. Features move outwards
#: during training, which sharpens the logits by itself; half was better than all of it (docs/results.md).
SPREAD = 0.5


class _Parts(NamedTuple):
    """``L'`` and what was computed on the way to it."""

    alignment: Float[Tensor, ""]
    points: Float[Tensor, "B D"]
    means: ClassMeans | None


class Hierarchical(Method):
    """Alignment at every level in the Poincaré ball, against one universal perturbation of images and texts.

    ``L = L' + λ_vic L_vic + λ_gap (L_gap^Label + L_gap^Intra)``. ``--image-levels`` says what stands for a superclass's
    image: every image itself (``per-image``), the hyperbolic class means of the batch (``hypavg``, the paper's), or
    the mean of both losses (``mixed``).
    """

    name = "hierarchical"
    description = "all levels at once in hyperbolic space, one universal perturbation (Dong et al., CVPR 2026)"
    default_tune = "image+projection"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions) -> None:
        super().__init__(model, tree, options)
        self.bank = TextBank(model, tree, options.template)
        index = self.bank.index
        self.alignment = LevelAlignment(tree, index, options.hnsa, model.device)
        self.leaves = index.columns[0].to(model.device)
        self.text_edges = tuple(e.to(model.device) for e in text_edges(tree, index))
        self.class_means = options.image_levels != "per-image" or options.lambda_gap > 0
        if model.geometry is not None:
            self._adopt(model.geometry)

    def _adopt(self, head: HyperbolicHead) -> None:
        head.requires_grad_(True)
        head.log_curvature.requires_grad_(self.options.learn_curvature)
        self.model.geometry = head.to(self.model.device)

    @torch.no_grad()
    def begin(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Choose scales and β so that training starts where the model is (method.md, pilot figures).

        The mean image and the mean leaf text land at ``radius`` and ``radius_text`` (of the ball's); β gives the
        hyperbolic leaf logits `SPREAD` times the spread that the model's own cosine logits have.
        """
        if self.model.geometry is not None:
            return
        o = self.options
        image = self.model.encode_image(images)
        text = self.bank.features(self.model)[self.leaves]
        root = math.sqrt(o.curvature)
        scale_image = math.atanh(o.radius) / (root * image.norm(dim=1).mean().item())
        scale_text = math.atanh(o.radius_text) / (root * text.norm(dim=1).mean().item())
        head = HyperbolicHead(scale_image, scale_text, 1.0, o.curvature).to(self.model.device)
        cosine = self.model.head("cosine")
        assert isinstance(cosine, CosineHead)
        own = cosine.logits(image, cosine.prepare(text))
        hyperbolic = head.logits(image, head.prepare(text))
        beta = o.beta or (SPREAD * own.std(dim=1).mean() / hyperbolic.std(dim=1).mean()).item()
        head.log_beta.fill_(math.log(beta))
        agree = (own.argmax(1) == hyperbolic.argmax(1)).float().mean().item()
        logger.info("calibrated: %s; agrees with the cosine head on %.0f%% of %d images",
                    {k: f"{v:.4g}" for k, v in head.values().items()}, 100 * agree, len(images))  # fmt: skip
        self._adopt(head)

    def _head(self) -> HyperbolicHead:
        assert self.model.geometry is not None, "begin() comes first"
        return self.model.geometry

    def _parts(
        self, features: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], labels: Int[Tensor, "B"], means: bool
    ) -> _Parts:
        """``L'`` of a batch: level 0 per image, the levels above as ``image_levels`` says."""
        head, align, mode = self._head(), self.alignment, self.options.image_levels
        points = head.embed_image(features)
        logits = head.point_logits(points, prepared)
        averages = ClassMeans(self.tree, points, labels, head.value("curvature")) if means else None
        if mode == "per-image":
            return _Parts(align.per_image(logits, labels), points, averages)
        assert averages is not None
        total = align.weights[0] * align.cross_entropy(logits, labels, 0).mean()
        for level in range(1, align.top):
            of_means = head.point_logits(averages.points[level], prepared)
            term = align.cross_entropy(of_means, averages.nodes[level], level).mean()
            if mode == "mixed":
                of_images = align.cross_entropy(logits, align.ancestors[level][labels], level).mean()
                term = (term + of_images) / 2
            total = total + align.weights[level] * term
        return _Parts(total, points, averages)

    def loss(self, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o, head = self.options, self._head()
        text = self.text_features(self.bank)

        def alignment(features: Float[Tensor, "B D"], texts: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
            return self._parts(features, head.prepare(texts), labels, o.image_levels != "per-image").alignment

        images, delta = perturb_universally(
            self.model, alignment, images, text, seeds,
            eps=o.eps, step_size=o.step_size, steps=o.steps, eps_text=o.eps_text,
        )  # fmt: skip
        prepared = head.prepare(text + delta)
        parts = self._parts(self.model.encode_image(images), prepared, labels, self.class_means)
        curvature = head.value("curvature")
        vic = vicinity(parts.points, prepared[self.leaves][labels], o.zeta_vic, curvature)
        gap_label = norm_gap(prepared[self.text_edges[0]], prepared[self.text_edges[1]], o.zeta_gap)
        gap_intra = self._gap_intra(parts.means, gap_label)
        total = parts.alignment + o.lambda_vic * vic + o.lambda_gap * (gap_label + gap_intra)
        radius = curvature.sqrt() * parts.points.detach().norm(dim=1)
        log = {
            "alignment": parts.alignment,
            "vic": vic,
            "gap_label": gap_label,
            "gap_intra": gap_intra,
            "radius_image": radius.mean(),
            "radius_text": curvature.sqrt() * prepared[self.leaves].norm(dim=1).mean(),
            "cap_share": poincare.cap_share(parts.points, curvature),
        }
        return Loss(total, {key: value.detach() for key, value in log.items()})

    def _gap_intra(self, means: ClassMeans | None, like: Tensor) -> Float[Tensor, ""]:
        if means is None or not means.edges:
            return like.new_zeros(())
        parents = torch.cat([means.points[i + 1][p] for i, (p, _) in enumerate(means.edges)])
        children = torch.cat([means.points[i][c] for i, (_, c) in enumerate(means.edges)])
        return norm_gap(parents, children, self.options.zeta_gap)

    def after_step(self) -> dict[str, float]:
        return self._head().values()
