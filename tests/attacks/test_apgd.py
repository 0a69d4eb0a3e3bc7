from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hrzs.attacks import Budget
from hrzs.attacks.apgd import APGD, APGDT, TARGETS, checkpoints
from hrzs.attacks.ball import Ball
from hrzs.attacks.base import Search, features_of
from hrzs.attacks.objectives import HierarchicalObjective, LevelObjective, Objective, Outcome, TowardsObjective
from hrzs.errors import UsageError
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

SEEDS = list(range(8))


class Never(Objective):
    """An objective that is never won, and remembers the losses it gave."""

    level = 0

    def __init__(self, inner: Objective) -> None:
        self.inner, self.losses = inner, []

    def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
        outcome = self.inner(features, labels)
        self.losses.append(outcome.loss.detach())
        return Outcome(outcome.loss, torch.zeros_like(outcome.success))


@pytest.fixture
def labels(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> Tensor:
    return classifier.predict(features_of(small_model, pixels))[0, 0]


def test_checkpoints_of_the_paper() -> None:
    """Intervals of 22, 19, 16, 13, 10, 7 and then 6 hundredths."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1000)[:3] == [220, 410, 570]


@pytest.mark.parametrize("steps", [1, 2, 5, 17])
def test_checkpoints_of_short_runs(steps: int) -> None:
    found = checkpoints(steps)
    assert found == sorted(set(found))
    assert all(1 <= step <= steps for step in found)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_same_as_algorithm_1(
    norm: str, small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """Against the paper's algorithm written out for one image, in float64 and without a batch."""
    eps, steps, objective = (0.03 if norm == "linf" else 0.4), 25, LevelObjective(classifier, 0)
    budget = Budget(Fraction(eps), Fraction(eps), steps, norm)
    start = Ball.of(pixels, budget).random(SEEDS)
    ours = APGD(budget)(small_model, Never(objective), pixels, labels, SEEDS)
    halvings = 0
    for i in range(3):
        best, halved = algorithm_1(norm, eps, steps, small_model, objective, pixels[i], start[i], labels[i])
        halvings += halved
        assert ((ours.images[i] - best).abs() > 1e-5).float().mean() < 0.01
    assert halvings > 3


def algorithm_1(
    norm: str,
    eps: float,
    steps: int,
    model: ClipModel,
    objective: Objective,
    clean: Tensor,
    start: Tensor,
    label: Tensor,
) -> tuple[Tensor, int]:
    def f(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_()
        loss = objective(model.encode_image(x[None]), label[None]).loss.sum()
        return loss.item(), torch.autograd.grad(loss, x)[0]

    def project(x: Tensor) -> Tensor:
        if norm == "linf":
            return torch.minimum(torch.maximum(x, clean - eps), clean + eps).clamp(0, 1)
        delta = x.clamp(0, 1) - clean
        return clean + delta * min(1.0, eps / max(delta.norm().item(), 1e-12))

    w = [0, *checkpoints(steps)]
    eta, etas, bests = 2 * eps, {0: 2 * eps}, {}
    x_old = x = start
    value, gradient = f(x)
    f_max, x_max, g_max = value, x, gradient
    bests[0], rises, halvings = f_max, 0, 0
    for k in range(steps):
        direction = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        z = project(x + eta * direction)
        new = z if k == 0 else project(x + 0.75 * (z - x) + 0.25 * (x - x_old))
        x_old, x = x, new
        new_value, gradient = f(x)
        rises += new_value > value
        value = new_value
        if value > f_max:
            f_max, x_max, g_max = value, x, gradient
        if k + 1 in w and k + 1 < steps:
            j = w.index(k + 1)
            first = rises < 0.75 * (w[j] - w[j - 1])
            second = j > 1 and etas[w[j - 1]] == etas[w[j - 2]] and bests[w[j - 1]] == f_max
            if first or second:
                eta /= 2
                halvings += 1
                x, value, gradient = x_max, f_max, g_max
            etas[w[j]], bests[w[j]], rises = eta, f_max, 0
    return x_max, halvings


def test_result_is_the_image_of_highest_loss(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    never = Never(LevelObjective(classifier, 0))
    budget = Budget(Fraction(3, 255), Fraction(1, 255), 12)
    result = APGD(budget)(small_model, never, pixels, labels, SEEDS)
    assert len(never.losses) == 13
    highest = torch.stack(never.losses).amax(0)
    reached = never.inner(features_of(small_model, result.images), labels).loss
    assert torch.allclose(reached, highest, atol=1e-5)
    assert (highest > never.losses[-1]).any()


def test_step_size_of_the_budget_has_no_say(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    one, other = (
        APGD(Budget(Fraction(3, 255), size, 4))(small_model, LevelObjective(classifier, 0), pixels, labels, SEEDS)
        for size in (Fraction(1, 255), Fraction(1, 25500))
    )
    assert torch.equal(one.images, other.images)


def test_a_bad_gradient_spoils_no_other_image(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    class Odd(Never):
        def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
            loss, success = super().__call__(features, labels)
            factor = torch.ones(8)
            factor[0], factor[1] = torch.nan, 0.0
            return Outcome(loss * factor, success)

    budget = Budget(Fraction(2, 255), Fraction(1, 255), 5)
    odd, plain = (
        APGD(budget)(small_model, kind(LevelObjective(classifier, 0)), pixels, labels, SEEDS) for kind in (Odd, Never)
    )
    assert (odd.gradients, odd.zero_gradients, odd.bad_gradients) == (40, 5, 5)
    assert torch.equal(odd.images[2:], plain.images[2:])


def test_targets_are_the_most_likely_others(
    small_model: ClipModel,
    classifier: ZeroShotClassifier,
    pixels: Tensor,
    labels: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run towards each, most likely first; never the truth; a fooled image is in no later run."""
    runs: list[tuple[Tensor, Tensor]] = []
    run = APGD.run

    def watched(self: APGD, search: Search, seeds: list[int]) -> object:
        assert isinstance(search.objective, TowardsObjective)
        assert search.objective.goals is not None
        runs.append((search.clean, search.objective.goals))
        assert search.objective.loss == "dlr"
        return run(self, search, seeds)

    monkeypatch.setattr(APGD, "run", watched)
    tiny = Budget(Fraction(1, 10**6), Fraction(1, 10**6), 1)
    result = APGDT(tiny)(small_model, LevelObjective(classifier, 0), pixels, labels, SEEDS)
    assert not result.success.any()
    order = classifier.logits(features_of(small_model, pixels)).argsort(1, descending=True)
    assert len(runs) == min(TARGETS, 5)
    assert torch.equal(torch.stack([goals for _, goals in runs], 1), order[:, 1:])

    runs.clear()
    some = APGDT(Budget(Fraction(3, 255), Fraction(1, 255), 5))(
        small_model, LevelObjective(classifier, 0), pixels, labels, SEEDS
    )
    sizes = [len(images) for images, _ in runs]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 8 > sizes[-1] >= int((~some.success).sum()) > 0


def test_targeted_needs_a_level(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    budget = Budget(Fraction(1, 255), Fraction(1, 255), 1)
    with pytest.raises(UsageError, match="--level a number"):
        APGDT(budget)(small_model, HierarchicalObjective(classifier), pixels, labels, SEEDS)


def test_stronger_than_pgd(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """Mean loss reached with the same number of gradients, from the same start: what it is for."""
    from hrzs.attacks.pgd import PGD

    budget = Budget(Fraction(3, 255), Fraction(3, 4 * 255), 20)
    objective = LevelObjective(classifier, 0)
    losses = {
        kind: objective(
            features_of(small_model, kind(budget)(small_model, Never(objective), pixels, labels, SEEDS).images), labels
        ).loss.mean()
        for kind in (PGD, APGD)
    }
    assert losses[APGD] >= losses[PGD] - 1e-3
