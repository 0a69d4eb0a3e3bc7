"""Square Attack (Andriushchenko et al., ECCV 2020): random search with square-shaped changes, from scores alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks import counter
from hrzs.attacks.ball import Ball, LinfBall, float_below
from hrzs.attacks.base import Attack, AttackResult, Search, unfooled

#: Share of the image that the first square covers, and the queries of 10,000 at which this share is halved.
AREA = 0.8
HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
AUTOATTACK_QUERIES = 5000

# Uniform numbers for one query: the corners of two windows, a sign for each channel, a turn. L∞ leaves some unused.
_DRAWS = 8
# Share of ε that an L2 change spends: after rounding to fp32, hardly any image then needs a projection.
_SHY = 1 - 1e-6


@dataclass
class _Place:
    """The state of the search; every field has one entry per image."""

    x: Float[Tensor, "b 3 H W"]
    success: Bool[Tensor, "b"]
    loss: Float[Tensor, "b"]
    proposal: Float[Tensor, "b 3 H W"]

    def select(self, places: Int[Tensor, "n"]) -> _Place:
        return _Place(**{field.name: getattr(self, field.name)[places] for field in fields(self)})


class _Random:
    """Numbers in [0, 1) on ``device``, each image's from its own seed; every draw gives new ones."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.seeds, self.device, self.draws = seeds, device, 0
        self.hashed = counter.is_used_on(device)
        self.generators = [] if self.hashed else [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, *shape: int) -> Float[Tensor, "B ..."]:
        if self.hashed:
            seeds = [seed ^ self.draws for seed in self.seeds]
            self.draws += 1
            return counter.uniform(seeds, shape, self.device)
        rows = [torch.rand(shape, generator=generator) for generator in self.generators]
        return torch.stack(rows) if rows else torch.empty(0, *shape)


class Square(Attack):
    """Random search: a square-shaped change is kept where it raises the objective's loss (in the paper, the margin).

    No gradient is taken. ``budget.steps`` counts queries, the start included; ``step_size`` is not used. An image's
    result is the query with the highest loss, among its wins if it has any. An image that wins when clean is a win.
    """

    step_cost = 1 / 3

    @torch.no_grad()
    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        random = _Random(seeds, search.rows.device)
        start = _start(search.ball, random)
        draws = random.uniform(self.budget.steps, _DRAWS)
        result = AttackResult.of(search.clean)
        result.success = search.judge(search.clean)
        at = _Place(search.clean, result.success.clone(), start.new_full((len(start),), -torch.inf), start)
        for query in range(self.budget.steps):
            if self.early_stop and len(left := unfooled(at.success)) < len(search):
                result.images[search.rows], result.success[search.rows] = at.x, at.success
                search, at = search.select(left), at.select(left)
            if not len(search):
                break
            if query > 0:
                side = _side(query - 1, self.budget.steps, at.x.shape)
                at.proposal = _change(search.ball, at.x, side, draws[search.rows, query])
            loss, success = search.outcome(at.proposal, None)
            success = search.confirm(at.proposal, success)
            better = (success & ~at.success) | ((success | ~at.success) & (loss > at.loss))
            at.x = torch.where(better.view(-1, 1, 1, 1), at.proposal, at.x)
            at.loss, at.success = torch.where(better, loss, at.loss), at.success | success
        result.images[search.rows], result.success[search.rows] = at.x, at.success
        if search.model.precision != "fp32" and len(search):
            result.success[search.rows] |= search.judge(at.x)
        return result


def _side(query: int, queries: int, shape: torch.Size) -> int:
    """The side, in pixels, of this query's square.

    With 5,000 queries or more the paper's schedule is used as it is, as in AutoAttack; with fewer it is compressed.
    """
    length = queries if queries < AUTOATTACK_QUERIES else 10_000
    halvings = sum(query * 10_000 > start * length for start in HALVED_AT)
    height, width = shape[-2:]
    return max(1, min(round(math.sqrt(AREA / 2**halvings * height * width)), height, width))


def _start(ball: Ball, random: _Random) -> Float[Tensor, "B 3 H W"]:
    return _stripes(ball, random) if isinstance(ball, LinfBall) else _tiles(ball, random)


def _change(
    ball: Ball, x: Float[Tensor, "b 3 H W"], side: int, draws: Float[Tensor, "b draws"]
) -> Float[Tensor, "b 3 H W"]:
    if isinstance(ball, LinfBall):
        return _one_square(ball, x, side, draws)
    return _two_squares(ball, x, side, draws)


# -- L∞: every pixel stands at an end of its interval -------------------------------------------------------------


def _stripes(ball: LinfBall, random: _Random) -> Float[Tensor, "B 3 H W"]:
    """Vertical stripes, one pixel wide: a sign for each column and channel."""
    up = random.uniform(3, 1, ball.centre.shape[-1]) < 0.5
    return torch.where(up, ball.upper, ball.lower)


