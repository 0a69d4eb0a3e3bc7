from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrzs.attacks.losses import LOSSES, dlr, dlr_towards, margin, margin_towards
from hrzs.attacks.objectives import (
    HierarchicalObjective,
    LevelObjective,
    TargetedObjective,
    by_lca,
    level_weights,
    named,
    nearest,
)
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
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
    loss, success = LevelObjective(classifier, level)(features, LABELS)
    assert torch.allclose(loss.double(), F.cross_entropy(logits, target, reduction="none"), atol=1e-5)
    assert torch.equal(success, logits.argmax(1) != target)
    assert success.any()


@pytest.mark.parametrize("level", [1, 2])
def test_cross_entropy_of_summed_leaves(level: int, classifier: ZeroShotClassifier, features: Tensor) -> None:
    leaf = plain_logits(classifier, features, 0).softmax(1)
    ancestor = torch.tensor(ANCESTORS[level])
    summed = torch.stack([leaf[:, ancestor == node].sum(1) for node in ancestor.unique()], dim=1)
    target = ancestor[LABELS]
    loss, success = LevelObjective(classifier, level, "leaves")(features, LABELS)
    assert torch.allclose(loss.double(), -summed.log()[torch.arange(8), target], atol=1e-5)
    assert torch.equal(success, summed.argmax(1) != target)


def test_leaf_level_is_the_same_under_both_scorings(classifier: ZeroShotClassifier, features: Tensor) -> None:
    by_prompt, by_leaves = (LevelObjective(classifier, 0, s)(features, LABELS) for s in ("prompt", "leaves"))
    assert torch.equal(by_prompt.loss, by_leaves.loss)
    assert torch.equal(by_prompt.success, by_leaves.success)


@pytest.mark.parametrize("scoring", ["prompt", "leaves"])
def test_hierarchical_is_the_weighted_sum(scoring: str, classifier: ZeroShotClassifier, features: Tensor) -> None:
    parts = [LevelObjective(classifier, level, scoring)(features, LABELS) for level in range(3)]
    loss, success = HierarchicalObjective(classifier, scoring)(features, LABELS)
    assert torch.allclose(loss, parts[0].loss + 0.75 * parts[1].loss + 0.5 * parts[2].loss)
    assert torch.equal(success, parts[0].success & parts[1].success & parts[2].success)
    assert success.any()


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
    loss, success = objective(animal, car)
    (gradient,) = torch.autograd.grad(loss.sum(), animal)
    assert success.all()
    assert loss.isfinite().all()
    assert loss > 100
    assert gradient.isfinite().all()
    assert gradient.norm() > 1


def test_losses_do_not_see_the_batch(classifier: ZeroShotClassifier, features: Tensor) -> None:
    objective = HierarchicalObjective(classifier)
    together = objective(features, LABELS).loss
    singly = torch.cat([objective(features[i : i + 1], LABELS[i : i + 1]).loss for i in range(8)])
    assert torch.allclose(together, singly, atol=1e-6)


# -- other losses, and ways towards a class -----------------------------------------------------------------------


@pytest.mark.parametrize(("level", "loss", "used"), [(0, "dlr", dlr), (1, "dlr", dlr), (2, "dlr", margin),
                                                     (0, "margin", margin), (2, "margin", margin)])  # fmt: skip
def test_loss_of_choice(level: int, loss: str, used: object, classifier: ZeroShotClassifier, features: Tensor) -> None:
    """Level 2 has two nodes, too few for DLR: the margin stands in, and the objective says so."""
    objective = LevelObjective(classifier, level, loss=loss)
    target = torch.tensor(ANCESTORS[level])[LABELS]
    logits = plain_logits(classifier, features, level).to(features)
    outcome = objective(features, LABELS)
    assert torch.allclose(outcome.loss, used(logits, target), atol=1e-4)
    assert torch.equal(outcome.success, logits.argmax(1) != target)
    assert objective.stands_in == ("margin" if (level, loss) == (2, "dlr") else None)
    assert objective.with_loss("ce").stands_in is None


@pytest.mark.parametrize(("level", "used"), [(0, dlr_towards), (1, dlr_towards), (2, margin_towards)])
def test_towards(level: int, used: object, classifier: ZeroShotClassifier, features: Tensor) -> None:
    target = torch.tensor(ANCESTORS[level])[LABELS]
    ways = LevelObjective(classifier, level, loss="dlr").likeliest(9)
    assert [way.rank for way in ways] == list(range(len(classifier.tree.levels[level]) - 1))
    clean = features.flip(0)
    order = plain_logits(classifier, clean, level).argsort(1, descending=True).tolist()
    others = [[node for node in row if node != y] for row, y in zip(order, target.tolist(), strict=True)]
    goals = torch.tensor([row[-1] for row in others])
    objective = ways[-1].bound(lambda: clean, LABELS)
    logits = plain_logits(classifier, features, level).to(features)
    outcome = objective(features, LABELS)
    assert torch.allclose(outcome.loss, used(logits, target, goals), atol=1e-4)
    assert torch.equal(outcome.success, logits.argmax(1) != target)  # any mistake will do
    assert objective.stands_in == ("margin" if level == 2 else None)


