"""R-TPT: tune the prompts for each image (Sheng et al., CVPR 2025, section 3).

Many views of the image are drawn. The words before the class name are tuned until the surest views are surer still, and
the prediction is the mean over all views, weighted by how much each one agrees with its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hrzs.attacks import counter
from hrzs.defences.base import Predictor, Undefended
from hrzs.errors import UsageError
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.models.padding import text_encoder

#: Area of a crop as a share of the image, and its width by its height: torchvision's RandomResizedCrop.
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
# Draws of a crop before it is the whole image, and prompts that the text encoder takes at once.
_TRIES, _PROMPTS = 10, 512
# What divides the agreement of views before its softmax.
_TEMPERATURE = 0.01


@dataclass(frozen=True)
class RTPT(Predictor):
    """``views`` views of each image, the image itself and random crops that are turned over by chance.

    The share ``surest`` of the views with the lowest entropy over the leaf classes is chosen. ``steps`` steps of AdamW
    of size ``rate`` on the words that all prompts begin with lower the mean of their entropies. The logits of a view
    weigh by the softmax of its mean cosine with its ``neighbours`` nearest other views, over 0.01. Superclasses are
    scored with the same words and weights.

    All constants are those of the authors' script, with the crops that it takes for ImageNet (elsewhere it mixes in
    changes of colour).
    """

    views: int = 64
    attack_views: int = 16
    surest: float = 0.1
    steps: int = 1
    rate: float = 5e-3
    neighbours: int = 20

    name: ClassVar[str] = "r-tpt"
    description: ClassVar[str] = (
        "prompts tuned on views of the image, views weighed by agreement (Sheng et al., CVPR 2025)"
    )
    adversary: ClassVar[str] = (
        "The views and their weights are differentiated through, on new views at every step (EOT), fewer than the "
        "defence has. The tuned prompts are computed anew at every step and then held constant: the first step of Adam "
        "is a sign, whose derivative is zero (BPDA)."
    )

    def __post_init__(self) -> None:
        if self.views < 2 or self.attack_views < 2 or self.neighbours < 1:
            raise UsageError(f"--defence {self}: views and attack_views must be at least 2, neighbours at least 1")
        if not (0 < self.surest <= 1 and self.steps >= 0 and self.rate > 0):
            raise UsageError(f"--defence {self}: surest must be in (0, 1], steps not negative, rate more than 0")

    @property
    def passes(self) -> float:
        return self.views - 1.0

    @property
    def attack_passes(self) -> float:
        return self.attack_views - 1.0

    def prompts(self, undefended: Undefended) -> float:
        classifier = undefended.classifier
        assert isinstance(classifier, ZeroShotClassifier)
        return 3.0 * self.steps * _leaf_prompts(classifier) + len(classifier.prompts.texts)

    @property
    def expansion(self) -> int:
        return self.attack_views  # which hold a graph; the views of a verdict hold none

    @property
    def gradients(self) -> int:
        return self.steps

    def check(self, undefended: Undefended) -> None:
        model, classifier = undefended.model, undefended.classifier
        if not (isinstance(model, ClipModel) and isinstance(classifier, ZeroShotClassifier)):
            raise UsageError("--defence r-tpt: tunes prompts, and this model has none; take ttc or et3")
        embedding_of(model)
        context_length(classifier.tokens)

    def scores(
        self, images: Float[Tensor, "B 3 H W"], undefended: Undefended, seeds: Sequence[int]
    ) -> Float[Tensor, "B columns"]:
        classifier = undefended.classifier
        assert isinstance(classifier, ZeroShotClassifier)
        attacked = torch.is_grad_enabled() and images.requires_grad
        views = draw_views(images, self.attack_views if attacked else self.views, seeds)
        features = undefended.features(views.flatten(0, 1)).view(len(images), -1, classifier.prepared.shape[1])
        prepared = tune(self, features.detach(), undefended)
        found = []
        for own, texts in zip(features, prepared, strict=True):
            logits = [classifier.head.logits(own, texts[c], level) for level, c in enumerate(classifier.columns)]
            found.append(agreement(own, self.neighbours) @ torch.cat(logits, 1))
        return torch.stack(found)


# -- views ------------------------------------------------------------------------------------------------------------


def draw_views(images: Float[Tensor, "B 3 H W"], count: int, seeds: Sequence[int]) -> Float[Tensor, "B views 3 H W"]:
    """Each image, and ``count - 1`` random crops of it at its own size, bilinear, each turned over by chance.

    A crop that fits in none of its draws is the whole image. For square images so is torchvision's.
    """
    height, width = images.shape[-2:]
    draws = counter.uniform(seeds, (count - 1, 2 * _TRIES + 3), images.device)
    area = (AREA[0] + (AREA[1] - AREA[0]) * draws[..., :_TRIES]) * height * width
    ratio = (math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * draws[..., _TRIES : 2 * _TRIES]).exp()
    down, across = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (down >= 1) & (down <= height) & (across >= 1) & (across <= width)
    first = fits.to(torch.int8).argmax(-1, keepdim=True)
    never = ~fits.any(-1)
    down = torch.where(never, height, down.gather(-1, first).squeeze(-1))
    across = torch.where(never, width, across.gather(-1, first).squeeze(-1))
    top = (draws[..., -3] * (height - down + 1)).floor()
    left = (draws[..., -2] * (width - across + 1)).floor()
    rows, columns = _interpolation(top, down, height), _interpolation(left, across, width)
    columns = torch.where(draws[..., -1, None, None] < 0.5, columns.flip(-2), columns)
    crops = torch.einsum("bvrh,bchw,bvsw->bvcrs", rows.to(images.dtype), images, columns.to(images.dtype))
    return torch.cat([images[:, None], crops], 1)


def _interpolation(start: Float[Tensor, "B V"], length: Float[Tensor, "B V"], size: int) -> Float[Tensor, "B V S S"]:
    """The matrix that stretches ``length`` of ``size`` pixels, from ``start`` on, over all of them."""
    pixels = torch.arange(size, device=start.device)
    within = (pixels + 0.5) * (length / size)[..., None] - 0.5
    source = start[..., None] + torch.minimum(within.clamp_min(0), length[..., None] - 1)
    return (1 - (source[..., None] - pixels).abs()).clamp_min(0)


def agreement(features: Float[Tensor, "V D"], neighbours: int) -> Float[Tensor, "V"]:
    """The weight of each view: its mean cosine with its nearest other views, through a softmax."""
    unit = F.normalize(features, dim=1)
    cosines = (unit @ unit.T).masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), -torch.inf)
    return (cosines.topk(min(neighbours, len(unit) - 1), 1).values.mean(1) / _TEMPERATURE).softmax(0)


# -- prompts ----------------------------------------------------------------------------------------------------------


@torch.enable_grad()
@exact_fp32()
def tune(settings: RTPT, features: Float[Tensor, "B V D"], undefended: Undefended) -> Float[Tensor, "B columns D"]:
    """The texts of all columns for each image, with words tuned on its views; without a gradient."""
    model, classifier = undefended.model, undefended.classifier
    assert isinstance(model, ClipModel)
    assert isinstance(classifier, ZeroShotClassifier)
    tokens, leaves = classifier.tokens, _leaf_prompts(classifier)
    length = context_length(tokens)
    words = embedding_of(model)(tokens[0, 1 : 1 + length]).detach()
    surest = max(1, int(settings.surest * features.shape[1]))
    found = []
    for own in torch.split(features, max(1, _PROMPTS // len(tokens))):
        chosen = torch.stack([f[entropy(classifier.logits(f)).argsort()[:surest]] for f in own])
        context = words.repeat(len(own), 1, 1).requires_grad_()
        optimizer = torch.optim.AdamW([context], settings.rate)
        for _ in range(settings.steps):
            texts = encode(model, tokens[:leaves], context).unbind()
            loss = sum(
                entropy(classifier.head.logits(f, _prepared(classifier, t, leaves))).mean()
                for f, t in zip(chosen, texts, strict=True)
            )
            (context.grad,) = torch.autograd.grad(cast(Tensor, loss), context)
            optimizer.step()
        with torch.no_grad():
            texts = encode(model, tokens, context).unbind()
            found += [_prepared(classifier, t, len(tokens)) for t in texts]
    return torch.stack(found).detach()


def entropy(logits: Float[Tensor, "V N"]) -> Float[Tensor, "V"]:
    """The entropy of each row's probabilities, in nats."""
    # Not torch.special.entr, whose derivative is infinite where a probability is 0 for being too small.
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def _leaf_prompts(classifier: ZeroShotClassifier) -> int:
    """How many prompts the leaves have: the first ones, for nodes have the leaves first, and so have prompts."""
    return int((classifier.prompts.owner < len(classifier.tree.classes)).sum())


