from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hrzs.errors import UsageError
from hrzs.evaluation.tree_view import geodesic, level_accuracy, level_depth, node_points, plot_disk, to_disk
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.heads import HyperbolicHead

if TYPE_CHECKING:
    from hrzs.models.clip import ClipModel
    from hrzs.tasks import Task

complexes = st.builds(lambda r, a: r * complex(math.cos(a), math.sin(a)), st.floats(0, 0.95), st.floats(0, 6.3))


def test_nodes_lie_at_the_depth_of_their_level(small: ClipModel, tree: Tree) -> None:
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25, [1.0, 0.5, 0.2])
    found = node_points(small, tree)
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25)
    flat = node_points(small, tree)
    for node, point, without in zip(found.nodes, found.points, flat.points, strict=True):
        factor = 0.0 if node is tree.root else (1.0, 0.5, 0.2)[node.level]
        assert torch.atanh(point.norm()).item() == pytest.approx(factor * torch.atanh(without.norm()).item(), abs=1e-5)


@pytest.fixture
def hyperbolic(small: ClipModel) -> ClipModel:
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25)
    return small


# -- accuracy of each level -------------------------------------------------------------------------------------------


def test_level_accuracy_is_that_of_the_classifier(small: ClipModel, task: Task) -> None:
    from hrzs.data import loader
    from hrzs.models.classifier import ZeroShotClassifier

    found = json.loads(json.dumps(level_accuracy(small, task, batch_size=7)))
    images = next(iter(loader(task.data, 24))).images
    with torch.no_grad():
        nodes = ZeroShotClassifier(small, task.tree).predict(small.encode_image(images))
    truth = task.tree.ancestors[: task.tree.top, torch.tensor(task.data.labels)]
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
    assert found == json.loads(json.dumps(found))
    assert [row["level"] for row in found["levels"]] == [0, 1, 2]
    for row, columns, beta in zip(found["levels"], classifier.columns, (4.0, 3.0, 2.0), strict=True):
        texts = classifier.prepared[columns].double()
        assert row["radius_text"] == pytest.approx((0.5 * texts.norm(dim=1)).mean().item(), rel=1e-5)
        furthest = max(poincare.distance(a, b, 0.25).item() for a in texts for b in texts)
        assert row["margin"] == pytest.approx(beta * furthest, rel=1e-3)
        assert row["margin"] <= row["bound"]
    batch = next(iter(loader(task.data, 24)))
    with torch.no_grad():
        points = head.embed_image(small.encode_image(batch.images))
    classes = [points[batch.labels == label] for label in range(6)]
    means = torch.cat([poincare.einstein_midpoint(p, torch.ones(1, len(p)), 0.25) for p in classes])
    radius = (0.5 * means.norm(dim=1)).mean().item()
    assert found["levels"][0]["radius_image"] == pytest.approx(radius, rel=1e-4)
    assert found["edges_ordered"] == found["edges_ordered_image"] == 1.0


def test_order_is_not_given_away(small: ClipModel, task: Task) -> None:
    from hrzs.models.classifier import ZeroShotClassifier

    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25, [1.0, 1.5, 2.0])
    found = level_depth(small, ZeroShotClassifier(small, task.tree), task)
    assert found is not None
    assert found["edges_ordered"] == 0.0


def test_a_cosine_head_has_no_depth(small: ClipModel, task: Task) -> None:
    from hrzs.models.classifier import ZeroShotClassifier

    assert level_depth(small, ZeroShotClassifier(small, task.tree), task) is None


# -- where the nodes lie ----------------------------------------------------------------------------------------------


def test_a_cosine_model_is_lifted_to_the_radius(small: ClipModel, tree: Tree) -> None:
    found = node_points(small, tree, radius=0.3)
    assert found.nodes[-1] is tree.root
    assert len(found.nodes) == len(list(tree.root.walk())) == len(found.points)
    # A leaf of mean norm is at the radius; tanh bends the mean a little.
    norms = torch.atanh(found.points.norm(dim=1))
    assert norms[: len(tree.classes)].mean().item() == pytest.approx(math.atanh(0.3), rel=1e-5)
    assert "radius 0.3" in found.lift


