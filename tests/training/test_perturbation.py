from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrzs.data import Batch
from hrzs.models.clip import ClipModel
from hrzs.training.perturbation import perturb_images, perturb_universally

SEEDS = range(48)
MakeModel = Callable[[], ClipModel]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> ClipModel:
    return make_model()


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Features of 24 nodes, of very different norms."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 16, generator=generator) * torch.linspace(0.5, 20, 24)[:, None]


def contrastive(model: ClipModel, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(images: Tensor, texts: Tensor) -> Tensor:
        features = model.encode_image(images)
        return F.cross_entropy(10 * F.normalize(features, dim=1) @ F.normalize(texts, dim=1).T, labels)

    return loss


@pytest.mark.parametrize("eps", [Fraction(1, 255), Fraction(8, 255), Fraction(1, 3)], ids=str)
def test_images_stay_in_the_box_exactly(model: ClipModel, batch: Batch, text: Tensor, eps: Fraction) -> None:
    adversarial, _ = perturb_universally(
        model,
        contrastive(model, batch.labels),
        batch.images,
        text,
        SEEDS,
        eps=eps,
        step_size=eps,
        steps=3,
        eps_text=0.1,
    )
    largest = (adversarial.double() - batch.images.double()).abs().max().item()
    assert 0 < Fraction(largest) <= eps
    assert float(eps) - largest < 1e-3
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@pytest.mark.parametrize("eps_text", [0.0, 2e-4, 0.1])
def test_text_stays_within_a_share_of_the_mean_norm(
    model: ClipModel, batch: Batch, text: Tensor, eps_text: float
) -> None:
    _, delta = perturb_universally(
        model, contrastive(model, batch.labels), batch.images, text, SEEDS,
        eps=Fraction(1, 255), step_size=Fraction(1, 255), steps=3, eps_text=eps_text,
    )  # fmt: skip
    radius = eps_text * text.norm(dim=1).mean().item()
    assert delta.abs().max().item() == pytest.approx(radius)
    assert delta.shape == text.shape


def test_the_loss_rises_through_both(model: ClipModel, batch: Batch, text: Tensor) -> None:
    loss = contrastive(model, batch.labels)
    budget = {"eps": Fraction(8, 255), "step_size": Fraction(2, 255), "steps": 4}
    adversarial, delta = perturb_universally(model, loss, batch.images, text, SEEDS, **budget, eps_text=0.05)
    alone = perturb_images(model, lambda x: loss(x, text), batch.images, SEEDS, **budget)
    with torch.no_grad():
        clean = loss(batch.images, text)
        assert loss(alone, text) > clean
        assert loss(batch.images, text + delta) > clean
        assert loss(adversarial, text + delta) > loss(alone, text)


def test_no_parameter_gets_a_gradient_and_all_stay_trainable(model: ClipModel, batch: Batch, text: Tensor) -> None:
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    adversarial, delta = perturb_universally(
        model, contrastive(model, batch.labels), batch.images, text.requires_grad_(), SEEDS,
        eps=Fraction(1, 255), step_size=Fraction(1, 255), steps=1, eps_text=0.1,
    )  # fmt: skip
    assert all(p.grad is None for p in model.parameters())
    assert text.grad is None
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert not adversarial.requires_grad
    assert not delta.requires_grad
    text.requires_grad_(False)


def test_seeds_decide_the_start(model: ClipModel, batch: Batch, text: Tensor) -> None:
    def run(seeds: range) -> Tensor:
        return perturb_images(
            model, lambda x: contrastive(model, batch.labels)(x, text), batch.images, seeds,
            eps=Fraction(8, 255), step_size=Fraction(1, 255), steps=1,
        )  # fmt: skip

    assert torch.equal(run(SEEDS), run(SEEDS))
    assert not torch.equal(run(SEEDS), run(range(1, 49)))
