from __future__ import annotations

import itertools
import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from hrzs.data import Dataset, ImageError, subset
from hrzs.distributed import Group
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.models.saving import read_header
from hrzs.stopping import Stopped
from hrzs.training import trainer as trainer_module
from hrzs.training.checkpoints import save_checkpoint
from hrzs.training.methods import METHODS, Loss
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Progress, Trainer, augment, by_class, is_finished, lr_factor, total_steps
from hrzs.training.validation import validate

MakeTrainer = Callable[..., Trainer]
OPTIONS = TrainOptions(steps=1, batch_size=8, epochs=1.0, lr=1e-3, warmup=0.2, augment="dihedral")
STEPS = 6


@pytest.fixture(autouse=True)
def _blank_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No page is looked at here but one, and drawing them takes as long as all the rest."""
    if request.function is not test_run_folder:
        monkeypatch.setattr(trainer_module, "write_report", lambda folder, *_, **__: (folder / "report.html").touch())


@pytest.fixture(scope="module")
def make_trainer_in(make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree) -> MakeTrainer:
    """A trainer of a fresh model in a folder; options as overrides."""

    def make(folder: Path, save_every: int = 100, validation: Dataset | None = None, **overrides: Any) -> Trainer:
        folder.mkdir(exist_ok=True)
        return Trainer(
            make_model(), shapes, shapes_tree, replace(OPTIONS, **overrides), folder, save_every=save_every,
            origin=("small", "none"), validation=validation,
        )  # fmt: skip

    return make


@pytest.fixture
def make_trainer(make_trainer_in: MakeTrainer, tmp_path: Path) -> MakeTrainer:
    """The same in a folder below ``tmp_path``."""
    return lambda name="run", **options: make_trainer_in(tmp_path / name, **options)


@pytest.fixture(scope="module")
def whole(make_trainer_in: MakeTrainer, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run with the options of these tests, from its beginning to its end."""
    trainer = make_trainer_in(tmp_path_factory.mktemp("trainer") / "whole")
    trainer.run()
    return trainer


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def stop_after(step: int) -> Progress:
    def progress(done: int, _: int, __: dict[str, float]) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def checkpoint(folder: Path) -> Path:
    """The last one of a run."""
    return sorted((folder / "checkpoint").glob("step-*.pt"))[-1]


