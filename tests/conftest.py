"""Small things that many tests share. hrzs is imported inside fixtures: jaxtyping's import hook comes first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

if TYPE_CHECKING:
    from hrzs.hierarchy.tree import Tree
    from hrzs.models.clip import ClipModel


# A busy machine is no fault of the code under test.
settings.register_profile("hrzs", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
settings.load_profile("hrzs")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    # Nothing is read from or left in the user's cache; the tests of the cache switch it on.
    os.environ["HRZS_CACHE"] = "0"


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
