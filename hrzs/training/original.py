"""The model as training found it: what several methods hold the tuned one to."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hrzs.models.clip import ClipModel


class Original:
    """A frozen copy of ``model``'s image encoder; no module of the model, so no checkpoint has it.

    Made in a method's ``__init__``: there the model is still what the run starts from, a resumed one too.
    """

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.visual: nn.Module = copy.deepcopy(cast(Any, model.clip).visual).requires_grad_(False)

    @torch.no_grad()
    def encode_image(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """``f_orig(x)``, as `ClipModel.encode_image` has it."""
        with self.model.autocast():
            features = self.visual(self.model.preprocess(images))
        features = features[0] if isinstance(features, tuple) else features  # CoCa's, with its tokens
        return cast(Tensor, features).float()
