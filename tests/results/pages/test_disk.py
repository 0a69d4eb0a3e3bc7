from __future__ import annotations

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
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.depth import node_points
from hrzs.models.heads import HyperbolicHead
from hrzs.results.pages.disk import geodesic, plot_disk, to_disk

if TYPE_CHECKING:
    from hrzs.models.clip import ClipModel

complexes = st.builds(lambda r, a: r * complex(math.cos(a), math.sin(a)), st.floats(0, 0.95), st.floats(0, 6.3))


@pytest.fixture
def hyperbolic(small: ClipModel) -> ClipModel:
    small.geometry = HyperbolicHead(0.5, 0.2, 3.0, 0.25)
    return small


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
        plot_disk(node_points(hyperbolic, tree), tree, tmp_path / name)
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
    plot_disk(node_points(small, tree), tree, tmp_path / "odd.svg")
    # Levels without a node of their own leave a gap; the root comes first and always finds room for its name.
    assert "$ & <root>" in _texts(tmp_path / "odd.svg")
    assert "text features of a cosine model" in _texts(tmp_path / "odd.svg")


def test_plot_disk_of_another_kind(small: ClipModel, tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        plot_disk(node_points(small, tree), tree, tmp_path / "disk.txt")


def _texts(file: Path) -> str:
    return "\n".join(e.text or "" for e in ElementTree.parse(file).iter() if e.tag.endswith("}text"))
