"""`hierarchical`: the paper's method (Dong et al., CVPR 2026; method.md, sections 1 to 4 and 6)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.attacks.base import further_seeds
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import CosineHead, HyperbolicHead
from hrzs.models.text import TextBank
from hrzs.training.alignment import ClassMeans, LevelAlignment, norm_gap, text_edges, vicinity
from hrzs.training.methods.base import Loss, Method
from hrzs.training.options import LEVEL_WEIGHTS, TrainOptions, parse_level_weights
from hrzs.training.original import Anchor
from hrzs.training.perturbation import perturb_universally

logger = logging.getLogger(__name__)


#: β starts at this share of what would give the hyperbolic logits the spread of the model's own. Features move outwards
#: during training, which sharpens the logits by itself; half was better than all of it (docs/experiments.md).
SPREAD = 0.5


#: Which levels of the tree: these, or all.
Levels: TypeAlias = Sequence[int] | None


class _Aligned:
    """One tree of the forest: its texts, and its terms of the loss."""

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions) -> None:
        self.tree, self.options = tree, options
        self.bank = TextBank(model, tree, options.template)
        index = self.bank.index
        self.size = len(index.nodes)
        self.alignment = LevelAlignment(tree, index, options.hnsa, model.device, options.level_weights)
        self.columns = [c.to(model.device) for c in index.columns]
        self.edges = tuple(e.to(model.device) for e in text_edges(tree, index))

    def align(
        self, head: HyperbolicHead, points: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"],
        labels: Int[Tensor, "B"], levels: Levels, means: ClassMeans | None,
    ) -> Float[Tensor, ""]:  # fmt: skip
        """``L'`` of a batch at ``levels``: level 0 per image, the levels above as ``image_levels`` says."""
        align, mode = self.alignment, self.options.image_levels
        logits = head.point_logits(points, prepared)

        def term(level: int) -> Float[Tensor, ""]:
            if level == 0 or mode == "per-image":
                return align.per_image(logits, labels, level)
            assert means is not None
            of_means = head.point_logits(means.points[level], prepared)
            averaged = align.cross_entropy(of_means, means.nodes[level], level).mean()
            if mode == "hypavg":
                return averaged
            return (averaged + align.per_image(logits, labels, level)) / 2

        return align.total(term, None if levels is None else [level for level in levels if level < align.top])


