"""``--noise``: the model under training sees ``x + z``, whichever method trains it; the adversary works around ``x``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hrzs.attacks import sample_seeds
from hrzs.data import Batch, Dataset
from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods import METHODS, Loss, Method, method_class
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

MakeModel = Callable[[], ClipModel]
EPS = Fraction(2, 255)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_under_training_sees_noise_and_the_original_none(
    make_model: MakeModel, shapes_tree: Tree, batch: Batch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainOptions(method=name, steps=1, eps=EPS, step_size=EPS)
    model = make_model()
    method = method_class(name)(model, shapes_tree, options)
    method.begin(batch.images)
    seeds = sample_seeds(batch.ids, 0)
    without = method.loss(batch.images, batch.labels, seeds).total
    method.noise = 0.5 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    preprocess = model.preprocess
    monkeypatch.setattr(model, "preprocess", lambda pixels: (seen.append(pixels.detach()), preprocess(pixels))[1])
    loss = method.loss(batch.images, batch.labels, seeds).total
    assert not torch.isclose(loss, without)
    near = [(pixels - batch.images).abs().max() <= float(EPS) + 1e-6 for pixels in seen]
    noisy = [(pixels - method.noise - batch.images).abs().max() <= float(EPS) + 1e-6 for pixels in seen]
    assert all(a or b for a, b in zip(near, noisy, strict=True))
    assert any(noisy)
    # Only an original has a look without noise: what the model is held to is its view of the image itself.
    assert any(near) if name in ("fare", "pmg-aft", "tga-zsr") else not any(near) or hasattr(method, "original")
    assert max(pixels.max() for pixels in seen) > 1.5  # not clipped
    if name != "clean":
        # What the adversary found is an image: the noise came on top of it.
        found = [pixels - method.noise for pixels, is_noisy in zip(seen, noisy, strict=True) if is_noisy]
        assert any((image - batch.images).abs().max() > float(EPS) / 2 for image in found)
        assert all(image.min() >= -1e-5 and image.max() <= 1 + 1e-5 for image in found)


@pytest.fixture
def noises(
    make_model: MakeModel, shapes: Dataset, shapes_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[tuple[tuple[str, ...], Tensor | None]]]:
    """The noise of each step of a run with the ids of its images."""

    def run(**overrides: Any) -> list[tuple[tuple[str, ...], Tensor | None]]:
        found: list[tuple[tuple[str, ...], Tensor | None]] = []
        options = TrainOptions(method="clean", batch_size=16, max_steps=2, validate_every=0, **overrides)
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        trainer = Trainer(make_model(), shapes, shapes_tree, options, folder, origin=("small", "none"))
        step, loss = trainer._step, method_class("clean").loss

        def remember(self: Method, *rest: Any) -> Loss:
            found.append(((), self.noise))
            return loss(self, *rest)

        def with_ids(optimizer: Any, images: Tensor, labels: Tensor, ids: tuple[str, ...]) -> dict[str, float]:
            log = step(optimizer, images, labels, ids)
            found[-1] = (ids, found[-1][1])
            return log

        monkeypatch.setattr(method_class("clean"), "loss", remember)
        monkeypatch.setattr(trainer, "_step", with_ids)
        trainer.run()
        monkeypatch.undo()
        return found

    return run


def test_noise_is_that_of_image_and_step(noises: Callable[..., Any]) -> None:
    assert [noise for _, noise in noises()] == [None, None]
    first, again = noises(noise=0.25), noises(noise=0.25)
    other, twice = noises(noise=0.25, seed=1), noises(noise=0.5)
    for (ids, noise), (_, same), (its, another), (_, double) in zip(first, again, other, twice, strict=True):
        assert torch.equal(noise, same)
        assert torch.allclose(2 * noise, double)
        assert not torch.equal(noise, another) or ids != its
        n = noise.numel()
        assert abs(noise.double().std().item() / 0.25 - 1) < 5 * (0.5 / n) ** 0.5
        assert abs(noise.double().mean().item()) < 5 * 0.25 / n**0.5
        assert len({one.tobytes() for one in noise.numpy()}) == len(ids) == 16
    assert not torch.equal(first[0][1], first[1][1])


def test_noise_below_0_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--noise -0.1: cannot be negative"):
        replace(TrainOptions(), noise=-0.1)


def test_a_checkpoint_from_before_the_option_goes_on(
    make_model: MakeModel, shapes: Dataset, shapes_tree: Tree, tmp_path: Path
) -> None:
    def trainer(**overrides: Any) -> Trainer:
        options = TrainOptions(method="clean", batch_size=16, max_steps=1, validate_every=0, **overrides)
        return Trainer(make_model(), shapes, shapes_tree, options, tmp_path, save_every=1, origin=("small", "none"))

    first = trainer()
    del first.plan["noise"]
    first.run()
    assert trainer().resume()
    with pytest.raises(UsageError, match=r"it has noise 0.0 \(now 0.25\)"):
        trainer(noise=0.25).resume()
