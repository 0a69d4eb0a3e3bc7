"""Small things that many tests share: a task on which an untrained model is right, a run of seconds. hrzs is imported inside fixtures: jaxtyping's import hook comes first."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from torch import Tensor

if TYPE_CHECKING:
    from hrzs.data import Batch, Dataset
    from hrzs.evaluation.runner import Evaluation
    from hrzs.hierarchy.tree import Tree
    from hrzs.models.clip import ClipModel
    from hrzs.tasks import Task


#: Where transformers cannot be imported; see there.
WITHOUT_TRANSFORMERS = Path(__file__).parent / "without_transformers"

# A busy machine is no fault of the code under test. `pytest --hypothesis-profile thorough` looks longer.
settings.register_profile(
    "hrzs", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("thorough", settings.get_profile("hrzs"), max_examples=1000)
settings.load_profile("hrzs")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    # Nothing is read from or left in the user's cache; the tests of the cache switch it on.
    os.environ["HRZS_CACHE"] = "0"
    # For the processes that tests start, not for this one, which has its path already.
    os.environ["PYTHONPATH"] = str(WITHOUT_TRANSFORMERS)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """The command line routes the log for its whole process; other tests share this one."""
    loggers = [logging.getLogger(name) for name in ("", "hrzs", "py.warnings")]
    before = [(log, log.level, log.handlers[:], log.propagate) for log in loggers]
    yield
    logging.captureWarnings(False)
    for log, level, handlers, propagate in before:
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate


@pytest.fixture(scope="session")
def model() -> ClipModel:
    """The `tiny` architecture with random weights: a real open_clip model, a few milliseconds an image."""
    from hrzs.models.loading import load_model

    return load_model("tiny", "none", seed=0)


@pytest.fixture(scope="session")
def tree() -> Tree:
    """Three levels below the root; `cat` and `boat` pass through level 1, `bus` has two prompt names."""
    from hrzs.hierarchy.tree import Node, Tree

    def leaf(name: str, *prompts: str) -> Node:
        return Node(name, f"id-{name}", class_id=name, prompts=prompts)

    canine = Node("canine", "n-canine", (leaf("dog"), leaf("wolf")), level=1)
    wheeled = Node("wheeled vehicle", "n-wheeled", (leaf("car"), leaf("bus", "bus", "coach")), level=1)
    animal = Node("animal", "n-animal", (canine, leaf("cat")), level=2)
    vehicle = Node("vehicle", "n-vehicle", (wheeled, leaf("boat")), level=2)
    return Tree(Node("thing", "n-thing", (animal, vehicle), level=3))


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Six images of 32 × 32 random pixels, with exact 0 and 1 among them; the model resizes them itself."""
    pixels = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels[:, :, 0], pixels[:, :, -1] = 0.0, 1.0
    return pixels


# -- an evaluation --------------------------------------------------------------------------------------------------

#: An untrained ViT of a few thousand parameters.
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
N = 24


@pytest.fixture
def small(make_model: Callable[[], ClipModel]) -> ClipModel:
    """An untrained ViT of a few thousand parameters."""
    return make_model()


@pytest.fixture(scope="session")
def flat(tree: Tree) -> Tree:
    from hrzs.hierarchy.tree import Node, Tree

    return Tree(Node("thing", "n-thing", tuple(tree.levels[0]), level=1))


@pytest.fixture(scope="session")
def make_task(tree: Tree) -> Callable[[], Task]:
    """24 shapes under the class names of `tree`, anew at each call; the labels are those of `evaluate`."""
    from hrzs.data import open_dataset, subset
    from hrzs.tasks import Task

    def make() -> Task:
        data = subset(open_dataset("shapes", "test"), limit=N)
        data.classes = data.class_names = tree.classes
        data.labels = [i % len(tree.classes) for i in range(N)]
        return Task(data, tree, "test.yaml", "in-graph")

    return make


@pytest.fixture
def task(make_task: Callable[[], Task]) -> Task:
    return make_task()


@pytest.fixture(scope="session")
def make_evaluation(make_model: Callable[[], ClipModel], make_task: Callable[[], Task]) -> Callable[..., Evaluation]:
    """An evaluation whose model is right about most images: options as overrides, attacks cheap.

    Features of an untrained model share one large direction; texts at right angles to it are told apart by the rest.
    """
    from hrzs.data import loader
    from hrzs.evaluation.options import EvalOptions
    from hrzs.evaluation.runner import Evaluation
    from hrzs.evaluation.store import Store

    def make(
        store: Path | None = None, *, model: ClipModel | None = None, task: Task | None = None, **overrides: Any
    ) -> Evaluation:
        small, task = model or make_model(), task or make_task()
        options = EvalOptions(**{"steps": 3, "batch_size": 9, **overrides})
        evaluation = Evaluation(small, task, options, Store(store))
        classifier = evaluation.classifier
        images = next(iter(loader(task.data, N))).images
        with torch.no_grad():
            features = small.encode_image(images)
            common = F.normalize(F.normalize(features, dim=1).mean(0), dim=0)
            leaves = torch.randn(len(task.tree.classes), 16, generator=torch.Generator().manual_seed(0))
            leaves = F.normalize(leaves - (leaves @ common)[:, None] * common, dim=1)
            for level in reversed(range(task.tree.height)):
                for node, column in enumerate(classifier.columns[level].tolist()):
                    below = task.tree.ancestors[level] == node
                    classifier.prepared[column] = F.normalize(leaves[below].mean(0), dim=0)
            task.data.labels = classifier.predict(features)[0, 0].tolist()
        evaluation.labels = torch.tensor(task.data.labels)
        return evaluation

    return make


@pytest.fixture
def evaluate(make_evaluation: Callable[..., Evaluation], small: ClipModel, task: Task) -> Callable[..., Evaluation]:
    """Evaluations of `small` on `task`."""
    return partial(make_evaluation, model=small, task=task)


# -- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], ClipModel]:
    """The same random model, anew at each call: training changes it."""
    from hrzs.models.loading import load_model

    file: Path = tmp_path_factory.mktemp("training") / "training-small.json"
    file.write_text(json.dumps(CONFIG))
    return lambda: load_model(str(file), "none", seed=0)


@pytest.fixture(scope="session")
def shapes() -> Dataset:
    """Two images of each of the 24 classes."""
    from hrzs.data import open_dataset, subset

    return subset(open_dataset("shapes", "train"), limit=48)


@pytest.fixture(scope="session")
def shapes_tree() -> Tree:
    """The published one: five levels, leaves pass through at every height."""
    from hrzs.hierarchy.published import find_tree
    from hrzs.hierarchy.yaml_form import load_tree

    path = find_tree("shapes")
    assert path is not None
    return load_tree(path)


@pytest.fixture(scope="session")
def batch(shapes: Dataset) -> Batch:
    """All 48 images of `shapes`."""
    from hrzs.data import loader

    return next(iter(loader(shapes, 48)))