class Hierarchical(Method):
    """Alignment at every level in the Poincaré ball, against one universal perturbation of images and texts.

    ``L = L' + λ_vic L_vic + λ_gap (L_gap^Label + L_gap^Intra)``, summed over the trees. ``λ_anchor`` adds the distance
    of attacked images' features from the original's on clean ones, as a share of the latter's square: FARE's loss,
    which the paper does not have.

    ``--image-levels`` says what stands for a superclass's image: every image itself (``per-image``), the hyperbolic
    class means of the batch (``hypavg``, the paper's), or the mean of both losses (``mixed``). ``--perturbation`` says
    what the adversary maximises: ``L'`` over all levels at once (``universal``), its leaf term alone (``leaf``), or
    each level's term by a perturbation of its own, on which that level is then trained (``per-level``; section 3).
    """

    name = "hierarchical"
    description = "all levels at once in hyperbolic space, one universal perturbation (Dong et al., CVPR 2026)"
    default_tune = "image+projection"
    reads = frozenset({
        "perturbation", "geometry", "level_weights", "image_levels", "hnsa", "no_hnsa", "radius", "radius_text", "beta",
        "curvature", "learn_curvature", "lambda_vic", "lambda_gap", "lambda_anchor", "zeta_vic", "zeta_gap", "eps_text",
    })  # fmt: skip

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        self.forest = [_Aligned(model, t, options) for t in (tree, *more_trees)]
        self.sizes = [aligned.size for aligned in self.forest]
        levels = max(t.tree.top for t in self.forest)
        if options.level_weights not in LEVEL_WEIGHTS and len(parse_level_weights(options.level_weights)) > levels:
            raise UsageError(f"--level-weights {options.level_weights!r}: more than the {levels} levels below the root")
        self.anchor = Anchor(model, options.lambda_anchor)
        # What each pass attacks, and what it then trains on.
        self.passes: list[tuple[Levels, Levels]] = [(None, None)]
        if options.perturbation == "leaf":
            self.passes = [((0,), None)]
        if options.perturbation == "per-level":
            self.passes = [((level,), (level,)) for level in range(levels)]
        if model.geometry is not None:
            if model.geometry.is_flat != (options.geometry == "euclidean"):
                raise UsageError(
                    f"--geometry {options.geometry}: {model.info.source} has a {model.geometry.name} head already; "
                    f"go on with --geometry {model.geometry.name}"
                )
            self.adopt(model.geometry)

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:
        passes = levels if options.perturbation == "per-level" else 1
        return super().encodings(options, levels) * passes + (options.lambda_anchor > 0) / 3

    def adopt(self, head: HyperbolicHead) -> None:
        head.requires_grad_(True)
        head.log_curvature.requires_grad_(self.options.learn_curvature)
        self.model.geometry = head.to(self.model.device)

    @torch.no_grad()
    def begin(self, images: Float[Tensor, "B 3 H W"]) -> None:
        """Choose scales and β so that training starts where the model is (method.md, pilot figures).

        The mean image and the mean leaf text land at ``radius`` and ``radius_text`` (of the ball's; in flat space at
        these norms); β gives the leaf logits `SPREAD` times the spread that the model's own cosine logits have.
        """
        if self.model.geometry is not None:
            return
        o, first = self.options, self.forest[0]
        image = self.model.encode_image(images)
        text = first.bank.features(self.model)[first.columns[0]]
        flat = o.geometry == "euclidean"

        def scale(features: Float[Tensor, "M D"], radius: float) -> float:
            reach = radius if flat else math.atanh(radius) / math.sqrt(o.curvature)
            return float(reach / features.norm(dim=1).mean())

        scales = scale(image, o.radius), scale(text, o.radius_text)
        head = HyperbolicHead(*scales, 1.0, 0.0 if flat else o.curvature).to(self.model.device)
        cosine = self.model.head("cosine")
        assert isinstance(cosine, CosineHead)
        own = cosine.logits(image, cosine.prepare(text))
        ours = head.logits(image, head.prepare(text))
        beta = o.beta or (SPREAD * own.std(dim=1).mean() / ours.std(dim=1).mean()).item()
        head.log_beta.fill_(math.log(beta))
        agree = (own.argmax(1) == ours.argmax(1)).float().mean().item()
        logger.info("calibrated: %s; agrees with the cosine head on %.0f%% of %d images",
                    {k: f"{v:.4g}" for k, v in head.values().items()}, 100 * agree, len(images))  # fmt: skip
        self.adopt(head)

    def _head(self) -> HyperbolicHead:
        assert self.model.geometry is not None, "begin() comes first"
        return self.model.geometry

    def _means(self, points: Float[Tensor, "B D"], labels: Int[Tensor, "B"], wanted: bool) -> list[ClassMeans | None]:
        head = self._head()
        return [ClassMeans(t.tree, points, labels, head) if wanted else None for t in self.forest]

    def _align(
        self, points: Float[Tensor, "B D"], prepared: Sequence[Float[Tensor, "_ D"]], labels: Int[Tensor, "B"],
        levels: Levels, means: Sequence[ClassMeans | None],
    ) -> Float[Tensor, ""]:  # fmt: skip
        terms = [
            aligned.align(self._head(), points, texts, labels, levels, averages)
            for aligned, texts, averages in zip(self.forest, prepared, means, strict=True)
        ]
        return torch.stack(terms).sum()

    def loss(self, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o, head = self.options, self._head()
        averaged = o.image_levels != "per-image"
        # The texts of all trees are one matrix, so that one perturbation moves them together.
        text = torch.cat([self.text_features(aligned.bank) for aligned in self.forest])
        alignment = torch.zeros((), device=text.device)
        placing = torch.zeros((), device=text.device)
        log: dict[str, Tensor] = {}
        for i, (attacked, trained) in enumerate(self.passes):

            def adversary(
                features: Float[Tensor, "B D"], texts: Float[Tensor, "N D"], levels: Levels = attacked
            ) -> Float[Tensor, ""]:
                points = head.embed_image(features)
                prepared = torch.split(head.prepare(texts), self.sizes)
                return self._align(points, prepared, labels, levels, self._means(points, labels, averaged))

            perturbed, delta = perturb_universally(
                self.model, adversary, images, text, further_seeds(seeds, i),
                eps=o.eps, step_size=o.step_size, steps=o.steps, eps_text=o.eps_text,
            )  # fmt: skip
            features = self.model.encode_image(perturbed)
            points = head.embed_image(features)
            prepared = torch.split(head.prepare(text + delta), self.sizes)
            means = self._means(points, labels, averaged or (i == 0 and o.lambda_gap > 0))
            alignment = alignment + self._align(points, prepared, labels, trained, means)
            if i == 0:  # embeddings are placed at their depth once, on what was made against the leaves or against all
                placing, log = self._placing(points, prepared, labels, means)
                anchor, share = self.anchor(features, images)
                placing, log = placing + anchor, log | share
        log["alignment"] = alignment.detach()
        return Loss(alignment + placing, log)

    def _placing(
        self, points: Float[Tensor, "B D"], prepared: Sequence[Float[Tensor, "_ D"]], labels: Int[Tensor, "B"],
        means: Sequence[ClassMeans | None],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:  # fmt: skip
        """``λ_vic L_vic + λ_gap (L_gap^Label + L_gap^Intra)`` (section 4), and where the embeddings lie."""
        o, head = self.options, self._head()
        nothing = points.new_zeros(())
        vic, gap_label, gap_intra = nothing, nothing, nothing
        for aligned, texts, averages in zip(self.forest, prepared, means, strict=True):
            vic = vic + vicinity(points, texts[aligned.columns[0]][labels], o.zeta_vic, head)
            gap_label = gap_label + norm_gap(texts[aligned.edges[0]], texts[aligned.edges[1]], o.zeta_gap)
            gap_intra = gap_intra + _gap_intra(averages, nothing, o.zeta_gap)
        with torch.no_grad():
            first = self.forest[0]
            radii = head.radius(prepared[0])
            radius = head.radius(points)
            log = {"vic": vic, "gap_label": gap_label, "gap_intra": gap_intra, "radius_image": radius.mean()}
            log["radius_text"] = radii[first.columns[0]].mean()
            log |= {f"radius_text_{level}": radii[c].mean() for level, c in enumerate(first.columns)}
            if means[0] is not None:
                log |= {f"radius_image_{k}": head.radius(p).mean() for k, p in enumerate(means[0].points)}
            log["cap_share"] = head.space.cap_share(points, head.value("curvature"))
        total = o.lambda_vic * vic + o.lambda_gap * (gap_label + gap_intra)
        return total, {key: value.detach() for key, value in log.items()}

    def after_step(self) -> dict[str, float]:
        return self._head().values()


def _gap_intra(means: ClassMeans | None, nothing: Float[Tensor, ""], margin: float) -> Float[Tensor, ""]:
    if means is None or not means.edges:
        return nothing
    parents = torch.cat([means.points[i + 1][p] for i, (p, _) in enumerate(means.edges)])
    children = torch.cat([means.points[i][c] for i, (_, c) in enumerate(means.edges)])
    return norm_gap(parents, children, margin)
