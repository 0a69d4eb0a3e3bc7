from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import SCORINGS, ZeroShotClassifier, sum_leaves
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model

# Of the tree in tests/conftest.py.
LEVELS = [
    ["dog", "wolf", "cat", "car", "bus", "boat"],
    ["canine", "cat", "wheeled vehicle", "boat"],
    ["animal", "vehicle"],
]
BELOW = [
    [[i] for i in range(6)],
    [[0, 1], [2], [3, 4], [5]],
    [[0, 1, 2], [3, 4, 5]],
]


@pytest.fixture(scope="module")
def classifier(model: ClipModel, tree: Tree) -> ZeroShotClassifier:
    return ZeroShotClassifier(model, tree)


@pytest.fixture(scope="module")
def features() -> Tensor:
    return torch.randn(40, 64, generator=torch.Generator().manual_seed(0))


def brute_force(model: ClipModel, features: Tensor, level: int, scoring: str) -> Tensor:
    """Probabilities node by node in float64, from prompts written out by hand."""

    def text(name: str) -> Tensor:
        prompts = ["a photo of a bus.", "a photo of a coach."] if name == "bus" else [f"a photo of a {name}."]
        return F.normalize(F.normalize(model.encode_text(prompts).double(), dim=1).mean(0), dim=0)

    with torch.no_grad():
        scale = model.clip.logit_scale.exp().double()
        names = LEVELS[level if scoring == "prompt" else 0]
        logits = scale * F.normalize(features.double(), dim=1) @ torch.stack([text(name) for name in names]).T
    probabilities = logits.softmax(1)
    if scoring == "prompt":
        return probabilities
    return torch.stack([probabilities[:, leaves].sum(1) for leaves in BELOW[level]], dim=1)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_probabilities_by_brute_force(
    level: int, scoring: str, classifier: ZeroShotClassifier, model: ClipModel, features: Tensor
) -> None:
    expected = brute_force(model, features, level, scoring)
    logits = classifier.logits(features, level, scoring)
    assert logits.shape == (40, len(LEVELS[level]))
    assert torch.allclose(logits.softmax(1).double(), expected, atol=1e-5)


def test_predictions_by_brute_force(classifier: ZeroShotClassifier, model: ClipModel, features: Tensor) -> None:
    with torch.no_grad():
        predicted = classifier.predict(features)
    assert predicted.shape == (2, 3, 40)
    for s, scoring in enumerate(SCORINGS):
        for level in range(3):
            assert torch.equal(predicted[s, level], brute_force(model, features, level, scoring).argmax(1))
            assert torch.equal(predicted[s, level], classifier.logits(features, level, scoring).argmax(1))
    # The two ways to score a superclass are two ways.
    assert not torch.equal(predicted[0, 1:], predicted[1, 1:])


def test_labels_are_ancestors(classifier: ZeroShotClassifier) -> None:
    labels = torch.arange(6)
    for level, groups in enumerate(BELOW):
        expected = [next(i for i, leaves in enumerate(groups) if leaf in leaves) for leaf in range(6)]
        assert classifier.labels(labels, level).tolist() == expected


def test_text_needs_no_gradient(classifier: ZeroShotClassifier) -> None:
    assert not classifier.prepared.requires_grad
    assert classifier.prepared.shape == (12, 64)  # levels of 6, 4 and 2 nodes: those that pass through in each
    assert torch.equal(classifier.prepared[classifier.columns[1][[1, 3]]], classifier.prepared[[2, 5]])


def test_head_by_name(tree: Tree, features: Tensor) -> None:
    model = load_model("tiny", "none", seed=0)
    model.geometry = HyperbolicHead(0.1, 0.1, 4.0)
    own, cosine = ZeroShotClassifier(model, tree), ZeroShotClassifier(model, tree, head="cosine")
    assert (own.head.name, cosine.head.name) == ("hyperbolic", "cosine")
    with torch.no_grad():
        text = model.encode_text(["a photo of a bus.", "a photo of a coach."]).mean(0, keepdim=True)
        assert torch.allclose(own.prepared[4:5], model.geometry.prepare(text), atol=1e-6)
        assert (own.logits(features) <= 0).all()
        assert torch.allclose(cosine.prepared.norm(dim=1), torch.ones(12), atol=1e-5)


def test_a_hyperbolic_level_is_scored_at_its_depth(tree: Tree, features: Tensor) -> None:
    """`cat` passes through level 1: one text, at another depth, temperature and logit in each of its levels."""
    model = load_model("tiny", "none", seed=0)
    model.geometry = HyperbolicHead(0.1, 0.1, (4.0, 3.0, 2.0), depth=(1.0, 0.6, 0.3))
    own = ZeroShotClassifier(model, tree)
    names = {level: [n.name for n in tree.levels[level]] for level in range(3)}
    with torch.no_grad():
        for level, beta, factor in ((0, 4.0, 1.0), (1, 3.0, 0.6), (2, 2.0, 0.3)):
            column = names[level].index("cat") if level < 2 else 0
            text = model.encode_text([f"a photo of a {names[level][column]}."])
            shallow = HyperbolicHead(0.1 * factor, 0.1 * factor, beta)
            expected = shallow.logits(features, shallow.prepare(text))[:, 0]
            assert torch.allclose(own.logits(features, level)[:, column], expected, atol=1e-4)
        # Summed leaves stay the leaves'.
        leaf = own.logits(features)
        assert torch.allclose(own.logits(features, 2, "leaves")[:, 0], leaf[:, :3].logsumexp(1), atol=1e-4)


@given(
    st.lists(st.floats(-1000, 1000, width=32), min_size=5, max_size=5),
    st.permutations([0, 0, 1, 1, 2]),
)
def test_sum_leaves_is_log_sum_exp(logits: list[float], ancestor: list[int]) -> None:
    leaf = torch.tensor([logits])
    index = torch.tensor(ancestor)
    summed = sum_leaves(leaf, index, 3)
    expected = torch.stack([leaf.double()[:, index == node].logsumexp(1) for node in range(3)], dim=1)
    assert torch.allclose(summed.double(), expected, rtol=1e-6, atol=1e-5)


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=4, max_size=4))
def test_sum_leaves_has_the_gradient_of_log_sum_exp(logits: list[float]) -> None:
    index, weight = torch.tensor([0, 1, 0, 1]), torch.tensor([[1.0, -2.0]])
    leaf = torch.tensor([logits], requires_grad=True)
    (gradient,) = torch.autograd.grad((sum_leaves(leaf, index, 2) * weight).sum(), leaf)
    naive = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    summed = torch.stack([naive[:, index == node].logsumexp(1) for node in range(2)], dim=1)
    (expected,) = torch.autograd.grad((summed * weight).sum(), naive)
    assert torch.allclose(gradient.double(), expected, rtol=1e-4, atol=1e-6)


def test_no_images(classifier: ZeroShotClassifier) -> None:
    assert classifier.predict(torch.empty(0, 64)).shape == (2, 3, 0)


def test_second_classifier_encodes_no_text(
    model: ClipModel, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HRZS_CACHE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encode, calls = model.clip.encode_text, []
    monkeypatch.setattr(model.clip, "encode_text", lambda *a, **k: calls.append(1) or encode(*a, **k))
    first, second = (ZeroShotClassifier(model, tree) for _ in range(2))
    assert len(calls) == 1
    assert torch.equal(first.prepared, second.prepared)
