"""`tga-zsr`: TeCoA, with the text's attention to the image held to the original model's (Yu et al., NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.exact import at_least_fp32
from hrzs.training.methods.base import Loss
from hrzs.training.methods.cross_entropy import Clean, TeCoA
from hrzs.training.options import TrainOptions
from hrzs.training.original import Original


class TGAZSR(TeCoA):
    """``CE(x̂) + tga_refinement ‖A(x̂) - A_orig(x)‖ + tga_constraint ‖A(x) - A_orig(x)‖``, adversary of TeCoA.

    ``A`` is the attention of the true class's text to the image (`attention`). Norms are over the whole map, and
    averaged over the batch. At 224 pixels, as in the paper, the weights mean the same as there.

    Raises:
        UsageError: the image encoder is no open_clip ViT without attention pooling, whose patch tokens match texts.
    """

    name = "tga-zsr"
    reads = Clean.reads | {"tga_refinement", "tga_constraint"}
    description = "TeCoA + text-guided attention maps held to the original's (Yu et al., NeurIPS 2024); ViTs only"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions, more_trees: Sequence[Tree] = ()) -> None:
        visual = cast(Any, model.clip).visual
        if not isinstance(visual, VisionTransformer) or cast(Any, visual).attn_pool is not None:
            raise UsageError(
                "--method tga-zsr: compares texts with patch tokens, which only an open_clip ViT without attention "
                f"pooling has in the space of its texts; {model.info.arch} has a {type(visual).__name__}: "
                "take a --model such as ViT-B-32, or --method pmg-aft"
            )
        super().__init__(model, tree, options, more_trees)
        self.original = Original(model)
        self.original_texts = self.head.prepare(self.bank.features(model, normalise=True))[self.leaves].detach()

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:
        return super().encodings(options, levels) + 1 + 1 / 3

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        o, prepared = self.options, self.texts()
        perturbed = self.adversary(images, labels, prepared.detach(), seeds)
        own = labels[self.group.part(len(labels))]
        text, original = prepared[self.leaves][own], self.original_texts[own]
        found = self.over_batch(self._compare, images, self.noisy(images), self.noisy(perturbed), text, original)
        features, refinement, constraint = found.tensor_split([-2, -1], dim=1)
        ce = self.cross_entropy(features, prepared, labels)
        log = {"ce": ce, "refinement": refinement.mean(), "constraint": constraint.mean()}
        total = ce + o.tga_refinement * log["refinement"] + o.tga_constraint * log["constraint"]
        return Loss(total, {name: value.detach() for name, value in log.items()})

    def _compare(
        self,
        images: Float[Tensor, "b 3 H W"],
        noisy: Float[Tensor, "b 3 H W"],
        perturbed: Float[Tensor, "b 3 H W"],
        text: Float[Tensor, "b D"],
        original: Float[Tensor, "b D"],
    ) -> Float[Tensor, "b D_and_2"]:
        """For each image ``f(x̂)``, ``‖A(x̂) - A_orig(x)‖`` and ``‖A(x) - A_orig(x)‖``, in this order.

        Args:
            noisy: what the model under training sees of ``images``: themselves, or with noise (``--noise``).
        """
        visual = cast(Any, self.model.clip).visual
        with torch.no_grad():
            _, target = self.attend(self.original.visual, images, original)
        _, clean = self.attend(visual, noisy, text)
        features, adversarial = self.attend(visual, perturbed, text)
        return torch.cat([features, _distances(adversarial, target), _distances(clean, target)], dim=1)

    def attend(
        self, visual: nn.Module, images: Float[Tensor, "B 3 H W"], text: Float[Tensor, "B D"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B S S"]]:
        """``f(x)``, and the attention of each image's text to it, at the resolution of the model's input."""
        encoder = cast(Any, visual)
        with self.model.autocast():
            out = encoder.forward_intermediates(
                self.model.preprocess(images), indices=1, normalize_intermediates=True, output_fmt="NLC"
            )
            tokens = out["image_intermediates"][0] @ encoder.proj
        maps = attention(at_least_fp32(tokens), text).view(len(images), 1, *encoder.grid_size)
        maps = F.interpolate(maps, size=self.model.image_size, mode="bilinear")[:, 0]
        return at_least_fp32(out["image_features"]), maps


def attention(tokens: Float[Tensor, "B P D"], text: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
    """Cosines of each image's patch tokens and its text (of unit length), stretched to [0, 1] within each image."""
    cosines = torch.einsum("bpd,bd->bp", F.normalize(tokens, dim=-1), text)
    low, high = cosines.amin(dim=1, keepdim=True), cosines.amax(dim=1, keepdim=True)
    # A flat map stays flat: differences at the resolution of the dtype are not stretched, nor their gradients.
    return (cosines - low) / (high - low).clamp_min(torch.finfo(cosines.dtype).eps ** 0.5)


def _distances(first: Float[Tensor, "B S S"], second: Float[Tensor, "B S S"]) -> Float[Tensor, "B 1"]:
    distances: Tensor = torch.linalg.vector_norm(first - second, dim=(1, 2))
    return distances[:, None]
