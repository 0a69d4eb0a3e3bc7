"""The model as it was before training, to which several methods hold the tuned model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hrzs.models.clip import ClipModel
from hrzs.models.exact import at_least_fp32


def squared_distance(features: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """``‖f - f'‖²``: summed over the dimensions, the mean over the batch."""
    return (features - target).square().sum(dim=1).mean()


class Original:
    """A frozen copy of ``model``'s image encoder; no module of the model, so no checkpoint has it.

    It is made in a method's ``__init__``, where the model, even of a resumed run, has the initial weights.
    """

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.visual: nn.Module = copy.deepcopy(cast(Any, model.clip).visual).requires_grad_(False)

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """``f_orig(x)``, computed as in `ClipModel.encode_image`."""
        with self.model.autocast():
            features = self.visual(self.model.preprocess(images))
        features = features[0] if isinstance(features, tuple) else features  # CoCa's, with its tokens
        return at_least_fp32(cast(Tensor, features))


class Anchor:
    """``λ ‖f(x̂) - f_orig(x)‖² / ‖f_orig(x)‖²``, means over the batch: FARE's loss as a term beside another.

    It is a ratio, so that λ means the same for models whose features differ in length. With λ = 0 it costs nothing.

    Args:
        over_batch: `hrzs.training.methods.base.Method.over_batch`.
    """

    def __init__(self, model: ClipModel, weight: float, over_batch: Callable[..., Tensor]) -> None:
        self.weight, self.over_batch = weight, over_batch
        self.original = Original(model) if weight > 0 else None

    def __call__(
        self, features: Float[Tensor, "B D"], images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The term, and the ratio for the log.

        Args:
            features: of the attacked images of the whole batch.
            images: this process's clean ones.
        """
        if self.original is None:
            return features.new_zeros(()), {}
        target = self.over_batch(self.original.encode_image, images)
        share = squared_distance(features, target) / target.square().sum(dim=1).mean()
        return self.weight * share, {"anchor": share.detach()}
