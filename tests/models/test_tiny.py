"""The embedded model knows unseen `shapes` at every level, and falls at the ε that `shapes` sets by default."""

from __future__ import annotations

import pytest
import torch

from hrzs.data import open_dataset
from hrzs.data_options import DataOptions
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import Unit
from hrzs.evaluation.rows import rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.models import tiny
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.models.saving import read_header
from hrzs.results.metrics import correct
from hrzs.tasks import open_task


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return load_model("tiny")


def test_file_is_small_and_says_where_it_comes_from() -> None:
    assert tiny.WEIGHTS.stat().st_size < 8_000_000
    header = read_header(tiny.WEIGHTS)
    assert header["arch"] == tiny.ARCH
    assert header["run"]["method"] == "clean"
    assert header["training_data"] == "shapes/train"
    assert header["licence"] == "MIT"


def test_tiny_is_accurate_at_every_level_and_breaks(model: ClipModel) -> None:
    task = open_task("shapes", model, DataOptions(limit=96), purpose="eval")
    options = EvalOptions(attack=("leaf-pgd", "superclass-pgd"), steps=10, scoring="prompt", matrix=False)
    evaluation = Evaluation(model, task, options)
    evaluation.run()
    rows = {(row.attack, row.level): row for row in rows_of(evaluation)}
    for level in range(task.tree.height):
        assert rows["none", level].clean > 0.7
    assert rows["leaf-pgd", 0].robust < 0.2
    assert rows["superclass-pgd", 1].robust < 0.2


def test_test_images_are_not_training_images() -> None:
    train, test = open_dataset("shapes", "train", purpose="train"), open_dataset("shapes", "test")
    assert not set(train.ids) & set(test.ids)
    first, other = test[0].image, train[0].image
    assert not torch.equal(first, other)


def test_clean_predictions_agree_with_plain_argmax(model: ClipModel) -> None:
    task = open_task("shapes", model, DataOptions(limit=24), purpose="eval")
    evaluation = Evaluation(model, task, EvalOptions(attack=("none",)))
    evaluation.run()
    labels = torch.tensor(list(task.data.labels))
    nodes = evaluation.predictions[Unit("none").key].nodes
    share = correct(task.tree, labels, nodes)[0, 0].double().mean().item()
    assert rows_of(evaluation)[0].clean == pytest.approx(share)
