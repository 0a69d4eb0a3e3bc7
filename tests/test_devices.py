"""No operation mixes tensors of the model's device with others: what an accelerator refuses, or waits for.

There need not be one: under `Pretended` the device "meta" computes, on the CPU, and keeps its tensors apart.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hrzs.attacks import ATTACKS, Budget, attack_spec, sample_seeds
from hrzs.attacks.base import features_of
from hrzs.attacks.noise import Noise
from hrzs.data import Dataset, loader, open_dataset, reading, subset
from hrzs.estimate import seconds_per_image
from hrzs.evaluation.adversarial import AdversarialSet
from hrzs.evaluation.canaries import run_canaries
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.outcome import gallery_of, outcome_of
from hrzs.evaluation.plan import Unit
from hrzs.evaluation.rows import overall_of, rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.saved import find_saved
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.tree import Tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.tasks import Task
from hrzs.training import trainer as trainer_module
from hrzs.training.methods import METHODS
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer, augment
from hrzs.training.validation import validate

DEVICE = torch.device("meta")
aten: Any = torch.ops.aten
#: These may have one tensor here and another there.
COPIES = {aten._to_copy.default, aten.copy_.default}
#: These stop the device until it has caught up.
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.is_nonzero.default: "item",
    aten.equal.default: "item",
    aten.nonzero.default: "nonzero",
    aten._unique2.default: "unique",
    aten.bincount.default: "bincount",
}


class OnDevice(torch.Tensor):
    """A tensor that says it is on `DEVICE`; its values are in a tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        outer = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )  # fmt: skip
        outer.held = held
        return outer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()  # torch refuses this one to subclasses
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of Pretended")


class Pretended(TorchDispatchMode):
    """Inside, "meta" is a device that computes. ``waits`` counts what would stop an accelerator, by kind.

    Raises:
        AssertionError: an operation on tensors of both devices (numbers, which are 0-d, may be anywhere).
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors: list[Tensor] = []
        tree_map(lambda v: tensors.append(v) if isinstance(v, Tensor) else None, (args, kwargs))
        here = [t for t in tensors if isinstance(t, OnDevice)]
        there = [t for t in tensors if not isinstance(t, OnDevice) and t.ndim > 0]
        asked = kwargs.get("device")
        if func in COPIES:
            wanted = isinstance(args[0], OnDevice) if asked is None else asked == DEVICE
            source = args[1] if func is aten.copy_.default else args[0]
            target = isinstance(args[0], OnDevice) if func is aten.copy_.default else wanted
            # Small things go to a device without a wait, if asked to; from there nothing does before it is ready.
            waits = not (target and kwargs.get("non_blocking"))
            if source.ndim and isinstance(source, OnDevice) != target and waits:
                self.waits["from CPU" if target else "to CPU"] += 1
        else:
            assert not (here and there), f"{func} mixes devices: {[tuple(t.shape) for t in there]} on the CPU"
            wanted = bool(here) if asked is None else asked == DEVICE
        if here and func in WAITS:
            self.waits[WAITS[func]] += 1
        if here and func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            self.waits["nonzero"] += any(i is not None and i.dtype == torch.bool for i in args[1])
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if func._schema.is_mutable and isinstance(out, Tensor):
            return args[0] if "out" not in kwargs else kwargs["out"]
        return tree_map(lambda v: OnDevice(v) if isinstance(v, Tensor) else v, out) if wanted else out


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """A device other than the CPU, on for the whole test."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda _, **options: autocast("cpu", **options))
    with Pretended() as mode:
        yield mode


CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def model(device: Pretended, tmp_path: Path) -> ClipModel:
    """A small one with random weights, on the device."""
    file = tmp_path / "devices-small.json"
    file.write_text(json.dumps(CONFIG))
    return load_model(str(file), "none", seed=0).to(DEVICE)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_travel_as_bytes(
    device: Pretended, shapes: Dataset, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = reading._sent
    travelled: list[tuple[torch.dtype, torch.device]] = []

    def spy(*given: Any) -> Tensor:
        pixels = sent(*given)
        travelled.append((pixels.dtype, pixels.device))
        return pixels

    monkeypatch.setattr(reading, "_sent", spy)
    there = loader(shapes, 7, workers, range(3, 20), device=DEVICE)
    for number, (batch, here) in enumerate(zip(there, loader(shapes, 7, 0, range(3, 20)), strict=True)):
        assert isinstance(batch.images, OnDevice)
        assert torch.equal(batch.images.held, here.images)
        assert batch.images.is_contiguous()
        assert (batch.ids, batch.labels.tolist()) == (here.ids, here.labels.tolist())
        assert len(travelled) == min(number + 2, 3)  # the next one is on its way
    assert travelled == [(torch.uint8, DEVICE)] * 3
    assert +device.waits == {"from CPU": 3}


def batch_on_device(images: Tensor, tree: Tree) -> tuple[Tensor, Tensor, list[int]]:
    labels = torch.arange(len(images)) % len(tree.classes)
    return images.to(DEVICE), labels.to(DEVICE), sample_seeds([str(i) for i in range(len(images))], 0)


def test_mixing_devices_is_caught(device: Pretended) -> None:
    x = torch.ones(3, device=DEVICE)
    assert x.device == DEVICE
    assert isinstance(x + 1, OnDevice)
    assert (2 * x).cpu().tolist() == [2, 2, 2]
    assert device.waits["to CPU"] == 1
    with pytest.raises(AssertionError, match="mixes devices"):
        x + torch.ones(3)


#: Every optimiser in both norms, every objective in one; `aa-2` and `autoattack` are others in a row.
ATTACK_CASES = [(name, "linf") for name in ATTACKS if name not in ("superclass-pgd", "aa-2", "autoattack")]
ATTACK_CASES += [(name, "l2") for name in ("leaf-pgd", "apgd-t", "fab-t", "square")]


BUDGET = Budget(Fraction(2, 255), Fraction(1, 255), 2)


@pytest.mark.parametrize(("name", "norm"), ATTACK_CASES)
def test_attacks(model: ClipModel, images: Tensor, tree: Tree, name: str, norm: str) -> None:
    spec = attack_spec(name)
    level = spec.levels(tree, None)[0]
    objective = spec.objective(ZeroShotClassifier(model, tree), level)
    attack = spec.optimiser(replace(BUDGET, norm=norm))
    result = attack(model, objective, *batch_on_device(images, tree))
    assert isinstance(result.images, OnDevice)


def waits_of(
    device: Pretended, model: ClipModel, images: Tensor, tree: Tree, name: str, norm: str, *, eps: Fraction,
    steps: int, early_stop: bool,
) -> Counter[str]:  # fmt: skip
    """What an attack on images that are right when clean waits for."""
    classifier, spec = ZeroShotClassifier(model, tree), ATTACKS.get(name, ATTACKS["leaf-pgd"])
    kind = Noise if name == "noise" else spec.optimiser
    attack = kind(Budget(eps, eps / 3, steps, norm), early_stop=early_stop)
    pixels, _, seeds = batch_on_device(images, tree)
    labels = classifier.predict(features_of(model, pixels))[0, 0]
    objective = spec.objective(classifier, spec.levels(tree, None)[0])
    device.waits.clear()
    attack(model, objective, pixels, labels, seeds)
    return +device.waits


#: `aa-2` is APGD-T too. FAB looks after each round of its search for a boundary whether it is there: a wait costs less
#: than a round.
WAITING_CASES = [case for case in ATTACK_CASES if case[0] not in ("apgd-t", "fab-t")] + [
    ("aa-2", "linf"),
    ("noise", "l2"),
]


@pytest.mark.parametrize("early_stop", [False, True], ids=["all-stay", "fooled-leave"])
@pytest.mark.parametrize(("name", "norm"), WAITING_CASES)
def test_waits_of_a_step(
    device: Pretended, model: ClipModel, images: Tensor, tree: Tree, name: str, norm: str, early_stop: bool
) -> None:
    """None; where fooled images leave the batch, one in each step of each run, in which they are found."""
    classifier, spec = ZeroShotClassifier(model, tree), ATTACKS.get(name, ATTACKS["leaf-pgd"])
    kind = Noise if name == "noise" else spec.optimiser
    pixels, _, seeds = batch_on_device(images, tree)
    labels = classifier.predict(features_of(model, pixels))[0, 0]
    objective = spec.objective(classifier, spec.levels(tree, None)[0])

    def waits(steps: int) -> Counter[str]:
        # At this ε nothing is fooled, so that every run of an attack comes to its turn.
        budget = Budget(Fraction(1, 10**6), Fraction(1, 10**6), steps, norm)
        attack = kind(budget, early_stop=early_stop)
        device.waits.clear()
        attack(model, objective, pixels, labels, seeds)
        assert device.waits["from CPU"] == 0
        return +device.waits

    few, many = waits(1), waits(3)
    runs = 0 if name == "fgsm" else len(kind(BUDGET, early_stop=early_stop).parts(objective))
    queries = (name, norm) == ("square", "l2")  # after each it asks which changes have left the ball
    assert many - few == Counter(nonzero=2 * runs * early_stop + 2 * queries) - Counter()
    assert not few - many


def test_noise(model: ClipModel, images: Tensor, tree: Tree) -> None:
    objective = ATTACKS["leaf-pgd"].objective(ZeroShotClassifier(model, tree), 0)
    result = Noise(BUDGET)(model, objective, *batch_on_device(images, tree))
    assert isinstance(result.success, OnDevice)


def test_api_takes_images_of_the_device(model: ClipModel, images: Tensor, tree: Tree) -> None:
    from hrzs import api

    pixels, labels, _ = batch_on_device(images, tree)
    assert isinstance(api.attack(model, pixels, labels, tree=tree, steps=1).images, OnDevice)


#: Every method, the hierarchical one with all its terms too.
METHOD_CASES = {
    **{name: TrainOptions(method=name) for name in METHODS},
    "hierarchical-all-terms": TrainOptions(image_levels="mixed", hnsa="both", lambda_vic=1.0, lambda_gap=1.0),
    "hierarchical-per-level": TrainOptions(perturbation="per-level", lambda_anchor=1.0, geometry="euclidean"),
    "tecoa-every-level": TrainOptions(method="tecoa", every_level=True, lambda_anchor=1.0, augment="dihedral"),
    "tecoa-sgd-ema": TrainOptions(method="tecoa", optimizer="sgd", ema=0.9, interpolate=0.1, tune="all", accumulate=2),
}


@pytest.fixture
def shapes() -> Dataset:
    return subset(open_dataset("shapes", "train"), limit=24)


@pytest.fixture
def shapes_tree() -> Tree:
    path = find_tree("shapes")
    assert path is not None
    return load_tree(path)


@pytest.mark.parametrize("options", METHOD_CASES.values(), ids=METHOD_CASES)
def test_training_steps(
    device: Pretended, model: ClipModel, shapes: Dataset, shapes_tree: Tree, options: TrainOptions, tmp_path: Path
) -> None:
    options = replace(options, steps=1, val_steps=1, eps=Fraction(2, 255), step_size=Fraction(1, 255), batch_size=24)
    trainer = Trainer(model, shapes, shapes_tree, options, tmp_path)
    batch = next(loader(shapes, 24))
    images, labels = augment(batch.images.to(DEVICE), [*range(24)], options.augment), batch.labels.to(DEVICE)
    trainer.method.begin(images)
    optimizer = trainer._optimizer()
    for _ in range(2):
        device.waits.clear()
        log = trainer._step(optimizer, images, labels, batch.ids)
        assert all(isinstance(number, float) for number in log.values())
    if options.tune != "all":
        # The numbers of the log come back, and after the step those of the head.
        assert +device.waits == {"to CPU": 2 if options.method == "hierarchical" else 1}


def test_validation(model: ClipModel, shapes: Dataset, shapes_tree: Tree) -> None:
    options = TrainOptions(steps=1, val_steps=1, eps=Fraction(2, 255), step_size=Fraction(1, 255), batch_size=24)
    assert validate(model, shapes, shapes_tree, options).clean.device == torch.device("cpu")


def test_an_evaluation(model: ClipModel, shapes: Dataset, shapes_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 10)
    options = EvalOptions(attack=("leaf-pgd", "superclass-pgd", "hierarchical-pgd"), level="all", steps=1)
    evaluation = Evaluation(model, Task(subset(shapes, limit=6), shapes_tree, "shapes", "in-graph"), options)
    evaluation.run()
    assert rows_of(evaluation)
    assert overall_of(evaluation)
    outcome_of(evaluation)
    gallery_of(evaluation)
    assert run_canaries(evaluation)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # "meta" is but a name here
def test_a_run_and_its_resumption(
    model: ClipModel, shapes: Dataset, shapes_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(steps=1, val_steps=1, batch_size=12, epochs=2.0, validate_every=2, ema=0.9, augment="flip")
    saved: list[dict[str, Any]] = []

    def save(_: Path, state: dict[str, Any]) -> None:
        saved.append(copy.deepcopy(tree_map(lambda v: v.cpu() if isinstance(v, OnDevice) else v, state)))

    monkeypatch.setattr(trainer_module, "save_checkpoint", save)  # torch.save takes no pretended tensors
    monkeypatch.setattr(trainer_module, "load_checkpoint", lambda *_: saved[0])

    def begin() -> Trainer:
        return Trainer(model, shapes, shapes_tree, options, tmp_path, save_every=2, validation=shapes)

    start = copy.deepcopy(model.clip.state_dict())
    begin().run()
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "report.html").is_file()
    last = [p.cpu() for p in model.clip.parameters()]
    model.clip.load_state_dict(start)
    model.geometry = None
    again = begin()
    assert again.resume()
    optimizer = again._optimizer()
    for name in ("step", "exp_avg"):
        # A count on the device would be fetched for each parameter at each step.
        assert all(isinstance(state[name], OnDevice) == (name != "step") for state in optimizer.state.values())
    again.run()
    assert all(torch.equal(p.cpu(), was) for p, was in zip(model.clip.parameters(), last, strict=True))


def test_a_set_of_adversarial_images(model: ClipModel, shapes: Dataset, shapes_tree: Tree, tmp_path: Path) -> None:
    task = Task(shapes, shapes_tree, "shapes", "in-graph")
    found = AdversarialSet(model, task, EvalOptions(steps=1), Unit("leaf-pgd", 0, "prompt", Fraction(2, 255)), tmp_path)
    found.run(lambda *_: None)
    (saved,) = find_saved(tmp_path)
    evaluation = Evaluation(model, task, EvalOptions(), saved=[saved])
    evaluation.run()
    assert rows_of(evaluation)


def test_a_dry_run(model: ClipModel, shapes: Dataset) -> None:
    seconds, megabytes = seconds_per_image(model, shapes)
    assert min(seconds, megabytes) > 0
