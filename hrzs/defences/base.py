"""The contract of every defence at test time, and the model that it makes of an undefended one.

A defence changes what a checkpoint answers, not the checkpoint. It is written once, and its forward pass and its
backward pass serve two sides: the forward pass is the defence, and the gradient of its output with respect to its input
is the one that an adversary takes who knows it. Where the true derivative is zero or does not exist (rounding, a sign),
the code gives another one in its place: BPDA (Athalye et al., ICML 2018, section 4.1).

What is random in a defence is drawn from seeds that are given, one for each image. So nothing depends on the size or
the order of a batch, and an adversary averages its gradient over draws (EOT, section 4.2) that are never the draw by
which the image is judged.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hrzs.errors import UsageError
from hrzs.models.classifier import Classifier, ZeroShotClassifier, sum_leaves
from hrzs.models.clip import ClipModel
from hrzs.models.encoder import ImageEncoder


@dataclass(frozen=True)
class Undefended:
    """The model behind a defence: what the defence may ask of it.

    Args:
        model: the image encoder, whose input are pixels in [0, 1].
        classifier: over all levels of the tree.
        precision: in which the model computes now; None is its own.
    """

    model: ImageEncoder
    classifier: Classifier
    precision: str | None = None

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Image features before L2 normalisation."""
        return self.model.encode_image(images, self.precision)

    def logits(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        """Logits of the leaf classes."""
        return self.classifier.logits(self.features(images))


@dataclass(frozen=True)
class Defence:
    """A defence at test time: a `Purifier` or a `Predictor`. The fields of the dataclass are its settings.

    Raises:
        UsageError: on construction, a setting is out of its range.
    """

    name: ClassVar[str] = "defence"
    #: What it does, for ``--defence list``: a phrase with its source.
    description: ClassVar[str] = ""
    #: What the gradient of its output is with respect to its input: a sentence for the report.
    adversary: ClassVar[str] = ""
    #: Is it so random that a gradient must be averaged over draws?
    needs_eot: ClassVar[bool] = False

    @property
    def passes(self) -> float:
        """What it costs to judge an image, in forward passes of one image beyond the pass that classifies it.

        A forward and backward pass counts three. What asks nothing of the model costs nothing.
        """
        return 0.0

    @property
    def attack_passes(self) -> float:
        """The same for one gradient of an adversary, in units of a forward and backward pass of the model alone."""
        return self.passes / 3

    @property
    def gradients(self) -> int:
        """How many gradients of the model the defence itself takes for an image: an adversary must have as many."""
        return 0

    def prompts(self, undefended: Undefended) -> float:  # noqa: ARG002
        """How many prompts the text encoder reads for an image, to judge it and for each gradient of an adversary.

        A forward and backward pass counts three.
        """
        return 0.0

    @property
    def expansion(self) -> int:
        """How many images go through the model at once for each image that comes in."""
        return 1

    def check(self, undefended: Undefended) -> None:
        """Most defences fit every model.

        Raises:
            UsageError: the model cannot have this defence.
        """

    def __str__(self) -> str:
        """Name and settings, as ``--defence`` takes them; 4.0 and 4 are the same."""
        return ":".join([self.name, *(f"{f.name}={getattr(self, f.name)}".removesuffix(".0") for f in fields(self))])


class Purifier(Defence, ABC):
    """A defence that changes the image, and leaves the classification to the model or to the next defence."""

    @abstractmethod
    def purify(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]
    ) -> Float[Tensor, "B 3 H W"]:
        """Other images, in [0, 1]; one seed for each. The gradient with respect to ``images`` is the adversary's."""


class Predictor(Defence, ABC):
    """A defence that classifies in the model's place; the last of a stack."""

    @abstractmethod
    def scores(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]
    ) -> Float[Tensor, "B columns"]:
        """Logits of the nodes of all levels below the root by their prompts, level by level (`NodeIndex`)."""


class ScoreClassifier(Classifier):
    """A classifier whose features are the logits of a `Predictor`: all levels side by side."""

    def __init__(self, classifier: ZeroShotClassifier) -> None:
        self.tree, self.ancestors, self.columns = classifier.tree, classifier.ancestors, classifier.columns

    def logits(
        self, features: Float[Tensor, "B columns"], level: int = 0, scoring: str = "prompt"
    ) -> Float[Tensor, "B nodes"]:
        """See `Classifier.logits`."""
        if scoring == "leaves" and level > 0:
            return sum_leaves(features[:, self.columns[0]], self.ancestors[level], len(self.columns[level]))
        return features[:, self.columns[level]]


