"""LORE's multiplier: the dual network against its formula, in float64, and what it does as the bound is kept or broken."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hrzs.attacks import sample_seeds
from hrzs.data import Batch, Dataset
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods import method_class
from hrzs.training.methods.lore import Lore
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

MakeModel = Callable[[], ClipModel]


def start(model: ClipModel, tree: Tree, **options: Any) -> Lore:
    method = method_class("lore")(model, tree, TrainOptions(method="lore", steps=1, **options))
    assert isinstance(method, Lore)
    return method


def drift(model: ClipModel, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.clip.visual.parameters():
            p += size * p.std(correction=0) * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def step(method: Lore, batch: Batch) -> dict[str, float]:
    """What a step of the trainer does to the multiplier; the weights stay."""
    log = method.loss(batch.images, batch.labels, sample_seeds(batch.ids, 0)).log
    method.after_step()
    return {name: value.item() for name, value in log.items()}


@pytest.fixture
def few(batch: Batch) -> Batch:
    return Batch(batch.images[:7], batch.labels[:7], batch.ids[:7])


def multipliers(target: Tensor, dual: Tensor) -> list[float]:
    """``log(1 + exp(ω · (f_orig / ‖f_orig‖, 1)))``, image by image."""
    found = []
    for f in target:
        length = math.sqrt(sum(float(v) ** 2 for v in f))
        z = sum(float(v) / length * float(w) for v, w in zip(f, dual, strict=False)) + float(dual[-1])
        found.append(math.log(1 + math.exp(z)))
    return found


def test_a_dual_step_is_gradient_ascent_on_the_lagrangian(make_model: MakeModel, shapes_tree: Tree, few: Batch) -> None:
    """By finite differences of ``mean λ(x) (‖f(x) - f_orig(x)‖² / m(x) - ρ)``; and the loss has these ``λ``."""
    tuned, original = make_model().double(), make_model().double()
    method = start(tuned, shapes_tree, lore_primal_steps=1, lore_dual_lr=2.0, lore_rho=0.01)
    drift(tuned, 0.05)
    step(method, few)
    assert method.dual is not None
    dual = method.dual = torch.randn(17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        target = original.encode_image(few.images)
        distances = (tuned.encode_image(few.images) - target).pow(2).sum(1)
    bounds = target.pow(2).sum(1)

    def lagrangian(w: Tensor) -> float:
        terms = zip(multipliers(target, w), distances.tolist(), bounds.tolist(), strict=True)
        return sum(λ * (d / m - 0.01) for λ, d, m in terms) / len(target)

    loss = method.loss(few.images, few.labels, sample_seeds(few.ids, 0))
    bound = sum(λ * d for λ, d in zip(multipliers(target, dual), distances.tolist(), strict=True)) / len(target)
    assert loss.total.item() == pytest.approx(loss.log["adversarial"].item() + bound, rel=1e-11)
    assert loss.log["multiplier"].item() == pytest.approx(sum(multipliers(target, dual)) / len(target), rel=1e-11)
    method.after_step()
    moved = (method.dual - dual) / 2.0
    for i in range(len(dual)):
        shift = torch.zeros_like(dual)
        shift[i] = 1e-5
        slope = (lagrangian(dual + shift) - lagrangian(dual - shift)) / 2e-5
        assert moved[i].item() == pytest.approx(slope, abs=1e-9)


def test_the_multiplier_rises_while_the_bound_is_broken_and_falls_to_0_while_it_is_kept(
    make_model: MakeModel, shapes_tree: Tree, few: Batch
) -> None:
    model = make_model()
    method = start(model, shapes_tree, lore_primal_steps=1, lore_dual_lr=100.0, lore_rho=0.01)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    drift(model, 0.3)
    logs = [step(method, few) for _ in range(6)]
    assert all(log["broken"] == 1 for log in logs)
    found = [log["multiplier"] for log in logs]
    assert found[0] == pytest.approx(math.log(2))
    assert all(b > a for a, b in itertools.pairwise(found))
    assert found[-1] > 5
    model.load_state_dict(weights)
    logs = [step(method, few) for _ in range(300)]
    assert all(log["broken"] == 0 for log in logs)
    found = [log["multiplier"] for log in logs]
    assert all(b < a for a, b in itertools.pairwise(found))
    assert 0 < found[-1] < 0.01


def test_only_the_images_that_break_the_bound_raise_theirs(
    make_model: MakeModel, shapes_tree: Tree, few: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network gives images multipliers of their own."""
    method = start(make_model(), shapes_tree, lore_primal_steps=1, lore_dual_lr=50.0, lore_rho=0.1)
    features = torch.eye(7, 16)
    moved = features.clone()
    moved[:3] *= 1 + 0.2**0.5  # a fifth of m(x) away
    monkeypatch.setattr(method.original, "encode_image", lambda _: features)
    monkeypatch.setattr(method, "encode_image", lambda images: moved + 0 * images.flatten(1).mean(1, keepdim=True))
    for _ in range(40):
        step(method, few)
    assert method.dual is not None
    found = multipliers(features, method.dual)
    assert min(found[:3]) > 3
    # Images share the bias, which the three raise: the others come to rest where sigmoid = 3/5.
    assert max(found[3:]) < 1


@pytest.mark.parametrize("every", [1, 3])
def test_the_multiplier_moves_after_so_many_steps(
    make_model: MakeModel, shapes_tree: Tree, few: Batch, every: int
) -> None:
    method = start(make_model(), shapes_tree, lore_primal_steps=every)
    found = [step(method, few)["multiplier"] for _ in range(8)]
    changes = [i for i in range(1, 8) if found[i] != found[i - 1]]
    assert changes == [i for i in range(1, 8) if i % every == 0]


def test_the_state_is_in_the_checkpoint_and_comes_back(
    make_model: MakeModel, shapes: Dataset, shapes_tree: Tree, tmp_path: Path
) -> None:
    options = TrainOptions(method="lore", steps=1, batch_size=16, lore_primal_steps=2, max_steps=3)

    def make() -> Trainer:
        return Trainer(make_model(), shapes, shapes_tree, options, tmp_path, save_every=3)

    trainer = make()
    trainer.run()
    state = trainer.method.state_dict()
    assert state["steps"] == 3
    assert state["dual"].abs().max() > 0
    resumed = make()
    assert resumed.resume()
    found = resumed.method.state_dict()
    assert found["steps"] == 3
    assert torch.equal(found["dual"], state["dual"])
