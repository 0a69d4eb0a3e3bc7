from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from hrzs.attacks import ATTACKS, Budget, sample_seeds
from hrzs.data import Batch, Dataset
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.training.options import CRITERIA, TrainOptions
from hrzs.training.validation import Validation, validate

OPTIONS = TrainOptions(eps=Fraction(1, 1000), step_size=Fraction(1, 2000), val_steps=3, batch_size=20)

#: Three images at two levels: the first holds at both, the second at the top alone, the third is right when clean. The
#: leaves have one image each; above them the first two images share a node.
SEEN = Validation(
    clean=torch.tensor([[True, True, True], [True, True, False]]),
    robust=torch.tensor([[True, False, False], [True, True, False]]),
    truth=torch.tensor([[0, 1, 2], [0, 0, 1]]),
)


# Weights: 1/3 each at the leaves, 1/4, 1/4 and 1/2 above, so 7/24, 7/24 and 10/24 over both.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clean", (1 + 1 / 2) / 2), ("leaf", 1 / 3), ("levels", (1 / 3 + 1 / 2) / 2), ("any-level", 7 / 24),
        ("balanced", (1 + 1 / 2 + 1 / 3 + 1 / 2) / 4),
    ],
)  # fmt: skip
def test_criteria(name: str, value: float) -> None:
    assert name in CRITERIA
    assert SEEN.criterion(name) == pytest.approx(value)
    assert SEEN.as_row(name) == {
        "clean": pytest.approx([1, 2 / 3], abs=1e-6), "robust": pytest.approx([1 / 3, 2 / 3], abs=1e-6),
        "clean_balanced": pytest.approx([1, 1 / 2], abs=1e-6),
        "robust_balanced": pytest.approx([1 / 3, 1 / 2], abs=1e-6), "constant": pytest.approx([1 / 3, 2 / 3], abs=1e-6),
        "any_level": pytest.approx(1 / 3, abs=1e-6), "any_level_balanced": pytest.approx(7 / 24, abs=1e-6), "n": 3,
        "criterion": pytest.approx(value, abs=1e-6),
    }  # fmt: skip


def test_naming_the_largest_node_is_no_criterion() -> None:
    """A model that answers "artifact" to 9 of 10 images that are artifacts beats one that tells both nodes apart."""
    truth = torch.tensor([[0] * 9 + [1]])
    constant = truth == 0
    telling = torch.tensor([[True] * 6 + [False] * 3 + [True]])
    one, other = Validation(constant, constant, truth), Validation(telling, telling, truth)
    for name in set(CRITERIA) - {"leaf"}:
        assert one.criterion(name) == 1 / 2 < other.criterion(name)
    row = one.as_row("levels")
    assert row["robust"] == row["constant"] == [0.9] > other.as_row("levels")["robust"]


def test_every_criterion_can_be_asked_for() -> None:
    assert all(0 <= SEEN.criterion(name) <= 1 for name in CRITERIA)


def test_against_the_attack_itself(
    make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree, batch: Batch
) -> None:
    """In one batch and without stopping early: the same verdicts."""
    model = make_model()
    found = validate(model, shapes, shapes_tree, OPTIONS)
    classifier = ZeroShotClassifier(model, shapes_tree, OPTIONS.template)
    seeds = sample_seeds(batch.ids, OPTIONS.seed, "validation")
    budget = Budget(OPTIONS.eps, OPTIONS.step_size, OPTIONS.val_steps)
    for level in range(shapes_tree.height):
        with torch.no_grad():
            predicted = classifier.logits(model.encode_image(batch.images), level).argmax(1)
        right = predicted == classifier.labels(batch.labels, level)
        assert torch.equal(found.clean[level], right)
        objective = ATTACKS["leaf-pgd"].objective(classifier, level)
        attack = ATTACKS["leaf-pgd"].optimiser(budget, early_stop=False)
        fell = attack(model, objective, batch.images, batch.labels, seeds).success
        assert torch.equal(found.robust[level], right & ~fell)
        assert torch.equal(found.truth[level], classifier.labels(batch.labels, level))
    assert found.clean.any()
    assert (found.clean & ~found.robust).any()


def test_nothing_changes_and_it_can_be_repeated(
    make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (validate(model, shapes, shapes_tree, replace(OPTIONS, batch_size=size)) for size in (48, 48))
    assert torch.equal(first.robust, again.robust)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
