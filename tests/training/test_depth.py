"""The theory at work: a run of the default method has its levels at growing norms, with growing margins."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hrzs.training.methods.hierarchical import NARROWER

Rows = list[dict[str, float]]
#: Nothing of the method is set: only how long a run is, how many of its steps are looked at, and how many images each sees.
STEPS, SEEN, BATCH = 60, 24, 24
LEVELS = range(4)


#: The first steps of runs of `STEPS`, by their options. In a process of their own, without the checks of annotations that
#: the tests switch on, which take as long as all the rest.
RUNS = """
import json, sys
from pathlib import Path
import torch
from hrzs.data import open_dataset
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.loading import load_model
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

torch.set_num_threads(1)
steps, batch, runs = json.loads(sys.argv[1])
for name, (first, options) in runs.items():
    def stop(done, *_, first=first):
        if done == first:
            raise KeyboardInterrupt
    Path(name).mkdir()
    options = TrainOptions(max_steps=steps, batch_size=batch, **options)
    tree, data = load_tree(find_tree("shapes")), open_dataset("shapes", "train")
    try:
        Trainer(load_model("tiny"), data, tree, options, Path(name)).run(stop)
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """What runs of the embedded model on all of `shapes` log, step by step."""
    wanted = {"deep": (SEEN, {}), "shallow": (8, {"depth": "none"}), "no gap": (SEEN, {"lambda_gap": 0.0})}
    folder = tmp_path_factory.mktemp("depth")
    command = [sys.executable, "-c", RUNS, json.dumps([STEPS, BATCH, wanted])]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    logs = {name: (folder / name / "metrics.jsonl").read_text().splitlines() for name in wanted}
    return {name: [json.loads(line) for line in lines] for name, lines in logs.items()}


@pytest.fixture(scope="module")
def deep(runs: dict[str, Rows]) -> Rows:
    return runs["deep"]


@pytest.fixture(scope="module")
def shallow(runs: dict[str, Rows]) -> Rows:
    """The same without depth: what the levels are like is there to see at once."""
    return runs["shallow"]


def falls(row: dict[str, float], name: str) -> list[float]:
    """By how much a figure falls from each level to the one above."""
    return [row[f"{name}_{level}"] - row[f"{name}_{level + 1}"] for level in LEVELS[:-1]]


def test_parents_lie_nearer_the_centre(deep: Rows, shallow: Rows) -> None:
    assert len(deep) == SEEN
    assert min(row["edges_ordered"] for row in deep) >= 0.95
    assert max(row["edges_ordered"] for row in shallow) < 0.7


def test_so_do_parents_of_images(deep: Rows, shallow: Rows) -> None:
    """Class means of four images or more; a batch may have no such edge, but most have."""
    shares = [row["edges_ordered_image"] for row in deep if "edges_ordered_image" in row]
    assert len(shares) > SEEN / 2
    assert min(shares) >= 0.9
    assert min(row.get("edges_ordered_image", 1.0) for row in shallow) < 0.9


def test_radii_of_texts_fall_from_level_to_level(deep: Rows, shallow: Rows) -> None:
    assert min(min(falls(row, "radius_text")) for row in deep) >= 0.03
    assert max(min(falls(row, "radius_text")) for row in shallow) < 0.03
    assert min(min(falls(row, "radius_image")) for row in deep) >= 0.03


def test_margins_grow_towards_the_leaves_and_stay_under_theorys_bound(deep: Rows) -> None:
    for row in deep:
        assert min(falls(row, "margin")) > 0
        assert all(row[f"margin_{level}"] <= row[f"bound_{level}"] * (1 + 1e-5) for level in LEVELS)


def test_margins_start_a_tenth_apart(deep: Rows, shallow: Rows) -> None:
    """A little of slack: the texts of the first step are perturbed already."""
    for start in (deep[0], shallow[0]):
        for level in LEVELS[:-1]:
            assert start[f"margin_{level + 1}"] <= 1.001 * NARROWER * start[f"margin_{level}"]


def test_temperatures_move_together(deep: Rows) -> None:
    """So margins keep to the order that they start with: tied, which is the default."""
    first, last = ([row[f"beta_{level}"] for level in LEVELS] for row in (deep[0], deep[-1]))
    assert abs(last[0] / first[0] - 1) > 0.01
    assert [after / last[0] for after in last] == pytest.approx([before / first[0] for before in first], rel=1e-4)


def test_nothing_lies_at_the_boundary(deep: Rows) -> None:
    assert max(row["cap_share"] for row in deep) < 0.01


def test_the_gap_term_keeps_parents_and_children_apart(runs: dict[str, Rows], deep: Rows) -> None:
    """Depth is there by construction; at its default weight the term is seen to act on it."""
    without, with_it = runs["no gap"][-1], deep[-1]
    assert with_it["gap_label"] < 0.85 * without["gap_label"]
    assert with_it["depth_1"] < 0.985 * without["depth_1"]
    between = [row["radius_text_0"] - row["radius_text_1"] for row in (with_it, without)]
    assert between[0] > 1.04 * between[1]
