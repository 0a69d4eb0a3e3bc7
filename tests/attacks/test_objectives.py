from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrzs.attacks.objectives import HierarchicalObjective, LevelObjective, level_weights
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.heads import CosineHead

LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
# Of the tree in tests/conftest.py: leaves dog, wolf, cat, car, bus, boat.
ANCESTORS = {0: [0, 1, 2, 3, 4, 5], 1: [0, 0, 1, 2, 2, 3], 2: [0, 0, 0, 1, 1, 1]}


@pytest.fixture(scope="module")
def features(small_model: ClipModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return small_model.encode_image(pixels)


def plain_logits(classifier: ZeroShotClassifier, features: Tensor, level: int, scale: float | None = None) -> Tensor:
    """Cosines by hand in float64, through the texts of that level."""
    text = classifier.prepared[classifier.columns[level]].double()
    image = features.double()
    cosines = (image / image.norm(dim=1, keepdim=True)) @ (text / text.norm(dim=1, keepdim=True)).T
    return cosines * (classifier.head.logit_scale.exp().item() if scale is None else scale)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_cross_entropy_of_a_level(level: int, classifier: ZeroShotClassifier, features: Tensor) -> None:
    target = torch.tensor(ANCESTORS[level])[LABELS]
    logits = plain_logits(classifier, features, level)
    loss, won = LevelObjective(classifier, level)(features, LABELS)
    assert torch.allclose(loss.double(), F.cross_entropy(logits, target, reduction="none"), atol=1e-5)
    assert torch.equal(won, logits.argmax(1) != target)
    assert won.any()


@pytest.mark.parametrize("level", [1, 2])
def test_cross_entropy_of_summed_leaves(level: int, classifier: ZeroShotClassifier, features: Tensor) -> None:
    leaf = plain_logits(classifier, features, 0).softmax(1)
    ancestor = torch.tensor(ANCESTORS[level])
    summed = torch.stack([leaf[:, ancestor == node].sum(1) for node in ancestor.unique()], dim=1)
    target = ancestor[LABELS]
    loss, won = LevelObjective(classifier, level, "leaves")(features, LABELS)
    assert torch.allclose(loss.double(), -summed.log()[torch.arange(8), target], atol=1e-5)
    assert torch.equal(won, summed.argmax(1) != target)


def test_leaf_level_is_the_same_under_both_scorings(classifier: ZeroShotClassifier, features: Tensor) -> None:
    by_prompt, by_leaves = (LevelObjective(classifier, 0, s)(features, LABELS) for s in ("prompt", "leaves"))
    assert torch.equal(by_prompt.loss, by_leaves.loss)
    assert torch.equal(by_prompt.won, by_leaves.won)


@pytest.mark.parametrize("scoring", ["prompt", "leaves"])
def test_hierarchical_is_the_weighted_sum(scoring: str, classifier: ZeroShotClassifier, features: Tensor) -> None:
    parts = [LevelObjective(classifier, level, scoring)(features, LABELS) for level in range(3)]
    loss, won = HierarchicalObjective(classifier, scoring)(features, LABELS)
    assert torch.allclose(loss, parts[0].loss + 0.75 * parts[1].loss + 0.5 * parts[2].loss)
    assert torch.equal(won, parts[0].won & parts[1].won & parts[2].won)
    assert won.any()


def test_weights() -> None:
    assert level_weights(1) == (1.0,)
    assert level_weights(4) == pytest.approx((1.0, 0.8, 0.6, 0.4))


@pytest.mark.parametrize("level", ["all", 1, 2])
def test_gradients_at_clips_temperature(level: int | str, classifier: ZeroShotClassifier) -> None:
    """At a scale of 100 a leaf's probability underflows in fp32: summed as such, it would mask the gradient."""
    generator = torch.Generator().manual_seed(0)
    side = torch.tensor([1.0, 1, 1, -1, -1, -1])  # animals one way, vehicles the other
    text = F.normalize(torch.randn(6, 32, generator=generator) * 0.02 + side[:, None], dim=1)
    sharp = copy.copy(classifier)
    sharp.head = CosineHead(torch.tensor(100.0).log())
    sharp.prepared = torch.cat([text, text.new_zeros(len(classifier.prepared) - 6, 32)])
    animal = (text[:1] + 0.01).requires_grad_()
    car = torch.tensor([3])

    naive = sharp.head.logits(animal, text).softmax(1)[:, 3:].sum()
    assert naive == 0
    objective = (
        HierarchicalObjective(sharp, "leaves") if isinstance(level, str) else LevelObjective(sharp, level, "leaves")
    )
    loss, won = objective(animal, car)
    (gradient,) = torch.autograd.grad(loss.sum(), animal)
    assert won.all()
    assert loss.isfinite().all()
    assert loss > 100
    assert gradient.isfinite().all()
    assert gradient.norm() > 1


def test_losses_do_not_see_the_batch(classifier: ZeroShotClassifier, features: Tensor) -> None:
    objective = HierarchicalObjective(classifier)
    together = objective(features, LABELS).loss
    singly = torch.cat([objective(features[i : i + 1], LABELS[i : i + 1]).loss for i in range(8)])
    assert torch.allclose(together, singly, atol=1e-6)