def _prepared(
    classifier: ZeroShotClassifier, features: Float[Tensor, "P D"], prompts: int
) -> Float[Tensor, "columns D"]:
    """The texts of the first ``prompts`` prompts, of all levels or of the leaves alone, as the head takes them."""
    own, index, normalise = classifier.prompts, classifier.index, classifier.head.name == "cosine"
    if prompts < len(own.texts):
        count = len(classifier.tree.classes)
        nodes = type(own)(own.texts[:prompts], own.owner[:prompts], count).gather(features, normalise=normalise)
        return classifier.head.prepare(nodes, index.level[index.columns[0]])
    nodes = own.gather(features, normalise=normalise)
    return classifier.head.prepare(nodes[index.owner], index.level)


def encode(model: ClipModel, tokens: Int[Tensor, "P T"], context: Float[Tensor, "B words W"]) -> Float[Tensor, "B P D"]:
    """Projected features of the prompts of each image, whose first words are its ``context``."""
    with _replaced(embedding_of(model), context.repeat_interleave(len(tokens), 0)):
        features = model.encode_tokens(tokens.repeat(len(context), 1))
    return features.view(len(context), len(tokens), -1)


@contextmanager
def _replaced(embedding: nn.Embedding, words: Float[Tensor, "N words W"]) -> Iterator[None]:
    """Inside, the words after the first token are these."""

    def replace(_module: nn.Module, _input: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :1], words.to(output.dtype), output[:, 1 + words.shape[1] :]], 1)

    handle = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def embedding_of(model: ClipModel) -> nn.Embedding:
    """The token embedding of the text encoder.

    Raises:
        UsageError: it has none of its own.
    """
    found = getattr(text_encoder(model.clip), "token_embedding", None)
    if not isinstance(found, nn.Embedding):
        raise UsageError(
            f"--defence r-tpt: tunes the words of prompts, and the text encoder of {model.info.arch} takes none as "
            "vectors; take ttc or et3"
        )
    return found


def context_length(tokens: Int[Tensor, "P T"]) -> int:
    """How many tokens all prompts have in common after the first one.

    Raises:
        UsageError: none.
    """
    same = (tokens[:, 1:] == tokens[0, 1:]).all(0).to(torch.int8)
    length = int(same.cumprod(0).sum())
    if not 0 < length < tokens.shape[1] - 1:
        raise UsageError(
            "--defence r-tpt: tunes the words that all prompts begin with, and these have none in common; "
            "give --template photo"
        )
    return length
