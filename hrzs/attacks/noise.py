"""Random points of the ball: the yardstick that an attack must beat."""

from __future__ import annotations

from collections.abc import Sequence

from hrzs.attacks.base import Attack, AttackResult, Search, further_seeds, unfooled


class Noise(Attack):
    """``budget.steps`` uniform draws from the ball, no gradients. An image's result is its last winning draw.

    `ATTACKS` leaves it out, since robust accuracy under noise says nothing. But where noise fools an image that an
    optimiser does not, the optimiser has failed (Carlini et al. 2019, "On Evaluating Adversarial Robustness").
    """

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        result = AttackResult.of(search.clean)
        for draw in range(self.budget.steps):
            if not len(search):
                break
            # Never the first draw of these seeds, at which PGD starts.
            x = search.ball.random(further_seeds(seeds, draw + 1))
            success = search.judge(x)
            result.record(search.rows, x, success)
            if self.early_stop and len(left := unfooled(success)) < len(search):
                search, seeds = search.select(left), [seeds[i] for i in left.tolist()]
        return result
