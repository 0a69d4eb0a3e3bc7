"""What must hold on an accelerator, beside the CPU: ``HRZS_TEST_DEVICE=cuda pytest tests/test_on_device.py``.

`make gpu` runs these there. Elsewhere the device is the CPU itself, so that they are known to run.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrzs import api
from hrzs.attacks import ATTACKS, Attack, AttackResult, Budget, counter, sample_seeds
from hrzs.attacks.ball import Ball, LinfBall
from hrzs.attacks.base import Search, features_of, judge
from hrzs.attacks.objectives import Objective
from hrzs.data import Batch, Dataset, subset
from hrzs.evaluation.adversarial import AdversarialSet
from hrzs.evaluation.canaries import run_canaries
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import Unit
from hrzs.evaluation.rows import rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.geometry import poincare
from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel, frozen
from hrzs.models.exact import exact_fp32
from hrzs.tasks import Task
from hrzs.training.methods import METHODS, method_class
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

CPU, DEVICE = torch.device("cpu"), torch.device(os.environ.get("HRZS_TEST_DEVICE", "cpu"))
SEEDS = sample_seeds([str(i) for i in range(6)], 0)
BUDGETS = {
    "linf": Budget(Fraction(3, 255), Fraction(1, 255), 4),
    "l2": Budget(Fraction(1, 4), Fraction(1, 12), 4, "l2"),
}


@pytest.fixture(autouse=True)
def _same_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU hashes its random numbers too, as an accelerator does."""
    monkeypatch.setattr(counter, "is_used_on", lambda _: True)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """On CUDA, a context in which whatever makes the host wait for the device raises."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def models(make_model: Callable[[], ClipModel]) -> tuple[ClipModel, ClipModel]:
    """The same model here and there, in float64, so that rounding flips hardly a sign."""
    here = make_model().double()
    return here, copy.deepcopy(here).to(DEVICE)


def spread(model: ClipModel, tree: Tree, images: Tensor) -> ZeroShotClassifier:
    """A classifier with texts on which an untrained model does not give every image the same class."""
    classifier = ZeroShotClassifier(model, tree)
    with torch.no_grad():
        common = F.normalize(F.normalize(model.encode_image(images), dim=-1).mean(0), dim=0)
    noise = torch.randn(classifier.prepared.shape, generator=torch.Generator().manual_seed(0)).to(common)
    classifier.prepared = F.normalize(noise - (noise @ common)[:, None] * common, dim=-1)
    return classifier


def assert_alike(a: Tensor, b: Tensor) -> None:
    """Equal but for a pixel in a hundred, whose gradient is so near 0 that rounding decides its sign."""
    assert ((a.cpu() - b.cpu()).abs() > 1e-5).sum() <= 0.01 * a.numel()


# -- random numbers and balls -----------------------------------------------------------------------------------------


def test_uniform_numbers_have_the_same_bits() -> None:
    seeds = [0, 1, 2**56 - 1, 2**63 + 5]
    found = counter.uniform(seeds, (3, 37, 41), DEVICE)
    assert found.device.type == DEVICE.type
    assert torch.equal(found.cpu(), counter.uniform(seeds, (3, 37, 41), CPU))


def test_normal_numbers_are_the_same() -> None:
    assert torch.allclose(counter.normal(SEEDS, (9, 11), DEVICE).cpu(), counter.normal(SEEDS, (9, 11), CPU), atol=1e-5)


@pytest.mark.parametrize("norm", BUDGETS)
def test_balls_are_exact(images: Tensor, norm: str) -> None:
    here, there = (Ball.of(images.to(device), BUDGETS[norm]) for device in (CPU, DEVICE))
    if isinstance(here, LinfBall) and isinstance(there, LinfBall):
        assert torch.equal(here.lower, there.lower.cpu())
        assert torch.equal(here.upper, there.upper.cpu())
    far = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for points, same in ((there.random(SEEDS), here.random(SEEDS)), (there.project(far.to(DEVICE)), here.project(far))):
        assert torch.allclose(points.cpu(), same, atol=1e-6)
        assert here.contains(points.cpu()).all()
        assert there.contains(points).cpu().all()


# -- attacks ----------------------------------------------------------------------------------------------------------


def attacked(
    model: ClipModel, tree: Tree, images: Tensor, name: str, norm: str, *, early_stop: bool
) -> tuple[AttackResult, Tensor]:
    """What an attack finds, and what a plain forward pass says of its images."""
    images = images.to(model.device)
    classifier, spec = spread(model, tree, images), ATTACKS[name]
    labels = classifier.predict(features_of(model, images))[0, 0]
    objective = spec.objective(classifier, spec.levels(tree, None)[0])
    steps = {"square": 30, "autoattack": 2}.get(name, 4)
    result = spec.optimiser(replace(BUDGETS[norm], steps=steps), early_stop=early_stop)(
        model, objective, images, labels, SEEDS
    )
    bound = objective.bound(lambda: features_of(model, images), labels)
    return result, judge(model, bound, result.images, labels)


@pytest.mark.parametrize("norm", BUDGETS)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_find_the_same(
    models: tuple[ClipModel, ClipModel], tree: Tree, images: Tensor, name: str, norm: str
) -> None:
    for early_stop in (True, False):
        (here, _), (there, plain) = (
            attacked(model, tree, images, name, norm, early_stop=early_stop) for model in models
        )
        assert there.images.device.type == DEVICE.type
        assert torch.equal(there.success, plain)
        assert torch.equal(there.success.cpu(), here.success)
        assert_alike(there.images, here.images)
        assert there.gradients == here.gradients
        assert there.zero_gradients == here.zero_gradients
        assert there.bad_gradients == 0


@pytest.mark.parametrize("norm", BUDGETS)
@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("fab-t", "square", "autoattack")])
def test_no_step_of_an_attack_waits(
    models: tuple[ClipModel, ClipModel], tree: Tree, images: Tensor, name: str, norm: str
) -> None:
    """tests/test_devices.py counts waits without a device; here CUDA itself reports them."""
    model, spec, images = models[1], ATTACKS[name], images.to(DEVICE)
    classifier = ZeroShotClassifier(model, tree)
    labels = torch.arange(len(images), device=DEVICE) % len(tree.classes)
    parts: list[tuple[Attack, Objective]] = spec.optimiser(BUDGETS[norm], early_stop=False).parts(
        spec.objective(classifier, spec.levels(tree, None)[0])
    )
    with frozen(model):
        for attack, objective in parts[:2]:
            bound = objective.bound(lambda: features_of(model, images), labels)
            search = Search.of(model, bound, Ball.of(images, BUDGETS[norm]), labels)
            with waits_are_errors():
                result = attack.run(search, SEEDS)
            assert result.gradients > 0


def test_wins_in_bf16_are_those_of_fp32(make_model: Callable[[], ClipModel], tree: Tree, images: Tensor) -> None:
    model = make_model().to(DEVICE)
    model.precision = "bf16"
    for early_stop in (True, False):
        result, plain = attacked(model, tree, images, "leaf-pgd", "linf", early_stop=early_stop)
        assert torch.equal(result.success, plain)


def test_api(models: tuple[ClipModel, ClipModel], tree: Tree, images: Tensor) -> None:
    labels = torch.arange(len(images), device=DEVICE) % len(tree.classes)
    found = api.attack(models[1], images.to(DEVICE), labels, tree=tree, steps=1)
    assert found.images.device.type == DEVICE.type


# -- geometry and precision -------------------------------------------------------------------------------------------

#: Of two sets of points and of weights (a row for each average); the points reach beyond `poincare.max_norm`.
FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "expmap0": lambda u, v, _: poincare.expmap0(u + v, 0.7),
    "project": lambda u, v, _: poincare.project(3 * (u + v), 0.7),
    "mobius_add": lambda u, v, _: poincare.mobius_add(u, v, 0.7),
    "distance": lambda u, v, _: poincare.distance(u, v, 0.7),
    "pairwise_distance": lambda u, v, _: poincare.pairwise_distance(u, v, 0.7),
    "einstein_midpoint": lambda u, _, w: poincare.einstein_midpoint(u, w, 0.7),
    "nested_midpoints": lambda u, v, w: torch.cat(poincare.nested_midpoints(u, [w, w], [v.sum().exp()], 0.7)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_geometry(name: str, dtype: torch.dtype) -> None:
    """Values and gradients are those of the CPU, in fp32 also for bf16 input and under autocast."""
    generator = torch.Generator().manual_seed(0)
    points = (0.2 * torch.randn(2, 7, 8, generator=generator)).to(dtype)
    weights = torch.rand(7, 7, generator=generator).softmax(1)

    def both(device: torch.device) -> tuple[Tensor, Tensor]:
        given = points.to(device).requires_grad_()
        value = FUNCTIONS[name](given[0], given[1], weights.to(device))
        (gradient,) = torch.autograd.grad(value.square().sum(), given)
        return value.detach().cpu(), gradient.cpu()

    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = both(DEVICE)
    for ours, theirs in zip(found, both(CPU), strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 3e-4 if ours.dtype == torch.float32 else 0.01  # the gradient of bf16 input is bf16
        assert torch.allclose(ours.float(), theirs.float(), rtol=tolerance, atol=tolerance)


def test_fp32_is_fp32(make_model: Callable[[], ClipModel], images: Tensor) -> None:
    """Whatever the process has switched on: TF32 keeps 10 bits."""
    exact = make_model().double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        features = features_of(make_model().to(DEVICE), images.to(DEVICE)).cpu()
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.allclose(features.double(), features_of(exact, images), atol=1e-5)  # TF32 would be 1e-3 off


# -- training ---------------------------------------------------------------------------------------------------------

TRAINED = {
    **{name: TrainOptions(method=name) for name in METHODS},
    "hierarchical-all-terms": TrainOptions(image_levels="mixed", lambda_vic=1.0, lambda_anchor=1.0),
    "hierarchical-per-level": TrainOptions(perturbation="per-level", geometry="euclidean"),
    "tecoa-every-level": TrainOptions(method="tecoa", every_level=True),
    "tecoa-all": TrainOptions(method="tecoa", tune="all"),
}


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
def test_loss_and_gradients(
    models: tuple[ClipModel, ClipModel], shapes_tree: Tree, batch: Batch, options: TrainOptions
) -> None:
    """Those of the CPU; and nothing in a step waits for the device."""
    options = replace(options, eps=Fraction(2, 255), step_size=Fraction(1, 255), steps=2)
    found = []
    for model in models:
        images, labels = batch.images.to(model.device), batch.labels.to(model.device)
        method = method_class(options.method)(model, shapes_tree, options)
        seeds = sample_seeds(batch.ids, 0)
        with exact_fp32():
            method.begin(images)
            with waits_are_errors():
                loss = method.loss(images, labels, seeds)
                loss.total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None]
        found.append((loss.total.item(), torch.cat(gradients)))
    (here, ours), (there, theirs) = found
    assert there == pytest.approx(here, rel=1e-3)
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.999


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run(
    make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree, tmp_path: Path, precision: str
) -> None:
    model = make_model().to(DEVICE)
    model.precision = precision
    options = TrainOptions(max_steps=2, steps=1, val_steps=1, batch_size=12, validate_every=2, ema=0.9, augment="flip")
    trainer = Trainer(model, shapes, shapes_tree, options, tmp_path, save_every=1, validation=shapes)
    trainer.run()
    again = Trainer(model, shapes, shapes_tree, options, tmp_path, save_every=1, validation=shapes)
    assert (tmp_path / "model.safetensors").is_file()
    assert (again.resume(), again.step) == (True, 2)
    assert all(p.isfinite().all() for p in model.parameters())


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_an_evaluation(
    models: tuple[ClipModel, ClipModel], shapes: Dataset, shapes_tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 10)
    options = EvalOptions(attack=("leaf-pgd", "superclass-pgd", "hierarchical-pgd"), level="all", steps=2, batch_size=5)
    task = Task(subset(shapes, limit=12), shapes_tree, "shapes", "in-graph")
    here, there = (Evaluation(model, task, options) for model in models)
    for evaluation in (here, there):
        evaluation.run()
    for key, expected in here.predictions.items():
        assert (there.predictions[key].nodes != expected.nodes).float().mean() < 0.02
    assert len(rows_of(there)) == len(rows_of(here))
    assert {c.name for c in run_canaries(there)} == {c.name for c in run_canaries(here)}


def test_a_set_of_adversarial_images(
    models: tuple[ClipModel, ClipModel], shapes: Dataset, shapes_tree: Tree, tmp_path: Path
) -> None:
    task = Task(shapes, shapes_tree, "shapes", "in-graph")
    unit = Unit("leaf-pgd", 0, "prompt", Fraction(2, 255))
    made = AdversarialSet(models[1], task, EvalOptions(steps=1), unit, tmp_path)
    made.run(lambda *_: None)
    assert made.finished
