from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from hrzs.evaluation.tree_view import level_accuracy, level_depth
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Tree
from hrzs.models.heads import HyperbolicHead

if TYPE_CHECKING:
    from hrzs.models.clip import ClipModel
    from hrzs.tasks import Task

# -- accuracy of each level -------------------------------------------------------------------------------------------


def test_level_accuracy_is_that_of_the_classifier(small: ClipModel, task: Task) -> None:
    from hrzs.data import loader
    from hrzs.models.classifier import ZeroShotClassifier

    found = json.loads(json.dumps(level_accuracy(small, task, batch_size=7)))
    images = next(iter(loader(task.data, 24))).images
    with torch.no_grad():
        nodes = ZeroShotClassifier(small, task.tree).predict(small.encode_image(images))
    truth = task.tree.ancestors[: task.tree.height, torch.tensor(task.data.labels)]
    by_prompt, by_leaves = (nodes == truth).double().mean(2).tolist()
    assert [row["level"] for row in found["levels"]] == [0, 1, 2]
    assert [row["nodes"] for row in found["levels"]] == [6, 4, 2]
    assert [row["prompt"]["accuracy"] for row in found["levels"]] == pytest.approx(by_prompt)
    assert found["levels"][0]["leaves"] is None
    assert [row["leaves"]["accuracy"] for row in found["levels"][1:]] == pytest.approx(by_leaves[1:])
    for row in found["levels"]:
        low, high = row["prompt"]["ci95"]
        assert low <= row["prompt"]["accuracy"] <= high
    assert found["levels"][0]["consistency"] == 1
    assert found["n"] == 24
    assert found["head"] == "cosine"


def test_level_accuracy_of_a_flat_tree(small: ClipModel, task: Task, flat: Tree) -> None:
    from dataclasses import replace

    found = level_accuracy(small, replace(task, tree=flat))
    assert [row["level"] for row in found["levels"]] == [0]


# -- where the levels lie ---------------------------------------------------------------------------------------------


def test_depth_of_levels(small: ClipModel, task: Task) -> None:
    """Texts by their definition; class means of all images, at the depth of their level."""
    from hrzs.data import loader
    from hrzs.models.classifier import ZeroShotClassifier

    small.geometry = head = HyperbolicHead(0.5, 0.2, [4.0, 3.0, 2.0], 0.25, [1.0, 0.5, 0.2])
    classifier = ZeroShotClassifier(small, task.tree)
    found = level_depth(small, classifier, task)
    assert found is not None
    assert [row.level for row in found.levels] == [0, 1, 2]
    for row, columns, beta in zip(found.levels, classifier.columns, (4.0, 3.0, 2.0), strict=True):
        texts = classifier.prepared[columns].double()
        assert row.radius_text == pytest.approx((0.5 * texts.norm(dim=1)).mean().item(), rel=1e-5)
        furthest = max(poincare.distance(a, b, 0.25).item() for a in texts for b in texts)
        assert row.margin == pytest.approx(beta * furthest, rel=1e-3)
        assert row.margin <= row.bound
    batch = next(iter(loader(task.data, 24)))
    with torch.no_grad():
        points = head.embed_image(small.encode_image(batch.images))
    classes = [points[batch.labels == label] for label in range(6)]
    means = torch.cat([poincare.einstein_midpoint(p, torch.ones(1, len(p)), 0.25) for p in classes])
    radius = (0.5 * means.norm(dim=1)).mean().item()
    assert found.levels[0].radius_image == pytest.approx(radius, rel=1e-4)
    assert found.edges_ordered == found.edges_ordered_image == 1.0


def test_order_is_not_given_away(small: ClipModel, task: Task) -> None:
    from hrzs.models.classifier import ZeroShotClassifier

    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25, [1.0, 1.5, 2.0])
    found = level_depth(small, ZeroShotClassifier(small, task.tree), task)
    assert found is not None
    assert found.edges_ordered == 0.0


def test_a_cosine_head_has_no_depth(small: ClipModel, task: Task) -> None:
    from hrzs.models.classifier import ZeroShotClassifier

    assert level_depth(small, ZeroShotClassifier(small, task.tree), task) is None
