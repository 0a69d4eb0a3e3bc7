"""`hierarchical`: the paper's method (Dong et al., CVPR 2026; docs/method.md)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.attacks.base import further_seeds
from hrzs.errors import UsageError
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.depth import ClassMeans, Groups, text_depth, text_edges
from hrzs.models.heads import CosineHead, HyperbolicHead
from hrzs.models.text import TextBank
from hrzs.training.alignment import LevelAlignment, Rows, norm_gap, vicinity
from hrzs.training.methods.base import Loss, Method
from hrzs.training.options import LEVEL_WEIGHTS, TrainOptions, parse_level_weights
from hrzs.training.original import Anchor
from hrzs.training.perturbation import perturb_universally

logger = logging.getLogger(__name__)


#: β starts at this share of the value that gives the hyperbolic logits the spread of the model's own logits. Features
#: move outwards during training, which sharpens the logits by itself; a half did better than 1 (docs/experiments.md).
SPREAD = 0.5


#: At the start, a level's largest margin is at most this share of that of the level below: margins grow with depth.
NARROWER = 0.9

#: The class means of a batch, level by level.
Means: TypeAlias = Sequence[Float[Tensor, "_ D"]]
#: Levels of the tree; None: all of them.
Levels: TypeAlias = Sequence[int] | None


class _Batch(NamedTuple):
    """What the labels of a batch decide for one tree: the rows of the logits, and the groups of the class means.

    ``means`` are the rows of the class means of ``levels``, stacked; ``kept`` says which of the stacked rows are used.
    """

    levels: list[int]
    images: Rows | None
    means: Rows | None
    kept: Int[Tensor, "_"] | slice
    groups: Groups


class _Aligned:
    """One tree of the forest: its texts, and its terms of the loss."""

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions) -> None:
        self.tree, self.mode = tree, options.image_levels
        self.bank = TextBank(model, tree, options.template)
        self.index = self.bank.index
        self.size = len(self.index.nodes)
        self.alignment = LevelAlignment(
            tree, self.index, options.hnsa, model.device, options.level_weights, options.level_balance
        )
        self.means = ClassMeans(tree, model.device)
        self.edges = text_edges(tree, self.index)

    def place(self, head: HyperbolicHead, text: Float[Tensor, "nodes D"]) -> Float[Tensor, "N D"]:
        """The texts of all columns, each at the depth of its level."""
        return head.prepare(text[self.index.owner], self.index.level)

    def batch(self, labels: Int[Tensor, "B"], groups: Groups, levels: Levels) -> _Batch:
        """The `_Batch` of ``labels``: level 0 is aligned per image, the levels above as ``image_levels`` says."""
        align = self.alignment
        wanted = align.levels(None if levels is None else [level for level in levels if level < align.height])
        by_means = [] if self.mode == "per-image" else [level for level in wanted if level > 0]
        by_image = wanted if self.mode != "hypavg" else [level for level in wanted if level == 0]
        images = align.of_images(labels, by_image) if by_image else None
        means = align.of_means(groups.counts, by_means) if by_means else None
        if images is not None and means is not None and self.mode == "mixed":
            halved = torch.where(self.index.level[images.columns] > 0, 0.5, 1.0) * images.weights
            images, means = images._replace(weights=halved), means._replace(weights=means.weights / 2)
        kept: Tensor | slice = slice(None)
        if means is not None and labels.device.type == "cpu":
            # Most nodes have no image in a small batch. To learn which, one would have to wait for an accelerator.
            kept = means.weights.nonzero().squeeze(1)
            means = Rows(means.columns[kept], means.weights[kept])
        return _Batch(by_means, images, means, kept, groups)

    def align(
        self, head: HyperbolicHead, features: Float[Tensor, "B D"], prepared: Float[Tensor, "N D"], batch: _Batch,
        means: Means | None = None,
    ) -> Float[Tensor, ""]:  # fmt: skip
        """``L'`` of a batch at its levels; ``means``: the class means, where they are known already."""
        points, rows = [], []
        if batch.images is not None:
            levels = self.index.level[batch.images.columns]
            points.append(head.embed_image(features.repeat(len(levels) // len(features), 1), levels))
            rows.append(batch.images)
        if batch.means is not None:
            means = self.means(head.embed_image(features), batch.groups, head) if means is None else means
            points.append(torch.cat([means[level] for level in batch.levels])[batch.kept])
            rows.append(batch.means)
        if not rows:
            return features.new_zeros(())
        together = Rows(torch.cat([r.columns for r in rows]), torch.cat([r.weights for r in rows]))
        logits = head.point_logits(torch.cat(points), prepared, self.index.level[together.columns])
        return self.alignment.loss(logits, together)


def _shared(gradient: Float[Tensor, "L"]) -> Float[Tensor, "L"]:
    return gradient.mean().expand_as(gradient)


class Hierarchical(Method):
    """Alignment at every level in the Poincaré ball, against one universal perturbation of images and texts.

    ``L = L' + λ_vic L_vic + λ_gap (L_gap^Label + L_gap^Intra)``, summed over the trees. ``lambda_anchor`` adds
    FARE's loss, which the paper does not have: the squared distance between the features of attacked images and the
    original model's features of the clean ones, divided by the squared norm of the latter.

    ``--depth`` says what lies at the depth of its level from the start: texts and images (``both``), texts alone, with
    every image at the leaves' depth (``text``), or nothing (``none``). ``--image-levels`` says what stands for a
    superclass's image: each of its images (``per-image``), the hyperbolic class means of the batch (``hypavg``, the
    paper's), or the mean of both losses (``mixed``). ``--perturbation`` says what the adversary maximises: ``L'`` over
    all levels at once (``universal``), its leaf term alone (``leaf``), or each level's term by a perturbation of its
    own, on which that level is then trained (``per-level``).
    """

    name = "hierarchical"
    description = "all levels at once in hyperbolic space, one universal perturbation (Dong et al., CVPR 2026)"
    default_tune = "image+projection"
    reads = frozenset({
        "perturbation", "geometry", "level_weights", "level_balance", "image_levels", "hnsa", "no_hnsa", "depth",
        "radius", "radius_text", "beta", "beta_levels", "curvature", "learn_curvature", "head_lr", "lambda_vic",
        "lambda_gap", "lambda_anchor", "zeta_vic", "zeta_gap", "eps_text",
    })  # fmt: skip

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        super().__init__(model, tree, options, more_trees)
        self.forest = [_Aligned(model, t, options) for t in (tree, *more_trees)]
        self.sizes = [aligned.size for aligned in self.forest]
        levels = max(t.tree.height for t in self.forest)
        if options.level_weights not in LEVEL_WEIGHTS and len(parse_level_weights(options.level_weights)) > levels:
            raise UsageError(f"--level-weights {options.level_weights!r}: more than the {levels} levels below the root")
        self.anchor = Anchor(model, options.lambda_anchor, self.over_batch)
        # The levels that each pass attacks, and those that it then trains on.
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
        head = head.to(self.model.device)  # before the hook is set, which a parameter made anew by `to` would lose
        head.requires_grad_(True)
        head.log_curvature.requires_grad_(self.options.learn_curvature)
        if self.options.beta_levels == "tied":  # one gradient for all: their ratios stay
            head.log_beta.register_hook(_shared)  # type: ignore[no-untyped-call]
        self.model.geometry = head

    @torch.no_grad()
    def begin(self, images: Float[Tensor, "b 3 H W"]) -> None:
        """Choose scales, depth factors and β so that training starts where the model is (docs/method.md).

        The mean image and the mean leaf text land at ``radius`` and ``radius_text`` (of the ball's; in flat space at
        these norms). With depth, the levels above fall evenly to 0 at the root: level l at ``(1 - l/L)`` of the leaves'
        radius. ``β_l`` gives the logits of level l `SPREAD` times the spread that the model's own cosine logits have
        there, but no margin above `NARROWER` times that of the level below. A single β for all levels is the leaves'.
        """
        if self.model.geometry is not None:
            return
        o = self.options
        flat = o.geometry == "euclidean"
        deepest = max(self.forest, key=lambda aligned: aligned.tree.height)
        image, text = self.encode_image(images), deepest.bank.features(self.model)
        columns = deepest.index.columns

        def reach(radius: float) -> float:
            return radius if flat else math.atanh(radius) / math.sqrt(o.curvature)

        top = len(columns)
        depth = (1.0,) if o.depth == "none" else tuple(
            reach((1 - level / top) * o.radius_text) / reach(o.radius_text) for level in range(top)
        )  # fmt: skip
        head = HyperbolicHead(
            float(reach(o.radius) / image.norm(dim=1).mean()),
            float(reach(o.radius_text) / text[columns[0]].norm(dim=1).mean()),
            [1.0] * (1 if o.beta_levels == "shared" else top),
            0.0 if flat else o.curvature,
            depth,
            o.depth == "both",
        ).to(text)
        cosine = self.model.head("cosine")
        assert isinstance(cosine, CosineHead)
        prepared, plain = deepest.place(head, text), cosine.prepare(text[deepest.index.owner])
        apart = text_depth(head, deepest.index, deepest.edges, prepared).margin  # at β = 1
        agree, widest, beta = 0.0, math.inf, o.beta or 1.0
        for level in range(len(head.log_beta)):
            own = cosine.logits(image, plain[columns[level]])
            ours = head.logits(image, prepared[columns[level]], level)
            if len(columns[level]) > 1:  # a single node has neither a spread nor a margin: it takes the β below
                spread = (own.std(dim=1).mean() / ours.std(dim=1).mean()).item()
                beta = o.beta or min(SPREAD * spread, widest / apart[level].item())
                widest = NARROWER * beta * apart[level].item()
            head.log_beta[level] = math.log(beta)
            agree = agree or (own.argmax(1) == ours.argmax(1)).float().mean().item()
        logger.info("calibrated: %s; agrees with the cosine head on %.0f%% of %d images",
                    head.values(), 100 * agree, len(image))  # fmt: skip
        self.adopt(head)

    def _head(self) -> HyperbolicHead:
        assert self.model.geometry is not None, "begin() comes first"
        return self.model.geometry

    def _place(self, text: Float[Tensor, "nodes D"]) -> list[Float[Tensor, "_ D"]]:
        """The texts of each tree at their depth, from those of all trees."""
        parts = torch.split(text, self.sizes)
        return [aligned.place(self._head(), part) for aligned, part in zip(self.forest, parts, strict=True)]

    def _align(
        self, features: Float[Tensor, "B D"], prepared: Sequence[Float[Tensor, "_ D"]], batches: Sequence[_Batch],
        means: Sequence[Means] | None = None,
    ) -> Float[Tensor, ""]:  # fmt: skip
        terms = [
            aligned.align(self._head(), features, prepared[i], batches[i], None if means is None else means[i])
            for i, aligned in enumerate(self.forest)
        ]
        return torch.stack(terms).sum()

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o = self.options
        # The texts of all trees are one matrix, so that one perturbation moves them together.
        text = torch.cat([self.text_features(aligned.bank) for aligned in self.forest])
        alignment = torch.zeros((), device=text.device)
        placing = torch.zeros((), device=text.device)
        log: dict[str, Tensor] = {}
        groups = [aligned.means.group(labels, text) for aligned in self.forest]

        def batches(levels: Levels) -> list[_Batch]:
            return [aligned.batch(labels, g, levels) for aligned, g in zip(self.forest, groups, strict=True)]

        for i, (attacked, trained) in enumerate(self.passes):
            attacked_batches = batches(attacked)

            def adversary(
                x: Float[Tensor, "b 3 H W"],
                texts: Float[Tensor, "N D"],
                among: Sequence[_Batch] = attacked_batches,
            ) -> Float[Tensor, ""]:
                return self._align(self.encode_image(x), self._place(texts), among)

            perturbed, delta = perturb_universally(
                self.model, adversary, images, text, further_seeds(seeds, i),
                eps=o.eps, step_size=o.step_size, steps=o.steps, eps_text=o.eps_text, group=self.group,
            )  # fmt: skip
            features = self.encode_image(perturbed)
            prepared = self._place(text + delta)
            among = attacked_batches if trained == attacked else batches(trained)
            points = self._head().embed_image(features)
            means = [a.means(points, g, self._head()) for a, g in zip(self.forest, groups, strict=True)]
            alignment = alignment + self._align(features, prepared, among, means)
            if i == 0:  # the placing terms count once: for the first pass, made against the leaves or all levels
                placing, log = self._placing(points, prepared, labels, means, groups)
                anchor, share = self.anchor(features, images)
                placing, log = placing + anchor, log | share
        log["alignment"] = alignment.detach()
        return Loss(alignment + placing, log)

    def _placing(
        self, points: Float[Tensor, "B D"], prepared: Sequence[Float[Tensor, "_ D"]], labels: Int[Tensor, "B"],
        means: Sequence[Means], groups: Sequence[Groups],
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:  # fmt: skip
        """``λ_vic L_vic + λ_gap (L_gap^Label + L_gap^Intra)``, and where the embeddings lie."""
        o, head = self.options, self._head()
        vic, gap_label, gap_intra = (points.new_zeros(()) for _ in range(3))
        for aligned, texts, averages, g in zip(self.forest, prepared, means, groups, strict=True):
            vic = vic + vicinity(points, texts[aligned.index.columns[0]][labels], o.zeta_vic, head)
            norms, (parents, children) = poincare.norm(texts), aligned.edges
            gap_label = gap_label + norm_gap(norms[children] - norms[parents], o.zeta_gap)
            if g.edges:
                gap_intra = gap_intra + norm_gap(aligned.means.steps_outwards(averages), o.zeta_gap, torch.cat(g.edges))
        total = o.lambda_vic * vic + o.lambda_gap * (gap_label + gap_intra)
        log = {"vic": vic, "gap_label": gap_label, "gap_intra": gap_intra}
        log |= self._where(points, prepared[0], means[0], groups[0])
        return total, {key: value.detach() for key, value in log.items()}

    @torch.no_grad()
    def _where(
        self, points: Float[Tensor, "B D"], texts: Float[Tensor, "N D"], means: Means, groups: Groups
    ) -> dict[str, Tensor]:
        """Where texts, images and class means of the first tree lie, level by level."""
        head, first = self._head(), self.forest[0]
        placed = text_depth(head, first.index, first.edges, texts)
        log = {"radius_image": head.radius(points).mean(), "radius_text": placed.radius[0]}
        log["edges_ordered"] = placed.edges_ordered
        for level, (mean, count) in enumerate(zip(means, groups.counts, strict=True)):
            log[f"radius_text_{level}"] = placed.radius[level]
            log[f"radius_image_{level}"] = (head.radius(mean) * (count > 0)).sum() / (count > 0).sum()
            log[f"margin_{level}"], log[f"bound_{level}"] = placed.margin[level], placed.bound[level]
        log["edges_ordered_image"] = first.means.edges_ordered(means, groups)
        log["cap_share"] = head.space.cap_share(points, head.value("curvature"))
        return log

    def after_step(self) -> dict[str, float]:
        head = self._head()
        several = {"beta": head.value("beta").unbind(), "depth": head.depth.unbind()}
        values = {name: head.value(name) for name in ("scale_image", "scale_text", "curvature")}
        values |= {f"{name}_{level}": value for name, levels in several.items() for level, value in enumerate(levels)}
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
