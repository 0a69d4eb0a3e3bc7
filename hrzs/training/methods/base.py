"""The contract of every fine-tuning method: what is trained, and the loss of one batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hrzs.distributed import ALONE, Group
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.text import TextBank
from hrzs.training.options import TrainOptions


class Loss(NamedTuple):
    """The scalar to be minimised, and plain numbers for the log."""

    total: Float[Tensor, ""]
    log: dict[str, Tensor]


def _within(name: str, prefix: str) -> bool:
    """Is the parameter ``name`` the part ``prefix`` or inside it? ``resblocks.10`` is not inside ``resblocks.1``."""
    return name == prefix or name.startswith(prefix + ".")


class Method(ABC):
    """One way to fine-tune. A new method is one file and one line in `hrzs.training.methods`.

    A batch may be divided among several processes, and each share into parts (``--accumulate``). `encode_image` and
    `over_batch` return the features of the whole batch, so that a method computes its loss as for one batch.

    Args:
        model: changed in place.
        tree: the class tree of the training data, in the data's class order.
        options: those of the run.
        more_trees: further trees over the same classes (a forest); ``hierarchical`` alone uses them.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    #: What is trained unless ``--tune`` says otherwise.
    default_tune: ClassVar[str] = "image"
    #: The options that this method reads and others do not.
    reads: ClassVar[frozenset[str]] = frozenset()
    #: The processes that share each batch; the trainer sets it.
    group: Group = ALONE
    #: What the encoder under training sees on top of this process's images (``--noise``); the trainer sets it anew
    #: for each step.
    noise: Float[Tensor, "b 3 H W"] | None = None

    def __init__(
        self,
        model: ClipModel,
        tree: Tree,
        options: TrainOptions,
        more_trees: Sequence[Tree] = (),  # noqa: ARG002 -- for ``hierarchical``
    ) -> None:
        self.model = model
        self.tree = tree
        self.options = options
        self.tune = options.tune or self.default_tune
        for p in model.parameters():
            p.requires_grad_(False)
        for p in self._tuned():
            p.requires_grad_(True)

    @classmethod
    def encodings(cls, options: TrainOptions, levels: int) -> float:  # noqa: ARG003 -- for those with passes per level
        """The cost of a training step, in forward-backward passes of its batch through the image encoder.

        ``--dry-run`` uses it. A forward pass alone counts a third. By default: one per attack step, one to train.
        """
        return 1.0 + options.steps

    def _tuned(self) -> Sequence[nn.Parameter]:
        clip = cast(Any, self.model.clip)
        if self.tune == "all":
            frozen = set(clip.visual.parameters()) - set(self._unfrozen(clip.visual))
            return [p for p in clip.parameters() if p not in frozen]
        image = self._unfrozen(clip.visual)
        return image + (self.model.text_projection_parameters() if self.tune == "image+projection" else [])

    def _unfrozen(self, visual: nn.Module) -> list[nn.Parameter]:
        """The image encoder's parameters but those that ``--freeze`` names."""
        prefixes = tuple(part.strip() for part in self.options.freeze.split(",") if part.strip())
        named = dict(visual.named_parameters())
        for prefix in prefixes:
            if not any(_within(name, prefix) for name in named):
                parts = sorted({name.split(".")[0] for name in named})
                raise UsageError(
                    f"--freeze {prefix!r}: the image encoder of {self.model.info.arch} has no such part; its parts are "
                    + ", ".join(parts)
                )
        kept = [p for name, p in named.items() if not any(_within(name, prefix) for prefix in prefixes)]
        if not kept:
            raise UsageError(f"--freeze {self.options.freeze!r}: nothing of the image encoder is left to train")
        return kept

    def adopt(self, head: HyperbolicHead) -> None:
        """Use a head that was learnt before, such as that of a resumed run."""
        self.model.geometry = head.to(self.model.device)

    def over_batch(self, compute: Callable[..., Tensor], *own: Tensor) -> Float[Tensor, "B ..."]:
        """``compute`` of the rows of ``own``, image by image, for the images of all processes.

        With ``--accumulate`` it goes part by part. The activations of a part are computed again in the backward pass,
        so that those of one part are in memory at a time.
        """
        count = self.options.accumulate
        parts = list(zip(*(rows.tensor_split(count) for rows in own), strict=True))
        if count > 1 and torch.is_grad_enabled():
            found = [checkpoint(compute, *part, use_reentrant=False) for part in parts]
        else:
            found = [compute(*part) for part in parts]
        return self.group.gather(torch.cat(found) if count > 1 else found[0])

    def encode_image(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "B D"]:
        """``f(x)`` of the whole batch, with ``noise`` ``f(x + z)``; ``images`` are those of this process."""
        return self.over_batch(self.model.encode_image, self.noisy(images))

    def noisy(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """``images``, clean or attacked, with the noise of this step, which may leave [0, 1].

        The adversary thus meets the noise that is trained on (SmoothAdv with one draw, Salman et al., NeurIPS 2019),
        and its ball stays around the clean image.
        """
        return images if self.noise is None else images + self.noise

    def text_features(self, bank: TextBank, *, normalise: bool = False) -> Float[Tensor, "N D"]:
        """``g(t)`` of every node; the text transformer runs again only where it is trained (``--tune all``)."""
        if self.tune != "all":
            return bank.features(self.model, normalise=normalise)
        with self.model.autocast():
            return bank.prompts.gather(self.model.encode_text(bank.prompts.texts), normalise=normalise)

    def begin(self, images: Float[Tensor, "b 3 H W"]) -> None:  # noqa: B027 -- most methods need no calibration
        """Called once, before the first step of a new run, with this process's part of a batch of clean images."""

    @abstractmethod
    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "B"], seeds: Sequence[int]) -> Loss:
        """The loss of one batch of B images.

        Args:
            images: the b of them that this process encodes; without other processes all.
            labels: those of the whole batch.
            seeds: for random starts, one for each of ``images``.
        """

    def after_step(self) -> dict[str, float]:
        """Figures of the method's state after an optimiser step, for the log (such as scales)."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the rest of a run depends on beside the model, for a checkpoint: numbers, and tensors on any device."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 -- most methods have none
        """Take up a `state_dict` of the same method, whose tensors are on the CPU."""
