"""The contract of every attack: a subclass writes `run`, the base judges the images. An image *wins* if it succeeds."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.ball import Ball
from hrzs.attacks.budget import Budget
from hrzs.attacks.objectives import Objective, Outcome
from hrzs.errors import HrzsError, UsageError
from hrzs.models.clip import frozen
from hrzs.models.encoder import ImageEncoder
from hrzs.models.exact import exact_fp32

Same = TypeVar("Same", bound="Attack")


def further_seeds(seeds: Sequence[int], run: int) -> list[int]:
    """Seeds for run number ``run`` (from 0) of an attack: ``seeds`` for the first, fresh ones for the others."""
    return list(seeds) if run == 0 else sample_seeds([str(s) for s in seeds], run, "run")


def sample_seeds(ids: Sequence[str], seed: int, salt: str = "") -> list[int]:
    """One seed per image, from its id: results depend on neither batch size nor order."""
    digests = (hashlib.blake2b(f"{seed}/{salt}/{i}".encode(), digest_size=7).digest() for i in ids)
    return [int.from_bytes(d, "big") for d in digests]


@dataclass
class AttackResult:
    """Adversarial ``images``, which of them are a ``success`` (judged in fp32), and counts of gradients.

    ``gradients``, ``zero_gradients`` and ``bad_gradients`` count per-image gradients: all of them, those that were
    exactly zero (a sign of gradient masking) and those that were not finite. ``dead`` holds the last two on the
    images' device: no step of an attack waits for them.
    """

    images: Float[Tensor, "B 3 H W"]
    success: Bool[Tensor, "B"]
    dead: Int[Tensor, "2"]
    gradients: int = 0

    @classmethod
    def of(cls, images: Float[Tensor, "B 3 H W"]) -> AttackResult:
        """The result before an attack begins: these images, none of which has won."""
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        return cls(images.clone(), none, torch.zeros(2, dtype=torch.long, device=images.device))

    @property
    def zero_gradients(self) -> int:
        return int(self.dead[0])

    @property
    def bad_gradients(self) -> int:
        return int(self.dead[1])

    def record(self, rows: Int[Tensor, "b"], images: Float[Tensor, "b 3 H W"], success: Bool[Tensor, "b"]) -> None:
        """Store ``images`` at ``rows``: a new image replaces the stored one unless only the stored one wins."""
        before = self.success[rows]
        better = success | ~before
        self.images[rows] = torch.where(better.view(-1, 1, 1, 1), images, self.images[rows])
        self.success[rows] = before | success

    def record_wins(self, rows: Int[Tensor, "b"], images: Float[Tensor, "b 3 H W"], won: Bool[Tensor, "b"]) -> None:
        """Store those of ``images`` that have ``won`` at ``rows``, and leave the others' places as they are."""
        self.images[rows] = torch.where(won.view(-1, 1, 1, 1), images, self.images[rows])
        self.success[rows] |= won

    def count(self, gradient: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Count these gradients; return them with 0 for every value that is not finite, so that the attack goes on."""
        flat = gradient.flatten(1)
        self.gradients += len(flat)
        self.dead += torch.stack([(flat == 0).all(1), ~flat.isfinite().all(1)]).sum(1)
        return gradient.nan_to_num(0.0, 0.0, 0.0)

    def merge(self, rows: Int[Tensor, "b"], part: AttackResult) -> None:
        """Add the result of a further run on ``rows``."""
        self.record(rows, part.images, part.success)
        self.gradients += part.gradients
        self.dead += part.dead


@dataclass(frozen=True)
class Search:
    """Some images of a batch, with everything that an optimiser needs to move them.

    Args:
        objective: the objective bound to these images.
        ball: the balls around the clean images.
        labels: the images' leaf labels.
        rows: the images' places in the batch, at which `AttackResult.record` stores them.
    """

    model: ImageEncoder
    objective: Objective
    ball: Ball
    labels: Int[Tensor, "b"]
    rows: Int[Tensor, "b"]

    @classmethod
    def of(cls, model: ImageEncoder, objective: Objective, ball: Ball, labels: Int[Tensor, "b"]) -> Search:
        """The search over a whole batch."""
        return cls(model, objective, ball, labels, torch.arange(len(labels), device=labels.device))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def clean(self) -> Float[Tensor, "b 3 H W"]:
        """The clean images."""
        return self.ball.centre

    def select(self, places: Int[Tensor, "n"]) -> Search:
        """The search over the images at these places of this search only."""
        return Search(
            self.model.select(places), self.objective.select(places), self.ball.select(places), self.labels[places],
            self.rows[places],
        )  # fmt: skip

    @torch.no_grad()
    def outcome(self, x: Float[Tensor, "b 3 H W"], precision: str | None = "fp32") -> Outcome:
        """Loss and wins at ``x`` by a forward pass; a ``precision`` of None is the model's own."""
        self.model.advance()
        return self.objective(features_of(self.model, x, precision), self.labels)

    def judge(self, x: Float[Tensor, "b 3 H W"]) -> Bool[Tensor, "b"]:
        """Does each image win, by an fp32 forward pass?"""
        return judge(self.model, self.objective, x, self.labels)

    def confirm(self, x: Float[Tensor, "b 3 H W"], success: Bool[Tensor, "b"]) -> Bool[Tensor, "b"]:
        """The wins at ``x`` that an fp32 forward pass confirms; all of them if the model computes in fp32 anyway."""
        if self.model.precision == "fp32":
            return success
        won = success.nonzero().squeeze(1)  # in bf16 an accelerator waits here: fp32 passes cost more than a wait
        if not len(won):
            return success
        found = judge(self.model.select(won), self.objective.select(won), x[won], self.labels[won])
        return success.index_copy(0, won, found)

    def probe(self, x: Float[Tensor, "b 3 H W"], result: AttackResult) -> tuple[Outcome, Float[Tensor, "b 3 H W"]]:
        """Loss, wins and gradient at ``x`` in the model's own precision; an fp32 forward pass confirms the wins.

        ``result`` counts the gradients; values that are not finite come back as 0.
        """
        x = x.detach()
        self.model.advance()
        slices = _at_once(self.model, len(x))
        whole = len(slices) == 1
        found = [
            _differentiate(
                self.model if whole else self.model.select(rows),
                self.objective if whole else self.objective.select(rows), x[rows], self.labels[rows],
            )
            for rows in slices
        ]  # fmt: skip
        loss, success, gradient = (torch.cat(part) for part in zip(*found, strict=True))
        return Outcome(loss, self.confirm(x, success)), result.count(gradient)


class Attack(ABC):
    """An optimiser that looks for images inside the ball that win under an objective.

    Args:
        budget: ε, step size, steps and norm.
        early_stop: a fooled image leaves the batch. Off where images are scored at other levels too, since an
            image that stops at the boundary of one level fools no other (docs/evaluation.md).
    """

    #: The cost of a step, in forward-backward passes of one image; a forward pass alone counts a third.
    step_cost: ClassVar[float] = 1.0

    def __init__(self, budget: Budget, *, early_stop: bool = True) -> None:
        self.budget = budget
        self.early_stop = early_stop

    def __call__(
        self,
        model: ImageEncoder,
        objective: Objective,
        images: Float[Tensor, "B 3 H W"],
        labels: Int[Tensor, "B"],
        seeds: Sequence[int],
    ) -> AttackResult:
        """Attack every image; ``model`` is unchanged afterwards, and no parameter gets a gradient.

        Raises:
            UsageError: pixels outside [0, 1].
            HrzsError: the attack left the ball: a fault in the attack, never a warning.
        """
        low, high = torch.stack(images.aminmax()).tolist() if images.numel() else (0.0, 0.0)
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # a NaN fails both
            raise UsageError(
                f"pixels must lie in [0, 1], these in [{low:.3g}, {high:.3g}]: "
                "leave normalisation to the model, it happens inside"
            )
        ball = Ball.of(images.clamp(0, 1), self.budget)
        result = AttackResult.of(ball.centre)
        with frozen(model), torch.enable_grad(), exact_fp32():
            for i, (part, aim) in enumerate(self.parts(objective)):
                rows = torch.arange(len(labels), device=labels.device) if i == 0 else unfooled(result.success)
                if not len(rows):
                    break
                here, truth = (ball, labels) if i == 0 else (ball.select(rows), labels[rows])
                now = model if i == 0 else model.select(rows)
                bound = aim.bound(partial(features_of, now, here.centre), truth)
                fresh = further_seeds(seeds if i == 0 else [seeds[row] for row in rows.tolist()], i)
                result.merge(rows, part.run(Search.of(now, bound, here, truth), fresh))
        outside = (~ball.contains(result.images)).sum().item()
        if outside:
            raise HrzsError(f"{type(self).__name__}: {outside} of {len(images)} images left the ε-ball or [0, 1]")
        return result

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """The searches that make up this attack, with their objectives; each gets the images not yet fooled.

        A search is itself an attack of one part, so an evaluation may run it over all images before the next search.

        Raises:
            UsageError: the attack does not work on this objective.
        """
        return [(self.with_budget(restarts=1), objective)] * self.budget.restarts

    def with_budget(self: Same, **change: object) -> Same:
        """The same attack with these fields of its budget changed."""
        other = copy.copy(self)
        other.budget = replace(self.budget, **change)  # type: ignore[arg-type]  # the names of its fields
        return other

    @property
    def cost(self) -> float:
        """The cost of a search on an image that it does not fool, in units of ``step_cost``."""
        return self.step_cost * self.budget.steps

    @abstractmethod
    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        """One run on a whole batch, with a seed for each of its images."""


def unfooled(success: Bool[Tensor, "b"]) -> Int[Tensor, "n"]:
    """The places of the images that have not won. An accelerator waits here; a mask as an index waits at each use."""
    return (~success).nonzero().squeeze(1)


class Composite(Attack):
    """An attack that consists of other attacks, its parts."""

    @abstractmethod
    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """See `Attack.parts`."""

    def run(self, *_: object) -> AttackResult:
        raise NotImplementedError(f"{type(self).__name__} is run part by part")


@torch.no_grad()
def features_of(
    model: ImageEncoder, images: Float[Tensor, "B 3 H W"], precision: str | None = "fp32"
) -> Float[Tensor, "B D"]:
    """Image features without an autograd graph; a ``precision`` of None is the model's own."""
    slices = _at_once(model, len(images))
    if len(slices) == 1:
        return model.encode_image(images, precision)
    return torch.cat([model.select(rows).encode_image(images[rows], precision) for rows in slices])


def _at_once(model: ImageEncoder, images: int) -> list[slice]:
    """The slices of a batch that go through the model one after the other."""
    size = model.at_once or max(images, 1)
    return [slice(start, min(start + size, images)) for start in range(0, max(images, 1), size)]


@torch.no_grad()
def judge(
    model: ImageEncoder, objective: Objective, images: Float[Tensor, "B 3 H W"], labels: Int[Tensor, "B"]
) -> Bool[Tensor, "B"]:
    """Does each image win, by an fp32 forward pass?"""
    return objective(features_of(model, images), labels).success


def _differentiate(
    model: ImageEncoder, objective: Objective, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "b"]
) -> tuple[Float[Tensor, "b"], Bool[Tensor, "b"], Float[Tensor, "b 3 H W"]]:
    """Loss, wins and gradient: over several draws the means, and the wins in most of them."""
    images = images.detach().requires_grad_()
    found = []
    for encoder in model.draws():
        loss, success = objective(encoder.encode_image(images), labels)
        (gradient,) = torch.autograd.grad(loss.sum(), images)
        found.append((loss.detach(), success, gradient))
    if len(found) == 1:
        return found[0]
    losses, wins, gradients = (torch.stack(part) for part in zip(*found, strict=True))
    return losses.mean(0), wins.float().mean(0) > 0.5, gradients.mean(0)
