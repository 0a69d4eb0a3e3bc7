from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrzs.attacks import Budget
from hrzs.attacks.ball import Ball, LinfBall
from hrzs.attacks.base import further_seeds, judge
from hrzs.attacks.objectives import LevelObjective, Objective, Outcome, TargetedObjective, nearest
from hrzs.attacks.pgd import FGSM, PGD
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

SEEDS = list(range(8))


@pytest.fixture
def labels(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier.predict(small_model.encode_image(pixels))[0, 0]


class Never(Objective):
    """An objective that is never won, so that every step is made; its loss can be told what to be."""

    level = 0

    def __init__(self, inner: Objective, factor: float = 1.0) -> None:
        self.inner, self.factor = inner, factor

    def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
        outcome = self.inner(features, labels)
        return Outcome(outcome.loss * self.factor, torch.zeros_like(outcome.success))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_same_as_a_naive_pgd(norm: str, model: ClipModel, tree: Tree, images: Tensor) -> None:
    """Against PGD written with nothing but open_clip's own calls, from the same start."""
    eps, alpha, steps = (0.02, 0.008, 4) if norm == "linf" else (0.5, 0.2, 4)
    names = [leaf.name for leaf in tree.levels[0] if leaf.name != "bus"]
    flat = tree.restrict(names)
    budget = Budget(Fraction(eps), Fraction(alpha), steps, norm)
    classifier = ZeroShotClassifier(model, flat)
    labels = torch.arange(6) % len(names)
    start = Ball.of(images, budget).random(SEEDS[:6])
    ours = PGD(budget, early_stop=False)(model, Never(LevelObjective(classifier, 0)), images, labels, SEEDS[:6])

    clip = open_clip.create_model("hrzs-tiny", pretrained=None).eval()
    clip.load_state_dict(model.clip.state_dict())
    tokens = open_clip.get_tokenizer("hrzs-tiny")([f"a photo of a {name}." for name in names])
    with torch.no_grad():
        text = F.normalize(clip.encode_text(tokens), dim=1)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    x = start.clone()
    for _ in range(steps):
        x = x.detach().requires_grad_()
        resized = F.interpolate(x, size=(64, 64), mode="bicubic", antialias=True)
        image = F.normalize(clip.encode_image((resized - mean) / std), dim=1)
        loss = F.cross_entropy(clip.logit_scale.exp() * image @ text.T, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        if norm == "linf":
            x = x.detach() + alpha * gradient.sign()
            x = torch.minimum(torch.maximum(x, images - eps), images + eps).clamp(0, 1)
        else:
            x = x.detach() + alpha * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = x.clamp(0, 1) - images
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            x = images + delta * (eps / length).clamp(max=1)
    assert (ours.images - start).abs().max() > 0.5 * alpha / (1 if norm == "linf" else 60)
    # A gradient within rounding of 0 may have either sign.
    assert ((ours.images - x.detach()).abs() > 1e-6).float().mean() < 0.005


def test_the_last_forward_only_judges(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """N steps are N gradients and N + 1 forwards: the image that the last step made is looked at too."""
    calls: list[bool] = []

    class Watched(Never):
        def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
            calls.append(features.requires_grad)
            return super().__call__(features, labels)

    budget = Budget(Fraction(1, 255), Fraction(1, 255), 3)
    result = PGD(budget)(small_model, Watched(LevelObjective(classifier, 0)), pixels, labels, SEEDS)
    assert calls == [True, True, True, False]
    assert result.gradients == 24
    assert not result.success.any()


def test_early_stop_leaves_the_batch(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    wrong = (labels + 1) % 6
    budget = Budget(Fraction(1, 2550), Fraction(1, 2550), 5)
    mixed = torch.cat([labels[:4], wrong[4:]])
    objective = LevelObjective(classifier, 0)
    stopped = PGD(budget)(small_model, objective, pixels, mixed, SEEDS)
    assert stopped.success[4:].all()
    assert stopped.gradients <= 4 * 5 + 4
    # An image already wrong comes out as its random start.
    assert torch.equal(stopped.images[4:], Ball.of(pixels, budget).random(SEEDS)[4:])


def test_a_win_is_never_lost(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> None:
    """Without early stop the attack walks on; where that undoes a win, the winning image is the result."""

    class Reversed(LevelObjective):
        """Its gradient leads away from the win."""

        def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
            outcome = super().__call__(features, labels)
            return Outcome(-outcome.loss, outcome.success)

    with torch.no_grad():
        order = classifier.logits(small_model.encode_image(pixels)).argsort(1)
    runner_up = order[:, -2]  # wrong at the start, right once the loss has fallen
    budget = Budget(Fraction(8, 255), Fraction(4, 255), 6)
    objective = Reversed(classifier, 0)
    result = PGD(budget, early_stop=False)(small_model, objective, pixels, runner_up, SEEDS)
    last = PGD(budget, early_stop=False)(small_model, Never(objective), pixels, runner_up, SEEDS)
    assert result.success.all()
    assert judge(small_model, objective, result.images, runner_up).all()
    assert not judge(small_model, objective, last.images, runner_up).all()


def test_size_of_the_loss_is_nothing_to_it(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """Pixels move by the sign: a mean over the batch, or a weight, changes nothing but underflow (PMG-AFT #1)."""
    budget = Budget(Fraction(2, 255), Fraction(1, 255), 3)
    inner = LevelObjective(classifier, 0)
    one, thousandth = (PGD(budget)(small_model, Never(inner, f), pixels, labels, SEEDS) for f in (1.0, 2.0**-10))
    assert ((one.images - thousandth.images).abs() > 1e-6).float().mean() < 0.005


@pytest.mark.parametrize("early_stop", [True, False])
def test_bf16_wins_are_confirmed_in_fp32(
    early_stop: bool, model: ClipModel, tree: Tree, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto-attack #51: half precision for speed; only the gradients may come from it."""
    classifier = ZeroShotClassifier(model, tree)
    objective = LevelObjective(classifier, 2)
    labels = torch.tensor([0, 3, 0, 3, 0, 3])
    precisions: list[str | None] = []
    encode_image = ClipModel.encode_image

    def watched(self: ClipModel, pixels: Tensor, precision: str | None = None) -> Tensor:
        precisions.append(precision)
        return encode_image(self, pixels, precision)

    monkeypatch.setattr(model, "precision", "bf16")
    monkeypatch.setattr(ClipModel, "encode_image", watched)
    budget = Budget(Fraction(2, 255), Fraction(1, 255), 3)
    result = PGD(budget, early_stop=early_stop)(model, objective, images, labels, SEEDS[:6])
    assert None in precisions  # gradients in the model's own precision
    assert precisions[-1] == "fp32"
    assert torch.equal(result.success, judge(model, objective, result.images, labels))
    assert result.success.any()


def test_a_win_in_bf16_alone_is_none(model: ClipModel, tree: Tree, images: Tensor,
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    class Gullible(LevelObjective):
        """Won whenever the features were computed in bf16."""

        def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
            outcome = super().__call__(features, labels)
            return Outcome(outcome.loss, torch.full_like(outcome.success, rounded[-1]))

    rounded: list[bool] = []
    encode_image = ClipModel.encode_image

    def watched(self: ClipModel, pixels: Tensor, precision: str | None = None) -> Tensor:
        rounded.append((precision or self.precision) == "bf16")
        return encode_image(self, pixels, precision)

    monkeypatch.setattr(model, "precision", "bf16")
    monkeypatch.setattr(ClipModel, "encode_image", watched)
    objective = Gullible(ZeroShotClassifier(model, tree), 0)
    budget = Budget(Fraction(2, 255), Fraction(1, 255), 2)
    result = PGD(budget)(model, objective, images, torch.zeros(6, dtype=torch.long), SEEDS[:6])
    assert True in rounded
    assert not result.success.any()


def test_counts_gradients_that_are_zero_or_not_finite(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """RobustVLM #20: NaN gradients that nobody noticed. The attack goes on from where it stands."""

    class Odd(Never):
        def __call__(self, features: Tensor, labels: Tensor) -> Outcome:
            loss, success = super().__call__(features, labels)
            factor = torch.ones(8)
            factor[0], factor[1], factor[2] = 0.0, torch.nan, torch.inf
            return Outcome(loss * factor, success)

    budget = Budget(Fraction(2, 255), Fraction(1, 255), 3)
    result = PGD(budget)(small_model, Odd(LevelObjective(classifier, 0)), pixels, labels, SEEDS)
    assert (result.gradients, result.zero_gradients, result.bad_gradients) == (24, 3, 6)
    assert torch.equal(result.images[:2], Ball.of(pixels, budget).random(SEEDS)[:2])


def test_a_huge_ball_leaves_nothing_standing(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """TTC #2: a plain model said to be 30.9% robust; it should be about 0."""
    budget = Budget(Fraction(1, 4), Fraction(1, 64), 20)
    assert PGD(budget)(small_model, LevelObjective(classifier, 0), pixels, labels, SEEDS).success.all()


def test_restarts_are_for_what_is_left(
    small_model: ClipModel,
    classifier: ZeroShotClassifier,
    pixels: Tensor,
    labels: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts: list[tuple[int, list[int]]] = []
    random = LinfBall.random

    def watched(self: LinfBall, seeds: list[int]) -> Tensor:
        starts.append((len(self.centre), list(seeds)))
        return random(self, seeds)

    monkeypatch.setattr(LinfBall, "random", watched)
    objective, once = LevelObjective(classifier, 0), Budget(Fraction(3, 255), Fraction(1, 255), 3)
    first = PGD(once)(small_model, objective, pixels, labels, SEEDS)
    starts.clear()
    thrice = PGD(replace(once, restarts=3))(small_model, objective, pixels, labels, SEEDS)
    left = (~first.success).nonzero().squeeze(1).tolist()
    assert 0 < len(left) < 8
    assert starts[0] == (8, SEEDS)
    assert starts[1] == (len(left), [further_seeds(SEEDS, 1)[i] for i in left])
    assert thrice.success[first.success].all()
    assert torch.equal(thrice.images[first.success], first.images[first.success])
    assert not set(starts[1][1]) & set(SEEDS)


def test_restarts_are_counted_from_one() -> None:
    with pytest.raises(UsageError, match="--restarts 0"):
        Budget(Fraction(1, 255), Fraction(1, 255), 3, restarts=0)


def test_restarts_that_would_all_be_the_same() -> None:
    with pytest.raises(UsageError, match=r"--restarts 2.*random start"):
        Budget(Fraction(1, 255), Fraction(1, 255), 3, restarts=2, random_start=False)


def test_without_a_random_start_the_first_gradient_is_that_of_the_clean_image(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    objective, eps = LevelObjective(classifier, 0), Fraction(3, 255)
    once = PGD(Budget(eps, eps, 1, random_start=False))(small_model, objective, pixels, labels, SEEDS)
    fgsm = FGSM(Budget(eps, eps, 1))(small_model, objective, pixels, labels, SEEDS)
    assert torch.equal(once.images, fgsm.images)
    assert torch.equal(once.success, fgsm.success)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_one_step_of_eps(
    norm: str, small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    inner = LevelObjective(classifier, 0)
    budget = Budget(Fraction(2, 255), Fraction(1, 2550), 7, norm)
    result = FGSM(budget)(small_model, Never(inner), pixels, labels, SEEDS)
    x = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(inner(small_model.encode_image(x), labels).loss.sum(), x)
    step = gradient.sign() if norm == "linf" else gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = pixels + 2 / 255 * step
    if norm == "linf":
        assert ((result.images - expected.clamp(0, 1)).abs() > 1e-6).float().mean() < 0.005
    else:
        inside = (expected >= 0) & (expected <= 1)
        assert torch.allclose(result.images[inside], expected[inside], atol=1e-6)
    assert result.gradients == 8


def test_targets_come_from_the_clean_image(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    """The goal is set before the random start, and stays with its image when others have left the batch."""
    with torch.no_grad():
        goals = classifier.logits(small_model.encode_image(pixels)).argsort(1)[:, -2]
    budget = Budget(Fraction(8, 255), Fraction(2, 255), 10)
    result = PGD(budget)(small_model, TargetedObjective(classifier, 0, "prompt", nearest), pixels, labels, SEEDS)
    with torch.no_grad():
        predicted = classifier.predict(small_model.encode_image(result.images))[0, 0]
    assert result.success.sum() >= 4
    assert torch.equal(result.success, predicted == goals)
