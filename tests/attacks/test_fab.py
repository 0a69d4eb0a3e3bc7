from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hrzs.attacks import Budget
from hrzs.attacks.base import features_of, judge
from hrzs.attacks.fab import FABT, TARGETS, to_hyperplane
from hrzs.attacks.objectives import HierarchicalObjective, LevelObjective
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel

SEEDS = list(range(8))
STEP = Fraction(1, 255)


class Flat(ClipModel):
    """Its features are the pixels."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.precision, self._bf16_weights = "fp32", None

    def encode_image(self, pixels: Tensor, precision: str | None = None) -> Tensor:  # noqa: ARG002
        return pixels.flatten(1)


class Linear(ZeroShotClassifier):
    """So that the distance to the boundary is known."""

    def __init__(self, classes: int, size: int) -> None:
        leaves = tuple(Node(f"{i}", f"{i}", class_id=f"{i}") for i in range(classes))
        self.tree = Tree(Node("thing", "thing", leaves, level=1))
        self.weights = torch.randn(classes, size, generator=torch.Generator().manual_seed(0))

    def logits(self, features: Tensor, level: int = 0, scoring: str = "prompt") -> Tensor:  # noqa: ARG002
        return features @ self.weights.T

    def labels(self, leaf_labels: Tensor, level: int) -> Tensor:  # noqa: ARG002
        return leaf_labels


@pytest.fixture
def labels(small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor) -> Tensor:
    return classifier.predict(features_of(small_model, pixels))[0, 0]


# -- the projection -----------------------------------------------------------------------------------------------


def by_bisection(x: Tensor, w: Tensor, c: Tensor, *, l2: bool) -> Tensor:
    """The optimality conditions solved in float64: every pixel moves to ``λ`` or ``λ|w|``, or as far as it can."""
    x, w, c = x.double(), (w * c.sign()[:, None]).double(), c.double().abs()
    room, speed = torch.where(w > 0, 1 - x, x), w.abs() if l2 else (w != 0).double()
    low, high = torch.zeros_like(c), torch.full_like(c, 1e9)
    for _ in range(100):
        middle = (low + high) / 2
        short = (w.abs() * torch.minimum(middle[:, None] * speed, room)).sum(1) < c
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return w.sign() * torch.minimum(high[:, None] * speed, room)


norms = pytest.mark.parametrize("l2", [False, True], ids=["linf", "l2"])
points = st.lists(st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32)), min_size=7, max_size=7)
weights = st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.3, -2.5, 1e-3, -7.0]), min_size=7, max_size=7)


@norms
@settings(max_examples=50)
@given(x=points, w=weights, c=st.floats(-12, 12, width=32), scale=st.sampled_from([1e-30, 1e-10, 1.0, 1e6]))
def test_projection_is_the_shortest_way(l2: bool, x: list[float], w: list[float], c: float, scale: float) -> None:
    """With planes out of reach among them, where the nearest corner is the answer."""
    point, plane, gap = torch.tensor([x]), torch.tensor([w]), torch.tensor([c])
    d = to_hyperplane(point, plane * scale, gap * scale, l2=l2)
    assert ((point + d) >= -1e-6).all()
    assert ((point + d) <= 1 + 1e-6).all()
    assert torch.allclose(d.double(), by_bisection(point, plane, gap, l2=l2), atol=2e-5)


@norms
def test_projection_of_a_large_image(l2: bool) -> None:
    """Pixels at 0 and at 1, and planes from within a hair to out of reach."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3000, generator=random)
    x[:, ::3], x[:, ::7] = 1.0, 0.0
    w = torch.randn(6, 3000, generator=random)
    c = torch.tensor([1e-3, -1.0, 30.0, -300.0, 500.0, 1e5])
    d = to_hyperplane(x, w, c, l2=l2)
    assert torch.allclose(d.double(), by_bisection(x, w, c, l2=l2), atol=1e-5)
    assert torch.allclose((w * d).sum(1)[:5], c[:5], rtol=1e-4)
    assert torch.equal(torch.cat([to_hyperplane(x[i : i + 1], w[i : i + 1], c[i : i + 1], l2=l2) for i in range(6)]), d)


@norms
def test_no_gradient_no_way(l2: bool) -> None:
    x = torch.tensor([[0.0, 0.5, 1.0]])
    assert torch.equal(to_hyperplane(x, torch.zeros(1, 3), torch.ones(1), l2=l2), torch.zeros(1, 3))