def _one_square(
    ball: LinfBall, x: Float[Tensor, "B 3 H W"], side: int, draws: Float[Tensor, "B draws"]
) -> Float[Tensor, "B 3 H W"]:
    """``x`` with one new square, which in each channel lies at one end of the pixels' intervals."""
    window = _window(draws[:, :2], side, x)
    up = (draws[:, 4:7] < 0.5)[:, :, None]
    ends = torch.where(up, ball.upper.flatten(2).gather(2, window), ball.lower.flatten(2).gather(2, window))
    return x.flatten(2).scatter(2, window, ends).view_as(x)


# -- L2: squares move the norm that there is from one place to another --------------------------------------------


def _tiles(ball: Ball, random: _Random) -> Float[Tensor, "B 3 H W"]:
    """About 5 × 5 tiles of `_bumps` over the whole image, each turned at random, with a random sign per channel."""
    height, width = ball.centre.shape[-2:]
    side = max(1, min(height, width) // 5)
    down, across = height // side, width // side
    draws = random.uniform(4, down, across)[..., None, None] < 0.5
    bumps = _bumps(side, ball.centre.device)
    tiles = torch.where(draws[:, 3:], bumps, bumps.T) * torch.where(draws[:, :3], 1.0, -1.0)
    delta = tiles.transpose(3, 4).reshape(-1, 3, down * side, across * side)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta = F.pad(delta, (left, width - across * side - left, top, height - down * side - top))
    return ball.project(ball.centre + float(ball.eps) * _unit(delta.flatten(1)).view_as(delta))


def _two_squares(
    ball: Ball, x: Float[Tensor, "B 3 H W"], side: int, draws: Float[Tensor, "B draws"]
) -> Float[Tensor, "B 3 H W"]:
    """``x`` with a bump added in one window, which takes over the norm of a second window and unspent norm (Alg. 3)."""
    # The positive and the negative half of a bump need a middle each.
    side = min(max(side, 3) // 2 * 2 + 1, *x.shape[-2:])
    to, source = _window(draws[:, :2], side, x), _window(draws[:, 2:4], side, x)
    delta = (x - ball.centre).flatten(2)
    rest = delta.scatter(2, to, 0.0).scatter_(2, source, 0.0)
    spent, kept = (torch.linalg.vector_norm(part, dim=2).square() for part in (delta, rest))
    unspent = ((_SHY * float(ball.eps)) ** 2 - spent.sum(1, keepdim=True)).clamp_min(0)
    norm = ((spent - kept).clamp_min(0) + unspent / 3).sqrt()
    sign = torch.where(draws[:, 4:7] < 0.5, 1.0, -1.0)
    bumps = _bumps(side, x.device)
    turned = torch.where((draws[:, 7] < 0.5)[:, None], bumps.flatten(), bumps.T.flatten())
    new = _unit(sign[..., None] * turned[:, None] + _unit(delta.gather(2, to)))
    changed = (ball.centre + rest.scatter_(2, to, norm[..., None] * new).view_as(x)).clamp_(0, 1)
    outside = (ball.distance(changed) > float_below(ball.eps)).nonzero().squeeze(1)
    if len(outside):
        changed[outside] = ball.select(outside).project(changed[outside])
    return changed


@lru_cache
def _bumps(side: int, device: torch.device | str = "cpu") -> Float[Tensor, "side side"]:
    """Two pyramids side by side, one up and one down, of equal norm, 1 together (eq. 2)."""
    halves = _pyramid(side // 2, side), -_pyramid(side - side // 2, side)
    return _unit(torch.cat([_unit(half.flatten()) for half in halves])).view(side, side).to(device, non_blocking=True)


def _pyramid(height: int, width: int) -> Float[Tensor, "height width"]:
    """A sum of nested rectangles about the middle; the k-th from the innermost is 1/k² high."""
    count = max(height, width) // 2 + 1
    heights = 1 / torch.arange(1, count + 1).square()
    reach = heights.flip(0).cumsum(0).flip(0)
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    return reach[torch.maximum(rows.abs()[:, None], columns.abs()[None, :])]


# -- both ---------------------------------------------------------------------------------------------------------


def _window(corner: Float[Tensor, "B 2"], side: int, x: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B 3 pixels"]:
    """Where the pixels of a square lie in the flattened image; ``corner`` is uniform in [0, 1)."""
    height, width = x.shape[-2:]
    down, across = (corner[:, :1] * (height - side + 1)).long(), (corner[:, 1:] * (width - side + 1)).long()
    within = torch.arange(side, device=x.device)
    rows, columns = down + within, across + within
    pixels = rows[:, :, None] * width + columns[:, None, :]
    return pixels.flatten(1)[:, None].expand(-1, 3, -1)


def _unit(v: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    norm: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return v / norm.clamp_min(torch.finfo(v.dtype).tiny)
