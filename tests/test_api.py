"""`hrzs.load`, `hrzs.attack` and `hrzs.evaluate` do what the command line does."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest
import torch

import hrzs
from hrzs.data import open_dataset
from hrzs.errors import UsageError
from hrzs.hierarchy.published import find_tree


def test_import_is_light() -> None:
    code = "import hrzs, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_attack_and_evaluate() -> None:
    model = hrzs.load("tiny", "none")
    data = open_dataset("shapes", "test")
    images = torch.stack([data[i].image for i in range(4)])
    labels = torch.tensor([data.labels[i] for i in range(4)])
    tree = find_tree("shapes")
    assert tree is not None
    result = hrzs.attack(model, images, labels, tree=tree, attack="superclass-pgd", level=2, eps="2/255", steps=2)
    distance = (result.images.double() - images.double()).abs().max().item()
    assert 0 < Fraction(distance) <= Fraction(2, 255)
    again = hrzs.attack(model, images, labels, tree=tree, attack="superclass-pgd", level=2, eps="2/255", steps=2)
    assert torch.equal(result.images, again.images)
    report = hrzs.evaluate(model, limit=24, attacks=("leaf-pgd",), eps="2/255", steps=1)
    assert {row["attack"] for row in report["results"]} == {"none", "leaf-pgd"}
    assert all(0 < row["constant_balanced"] <= row["constant"] < 1 for row in report["results"])
    assert all((row["robust_balanced"] is None) == (row["attack"] == "none") for row in report["results"])


def test_errors_are_those_of_the_command_line() -> None:
    model = hrzs.load("tiny", "none")
    with pytest.raises(UsageError, match="leaf-pgd has no level 2"):
        hrzs.attack(model, torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.long),
                    tree=find_tree("shapes") or "", level=2)  # fmt: skip
