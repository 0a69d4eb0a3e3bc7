"""FAB: the fast adaptive boundary attack (Croce & Hein, "Minimally distorted adversarial examples", ICML 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks.ball import L2Ball, float_below
from hrzs.attacks.base import Attack, AttackResult, Composite, Search, unfooled
from hrzs.attacks.objectives import Objective, of_level

#: Targets of the targeted form: the most likely other classes.
TARGETS = 9
#: Largest weight of the clean image in a step, overshoot, and backward step (section 3.1).
ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
# A weight below this share of an image's largest counts as 0: dividing by it would overflow.
_NEGLIGIBLE = 1e-8


@dataclass
class _Place:
    """The state of the search; every field has one entry per image."""

    x: Float[Tensor, "b 3 H W"]
    # The nearest image found beyond the boundary, and its distance from the clean image.
    nearest: Float[Tensor, "b 3 H W"]
    distance: Float[Tensor, "b"]

    def select(self, places: Int[Tensor, "n"]) -> _Place:
        return _Place(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


class FABT(Composite):
    """FAB towards one class after another, the most likely others first, as in AutoAttack."""

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """One part for each target class.

        Raises:
            UsageError: the objective spans all levels, or is targeted itself.
        """
        attack = FAB(replace(self.budget, restarts=1), early_stop=self.early_stop)
        return [(attack, aim) for aim in of_level(objective, "fab-t").with_loss("margin").likeliest(TARGETS)]


class FAB(Attack):
    """A search for the nearest image beyond the decision boundary, on which the objective's loss is 0.

    ε does not steer the search: it only decides whether an image found is near enough. The search starts from the
    clean image and has nothing random, so neither seeds nor ``step_size`` are used. An image that wins when clean
    stays as it is.

    The paper ends with a search for the boundary on the way back from the nearest image to the clean one. At a given
    ε one point of that way decides, and only this point is checked: the nearest image projected onto the ball.
    """

    step_cost = 4 / 3

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:  # noqa: ARG002 -- nothing is random
        result = AttackResult.of(search.clean)
        result.success = search.judge(search.clean)
        search = search.select(unfooled(result.success))
        nowhere = torch.full(search.labels.shape, torch.inf, dtype=torch.float64, device=search.labels.device)
        at = _Place(search.clean, search.clean, nowhere)
        for _ in range(self.budget.steps):
            if not len(search):
                return result
            at.x = step(search, at.x, result)
            beyond = search.outcome(at.x, None).success
            distance = search.ball.distance(at.x)
            closer = beyond & (distance < at.distance)
            at.distance = torch.where(closer, distance, at.distance)
            at.nearest = torch.where(_wide(closer), at.x, at.nearest)
            success = search.confirm(at.x, closer & (distance <= float_below(search.ball.eps)))
            result.record_wins(search.rows, at.x, success)
            at.x = torch.where(_wide(beyond), search.clean + BETA * (at.x - search.clean), at.x)
            if self.early_stop and len(left := unfooled(success)) < len(search):
                search, at = search.select(left), at.select(left)
        if len(search):
            last = search.ball.project(torch.where(_wide(at.distance.isfinite()), at.nearest, at.x))
            result.record(search.rows, last, search.judge(last))
        return result


def step(search: Search, x: Float[Tensor, "b 3 H W"], result: AttackResult) -> Float[Tensor, "b 3 H W"]:
    """A step from ``x`` to beyond the boundary, on which the objective's loss is 0 (algorithm 1, lines 5 to 9).

    ``x`` and the clean image are both projected onto the linearised boundary, and moved a little beyond it. The result
    is a mixture of the two; the farther ``x`` is from the boundary, the larger the share of the clean image.
    """
    (loss, _), gradient = search.probe(x, result)
    l2 = isinstance(search.ball, L2Ball)
    x, centre, w = x.flatten(1), search.clean.flatten(1), gradient.flatten(1)
    missing = torch.cat([-loss, (w * (x - centre)).sum(1) - loss])
    way, way_back = to_hyperplane(torch.cat([x, centre]), w.repeat(2, 1), missing, l2=l2).chunk(2)
    length, length_back = (d.norm(dim=1) if l2 else d.abs().amax(1) for d in (way, way_back))
    total = (length + length_back).clamp_min(torch.finfo(w.dtype).tiny)
    alpha = (length / total).clamp_max(ALPHA_MAX)[:, None]
    stepped = (1 - alpha) * (x + ETA * way) + alpha * (centre + ETA * way_back)
    return stepped.clamp(0, 1).view_as(search.clean).to(search.clean.dtype)


def _wide(rows: Bool[Tensor, "b"]) -> Bool[Tensor, "b 1 1 1"]:
    return rows.view(-1, 1, 1, 1)


def to_hyperplane(
    x: Float[Tensor, "B D"], w: Float[Tensor, "B D"], c: Float[Tensor, "B"], *, l2: bool
) -> Float[Tensor, "B D"]:
    """The shortest ``d`` with ``w · d = c`` and ``x + d`` in [0, 1]; where there is none, the one that comes nearest.

    Pixels set out along the sign of ``w``, at equal speed (L∞) or in proportion to ``|w|`` (L2), and stop at 0 or 1.
    How far this leads, ``w · d``, is concave and piecewise linear in time: Newton's method from time 0 rises to the
    solution and meets it after finitely many steps, most often two or three, without sorting the pixels.
    """
    # Scaling w and c together changes nothing, but squares of small gradients would underflow.
    largest = w.abs().amax(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    w, c = w / largest * c.sign()[:, None], c.abs() / largest[:, 0]
    pull = torch.where(w.abs() > _NEGLIGIBLE, w.abs(), 0.0)
    speed = pull if l2 else pull.sign()
    room = torch.where(w > 0, 1 - x, x)
    arrival = torch.where(speed > 0, room / speed, torch.inf)
    slope, total = pull * speed, pull * room
    time = torch.zeros_like(c)
    while True:
        moving = arrival > time[:, None]
        rate = torch.where(moving, slope, 0.0).sum(1)
        left = c - torch.where(moving, 0.0, total).sum(1)
        later = torch.where(rate > 0, torch.maximum(time, left / rate), time)
        if torch.equal(later, time):
            return w.sign() * torch.minimum(time[:, None] * speed, room)
        time = later
