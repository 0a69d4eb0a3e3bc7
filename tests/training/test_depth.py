"""The theory at work: a model fine-tuned for depth has its levels at growing norms, with growing margins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrzs.data import Batch
from hrzs.geometry.margin import max_margin
from hrzs.hierarchy.tree import Tree
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import load_model
from hrzs.models.text import TextBank
from hrzs.training.alignment import text_edges
from hrzs.training.methods import method_class
from hrzs.training.options import TrainOptions

#: Text features wide enough for a projection to give each node a norm of its own.
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
STEPS = 60


class Depth:
    """A model after a few steps with the gap terms at ``weight``: where its texts lie."""

    def __init__(self, file: Path, tree: Tree, batch: Batch, weight: float) -> None:
        model = load_model(str(file), "none", seed=0)
        options = TrainOptions(steps=1, lambda_gap=weight, zeta_gap=0.1, image_levels="mixed")
        method = method_class("hierarchical")(model, tree, options)
        method.begin(batch.images)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss = method.loss(batch.images, batch.labels, range(step, step + len(batch.ids)))
            loss.total.backward()
            optimizer.step()
        bank, head = TextBank(model, tree), model.geometry
        assert head is not None
        self.head: HyperbolicHead = head
        with torch.no_grad():
            points = head.prepare(bank.features(model))
        self.levels = [points[columns] for columns in bank.index.columns]
        self.norms = [level.norm(dim=1).mean().item() for level in self.levels]
        parents, children = text_edges(tree, bank.index)
        self.steps_outwards: Tensor = points[children].norm(dim=1) - points[parents].norm(dim=1)
        self.images = [loss.log[f"radius_image_{level}"].item() for level in range(tree.top)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("depth") / "depth-small.json"
    path.write_text(json.dumps(CONFIG))
    return path


@pytest.fixture(scope="module")
def deep(file: Path, shapes_tree: Tree, batch: Batch) -> Depth:
    return Depth(file, shapes_tree, batch, weight=10.0)


def test_levels_lie_at_growing_norms(deep: Depth, file: Path, shapes_tree: Tree, batch: Batch) -> None:
    assert deep.norms == sorted(deep.norms, reverse=True), "from the leaves, which come first, towards the centre"
    assert (deep.steps_outwards > 0).double().mean() > 0.85
    assert deep.steps_outwards.mean() > 0.1
    assert deep.images[0] > deep.images[1] + 0.05, "class means lie nearer the centre than the leaves'"
    # It is the term that does it, and not how things happen to lie.
    shallow = Depth(file, shapes_tree, batch, weight=0.0)
    assert shallow.steps_outwards.mean() < deep.steps_outwards.mean() / 2
    assert shallow.norms[0] - shallow.norms[-1] < (deep.norms[0] - deep.norms[-1]) / 2


def test_levels_have_growing_margins(deep: Depth) -> None:
    """The largest log-odds that an image can have at a level: it sits on one of the two texts furthest apart."""
    beta, r = deep.head.value("beta"), deep.head.value("curvature")
    reached, allowed = [], []
    for level in deep.levels:
        reached.append((beta * deep.head.space.pairwise_distance(level, level, r).max()).item())
        allowed.append(max_margin(level.norm(dim=1).max(), r.item(), beta).item())
    assert all(margin <= bound * (1 + 1e-5) for margin, bound in zip(reached, allowed, strict=True))
    assert reached[0] > 1.1 * reached[-1]
    assert allowed[0] > allowed[-1]