# -- the attack ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_finds_the_boundary_of_a_linear_model(norm: str, classes: int) -> None:
    """The distance to the nearest mistake is known, and decides: 1 % more than that is enough, 1 % less is not."""
    model, classifier = Flat(), Linear(classes, 75)
    images = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    logits = classifier.logits(images.flatten(1))
    truth = logits.argmax(1)
    distances = []
    for other in range(classes):
        w = classifier.weights[other] - classifier.weights[truth]
        d = by_bisection(images.flatten(1), w, logits[range(2), truth] - logits[:, other], l2=norm == "l2")
        length = d.norm(dim=1) if norm == "l2" else d.abs().amax(1)
        distances.append(torch.where(truth == other, torch.inf, length))
    for i, distance in enumerate(torch.stack(distances).amin(0).tolist()):
        for share, enough in ((1.01, True), (0.99, False)):
            budget = Budget(Fraction(distance * share), STEP, 8, norm)
            result = FABT(budget)(model, LevelObjective(classifier, 0), images[i : i + 1], truth[i : i + 1], [0])
            assert result.success.item() == enough


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2), (10, 9), (14, TARGETS)])
def test_at_most_nine_targets(classes: int, targets: int) -> None:
    model, classifier = Flat(), Linear(classes, 75)
    images = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    truth = classifier.logits(images.flatten(1)).argmax(1)
    result = FABT(Budget(Fraction(1, 10**6), STEP, 3))(model, LevelObjective(classifier, 0), images, truth, SEEDS[:4])
    assert not result.success.any()
    assert result.gradients == 4 * 3 * targets


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fooled_images_leave_the_batch(
    norm: str, small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    budget = Budget(Fraction(8, 255) if norm == "linf" else Fraction(1, 2), STEP, 6, norm)
    objective = LevelObjective(classifier, 0)
    stopped = FABT(budget)(small_model, objective, pixels, labels, SEEDS)
    patient = FABT(budget, early_stop=False)(small_model, objective, pixels, labels, SEEDS)
    assert stopped.success.any()
    assert torch.equal(stopped.success, patient.success)
    searches = -(-patient.gradients // (8 * 6))
    assert patient.gradients % 6 == 0  # whoever is in a search goes to its end
    assert 1 <= searches <= 5
    assert stopped.gradients < patient.gradients
    for result in (stopped, patient):
        assert torch.equal(result.success, judge(small_model, objective, result.images, labels))


def test_wrong_when_clean_is_left_alone(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    mixed = torch.cat([labels[:4], (labels[4:] + 1) % 6])
    budget = Budget(Fraction(1, 10**5), STEP, 2)
    result = FABT(budget, early_stop=False)(small_model, LevelObjective(classifier, 0), pixels, mixed, SEEDS)
    assert result.success.tolist() == [False] * 4 + [True] * 4
    assert torch.equal(result.images[4:], pixels[4:])
    assert result.gradients == 4 * 2 * 5


def test_wins_are_confirmed_in_fp32(
    model: ClipModel, tree: Tree, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto-attack #51: half precision for speed; only the gradients may come from it."""
    monkeypatch.setattr(model, "precision", "bf16")
    objective = LevelObjective(ZeroShotClassifier(model, tree), 0)
    truth = objective.logits(features_of(model, images)).argmax(1)
    precisions: list[str | None] = []
    encode_image = ClipModel.encode_image

    def watched(self: ClipModel, pixels: Tensor, precision: str | None = None) -> Tensor:
        precisions.append(precision)
        return encode_image(self, pixels, precision)

    monkeypatch.setattr(ClipModel, "encode_image", watched)
    result = FABT(Budget(Fraction(4, 255), STEP, 3))(model, objective, images, truth, SEEDS[:6])
    assert None in precisions
    assert result.success.any()
    assert torch.equal(result.success, judge(model, objective, result.images, truth))


def test_refuses_all_levels_at_once(
    small_model: ClipModel, classifier: ZeroShotClassifier, pixels: Tensor, labels: Tensor
) -> None:
    with pytest.raises(UsageError, match=r"one level.*--level"):
        FABT(Budget(STEP, STEP, 1))(small_model, HierarchicalObjective(classifier), pixels, labels, SEEDS)
