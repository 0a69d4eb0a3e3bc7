"""The contract of every fine-tuning method: what is trained, and the loss of one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.text import TextBank
from hrzs.training.options import TrainOptions


class Loss(NamedTuple):
    """The scalar to be minimised, and plain numbers for the log."""

    total: Float[Tensor, ""]
    log: dict[str, Tensor]


class Method(ABC):
    """One way to fine-tune. A new method is one file and one line in `hrzs.training.methods`.

    Args:
        model: changed in place.
        tree: the class tree of the training data, in the data's class order.
        options: those of the run.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    #: What is trained unless ``--tune`` says otherwise.
    default_tune: ClassVar[str] = "image"

    def __init__(self, model: ClipModel, tree: Tree, options: TrainOptions) -> None:
        self.model = model
        self.tree = tree
        self.options = options
        self.tune = options.tune or self.default_tune
        for p in model.parameters():
            p.requires_grad_(False)
        for p in self._tuned():
            p.requires_grad_(True)

    def _tuned(self) -> Sequence[nn.Parameter]:
        clip = cast(Any, self.model.clip)
        if self.tune == "all":
            return list(clip.parameters())
        image = list(clip.visual.parameters())
        return image + (self.model.text_projection_parameters() if self.tune == "image+projection" else [])

    def text_features(self, bank: TextBank, *, normalise: bool = False) -> Float[Tensor, "N D"]:
        """``g(t)`` of every node; the text transformer runs again only where it is trained (``--tune all``)."""
        if self.tune != "all":
            return bank.features(self.model, normalise=normalise)
        with self.model.autocast():
            return bank.prompts.gather(self.model.encode_text(bank.prompts.texts), normalise=normalise)

    def begin(self, images: Float[Tensor, "B 3 H W"]) -> None:  # noqa: B027 -- most methods need no calibration
        """Called once, before the first step of a new run, with a batch of clean images."""

    @abstractmethod
    def loss(self, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        """The loss of one batch; ``seeds`` are per image, for random starts."""

    def after_step(self) -> dict[str, float]:
        """What the state of the method says after an optimiser step (scales, share at the boundary)."""
        return {}
