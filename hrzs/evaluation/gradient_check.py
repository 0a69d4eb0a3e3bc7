"""Do gradients point where the loss rises? Gradients compared with finite differences of the very same loss.

An attack follows the sign of a gradient. Of a model that hands out others than its own (flipped, random, zero) it
learns nothing, and looks robust. Differences of the loss need forward passes only, and no backward can bend them.

Along a few random directions of signs ``d`` the loss changes by ``f(x + h·d) - f(x - h·d)``, and the gradient foretells
``⟨g, x₊ - x₋⟩`` of it. Their correlation over the directions estimates the cosine of the angle between the gradient
handed out and the loss's own: 1 for an honest model, ``1 - 2p`` where a share ``p`` of the entries is flipped, -1 where
all are, 0 for a random or a zero one. A gradient of another length has the same signs, and the same correlation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.base import AttackResult, Search, features_of, further_seeds
from hrzs.attacks.budget import Budget
from hrzs.attacks.losses import LOSSES
from hrzs.attacks.objectives import LevelObjective
from hrzs.models.clip import ClipModel, frozen

DIRECTIONS = 8
#: Steps in pixels; the best counts. The small one is for curvature and kinks, the large one for models that round what
#: they see: there less than a grid's step is mostly noise.
STEPS = (1 / 4080, 1 / 510)
#: A cross-entropy below this is no more than the rounding of p_y next to 1, and so is its gradient in fp32: an honest
#: one loses half of itself. That is for PGD on the margin to show.
SATURATED = 8 * torch.finfo(torch.float32).eps


def agreement(
    model: ClipModel,
    objective: LevelObjective,
    images: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, "B"],
    budget: Budget,
    seeds: Sequence[int],
) -> Float[Tensor, "B"]:
    """The correlation, image by image, where PGD of this ``budget`` starts.

    NaN where nothing can be compared: loss and gradient are both flat, or the softmax is saturated.
    The gradient is the attack's own, in the model's precision; the loss that it is compared with is of fp32 logits, and
    taken in float64, or the loss of a confident image would be nothing but its rounding.
    """
    ball = Ball.of(images.clamp(0, 1), budget)
    start = ball.random(seeds) if budget.random_start else ball.centre
    with frozen(model), torch.enable_grad():
        _, gradient = Search.of(model, objective, ball, labels).probe(start, AttackResult.of(start))
    found = torch.full((len(images),), torch.nan, dtype=torch.float64, device=images.device)
    for size in STEPS:
        changes = [_change(model, objective, start, labels, gradient, size * d) for d in _directions(start, seeds)]
        foretold, real = (torch.stack(part) for part in zip(*changes, strict=True))
        found = torch.fmax(found, _correlation(foretold, real))
    saturated = _loss(model, objective, start, labels) < SATURATED
    return found.masked_fill(saturated, torch.nan) if objective.loss == "ce" else found


def _directions(like: Float[Tensor, "B 3 H W"], seeds: Sequence[int]) -> list[Float[Tensor, "B 3 H W"]]:
    """Random signs; one seed per image, and others than those of its start."""
    drawn = []
    for k in range(DIRECTIONS):
        generators = (torch.Generator().manual_seed(s) for s in further_seeds(seeds, k + 1))
        signs = torch.stack([torch.randint(0, 2, like.shape[1:], generator=g) for g in generators])
        drawn.append((2 * signs - 1).to(like))
    return drawn


def _change(
    model: ClipModel,
    objective: LevelObjective,
    x: Float[Tensor, "B 3 H W"],
    labels: Int[Tensor, "B"],
    gradient: Float[Tensor, "B 3 H W"],
    step: Float[Tensor, "B 3 H W"],
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """What the gradient foretells of a step to either side within [0, 1], and what becomes of the loss."""
    up, down = (x + step).clamp(0, 1), (x - step).clamp(0, 1)
    foretold = (gradient.double() * (up.double() - down.double())).flatten(1).sum(1)
    return foretold, _loss(model, objective, up, labels) - _loss(model, objective, down, labels)


def _loss(
    model: ClipModel, objective: LevelObjective, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"]
) -> Float[Tensor, "B"]:
    with torch.no_grad():
        logits = objective.logits(features_of(model, images)).double()
    return LOSSES[objective.stands_in or objective.loss].away(logits, objective.targets(labels))


def _correlation(a: Float[Tensor, "K B"], b: Float[Tensor, "K B"]) -> Float[Tensor, "B"]:
    """Without means taken off, since a turn of a direction turns both. 0 where one of them is flat, NaN where both."""
    longest = [part.abs().amax(0) for part in (a, b)]
    flat = [top == 0 for top in longest]
    # Divided by the largest first: squares of a saturated softmax's gradient underflow.
    a, b = (part / torch.where(none, 1.0, top) for part, top, none in zip((a, b), longest, flat, strict=True))
    along = (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(torch.finfo(a.dtype).tiny)
    return torch.where(flat[0] & flat[1], torch.nan, along)
