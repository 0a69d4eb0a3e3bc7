from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs.geometry import poincare
from hrzs.models.heads import CosineHead, HyperbolicHead


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 8, generator=generator) * 10, torch.randn(3, 8, generator=generator) * 10


def test_cosine_is_clips_own(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, text = (f.double() for f in features)
    cosines = (image @ text.T) / image.norm(dim=1)[:, None] / text.norm(dim=1)
    head = CosineHead(torch.tensor(100.0).log())
    assert torch.allclose(head.logits(features[0], head.prepare(features[1])).double(), 100 * cosines, atol=1e-3)
    biased = CosineHead(torch.tensor(100.0).log(), torch.tensor(-10.0))
    assert torch.allclose(
        biased.logits(features[0], biased.prepare(features[1])).double(), 100 * cosines - 10, atol=1e-3
    )


def test_cosine_follows_the_models_temperature(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    scale = torch.nn.Parameter(torch.tensor(0.0))
    head = CosineHead(scale)
    one = head.logits(features[0], head.prepare(features[1])).detach()
    with torch.no_grad():
        scale += torch.tensor(3.0).log()
    assert torch.allclose(head.logits(features[0], head.prepare(features[1])), 3 * one)


@pytest.mark.parametrize("curvature", [0.25, 1.0, 2.0])
def test_hyperbolic_is_the_negative_scaled_distance(
    curvature: float, features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Against the textbook form in float64: ``d = arcosh(1 + 2r‖u-v‖² / ((1-r‖u‖²)(1-r‖v‖²))) / √r``."""
    head = HyperbolicHead(0.03, 0.02, beta=4.0, curvature=curvature)
    r = curvature

    def ball(v: torch.Tensor) -> torch.Tensor:
        norm = v.norm(dim=1, keepdim=True) * r**0.5
        return norm.tanh() * v / norm

    u, v = ball(0.03 * features[0].double())[:, None], ball(0.02 * features[1].double())[None]
    gap = 2 * r * (u - v).square().sum(-1) / ((1 - r * u.square().sum(-1)) * (1 - r * v.square().sum(-1)))
    expected = -4.0 * (1 + gap).arccosh() / r**0.5
    logits = head.logits(features[0], head.prepare(features[1]))
    assert torch.allclose(logits.double(), expected, rtol=1e-4, atol=1e-4)
    points = head.embed_image(features[0])
    assert (r * points.square().sum(1) < 1).all()
    assert torch.equal(head.point_logits(points, head.prepare(features[1])), logits)


def assert_values(head: HyperbolicHead, expected: dict[str, Any]) -> None:
    values = head.values()
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-6), name
    json.dumps(values)


def test_hyperbolic_values_round_trip() -> None:
    values: dict[str, Any] = {
        "scale_image": 0.07, "scale_text": 0.11, "beta": [12.5, 7.0, 3.0], "curvature": 0.5, "depth": [1.0, 0.6, 0.2],
        "image_depth": False,
    }  # fmt: skip
    head = HyperbolicHead(**values)
    assert_values(head, values)
    again = HyperbolicHead(**head.values())
    assert_values(again, values)
    again.load_state_dict(head.state_dict())
    assert_values(again, head.values())


@given(st.lists(st.floats(-4, -1e-6) | st.floats(1e-6, 3) | st.just(0.0), min_size=1, max_size=6))
def test_a_head_comes_back_to_the_bit(logarithms: list[float]) -> None:
    """Near 1 a value in float32 says less than its logarithm."""
    head = HyperbolicHead(0.03, 0.02, [1.0] * len(logarithms), depth=[1.0] * (len(logarithms) + 1))
    with torch.no_grad():
        for parameter in (head.log_beta, head.log_depth):
            parameter.copy_(torch.tensor(logarithms))
        head.log_scale_text.fill_(logarithms[0])
    again = HyperbolicHead(**json.loads(json.dumps(head.values())))
    for name, value in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_values_from_before_the_levels_had_depths(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Earlier runs kept one β and nothing of depth: then all levels are as the leaves."""
    old = {"scale_image": 0.03, "scale_text": 0.02, "beta": 4.0, "curvature": 0.5}
    head = HyperbolicHead(**old)
    assert_values(head, old | {"beta": [4.0], "depth": [1.0], "image_depth": True})
    leaves = head.logits(features[0], head.prepare(features[1]))
    for level in range(4):
        prepared = head.prepare(features[1], torch.full((3,), level))
        assert torch.equal(head.logits(features[0], prepared, level), leaves)


def test_the_leaves_depth_is_that_of_the_scales() -> None:
    with pytest.raises(ValueError, match=r"depth factor is 0\.5"):
        HyperbolicHead(0.03, 0.02, 4.0, depth=(0.5, 0.25))


DEEP: dict[str, Any] = {"beta": (4.0, 3.0, 2.0), "depth": (1.0, 0.6, 0.2)}


@pytest.mark.parametrize("image_depth", [True, False])
@pytest.mark.parametrize("curvature", [0.0, 0.5, 1.0])
def test_logits_of_each_level_against_the_formula(
    curvature: float, image_depth: bool, features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """In float64, through arcosh; level 3 is beyond the last factor and has those of level 2."""
    head = HyperbolicHead(0.03, 0.02, curvature=curvature, image_depth=image_depth, **DEEP).double()
    image, text = (f.double() for f in features)
    r = curvature

    def ball(v: torch.Tensor) -> torch.Tensor:
        norm = v.norm(dim=1, keepdim=True) * r**0.5
        return v if r == 0 else norm.tanh() * v / norm

    for level in range(4):
        factor, beta = DEEP["depth"][min(level, 2)], DEEP["beta"][min(level, 2)]
        u = ball((factor if image_depth else 1) * 0.03 * image)[:, None]
        v = ball(factor * 0.02 * text)[None]
        squared = (u - v).square().sum(-1)
        if r == 0:
            distance = 2 * squared.sqrt()
        else:
            gap = 2 * r * squared / ((1 - r * u.square().sum(-1)) * (1 - r * v.square().sum(-1)))
            distance = (1 + gap).arccosh() / r**0.5
        prepared = head.prepare(text, torch.full((3,), level))
        # Constants are kept as float32.
        torch.testing.assert_close(head.logits(image, prepared, level), -beta * distance, rtol=1e-5, atol=1e-6)


def test_depth_factors_shrink_the_distance_from_the_centre(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = HyperbolicHead(0.03, 0.02, curvature=1.0, **DEEP)
    levels = torch.tensor([0, 1, 2, 1, 7])
    text = features[1][[0, 0, 0, 1, 2]]
    placed = head.prepare(text, levels)
    factors = torch.tensor([1.0, 0.6, 0.2, 0.6, 0.2])
    torch.testing.assert_close(head.radius(placed).atanh(), factors * head.radius(head.prepare(text)).atanh())
    whole, eye = head.embed_image(features[0]), torch.eye(len(features[0]))
    for level, factor in enumerate((1.0, 0.6, 0.2, 0.2)):
        moved = head.embed_image(features[0], level)
        _, expected = poincare.nested_midpoints(whole, (eye, eye), (torch.tensor(factor),), 1.0)
        torch.testing.assert_close(moved, expected)
        assert head.image_factor(level).item() == pytest.approx(factor)


@pytest.mark.parametrize("image_depth", [True, False])
@pytest.mark.parametrize("curvature", [0.0, 0.5])
def test_rows_of_several_levels_are_those_of_each(
    curvature: float, image_depth: bool, features: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Level 7 is beyond the last factor and has those of level 2."""
    head = HyperbolicHead(0.03, 0.02, curvature=curvature, image_depth=image_depth, **DEEP)
    levels = [0, 2, 1, 7, 1]
    rows = torch.tensor(levels)
    prepared = head.prepare(features[1], torch.tensor([0, 1, 2]))
    points = head.embed_image(features[0], rows)
    logits = head.point_logits(points, prepared, rows)
    assert head.beta(rows).tolist() == [head.beta(level).item() for level in levels]
    assert head.image_factor(rows).tolist() == [head.image_factor(level).item() for level in levels]
    for k, level in enumerate(levels):
        torch.testing.assert_close(points[k], head.embed_image(features[0], level)[k])
        torch.testing.assert_close(logits[k], head.point_logits(points[k : k + 1], prepared, level)[0])
        torch.testing.assert_close(logits[k], head.logits(features[0], prepared, level)[k])


def test_images_stay_at_the_leaves_where_only_texts_have_depth(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = HyperbolicHead(0.03, 0.02, image_depth=False, **DEEP)
    for level in range(4):
        assert torch.equal(head.embed_image(features[0], level), head.embed_image(features[0]))
    assert not torch.equal(head.prepare(features[1], torch.ones(3).long()), head.prepare(features[1]))


def test_each_level_learns_its_own(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = HyperbolicHead(0.03, 0.02, **DEEP)
    head.logits(features[0], head.prepare(features[1], torch.full((3,), 1)), 1).sum().backward()
    assert head.log_beta.grad is not None
    assert head.log_depth.grad is not None
    assert (head.log_beta.grad != 0).tolist() == [False, True, False]
    assert (head.log_depth.grad != 0).tolist() == [True, False]


def test_hyperbolic_learns_all_but_the_curvature(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = HyperbolicHead(0.03, 0.02, beta=4.0)
    head.logits(features[0], head.prepare(features[1])).sum().backward()
    assert head.log_curvature.grad is None
    for name in ("scale_image", "scale_text", "beta"):
        gradient = getattr(head, f"log_{name}").grad
        assert gradient.isfinite()
        assert gradient != 0


def test_hyperbolic_survives_raw_clip_norms() -> None:
    """Features far too long land on the boundary, where logits and gradients must stay finite."""
    head = HyperbolicHead(1.0, 1.0, beta=1.0)
    image = torch.full((2, 8), 50.0, requires_grad=True)
    logits = head.logits(image, head.prepare(torch.full((3, 8), -50.0)))
    assert logits.isfinite().all()
    (gradient,) = torch.autograd.grad(logits.sum(), image)
    assert gradient.isfinite().all()
    assert poincare.cap_share(head.embed_image(image), head.value("curvature")) == 1


def test_without_curvature_the_head_is_euclidean(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    head = HyperbolicHead(0.03, 0.02, beta=4.0, curvature=0.0)
    assert head.name == "euclidean"
    expected = -4.0 * 2 * torch.cdist(0.03 * features[0].double(), 0.02 * features[1].double())
    logits = head.logits(features[0], head.prepare(features[1]))
    assert torch.allclose(logits.double(), expected, rtol=1e-4, atol=1e-4)
    points = head.embed_image(features[0])
    torch.testing.assert_close(head.radius(points), points.norm(dim=1))
    again = HyperbolicHead(**head.values())
    assert again.is_flat
    assert_values(again, head.values())


def test_radius_is_a_share_of_the_balls() -> None:
    head = HyperbolicHead(1.0, 1.0, beta=1.0, curvature=4.0)
    assert head.radius(torch.tensor([[0.25, 0.0], [0.0, 0.5]])).tolist() == pytest.approx([0.5, 1.0])
