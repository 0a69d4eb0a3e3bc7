from __future__ import annotations

import json
import re
from io import StringIO
from math import log
from pathlib import Path

import pytest
from rich.console import Console

from hrzs.errors import UsageError
from hrzs.hierarchy.describe import outline, plot, statistics
from hrzs.hierarchy.tree import Node, Tree


def leaf(name: str, class_id: str | None = None) -> Node:
    return Node(name, class_id or name, class_id=class_id or name)


@pytest.fixture
def tree() -> Tree:
    canine = Node("canine [b]", "canine", (leaf("fox"), leaf("dog"), leaf("dog", "dog2")), level=1)
    lone = Node("lone", "lone", (leaf("$x_1$"),), level=1)
    return Tree(Node("thing", "thing", (canine, lone, leaf("cat")), level=2))


def test_statistics(tree: Tree) -> None:
    figures = json.loads(json.dumps(statistics(tree)))
    assert figures["classes"] == 5
    assert [level["nodes"] for level in figures["levels"]] == [5, 3, 1]
    assert figures["levels"][0]["entropy"] == pytest.approx(log(5), abs=1e-4)
    assert figures["levels"][1]["entropy"] == pytest.approx(0.6 * log(5 / 3) + 0.4 * log(5), abs=1e-4)
    assert figures["levels"][2]["entropy"] == 0
    assert figures["branching"] == {"mean": 2.33, "max": 3}
    assert figures["shallow_leaves"] == ["cat"]
    assert figures["single_child_nodes"] == ["lone"]
    assert figures["duplicate_names"] == {"dog": ["dog", "dog2"]}


def test_outline_counts_classes(tree: Tree) -> None:
    console = Console(file=StringIO(), width=80)
    console.print(outline(tree))
    lines = console.file.getvalue().splitlines()
    assert lines[0].split() == ["thing", "level", "2,", "5", "classes"]
    assert any("canine [b]  level 1, 3 classes" in line for line in lines)
    assert any(re.search(r"dog  dog2$", line) for line in lines)
    assert len(lines) == 8


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_plot_is_the_same_each_time(tree: Tree, tmp_path: Path, ending: str) -> None:
    pictures = [tmp_path / f"{name}{ending}" for name in "ab"]
    for picture in pictures:
        plot(tree, picture)
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert first.startswith(b"\x89PNG" if ending == ".png" else b"<?xml")


def test_plot_of_another_kind(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        plot(tree, tmp_path / "tree.txt")
