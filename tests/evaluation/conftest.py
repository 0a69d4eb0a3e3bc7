"""A task on which an untrained model is right: every image is labelled with what the model says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from hrzs.evaluation.runner import Evaluation
    from hrzs.hierarchy.tree import Tree
    from hrzs.models.clip import ClipModel
    from hrzs.tasks import Task

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
N = 24


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """An untrained ViT of a few thousand parameters."""
    from hrzs.models.loading import load_model

    file: Path = tmp_path_factory.mktemp("evaluation") / "evaluation-small.json"
    file.write_text(json.dumps(CONFIG))
    return load_model(str(file), "none", seed=0)


@pytest.fixture(scope="session")
def flat(tree: Tree) -> Tree:
    from hrzs.hierarchy.tree import Node, Tree

    return Tree(Node("thing", "n-thing", tuple(tree.levels[0]), level=1))


@pytest.fixture
def task(tree: Tree) -> Task:
    """24 shapes under the class names of `tree`; the labels are those of `evaluate`."""
    from hrzs.data import open_dataset, subset
    from hrzs.tasks import Task

    data = subset(open_dataset("shapes", "test"), limit=N)
    data.classes = data.class_names = tree.classes
    data.labels = [i % len(tree.classes) for i in range(N)]
    return Task(data, tree, "test.yaml", "in-graph")


@pytest.fixture
def evaluate(small: ClipModel, task: Task) -> Callable[..., Evaluation]:
    """An evaluation whose model is right about most images: options as overrides, attacks cheap.

    Features of an untrained model share one large direction; texts at right angles to it are told apart by the rest.
    """
    from hrzs.data import loader
    from hrzs.evaluation.runner import EvalOptions, Evaluation

    def make(store: Path | None = None, **overrides: Any) -> Evaluation:
        options = EvalOptions(**{"steps": 3, "batch_size": 9, **overrides})
        evaluation = Evaluation(small, task, options, store)
        classifier = evaluation.classifier
        images = next(iter(loader(task.data, N))).images
        with torch.no_grad():
            features = small.encode_image(images)
            common = F.normalize(F.normalize(features, dim=1).mean(0), dim=0)
            leaves = torch.randn(len(task.tree.classes), 16, generator=torch.Generator().manual_seed(0))
            leaves = F.normalize(leaves - (leaves @ common)[:, None] * common, dim=1)
            for level in reversed(range(task.tree.top)):
                for node, column in enumerate(classifier.columns[level].tolist()):
                    below = task.tree.ancestors[level] == node
                    classifier.prepared[column] = F.normalize(leaves[below].mean(0), dim=0)
            task.data.labels = classifier.predict(features)[0, 0].tolist()
        evaluation.labels = torch.tensor(task.data.labels)
        return evaluation

    return make