class Defended(ImageEncoder):
    """A model behind a stack of defences, for one batch of images, whose randomness it holds.

    `of` makes the model for a batch. Its draw stays the same, as a verdict needs it, until `advance` is called, as an
    attack does after every gradient and query.

    Args:
        defences: in the order in which an image meets them.
        eot: the number of draws that an attack averages each gradient over, where one needs that.

    Raises:
        UsageError: a `Predictor` that is not the last, or a defence that the model cannot have.
    """

    def __init__(
        self, model: ClipModel, classifier: ZeroShotClassifier, defences: Sequence[Defence], *, eot: int = 1
    ) -> None:
        super().__init__()
        self.model, self.defences = model, tuple(defences)
        self.undefended = Undefended(model, classifier)
        self.precision = model.precision
        for place, defence in enumerate(self.defences, 1):
            defence.check(self.undefended)
            if isinstance(defence, Predictor) and place < len(self.defences):
                raise UsageError(
                    f"--defence: {defence.name} gives probabilities and no image, so no other defence can follow it; "
                    "name it last"
                )
        self.classifier: Classifier = classifier
        if isinstance(self.defences[-1], Predictor):
            self.classifier = ScoreClassifier(classifier)
        # By defence, what its prompts cost, in forward passes of an image.
        prompts = [defence.prompts(self.undefended) for defence in self.defences]
        self.reading = tuple(n * model.passes_of_a_prompt(classifier.tokens) if n else 0.0 for n in prompts)
        self.eot = eot if any(defence.needs_eot for defence in self.defences) else 1
        self.seeds: tuple[int, ...] = ()
        self._clock, self._draw, self._stays = [0], 0, False

    def __str__(self) -> str:
        return ",".join(map(str, self.defences))

    @property
    def title(self) -> str:
        """The names of the defences, in order."""
        return " + ".join(defence.name for defence in self.defences)

    @property
    def passes(self) -> float:
        """What the defences cost to judge an image, in forward passes beyond the one that classifies it."""
        return sum(self.passes_of_each)

    @property
    def passes_of_each(self) -> tuple[float, ...]:
        """The same of each defence, with the prompts that it reads."""
        return tuple(d.passes + reading for d, reading in zip(self.defences, self.reading, strict=True))

    @property
    def attack_passes(self) -> float:
        """What a gradient costs, in forward and backward passes of the model alone."""
        own = sum(defence.attack_passes for defence in self.defences)
        return self.eot * (1 + own + sum(self.reading) / 3)

    @property
    def gradients(self) -> int:
        """How many gradients of the model the defences themselves take for an image."""
        return sum(defence.gradients for defence in self.defences)

    @property
    def base(self) -> ImageEncoder:
        return self.model.base

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def at_once(self) -> int | None:  # type: ignore[override]
        """Fewer images where each of them has many views."""
        size = self.model.at_once
        return None if size is None else max(1, size // max(defence.expansion for defence in self.defences))

    def of(self, seeds: Sequence[int], *, stays: bool = False) -> Defended:
        """The model for the images that these seeds belong to, at its first draw; seeds are below 2⁵⁶.

        If it ``stays``, all that an attack asks of it is answered under this draw.
        """
        other = copy.copy(self)
        other.seeds, other._clock, other._stays = tuple(seeds), [0], stays
        other.eot = 1 if stays else self.eot
        return other

    def select(self, rows: Tensor | slice) -> Defended:
        other = copy.copy(self)  # with the same clock
        if isinstance(rows, slice):
            other.seeds = self.seeds[rows]
        else:
            rows = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
            other.seeds = tuple(self.seeds[row] for row in rows.tolist())
        return other

    def advance(self) -> None:
        if not self._stays:
            self._clock[0] += 1

    def draws(self) -> list[ImageEncoder]:
        found: list[ImageEncoder] = []
        for draw in range(self.eot):
            other = copy.copy(self)
            other._draw = draw
            found.append(other)
        return found

    def encode_image(self, pixels: Float[Tensor, "B 3 H W"], precision: str | None = None) -> Float[Tensor, "B D"]:
        """Features of the purified image, or the scores of a `Predictor`."""
        undefended = Undefended(self.model, self.undefended.classifier, precision)
        now = self._clock[0] * self.eot + self._draw
        for place, defence in enumerate(self.defences):
            # The seeds have 56 bits: every draw of every defence has its own.
            seeds = [seed ^ (now << 8 | place) for seed in self.seeds]
            if isinstance(defence, Predictor):
                return defence.scores(pixels, undefended, seeds)
            assert isinstance(defence, Purifier)
            pixels = defence.purify(pixels, undefended, seeds)
        return self.model.encode_image(pixels, precision)