def test_a_hyperbolic_model_places_by_its_own_head(hyperbolic: ClipModel, tree: Tree) -> None:
    found = node_points(hyperbolic, tree)
    assert "r = 0.25" in found.lift
    # `bus` has two prompts; the text of `dog` is one.
    dog = next(i for i, node in enumerate(found.nodes) if node.name == "dog")
    with torch.no_grad():
        text = hyperbolic.encode_text(["a photo of a dog."])
    expected = poincare.expmap0(0.2 * text, 0.25) * 0.25**0.5
    torch.testing.assert_close(found.points[dog], expected[0], rtol=1e-4, atol=1e-6)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 2**31))
def test_the_disk_keeps_norms(n: int, d: int, seed: int) -> None:
    points = poincare.expmap0(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), 1.0)
    disk, share = to_disk(points)
    np.testing.assert_allclose(abs(disk), points.double().norm(dim=1), rtol=1e-12)
    assert 0 <= share <= 1 + 1e-9


def test_the_angle_is_that_of_the_two_leading_components() -> None:
    # Directions that vary most along the first axis, then along the second, never along the third.
    angles = torch.arange(6) / 6 * 2 * math.pi
    across = torch.stack([0.6 * angles.cos(), 0.3 * angles.sin()], 1).double()
    directions = torch.cat([across, (1 - across.square().sum(1, keepdim=True)).sqrt()], 1)
    disk, share = to_disk((directions * torch.linspace(0.1, 0.9, 6)[:, None]).float())
    got, expected = np.angle(disk), np.arctan2(across[:, 1].numpy(), across[:, 0].numpy())
    np.testing.assert_allclose(np.exp(1j * got), np.exp(1j * expected), atol=1e-5)
    assert share > 0.95


def test_points_without_directions() -> None:
    disk, share = to_disk(torch.zeros(3, 4))
    assert abs(disk).max() == 0
    assert share == 0


@given(complexes, complexes)
def test_geodesic_is_the_shortest_way(p: complex, q: complex) -> None:
    way = geodesic(p, q, 9)
    np.testing.assert_allclose([way[0], way[-1]], [p, q], atol=1e-9)
    z = torch.tensor(np.stack([way.real, way.imag], 1))
    steps = poincare.distance(z[:-1], z[1:], 1.0)
    whole = poincare.distance(z[0], z[-1], 1.0)
    assert steps.sum().item() == pytest.approx(whole.item(), abs=1e-6)
    np.testing.assert_allclose(steps, whole / 8, atol=1e-6)


# -- the picture ------------------------------------------------------------------------------------------------------


def test_plot_disk_is_the_same_each_time(hyperbolic: ClipModel, tree: Tree, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png"):
        plot_disk(hyperbolic, tree, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        picture.verify()
        assert 1000 < picture.width < 4000
        assert 500 < picture.height < 2000
    assert "hyperbolic head, curvature r = 0.25" in _texts(tmp_path / "a.svg")


def test_plot_disk_of_odd_names(small: ClipModel, tmp_path: Path) -> None:
    names = ["$x_1$", "$", "a<b>&c", "狐🦊é", "x" * 300, "\x1b[31mred\x00"]
    leaves = tuple(Node(name, f"c{i}", class_id=f"c{i}") for i, name in enumerate(names))
    tree = Tree(Node("$ & <root>", "root", (Node("$sub$", "sub", leaves[:3], level=3), *leaves[3:]), level=5))
    plot_disk(small, tree, tmp_path / "odd.svg")
    # Levels without a node of their own leave a gap; the root comes first and always finds room for its name.
    assert "$ & <root>" in _texts(tmp_path / "odd.svg")
    assert "text features of a cosine model" in _texts(tmp_path / "odd.svg")


def test_plot_disk_of_another_kind(small: ClipModel, tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        plot_disk(small, tree, tmp_path / "disk.txt")


def _texts(file: Path) -> str:
    return "\n".join(e.text or "" for e in ElementTree.parse(file).iter() if e.tag.endswith("}text"))
