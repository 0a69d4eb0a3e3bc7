"""The closed forms of the margin against a search over images and prototypes, and the plot."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrzs.geometry import margin, poincare

RADII = st.floats(0.01, 0.99)
CURVATURES = st.floats(0.1, 4.0)
untimed = settings(deadline=None)


def logits(kind: str, x: Tensor, t: Tensor, curvature: float, scale: float) -> Tensor:
    if kind == "hyperbolic":
        return -scale * poincare.distance(x, t, curvature)
    if kind == "distance":
        return -scale * (x - t).norm(dim=-1)
    return scale * (x * t).sum(-1)


def closed_form(kind: str, norm: float, curvature: float, scale: float) -> float:
    eta = torch.tensor(norm, dtype=torch.float64)
    if kind == "hyperbolic":
        return margin.max_margin(eta, curvature, scale).item()
    if kind == "distance":
        return margin.euclidean_margin_distance(eta, scale).item()
    return margin.euclidean_margin_inner(eta, scale).item()


@pytest.mark.parametrize("kind", ["hyperbolic", "distance", "inner"])
@untimed
@given(radius=RADII, curvature=CURVATURES, scale=st.floats(0.1, 20), seed=st.integers(0, 2**31 - 1))
def test_no_directions_beat_the_closed_form_and_antipodal_ones_reach_it(
    kind: str, radius: float, curvature: float, scale: float, seed: int
) -> None:
    norm = radius / math.sqrt(curvature)
    bound = closed_form(kind, norm, curvature, scale)

    # Prototypes on the sphere of radius η, images anywhere within.
    generator = torch.Generator().manual_seed(seed)
    x, t, s = (
        torch.nn.functional.normalize(torch.randn(3, 500, 3, generator=generator, dtype=torch.float64), dim=-1) * norm
    )
    x = x * torch.rand(500, 1, generator=generator, dtype=torch.float64)
    found = logits(kind, x, t, curvature, scale) - logits(kind, x, s, curvature, scale)
    assert found.max().item() <= bound * (1 + 1e-9)

    # In the plane, up to a rotation: one prototype fixed, a grid for the other and for the image.
    angles = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    circle = norm * torch.stack([angles.cos(), angles.sin()], dim=-1)
    images = (circle * torch.linspace(0, 1, 5, dtype=torch.float64).view(-1, 1, 1)).reshape(-1, 1, 2)
    found = logits(kind, images, circle[0], curvature, scale) - logits(kind, images, circle, curvature, scale)
    best = found.max(dim=0).values
    assert best.argmax().item() == 12
    assert best[12].item() == pytest.approx(bound, rel=1e-9)


@untimed
@given(RADII, CURVATURES)
def test_hyperbolic_margin_is_the_distance_of_antipodal_points(radius: float, curvature: float) -> None:
    u = torch.tensor([[radius / math.sqrt(curvature), 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        margin.max_margin(poincare.norm(u), curvature, 3.0), 3 * poincare.distance(u, -u, curvature)
    )


def test_only_the_hyperbolic_margin_grows_without_bound() -> None:
    norm = 1 - torch.logspace(-1, -15, 15, dtype=torch.float64)
    # One more digit of closeness to the boundary is worth 2 ln 10 logits, every time.
    steps = margin.max_margin(norm, 1.0, 1.0).diff()[2:10]
    torch.testing.assert_close(steps, torch.full_like(steps, 2 * math.log(10)), atol=1e-3, rtol=0)
    assert margin.max_margin(torch.tensor(1.0), 1.0, 1.0).isinf()
    assert (margin.euclidean_margin_distance(norm, 1.0) < 2).all()
    assert (margin.euclidean_margin_inner(norm, 1.0) < 2).all()


def test_plot_is_drawn_from_the_command_line_and_reproducible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "images" / "first.svg", tmp_path / "second.svg"
    margin.plot_margin(first, 1.0)
    monkeypatch.setattr(sys, "argv", ["margin", str(second)])
    monkeypatch.delitem(sys.modules, "hrzs.geometry.margin")
    runpy.run_module("hrzs.geometry.margin", run_name="__main__")
    assert first.read_text().count("<path") > 3
    assert first.read_bytes() == second.read_bytes()
