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

#: Three images at two levels: the first holds at both, the second at the top alone, the third is right when clean.
SEEN = Validation(
    clean=torch.tensor([[True, True, True], [True, True, False]]),
    robust=torch.tensor([[True, False, False], [True, True, False]]),
)


@pytest.mark.parametrize(
    ("name", "value"),
    [("clean", 5 / 6), ("leaf", 1 / 3), ("levels", 3 / 6), ("any-level", 1 / 3), ("balanced", (5 / 6 + 3 / 6) / 2)],
)
def test_criteria(name: str, value: float) -> None:
    assert name in CRITERIA
    assert SEEN.criterion(name) == pytest.approx(value)
    assert SEEN.as_row(name) == {
        "clean": pytest.approx([1, 2 / 3], abs=1e-6), "robust": pytest.approx([1 / 3, 2 / 3], abs=1e-6),
        "any_level": pytest.approx(1 / 3, abs=1e-6), "n": 3, "criterion": pytest.approx(value, abs=1e-6),
    }  # fmt: skip


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
    for level in range(shapes_tree.top):
        with torch.no_grad():
            predicted = classifier.logits(model.encode_image(batch.images), level).argmax(1)
        right = predicted == classifier.labels(batch.labels, level)
        assert torch.equal(found.clean[level], right)
        objective = ATTACKS["leaf-pgd"].objective(classifier, level)
        attack = ATTACKS["leaf-pgd"].optimiser(budget, early_stop=False)
        fell = attack(model, objective, batch.images, batch.labels, seeds).won
        assert torch.equal(found.robust[level], right & ~fell)
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
