"""Random points of the ball: the yardstick that an attack must beat."""

from __future__ import annotations

from collections.abc import Sequence

from hrzs.attacks.base import Attack, AttackResult, Search, further_seeds


class Noise(Attack):
    """``budget.steps`` uniform draws from the ball, no gradients. An image's result is its last winning draw.

    `ATTACKS` leaves it out, since robust accuracy under noise says nothing. But where noise fools an image that an
    optimiser does not, the optimiser has failed (Carlini et al. 2019, "On Evaluating Adversarial Robustness").
    """

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        result = AttackResult.of(search.clean)
        for draw in range(self.budget.steps):
            here = search.select(~result.success) if self.early_stop else search
            if not len(here):
                break
            # Never the first draw of these seeds, at which PGD starts.
            x = here.ball.random(further_seeds([seeds[i] for i in here.rows.tolist()], draw + 1))
            result.record(here.rows, x, here.judge(x))
        return result