def weights(model: ClipModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def order_of(trainer: Trainer) -> list[int]:
    """The images of the batches to come, one after the other."""
    return [i for batch in trainer._order() for i in batch]


def assert_same(a: ClipModel, b: ClipModel) -> None:
    of_a, of_b = weights(a), weights(b)
    assert of_a.keys() == of_b.keys()
    assert [name for name in of_a if not torch.equal(of_a[name], of_b[name])] == []


def test_run_folder(make_trainer: MakeTrainer, shapes_tree: Tree) -> None:
    trainer = make_trainer()
    seen: list[tuple[int, int, int]] = []

    def progress(done: int, total: int, log: dict[str, float]) -> None:
        # Flushed as it is written: the line of this step can be read by others already.
        assert metrics(trainer.folder)[-1]["loss"] == log["loss"]
        seen.append((done, total, len(metrics(trainer.folder))))
        assert not is_finished(trainer.folder)

    trainer.run(progress)
    assert seen == [(k, STEPS, k) for k in range(1, STEPS + 1)]
    assert is_finished(trainer.folder)
    assert sorted(str(p.relative_to(trainer.folder)) for p in trainer.folder.rglob("*") if p.is_file()) == [
        str(checkpoint(trainer.folder).relative_to(trainer.folder)), "metrics.jsonl", "model.safetensors",
        "open_clip_config.json", "report.html", str(next(trainer.folder.glob("tensorboard/*")).relative_to(trainer.folder)),
    ]  # fmt: skip
    logged = metrics(trainer.folder)
    assert [line["step"] for line in logged] == list(range(1, STEPS + 1))
    assert {
        "loss",
        "lr",
        "grad_norm",
        "alignment",
        "cap_share",
        "beta_0",
        "depth_3",
        "radius_image",
        "edges_ordered",
        "margin_0",
        "bound_0",
    } <= logged[0].keys()
    run = read_header(trainer.folder / "model.safetensors")["run"]
    assert run["method"] == "hierarchical"
    assert run["tree_digest"] == shapes_tree.digest
    assert run["base"] == {"model": "small", "pretrained": "none", "digest": "random:0"}
    assert_same(load_model(str(trainer.folder)), trainer.model)


def test_a_run_killed_before_its_page_makes_up_for_it(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.run()
    page, logged = trainer.folder / "report.html", metrics(trainer.folder)
    page.unlink()
    assert not is_finished(trainer.folder)
    resumed = make_trainer()
    assert resumed.resume()
    resumed.run()
    assert page.is_file()
    assert is_finished(trainer.folder)
    assert metrics(trainer.folder) == logged
    assert_same(load_model(str(trainer.folder)), trainer.model)
    # Weights that stand alone are given away as they are: nothing is trained over them.
    page.unlink()
    checkpoint(trainer.folder).unlink()
    assert is_finished(trainer.folder)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_ends_with_the_same_bits(make_trainer: MakeTrainer, method: str) -> None:
    whole = make_trainer("whole", method=method)
    whole.run()
    resumed = make_trainer(method=method)
    for k in (1, 4, STEPS):
        with pytest.raises(KeyboardInterrupt):
            resumed.run(stop_after(k))
        resumed = make_trainer(method=method)
        assert resumed.resume()
        assert resumed.step == k
    resumed.run()
    assert_same(whole.model, resumed.model)
    assert metrics(whole.folder) == metrics(resumed.folder)


def test_resumed_after_a_crash_between_checkpoints(make_trainer: MakeTrainer, whole: Trainer) -> None:
    crashing = make_trainer(save_every=2)

    def power_cut(done: int, _: int, __: dict[str, float]) -> None:
        if done == 3:
            raise SystemError

    with pytest.raises(SystemError):
        crashing.run(power_cut)
    assert len(metrics(crashing.folder)) == 3
    resumed = make_trainer()
    assert resumed.resume()
    assert resumed.step == 2
    resumed.run()
    assert_same(whole.model, resumed.model)
    assert metrics(whole.folder) == metrics(resumed.folder)


@pytest.mark.parametrize("bad_step", [1, 4])
def test_an_unreadable_image_leaves_a_checkpoint(
    make_trainer: MakeTrainer, whole: Trainer, monkeypatch: pytest.MonkeyPatch, bad_step: int
) -> None:
    stopped = make_trainer()
    bad, picture = order_of(stopped)[(bad_step - 1) * 8 + 3], stopped.data.picture

    def damaged(index: int) -> Image.Image:
        if index == bad:
            raise ImageError("Image x.png cannot be decoded")
        return picture(index)

    with monkeypatch.context() as patched:
        patched.setattr(stopped.data, "picture", damaged)
        with pytest.raises(ImageError, match=r"x\.png"):
            stopped.run()
    mended = make_trainer()
    assert mended.resume() == (bad_step > 1)
    assert mended.step == bad_step - 1
    mended.run()
    assert_same(whole.model, mended.model)
    assert metrics(whole.folder) == metrics(mended.folder)


def test_interrupted_within_an_update_goes_on_from_the_checkpoint_before(
    make_trainer: MakeTrainer, whole: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(save_every=1)
    update = torch.optim.AdamW.step

    def half_done(self: torch.optim.AdamW, *args: Any) -> Any:
        update(self, *args)
        if trainer.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", half_done)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    resumed = make_trainer()
    assert resumed.resume()
    resumed.run()
    assert_same(whole.model, resumed.model)


def test_stopped_in_a_validation_goes_on_with_it(
    make_trainer: MakeTrainer, shapes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"validation": subset(shapes, limit=8), "validate_every": 2, "val_steps": 1}
    uninterrupted = make_trainer("whole", **options)
    uninterrupted.run()
    stops = itertools.cycle([True, False])

    def stopped(*arguments: Any) -> Any:
        """Every look is stopped once."""
        if next(stops):
            raise Stopped(signal.SIGTERM)
        return validate(*arguments)

    monkeypatch.setattr("hrzs.training.trainer.validate", stopped)
    resumed = make_trainer(**options)
    for step in (2, 4, STEPS):
        with pytest.raises(Stopped):
            resumed.run()
        resumed = make_trainer(**options)
        assert resumed.resume()
        assert resumed.step == step
    resumed.run()
    assert_same(uninterrupted.model, resumed.model)
    assert metrics(uninterrupted.folder) == metrics(resumed.folder)
    assert_same(load_model(str(uninterrupted.folder / "best")), load_model(str(resumed.folder / "best")))


def test_a_gradient_that_is_not_finite_takes_no_step(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer()
    before = weights(trainer.model)
    infinite = torch.tensor(torch.inf)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: infinite)
    with pytest.raises(HrzsError, match="the norm of the gradient is inf at step 1"):
        trainer.run()
    (kept,) = (trainer.folder / "checkpoint").glob("nonfinite-*.pt")
    state = torch.load(kept, weights_only=True)["model"]
    assert all(torch.equal(value, before[f"clip.{name}"]) for name, value in state.items())


#: What a run's state is made of besides the model: each has to survive.
STATEFUL = {
    "ema": {"ema": 0.9, "noise": 0.25}, "sgd": {"optimizer": "sgd", "lr": 0.05}, "accumulate": {"accumulate": 3},
    "interpolate": {"interpolate": 0.3, "schedule": "constant"}, "curvature": {"learn_curvature": True},
    "euclidean": {"geometry": "euclidean"}, "recompute": {"checkpoint_activations": True},
    "lore": {"method": "lore", "lore_primal_steps": 2, "lore_rho": 1e-3, "lore_dual_lr": 1e3},
}  # fmt: skip


@pytest.mark.parametrize("overrides", STATEFUL.values(), ids=STATEFUL)
def test_resumed_ends_with_the_same_file(make_trainer: MakeTrainer, overrides: dict[str, Any]) -> None:
    whole = make_trainer("whole", **overrides)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(**overrides).run(stop_after(3))
    resumed = make_trainer(**overrides)
    assert resumed.resume()
    resumed.run()
    assert metrics(whole.folder) == metrics(resumed.folder)
    assert_same(load_model(str(whole.folder)), load_model(str(resumed.folder)))


def test_resume_without_a_checkpoint(make_trainer: MakeTrainer) -> None:
    assert not make_trainer().resume()


@pytest.mark.parametrize(("name", "value"), [("max_steps", 3), ("lr", 5e-4), ("seed", 1), ("hnsa", "lower")])
def test_resume_under_other_options_is_refused(make_trainer: MakeTrainer, name: str, value: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer().run(stop_after(1))
    with pytest.raises(UsageError, match=f"belongs to other options.*{name}"):
        make_trainer(**{name: value}).resume()


def test_a_damaged_checkpoint_is_not_gone_on_from_but_the_one_before_is(
    make_trainer: MakeTrainer, whole: Trainer, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(save_every=2).run(stop_after(4))
    trainer = make_trainer()
    path = checkpoint(trainer.folder)
    path.write_bytes(path.read_bytes()[:-1000])
    assert trainer.resume()
    assert trainer.step == 2
    assert f"{path.name} is damaged; going on from the checkpoint before it" in caplog.text
    trainer.run()
    assert_same(whole.model, trainer.model)
    assert metrics(whole.folder) == metrics(trainer.folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_stops_with_step_images_and_state(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    trainer = make_trainer()
    loss, kept = trainer.method.loss, {}

    def broken(images: Tensor, labels: Tensor, seeds: list[int]) -> Loss:
        good = loss(images, labels, seeds)
        if trainer.step == 2:
            kept.update(weights(trainer.model))
            return Loss(good.total * value, good.log)
        return good

    monkeypatch.setattr(trainer.method, "loss", broken)
    with pytest.raises(
        HrzsError, match=r"the loss is (nan|inf) at step 3 \(images shapes/train/\d+.*nonfinite-00000002\..*\.pt"
    ):
        trainer.run()
    (path,) = (trainer.folder / "checkpoint").glob("nonfinite-*.pt")
    state = torch.load(path, weights_only=True)
    assert state["step"] == 2
    assert all(torch.equal(value, kept[f"clip.{name}"]) for name, value in state["model"].items())
    assert not is_finished(trainer.folder)


def test_order_is_a_permutation_each_epoch(make_trainer: MakeTrainer) -> None:
    order = order_of(make_trainer(epochs=2.5))
    first, second, rest = order[:48], order[48:96], order[96:]
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert len(rest) == len(set(rest)) == 24
    assert order_of(make_trainer(epochs=2.5)) == order
    assert order_of(make_trainer(epochs=2.5, seed=1)) != order
    partial = order_of(make_trainer(batch_size=10))
    assert len(partial) == len(set(partial)) == 40


def test_batches_of_a_few_classes(make_trainer: MakeTrainer) -> None:
    """Two images of each of 24 classes: pairs, each image once, of classes that are drawn at random."""
    trainer = make_trainer(epochs=2.5, per_class=2)
    order, labels, tree = order_of(trainer), trainer.data.labels, trainer.tree
    first, second = order[:48], order[48:96]
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert order == order_of(make_trainer(epochs=2.5, per_class=2))
    assert order != order_of(make_trainer(epochs=2.5, per_class=2, seed=1))
    for epoch in (first, second):
        for batch in (epoch[k : k + 8] for k in range(0, 48, 8)):
            assert sorted(Counter(labels[i] for i in batch).values()) == [2] * 4
        # The next class is any other, not a neighbour in the tree.
        pairs = [int(tree.ancestors[2, labels[i]]) for i in epoch[::2]]
        assert pairs != sorted(pairs)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 99))
def test_runs_of_one_class(labels: list[int], per_class: int, seed: int) -> None:
    def order() -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randperm(len(labels), generator=generator).tolist()
        return by_class(images, labels, per_class, generator)

    found = order()
    assert found == order()
    assert sorted(found) == list(range(len(labels)))
    whole = sum(count // per_class for count in Counter(labels).values())
    for k in range(whole):
        assert len({labels[i] for i in found[k * per_class : (k + 1) * per_class]}) == 1
    # What is over of a class comes last.
    over = Counter(labels[i] for i in found[whole * per_class :])
    assert over == Counter({c: n % per_class for c, n in Counter(labels).items() if n % per_class})


def test_the_head_learns_at_a_rate_of_its_own(make_trainer: MakeTrainer) -> None:
    """By Adam's first step each parameter moves by the rate, whatever its gradient."""
    moves = {}
    for factor in (1.0, 10.0):
        trainer = make_trainer(f"times-{factor}", head_lr=factor, max_steps=1, warmup=0.0, schedule="constant", lr=1e-3)
        start: dict[str, Tensor] = {}
        loss = trainer.method.loss

        def watched(*args: Any, **kwargs: Any) -> Loss:
            start.update(weights(trainer.model))  # noqa: B023 -- called within this turn of the loop
            return loss(*args, **kwargs)  # noqa: B023 -- likewise

        trainer.method.loss = watched  # type: ignore[method-assign]  # to look at the weights before the first step
        trainer.run()
        after = weights(trainer.model)
        head = [name for name in after if name.startswith("geometry.") and "curvature" not in name]
        assert len(head) == 4
        moves[factor] = torch.cat([(after[name] - start[name]).abs().reshape(-1) for name in head])
        conv = next(name for name in after if name.endswith("visual.conv1.weight"))
        assert (after[conv] - start[conv]).abs().max().item() == pytest.approx(1e-3, rel=0.05)
    torch.testing.assert_close(moves[1.0], torch.full_like(moves[1.0], 1e-3), rtol=0.05, atol=0)
    torch.testing.assert_close(moves[10.0], torch.full_like(moves[10.0], 1e-2), rtol=0.05, atol=0)


def test_what_a_batch_has_nothing_of_is_not_logged(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(max_steps=1)
    loss = trainer.method.loss

    def without(*args: Any) -> Loss:
        good = loss(*args)
        return Loss(good.total, good.log | {"edges_ordered_image": torch.tensor(float("nan"))})

    monkeypatch.setattr(trainer.method, "loss", without)
    trainer.run()
    (line,) = metrics(trainer.folder)
    assert "edges_ordered_image" not in line
    assert line["edges_ordered"] >= 0


def test_a_checkpoint_from_before_the_levels_had_depths_is_refused(make_trainer: MakeTrainer) -> None:
    """One β as a single number, nothing of depth, another order of what the optimiser keeps."""
    with pytest.raises(KeyboardInterrupt):
        make_trainer().run(stop_after(1))
    path = checkpoint(make_trainer().folder)
    state = torch.load(path, weights_only=True)
    for option in ("depth", "beta_levels", "level_balance", "head_lr"):
        del state["plan"][option]
    state["geometry"] = {"scale_image": 0.1, "scale_text": 0.1, "beta": 2.0, "curvature": 1.0}
    state["geometry_state"] = {
        f"log_{name}": torch.tensor(0.1) for name in ("scale_image", "scale_text", "beta", "curvature")
    }
    path.unlink()
    save_checkpoint(make_trainer().folder, state)
    with pytest.raises(UsageError, match=r"--resume: .*other options: .*level_balance None \(now node\)"):
        make_trainer().resume()


@pytest.mark.parametrize(
    ("options", "images", "steps"),
    [
        ({"batch_size": 8}, 48, 6), ({"batch_size": 10}, 48, 4), ({"batch_size": 128}, 48, 1),
        ({"batch_size": 8, "epochs": 0.5}, 48, 3), ({"batch_size": 8, "epochs": 0.01}, 48, 1),
        ({"batch_size": 8, "max_steps": 4}, 48, 4), ({"batch_size": 8, "epochs": 0.2, "max_steps": 4}, 48, 2),
    ],
)  # fmt: skip
def test_total_steps(options: dict[str, Any], images: int, steps: int) -> None:
    assert total_steps(TrainOptions(**options), images) == steps


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (100, 0.0), (10, 1.0), (1, 0.05), (2, 0.5)])
def test_learning_rate_rises_then_falls(steps: int, warmup: float) -> None:
    factors = [lr_factor(step, steps, warmup) for step in range(steps)]
    peak = factors.index(max(factors))
    assert max(factors) == 1.0
    assert peak == max(1, round(warmup * steps)) - 1
    assert factors[: peak + 1] == pytest.approx([(k + 1) / (peak + 1) for k in range(peak + 1)])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert all(f > 0 for f in factors)
    if steps == 100:
        assert factors[-1] < 1e-3
        assert lr_factor(55, 100, 0.1) == pytest.approx(0.5)


def test_augmentations_are_symmetries_of_the_square() -> None:
    image = torch.arange(12.0).view(1, 3, 2, 2)
    same = [image] * 16
    assert augment(image, [1], "none") is image
    flipped = augment(torch.cat(same), list(range(16)), "flip")
    assert {str(i.tolist()) for i in flipped} == {str(image[0].tolist()), str(image[0].flip(-1).tolist())}
    turned = {str(i.tolist()) for i in augment(torch.cat(same), list(range(16)), "dihedral")}
    assert turned == {
        str(i.rot90(k, (-2, -1)).tolist()) for i in (image[0], image[0].flip(-1)) for k in range(4)
    }  # fmt: skip
    assert len(turned) == 8


def test_tree_of_other_classes_is_refused(
    make_model: Callable[[], ClipModel], shapes: Dataset, shapes_tree: Tree, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="restrict"):
        Trainer(make_model(), shapes, shapes_tree.restrict(shapes_tree.classes[::-1]), OPTIONS, tmp_path)


def test_points_at_the_boundary_are_called_out(make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(max_steps=1, eps=Fraction(1, 255))
    begin = trainer.method.begin

    def far_out(images: Tensor) -> None:
        begin(images)
        assert trainer.model.geometry is not None
        trainer.model.geometry.log_scale_image.data.add_(4)

    trainer.method.begin = far_out
    with caplog.at_level("WARNING", "hrzs"):
        trainer.run()
    assert "robustness may be masked" in caplog.text


def test_the_order_goes_on_where_the_run_does(make_trainer: MakeTrainer) -> None:
    """In the middle of an epoch, and in the next one."""
    trainer = make_trainer(epochs=2.5)
    whole = list(trainer._order())
    for trainer.step in (4, 9):
        assert list(trainer._order()) == whole[trainer.step :]


@pytest.mark.parametrize("size", [3, 16])
def test_a_batch_that_processes_cannot_share_alike_is_refused(make_trainer: MakeTrainer, size: int) -> None:
    trainer = make_trainer()
    trainer.group = Group(0, size)
    with pytest.raises(UsageError, match=rf"--batch-size 8: {size} processes .* take {6 if size == 3 else 16} or"):
        trainer._check_division()
    trainer.group, trainer.options = Group(0, 4), replace(trainer.options, accumulate=3)
    with pytest.raises(UsageError, match=r"--accumulate 3: .* 2 for each process"):
        trainer._check_division()


def test_more_parts_than_images_are_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UsageError, match=r"--accumulate 9: a batch has only 8"):
        make_trainer(accumulate=9)


def test_the_mean_of_the_weights_is_what_is_saved(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(ema=0.5)
    names = [name for name, p in trainer.model.clip.named_parameters() if p.requires_grad]
    mean = {name: dict(trainer.model.clip.named_parameters())[name].detach().clone() for name in names}

    def follow(done: int, _: int, __: dict[str, float]) -> None:
        decay = min(0.5, done / (done + 9))
        for name in names:
            mean[name] = decay * mean[name] + (1 - decay) * dict(trainer.model.clip.named_parameters())[name].detach()

    trainer.run(follow)
    saved = dict(load_model(str(trainer.folder)).clip.named_parameters())
    for name in names:
        torch.testing.assert_close(saved[name], mean[name])
    assert not torch.equal(saved[names[0]], dict(trainer.model.clip.named_parameters())[names[0]])


def test_interpolation_moves_what_is_saved_towards_the_original(
    make_trainer: MakeTrainer, whole: Trainer, make_model: Callable[[], ClipModel]
) -> None:
    moved = make_trainer(interpolate=0.25)
    moved.run()
    assert_same(whole.model, moved.model)
    original, tuned = make_model(), load_model(str(whole.folder))
    for name, value in load_model(str(moved.folder)).clip.state_dict().items():
        expected = 0.25 * original.clip.state_dict()[name] + 0.75 * tuned.clip.state_dict()[name]
        torch.testing.assert_close(value, expected, msg=name)


def test_the_best_by_the_validation_is_kept(make_trainer: MakeTrainer, shapes: Dataset) -> None:
    trainer = make_trainer(validation=shapes, validate_every=2, val_steps=1, best_by="clean")
    kept: dict[int, dict[str, Tensor]] = {}
    trainer.run(lambda done, _, __: kept.update({done: weights(trainer.model)}))
    looks = {line["step"]: line["validation"] for line in metrics(trainer.folder) if "validation" in line}
    assert list(looks) == [2, 4, 6]
    best = max(looks, key=lambda step: (looks[step]["criterion"], -step))
    assert [step for step in looks if looks[step]["best"]][-1] == best
    assert all(len(look["clean"]) == len(look["robust"]) == trainer.tree.height for look in looks.values())
    model = load_model(str(trainer.folder / "best"))
    assert [name for name, value in weights(model).items() if not torch.equal(value, kept[best][name])] == []
    assert read_header(trainer.folder / "best" / "model.safetensors")["run"]["steps"] == best


def test_looking_changes_no_weight(make_trainer: MakeTrainer, whole: Trainer, shapes: Dataset) -> None:
    looking = make_trainer(validation=subset(shapes, limit=8), validate_every=3, val_steps=1, ema=0.9)
    looking.run()
    assert_same(whole.model, looking.model)


def test_compiling_without_a_compiler_is_refused(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UsageError, match=r"--compile: torch.compile needs a C\+\+ compiler"):
        make_trainer(compile=True)


def test_sgd_is_torchs(make_trainer: MakeTrainer) -> None:
    """One step with its momentum empty: weights move by the learning rate times the clipped gradient."""
    trainer = make_trainer(optimizer="sgd", lr=0.5, weight_decay=0.0, warmup=0.0, max_steps=1, schedule="constant")
    before = weights(trainer.model)
    trainer.run()
    gradient = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    after = weights(trainer.model)
    assert gradient
    for name, value in gradient.items():
        if name in before:
            torch.testing.assert_close(after[name], before[name] - 0.5 * value)


@pytest.mark.parametrize(("limit", "clipped"), [(0.01, True), (0.0, False)])
def test_gradients_are_clipped_at_the_norm_asked_for(make_trainer: MakeTrainer, limit: float, clipped: bool) -> None:
    trainer = make_trainer(clip_grad=limit, max_steps=1)
    trainer.run()
    left = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
    before = metrics(trainer.folder)[0]["grad_norm"]
    assert before > 0.1
    assert left == pytest.approx(limit if clipped else before, rel=1e-3)


def test_a_constant_rate_after_the_warm_up() -> None:
    assert [lr_factor(step, 10, 0.2, "constant") for step in range(4)] == [0.5, 1.0, 1.0, 1.0]
