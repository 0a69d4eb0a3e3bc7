from __future__ import annotations

import pytest
import torch

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


def test_hyperbolic_values_round_trip() -> None:
    values = {"scale_image": 0.07, "scale_text": 0.11, "beta": 12.5, "curvature": 0.5}
    head = HyperbolicHead(**values)
    assert head.values() == pytest.approx(values, rel=1e-6)
    assert HyperbolicHead(**head.values()).values() == pytest.approx(values, rel=1e-6)


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
    assert again.values() == pytest.approx(head.values(), rel=1e-6)


def test_radius_is_a_share_of_the_balls() -> None:
    head = HyperbolicHead(1.0, 1.0, beta=1.0, curvature=4.0)
    assert head.radius(torch.tensor([[0.25, 0.0], [0.0, 0.5]])).tolist() == pytest.approx([0.5, 1.0])