@pytest.mark.parametrize("rows", [[5], [7, 0, 3], []], ids=str)
@pytest.mark.parametrize("kind", ["level", "towards", "nearest", "named", "lca", "hierarchical"])
def test_select(kind: str, rows: list[int], classifier: ZeroShotClassifier, features: Tensor) -> None:
    """What an objective knows of each image goes along with it."""
    plain = LevelObjective(classifier, 0)
    objective = {
        "level": plain,
        "towards": plain.likeliest(3)[2].bound(lambda: features.flip(0), LABELS),
        "nearest": TargetedObjective(classifier, 0, "prompt", nearest).bound(lambda: features.flip(0), LABELS),
        "named": TargetedObjective(classifier, 0, "prompt", named(2)).bound(lambda: features, LABELS),
        "lca": TargetedObjective(classifier, 0, "prompt", by_lca(classifier.tree, largest=True)),
        "hierarchical": HierarchicalObjective(classifier),
    }[kind]
    whole = objective(features, LABELS)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[rows] = True
    for chosen in (torch.tensor(rows, dtype=torch.long), mask):
        part = objective.select(chosen)(features[chosen], LABELS[chosen])
        assert torch.allclose(part.loss, whole.loss[chosen], atol=1e-6)
        assert torch.equal(part.success, whole.success[chosen])


# -- certain mistakes ---------------------------------------------------------------------------------------------


def assert_wishes(objective: TargetedObjective, wanted: Tensor, features: Tensor) -> None:
    logits = plain_logits(objective.classifier, features, int(objective.level))
    loss, success = objective(features, LABELS)
    assert torch.allclose(loss.double(), (logits.softmax(1) * wanted).sum(1).log(), atol=1e-5)
    assert torch.equal(success, wanted[torch.arange(8), logits.argmax(1)])


@pytest.mark.parametrize("level", [0, 1, 2])
def test_nearest_is_by_the_clean_image(level: int, classifier: ZeroShotClassifier, features: Tensor) -> None:
    clean = features.flip(0)
    truth = torch.tensor(ANCESTORS[level])[LABELS]
    order = plain_logits(classifier, clean, level).argsort(1, descending=True).tolist()
    goals = [next(node for node in row if node != y) for row, y in zip(order, truth.tolist(), strict=True)]
    objective = TargetedObjective(classifier, level, "prompt", nearest).bound(lambda: clean, LABELS)
    assert_wishes(objective, F.one_hot(torch.tensor(goals), len(classifier.tree.levels[level])).bool(), features)


def test_named_goal(classifier: ZeroShotClassifier, features: Tensor) -> None:
    """An image of that very class (label 2) can be led anywhere else."""
    wanted = torch.zeros(8, 6, dtype=torch.bool)
    wanted[:, 2] = True
    wanted[2] = ~wanted[2]
    objective = TargetedObjective(classifier, 0, "prompt", named(2))
    assert_wishes(objective, wanted, features)


@pytest.mark.parametrize(
    ("largest", "mistakes"),
    [
        (False, {0: {1}, 1: {0}, 2: {0, 1}, 3: {4}, 4: {3}, 5: {3, 4}}),
        (True, {0: {3, 4, 5}, 1: {3, 4, 5}, 2: {3, 4, 5}, 3: {0, 1, 2}, 4: {0, 1, 2}, 5: {0, 1, 2}}),
    ],
)
def test_least_and_largest_mistake(
    largest: bool, mistakes: dict[int, set[int]], classifier: ZeroShotClassifier, features: Tensor, tree: Tree
) -> None:
    """A cat has no sibling: its smallest mistakes are the canines, one level up."""
    wanted = torch.tensor([[leaf in mistakes[y] for leaf in range(6)] for y in LABELS.tolist()])
    assert_wishes(TargetedObjective(classifier, 0, "prompt", by_lca(tree, largest=largest)), wanted, features)


def test_wishes_have_a_gradient_at_clips_temperature(classifier: ZeroShotClassifier) -> None:
    sharp = copy.copy(classifier)
    sharp.head = CosineHead(torch.tensor(100.0).log())
    image = sharp.prepared[:1].clone().requires_grad_()
    loss, success = TargetedObjective(sharp, 0, "prompt", by_lca(sharp.tree, largest=True))(image, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss.sum(), image)
    assert not success.any()
    assert loss < -50
    assert gradient.isfinite().all()
    assert gradient.norm() > 1


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wish_takes_no_other_loss(loss: str, classifier: ZeroShotClassifier) -> None:
    """AutoAttack's parts would count any mistake as a win."""
    with pytest.raises(UsageError, match="targeted"):
        TargetedObjective(classifier, 0, "prompt", nearest).with_loss(loss)
