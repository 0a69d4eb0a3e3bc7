from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hrzs.attacks import Attack, AttackResult, Budget
from hrzs.attacks.apgd import APGD, APGDT
from hrzs.attacks.autoattack import AA2, AutoAttack, InTurn
from hrzs.attacks.ball import Ball
from hrzs.attacks.base import features_of
from hrzs.attacks.fab import FABT
from hrzs.attacks.objectives import HierarchicalObjective, LevelObjective, WishObjective, nearest
from hrzs.attacks.square import Square
from hrzs.errors import UsageError
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

SEEDS = list(range(8))
BUDGET = Budget(Fraction(1, 255), Fraction(1, 255), 100)


def test_standard() -> None:
    """Croce & Hein, ICML 2020, section 5: the four, in this order, 100 iterations each and 5,000 queries."""
    assert [(kind, loss) for kind, loss, _ in AutoAttack.turns] == [
        (APGD, "ce"), (APGDT, "dlr"), (FABT, "ce"), (Square, "margin"),
    ]  # fmt: skip
    assert [scale * 100 for _, _, scale in AutoAttack.turns] == [100, 100, 100, 5000]
    assert AA2.turns == AutoAttack.turns[:2]


class Fooled(Attack):
    """Wins on the first image that it gets, and notes what it got."""

    seen: list[tuple[Tensor, list[int], str, int, bool]]

    def run(
        self, _model: object, objective: LevelObjective, ball: Ball, labels: Tensor, seeds: list[int]
    ) -> AttackResult:
        self.seen.append((labels, list(seeds), objective.loss, self.budget.steps, self.early_stop))
        result = AttackResult.of(ball.centre)
        result.won[0] = True
        result.gradients = len(labels)
        return result


class Three(InTurn):
    turns = ((Fooled, "ce", 1), (Fooled, "margin", 50), (Fooled, "dlr", 2))


@pytest.mark.parametrize("early_stop", [True, False])
def test_each_gets_what_is_left(
    early_stop: bool, small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor
) -> None:
    Fooled.seen = []
    labels = torch.tensor([5, 4, 3])
    attack = Three(BUDGET, early_stop=early_stop)
    result = attack(small_model, LevelObjective(classifier, 0), pixels[:3], labels, SEEDS[:3])
    assert [labels.tolist() for labels, *_ in Fooled.seen] == [[5, 4, 3], [4, 3], [3]]
    assert [rest for _, _, *rest in Fooled.seen] == [
        ["ce", 100, early_stop], ["margin", 5000, early_stop], ["dlr", 200, early_stop],
    ]  # fmt: skip
    seeds = [seeds for _, seeds, *_ in Fooled.seen]
    assert seeds[0] == SEEDS[:3]
    assert len({seed for part in seeds for seed in part}) == 6
    assert result.won.all()
    assert result.gradients == 6

    Fooled.seen = []
    attack(small_model, LevelObjective(classifier, 0), pixels[:1], labels[:1], SEEDS[:1])
    assert len(Fooled.seen) == 1


def test_never_weaker_than_its_first_part(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor
) -> None:
    labels = classifier.predict(features_of(small_model, pixels))[0, 0]
    budget = Budget(Fraction(1, 255), Fraction(1, 255), 6)
    objective = LevelObjective(classifier, 0)
    first, both = (kind(budget)(small_model, objective, pixels, labels, SEEDS) for kind in (APGD, AA2))
    assert 0 < first.won.sum() < 8
    assert both.won[first.won].all()
    assert torch.equal(both.images[first.won], first.images[first.won])


@pytest.mark.parametrize("kind", [AA2, AutoAttack])
def test_one_level_and_any_mistake(
    kind: type[InTurn], small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor
) -> None:
    labels = torch.zeros(8, dtype=torch.long)
    with pytest.raises(UsageError, match=f"{kind.__name__}.*--level a number"):
        kind(BUDGET)(small_model, HierarchicalObjective(classifier), pixels, labels, SEEDS)
    with pytest.raises(UsageError, match="targeted"):
        kind(BUDGET)(small_model, WishObjective(classifier, 0, "prompt", nearest), pixels, labels, SEEDS)
