"""docs/cost_model.py counts what a training step does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.training.methods import method_class
from hrzs.training.options import TrainOptions

PAGE = Path(__file__).parents[1] / "docs" / "cost_model.py"


@pytest.fixture(scope="module")
def cost_model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cost_model", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost_model"] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["tecoa", "hierarchical"])
def test_a_step_has_the_operations_that_are_predicted(
    cost_model: ModuleType, model: ClipModel, tree: Tree, name: str, steps: int
) -> None:
    """Of an encoder of 64 × 64 pixels; what is beside its matrix products counts for little."""
    method: Any = method_class(name)(model, tree, TrainOptions(method=name, steps=steps))
    images, labels = torch.rand(4, 3, 64, 64), torch.arange(4) % len(tree.classes)
    method.begin(images)
    with FlopCounterMode(display=False) as counted:
        method.loss(images, labels, range(4)).total.backward()
    encoder = cost_model.Encoder.count(model.clip.visual)
    step = cost_model.Step(encoder, 4, 1, steps, len(method_columns(method)))
    assert counted.get_total_flops() == pytest.approx(step.encoder_flops + step.loss_flops, rel=0.1)
    model.geometry = None
    model.zero_grad(set_to_none=True)


def method_columns(method: Any) -> Any:
    bank = method.bank if hasattr(method, "bank") else method.forest[0].bank
    return bank.index.owner


def test_processes_share_the_encoder_and_not_the_loss(cost_model: ModuleType) -> None:
    encoder = cost_model.Encoder(1e9, 10**7, 512)
    one, eight = (cost_model.Step(encoder, 1024, gpus, 3, 1500) for gpus in (1, 8))
    assert (one.encoder_flops, one.loss_flops) == (8 * eight.encoder_flops, eight.loss_flops)
    assert one.bytes_sent == 0
    # Ring all-gather and all-reduce: each sends 7/8 of what there is, the latter twice.
    assert eight.bytes_sent == 7 / 8 * (4 * (1 + 2) * 1024 * 512 * 4 + 2 * 10**7 * 4)


def test_the_page_has_the_tables_that_are_printed(
    cost_model: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cost_model.py"])
    cost_model.main()
    assert capsys.readouterr().out.strip() in (PAGE.parent / "scaling.md").read_text()
