"""The training adversary: one perturbation of images (and, where given, of text features) against one loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from hrzs.attacks.ball import LinfBall
from hrzs.distributed import ALONE, Group
from hrzs.models.clip import ClipModel, frozen


def perturb_images(
    model: ClipModel,
    loss: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, ""]],
    images: Float[Tensor, "B 3 H W"],
    seeds: Sequence[int],
    *,
    eps: Fraction,
    step_size: Fraction,
    steps: int,
) -> Float[Tensor, "B 3 H W"]:
    """Images perturbed by PGD against ``loss``, which the baselines train on; ``model`` gets no gradients."""
    ball = LinfBall(images, eps)
    x = ball.random(seeds)
    with frozen(model):
        for _ in range(steps):
            x.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(x), x)
            x = ball.step(x.detach(), gradient, float(step_size))
    return x


def perturb_universally(
    model: ClipModel,
    loss: Callable[[Float[Tensor, "B 3 H W"], Float[Tensor, "N D"]], Float[Tensor, ""]],
    images: Float[Tensor, "B 3 H W"],
    text: Float[Tensor, "N D"],
    seeds: Sequence[int],
    *,
    eps: Fraction,
    step_size: Fraction,
    steps: int,
    eps_text: float,
    group: Group = ALONE,
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "N D"]]:
    """``x̂ = x + δ_X`` and ``δ_T``: one universal perturbation of images and text features, found together.

    In the paper, ``loss`` is the whole ``L'`` over all levels. ``δ_T`` starts at zero and moves in an L∞ ball of
    radius ``eps_text`` times the mean norm of the text features, in steps of that radius. Images start at random.

    Args:
        loss: of images and text features; ``model`` gets no gradients.
        group: the processes that ``loss`` spans. Their images differ, and ``δ_T`` is the same in all.
    """
    ball = LinfBall(images, eps)
    x = ball.random(seeds)
    text = text.detach()
    delta = torch.zeros_like(text)
    radius = eps_text * text.norm(dim=-1).mean()
    with frozen(model):
        for _ in range(steps):
            x.requires_grad_(True)
            delta.requires_grad_(True)
            gradients = torch.autograd.grad(loss(x, text + delta), (x, delta))
            group.average(gradients[1:])
            x = ball.step(x.detach(), gradients[0], float(step_size))
            delta = (delta.detach() + radius * gradients[1].sign()).clamp(-radius, radius)
    return x, delta
