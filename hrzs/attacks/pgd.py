"""Steps of a fixed size: FGSM, and projected gradient descent (random start, steepest ascent, projection)."""

from __future__ import annotations

from collections.abc import Sequence

from hrzs.attacks.base import Attack, AttackResult, Search, unfooled
from hrzs.attacks.objectives import Objective


class PGD(Attack):
    """PGD of Madry et al., ICLR 2018. An image's result is its last winning iterate, or its last if none won."""

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        result = AttackResult.of(search.clean)
        x = search.ball.random(seeds) if self.budget.random_start else search.clean
        for _ in range(self.budget.steps):
            if not len(search):
                return result
            outcome, gradient = search.probe(x, result)
            result.record(search.rows, x, outcome.success)
            x = search.ball.step(x, gradient, float(self.budget.step_size))
            if self.early_stop and len(left := unfooled(outcome.success)) < len(search):
                search, x = search.select(left), x[left]
        if len(search):
            result.record(search.rows, x, search.judge(x))
        return result


class FGSM(Attack):
    """One step of size ε from the clean image (Goodfellow et al., ICLR 2015), whatever the steps and the seeds."""

    def parts(self, objective: Objective) -> list[tuple[Attack, Objective]]:
        """One part, however many restarts the budget has: all would be the same."""
        return [(self.with_budget(steps=1, restarts=1), objective)]

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:  # noqa: ARG002 -- nothing is random
        result = AttackResult.of(search.clean)
        _, gradient = search.probe(search.clean, result)
        x = search.ball.step(search.clean, gradient, float(self.budget.eps))
        result.record(search.rows, x, search.judge(x))
        return result
