from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hrzs.attacks import Attack, AttackResult, Budget
from hrzs.attacks.apgd import APGD, APGDT
from hrzs.attacks.autoattack import AA2, AutoAttack, InTurn
from hrzs.attacks.base import Search, features_of, further_seeds
from hrzs.attacks.fab import FAB, FABT
from hrzs.attacks.objectives import HierarchicalObjective, LevelObjective, TargetedObjective, nearest
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

    def run(self, search: Search, seeds: Sequence[int]) -> AttackResult:
        assert isinstance(search.objective, LevelObjective)
        self.seen.append((search.labels, list(seeds), search.objective.loss, self.budget.steps, self.early_stop))
        result = AttackResult.of(search.clean)
        result.success[0] = True
        result.gradients = len(search)
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
    assert result.success.all()
    assert result.gradients == 6

    Fooled.seen = []
    attack(small_model, LevelObjective(classifier, 0), pixels[:1], labels[:1], SEEDS[:1])
    assert len(Fooled.seen) == 1


def test_parts_are_single_searches(classifier: ZeroShotClassifier) -> None:
    """Six leaves: five other classes to drive towards. Each part is one itself, so that it can be run on its own."""
    parts = AutoAttack(replace(BUDGET, restarts=3)).parts(LevelObjective(classifier, 0))
    assert [type(part) for part, _ in parts] == [APGD, *[APGD] * 5, *[FAB] * 5, Square]
    assert [getattr(aim, "rank", None) for _, aim in parts] == [None, *range(5), *range(5), None]
    assert [part.budget.steps for part, _ in parts] == [*[100] * 11, 5000]
    for part, aim in parts:
        assert [(type(again), whose) for again, whose in part.parts(aim)] == [(type(part), aim)]
    costs = [part.cost for part, _ in parts]
    assert costs[0] == 100
    assert costs[-1] == pytest.approx(5000 / 3)


def test_part_by_part_is_the_whole(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> None:
    """An evaluation runs each part over all that is left before the next: nothing may come out differently."""
    labels = classifier.predict(features_of(small_model, pixels))[0, 0]
    attack = AutoAttack(Budget(Fraction(1, 255), Fraction(1, 255), 2))
    objective = LevelObjective(classifier, 0)
    whole = attack(small_model, objective, pixels, labels, SEEDS)
    images, success = pixels.clone(), torch.zeros(8, dtype=torch.bool)
    for i, (part, aim) in enumerate(attack.parts(objective)):
        for row in (~success).nonzero().squeeze(1).tolist():
            one = slice(row, row + 1)
            found = part(small_model, aim, pixels[one], labels[one], further_seeds(SEEDS[one], i))
            images[one], success[one] = found.images, found.success
    assert 0 < success.sum() < 8
    assert torch.equal(whole.success, success)
    # The kernels of one image and of many round differently.
    assert ((whole.images - images).abs() > 1e-5).sum() <= 0.01 * images.numel()


def test_never_weaker_than_its_first_part(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor
) -> None:
    labels = classifier.predict(features_of(small_model, pixels))[0, 0]
    budget = Budget(Fraction(1, 255), Fraction(1, 255), 6)
    objective = LevelObjective(classifier, 0)
    first, both = (kind(budget)(small_model, objective, pixels, labels, SEEDS) for kind in (APGD, AA2))
    assert 0 < first.success.sum() < 8
    assert both.success[first.success].all()
    assert torch.equal(both.images[first.success], first.images[first.success])


@pytest.mark.parametrize("kind", [AA2, AutoAttack])
def test_one_level_and_any_mistake(
    kind: type[InTurn], small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor
) -> None:
    labels = torch.zeros(8, dtype=torch.long)
    with pytest.raises(UsageError, match=f"{kind.__name__}.*--level a number"):
        kind(BUDGET)(small_model, HierarchicalObjective(classifier), pixels, labels, SEEDS)
    with pytest.raises(UsageError, match="targeted"):
        kind(BUDGET)(small_model, TargetedObjective(classifier, 0, "prompt", nearest), pixels, labels, SEEDS)
