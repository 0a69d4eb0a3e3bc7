from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hrzs.attacks import Budget, sample_seeds
from hrzs.attacks.ball import Ball
from hrzs.attacks.base import judge
from hrzs.attacks.noise import Noise
from hrzs.attacks.objectives import LevelObjective
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

SEEDS = sample_seeds([str(i) for i in range(8)], 0)


def budget(draws: int, norm: str = "linf") -> Budget:
    # So wide that draws differ in what they fool.
    return Budget(Fraction(1, 2) if norm == "linf" else Fraction(8), Fraction(1, 255), draws, norm)


@pytest.fixture
def right(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> Tensor:
    """Labels under which every clean image is right."""
    with torch.no_grad():
        return classifier.logits(small_model.encode_image(pixels)).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_draws_fool_more(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, right: Tensor, norm: str
) -> None:
    objective = LevelObjective(classifier, 0)
    found = [Noise(budget(n, norm))(small_model, objective, pixels, right, SEEDS) for n in (1, 30)]
    few, many = found
    assert (many.success | ~few.success).all()
    assert many.success.sum() > few.success.sum()
    for result in found:
        assert torch.equal(judge(small_model, objective, result.images, right), result.success)
        assert result.gradients == 0
        assert Ball.of(pixels, budget(1, norm)).contains(result.images).all()


def test_draws_are_neither_the_start_of_pgd_nor_depend_on_the_batch(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, right: Tensor
) -> None:
    objective, attack = LevelObjective(classifier, 0), Noise(budget(2), early_stop=False)
    whole = attack(small_model, objective, pixels, right, SEEDS)
    alone = attack(small_model, objective, pixels[3:4], right[3:4], SEEDS[3:4])
    assert torch.equal(whole.images[3:4], alone.images)
    start = Ball.of(pixels, budget(1)).random(SEEDS)
    assert not (whole.images == start).flatten(1).all(1).any()
