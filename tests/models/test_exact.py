"""`exact_fp32` and the engine's entry points, under the worst that a process may have switched on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hrzs
from hrzs.evaluation.runner import Evaluation
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

LOOSE = [
    pytest.param(lambda: torch.set_float32_matmul_precision("medium"), id="medium"),
    pytest.param(lambda: setattr(torch.backends.cudnn, "allow_tf32", True), id="allow_tf32"),
    pytest.param(lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), id="matmul.allow_tf32"),
    pytest.param(lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "tf32"), id="conv",
                 marks=pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 on")),
]  # fmt: skip


def state() -> tuple[object, ...]:
    """Of every switch, as the process has it."""
    backends: Any = torch.backends
    flags = [backends.cuda.matmul.allow_tf32, backends.cudnn.deterministic, torch.get_float32_matmul_precision()]
    if hasattr(backends, "fp32_precision"):
        flags += [backends.cudnn.conv.fp32_precision, backends.mkldnn.matmul.fp32_precision]
    else:
        flags.append(backends.cudnn.allow_tf32)
    return (*flags, (torch.full((), 1e-40) * 1).item() == 0)


def is_exact() -> bool:
    tf32, deterministic, matmul, *_, flushed = state()
    return not tf32 and bool(deterministic) and matmul == "highest" and bool(flushed) and "tf32" not in state()


@pytest.fixture(params=LOOSE)
def loose(request: pytest.FixtureRequest) -> Iterator[tuple[object, ...]]:
    """A process in which fp32 is not exact."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    request.param()
    yield state()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


#: Inside, every process is the same; so one of them is enough for what goes inside.
in_a_loose_process = pytest.mark.parametrize("loose", LOOSE[:1], indirect=True)


def test_inside_it_is_exact_and_afterwards_as_before(loose: tuple[object, ...]) -> None:
    assert not is_exact()
    with exact_fp32():
        assert is_exact()
        with exact_fp32():
            assert is_exact()
        assert is_exact()
    assert state() == loose
    with pytest.raises(KeyError), exact_fp32():
        raise KeyError
    assert state() == loose


def test_a_product_is_one_of_fp32() -> None:
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    torch.set_float32_matmul_precision("medium")
    try:
        with exact_fp32():
            found = a @ b
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=0, atol=1e-4)


def test_those_who_flush_go_on_flushing() -> None:
    torch.set_flush_denormal(True)
    try:
        with exact_fp32():
            pass
        assert state()[-1]
    finally:
        torch.set_flush_denormal(False)


def spy(monkeypatch: pytest.MonkeyPatch, model: ClipModel) -> list[bool]:
    """Was it exact, at each forward of the model?"""
    seen: list[bool] = []
    clip: Any = model.clip
    for name in ("encode_image", "encode_text"):
        original: Callable[..., Tensor] = getattr(clip, name)

        def encode(*args: Any, original: Callable[..., Tensor] = original, **options: Any) -> Tensor:
            seen.append(is_exact())
            return original(*args, **options)

        monkeypatch.setattr(clip, name, encode)
    return seen


@in_a_loose_process
def test_the_engine_from_python_is_exact(
    loose: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, small: ClipModel, tree: Tree
) -> None:
    seen = spy(monkeypatch, small)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    hrzs.attack(small, images, torch.tensor([0, 1]), tree=tree, steps=1)
    assert state() == loose
    hrzs.evaluate(small, limit=24, attack=("leaf-pgd",), steps=1)
    assert state() == loose
    small.encode_image(images)
    assert state() == loose
    assert len(seen) > 4
    assert all(seen)


@in_a_loose_process
def test_an_evaluation_is_exact(
    loose: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, evaluate: Callable[..., Evaluation]
) -> None:
    from hrzs.evaluation.canaries import run_canaries

    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 1)
    evaluation = evaluate(attack=("leaf-pgd",), steps=1)
    seen = spy(monkeypatch, evaluation.model)
    evaluation.run()
    run_canaries(evaluation)
    assert all(seen)
    assert state() == loose


@in_a_loose_process
def test_training_is_exact(
    loose: tuple[object, ...], monkeypatch: pytest.MonkeyPatch, small: ClipModel, shapes: Any, shapes_tree: Tree,
    tmp_path: Path,
) -> None:  # fmt: skip
    seen = spy(monkeypatch, small)
    Trainer(small, shapes, shapes_tree, TrainOptions(max_steps=1, batch_size=8, steps=1), tmp_path).run()
    assert all(seen)
    assert state() == loose
