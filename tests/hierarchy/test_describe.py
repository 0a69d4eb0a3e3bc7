from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from io import StringIO
from itertools import combinations
from math import log
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from hrzs.errors import UsageError
from hrzs.hierarchy.describe import MAX_PIXELS, agreement, forest_statistics, outline, plot, statistics, visible
from hrzs.hierarchy.tree import Node, Tree

ODD_NAMES = [
    "$x_1$",
    "$",
    "a<b>&c",
    "[bold]b[/bold]",
    "狐🦊é",
    "x" * 300,
    "two\nlines",
    "\x1b[31mred\x00",
    "\u202eltr",
    "\\frac",
    " ",
]


def leaf(name: str, class_id: str | None = None, node_id: str | None = None) -> Node:
    return Node(name, node_id or class_id or name, class_id=class_id or name)


@pytest.fixture
def tree() -> Tree:
    canine = Node("canine [b]", "canine", (leaf("fox"), leaf("dog"), leaf("dog", "dog2")), level=1)
    lone = Node("lone", "lone", (leaf("$x_1$"),), level=1)
    return Tree(Node("thing", "thing", (canine, lone, leaf("cat")), level=2))


@pytest.fixture
def odd() -> Tree:
    leaves = tuple(leaf(name, f"c{i}") for i, name in enumerate(ODD_NAMES))
    inner = tuple(Node(leaf.name, f"s{i}", (leaf,), level=1) for i, leaf in enumerate(leaves))
    return Tree(Node("<root> & $", "root", inner, level=2))


def grouped(*groups: str) -> Tree:
    """Three levels: leaves are letters, groups of letters at level 1, the root at level 2; classes in sorted order."""
    inner = tuple(Node(g, f"n-{g}", tuple(map(leaf, g)), level=1) for g in groups)
    return Tree(Node("root", "root", inner, level=2), tuple(sorted("".join(groups))))


def large(count: int) -> Tree:
    leaves = [leaf(f"the class of number {i}", f"c{i}") for i in range(count)]
    inner = [Node(f"group {i}", f"g{i}", tuple(leaves[i : i + 7]), level=1) for i in range(0, count, 7)]
    return Tree(Node("root", "root", tuple(inner), level=2))


def printed(tree: Tree) -> list[str]:
    console = Console(file=StringIO(), width=80)
    console.print(outline(tree))
    return console.file.getvalue().splitlines()


# -- figures ----------------------------------------------------------------------------------------------------------


def test_statistics(tree: Tree) -> None:
    figures = json.loads(json.dumps(statistics(tree)))
    assert figures["classes"] == 5
    assert [level["nodes"] for level in figures["levels"]] == [5, 3, 1]
    assert [level["shallow"] for level in figures["levels"]] == [0, 1, 0]
    assert [level["largest"] for level in figures["levels"]] == [1, 3, 5]
    assert figures["levels"][0]["entropy"] == pytest.approx(log(5), abs=1e-4)
    assert figures["levels"][1]["entropy"] == pytest.approx(0.6 * log(5 / 3) + 0.4 * log(5), abs=1e-4)
    assert figures["levels"][2]["entropy"] == 0
    assert figures["branching"] == {"mean": 2.33, "max": 3}
    assert figures["shallow_leaves"] == ["cat"]
    assert figures["single_child_nodes"] == ["lone"]
    assert figures["duplicate_names"] == {"dog": ["dog", "dog2"]}
    assert figures["leaf_ancestors"] == {}


def test_leaves_that_are_ancestors_of_others() -> None:
    # A square is a rectangle: the class rectangle stands as a leaf beneath the superclass of its own synset.
    rectangles = Node("rectangle", "n2", (leaf("square", "s", "n3"), leaf("rectangle", "r", "n2")), level=1)
    # A superclass over nothing but its own class makes that an ancestor of none.
    circles = Node("circle", "n5", (leaf("circle", "c", "n5"),), level=1)
    tree = Tree(Node("shape", "n1", (rectangles, circles), level=2))
    assert statistics(tree)["leaf_ancestors"] == {"r": ["s"]}


@settings(max_examples=100)
@given(st.from_type(Tree))
def test_entropy_falls_from_the_leaves_to_zero_at_the_root(tree: Tree) -> None:
    entropy = [level["entropy"] for level in statistics(tree)["levels"]]
    assert entropy == sorted(entropy, reverse=True)
    assert entropy[0] == pytest.approx(log(len(tree.classes)), abs=1e-4)
    assert entropy[-1] == 0


def test_agreement_of_two_partitions() -> None:
    # Of the 15 pairs, 2 are together in both, 4 only in the first, 1 only in the second.
    first, second = grouped("abc", "def"), grouped("ab", "cd", "ef")
    found = agreement(first, second)
    assert found["same_lca_height"] == pytest.approx(10 / 15, abs=1e-4)
    chance = 6 * 3 / 15
    assert found["adjusted_rand"] == [{"level": 1, "value": pytest.approx((2 - chance) / (4.5 - chance), abs=1e-4)}]
    # Of two heights only, the rank correlation is the phi coefficient of the table [[2, 4], [1, 8]].
    assert found["baker_gamma"] == pytest.approx((2 * 8 - 4 * 1) / (6 * 9 * 3 * 12) ** 0.5, abs=1e-4)


def test_agreement_goes_by_class_not_by_order() -> None:
    tree = grouped("abc", "de")
    other = Tree(tree.root, ("e", "c", "a", "d", "b"))
    assert agreement(tree, other)["same_lca_height"] == 1


@settings(max_examples=60)
@given(st.data())
def test_agreement_is_that_of_all_pairs(data: st.DataObject) -> None:
    """Against the definitions, pair by pair: a random tree and another one over the same classes."""
    first = data.draw(st.from_type(Tree))
    other = data.draw(st.from_type(Tree))
    assume(len(other.classes) >= len(first.classes))
    renamed = other.restrict(other.classes[: len(first.classes)])
    second = _with_classes(renamed, first.classes)
    found = agreement(first, second)
    heights = np.array([_heights(tree, first.classes) for tree in (first, second)])
    assert found["same_lca_height"] == pytest.approx((heights[0] == heights[1]).mean(), abs=1e-4)
    if (heights.min(1) == heights.max(1)).any():
        assert found["baker_gamma"] is None
    else:
        ranks = [[(h < x).sum() + (h == x).sum() / 2 for x in h] for h in heights]
        assert found["baker_gamma"] == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-4)
    assert agreement(second, first)["same_lca_height"] == found["same_lca_height"]
    assert [row["level"] for row in found["adjusted_rand"]] == list(range(1, min(first.height, second.height)))


@settings(max_examples=60)
@given(st.from_type(Tree))
def test_a_tree_agrees_with_itself(tree: Tree) -> None:
    found = agreement(tree, tree)
    assert found["same_lca_height"] == 1
    assert found["baker_gamma"] in (1, None)
    assert all(row["value"] == 1 for row in found["adjusted_rand"])


def _with_classes(tree: Tree, classes: tuple[str, ...]) -> Tree:
    new = dict(zip(tree.classes, classes, strict=True))

    def renamed(node: Node) -> Node:
        children = tuple(map(renamed, node.children))
        return Node(node.name, node.id, children, new[node.class_id] if node.class_id else None, node.level)

    return Tree(renamed(tree.root), classes)


def _heights(tree: Tree, classes: tuple[str, ...]) -> list[int]:
    position = [tree.classes.index(c) for c in classes]
    rows = [tree.ancestors[:, i].tolist() for i in position]
    return [sum(x != y for x, y in zip(a, b, strict=True)) for a, b in combinations(rows, 2)]


def test_forest_statistics() -> None:
    trees = [grouped("abc", "def"), grouped("abc", "def"), grouped("ab", "cd", "ef")]
    found = json.loads(json.dumps(forest_statistics(trees)))["agreement"]
    assert [pair["trees"] for pair in found["pairs"]] == [[1, 2], [1, 3], [2, 3]]
    assert found["pairs"][1] == {"trees": [1, 3], **agreement(trees[0], trees[2])}
    assert found["mean"]["same_lca_height"] == pytest.approx((1 + 2 * 10 / 15) / 3, abs=1e-4)


def test_a_flat_tree_has_no_rank_correlation() -> None:
    flat = Tree(Node("root", "root", tuple(map(leaf, "abcdef")), level=1))
    found = forest_statistics([flat, grouped("abc", "def")])["agreement"]
    assert found["mean"]["baker_gamma"] is None
    assert found["pairs"][0]["adjusted_rand"] == []


def test_agreement_needs_the_same_classes() -> None:
    with pytest.raises(UsageError, match="same classes"):
        agreement(grouped("ab", "cd"), grouped("ab", "ce"))


def test_figures_and_pictures_need_no_torch(tmp_path: Path) -> None:
    # Its import takes longer than all that `hrzs build-tree` does.
    code = f"""
import sys
from pathlib import Path
from hrzs.hierarchy.describe import forest_statistics, outline, plot, statistics
from hrzs.hierarchy.tree import Node, Tree
tree = Tree(Node("r", "r", (Node("a", "a", class_id="a"), Node("b", "b", class_id="b")), level=1))
statistics(tree), forest_statistics([tree, tree]), outline(tree), plot(tree, Path({str(tmp_path / "tree.svg")!r}))
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- the terminal -----------------------------------------------------------------------------------------------------


def test_outline_counts_classes(tree: Tree) -> None:
    lines = printed(tree)
    assert lines[0].split() == ["thing", "level", "2,", "5", "classes"]
    assert any("canine [b]  level 1, 3 classes" in line for line in lines)
    assert any(line.rstrip().endswith("lone  level 1, 1 class") for line in lines)
    assert any(re.search(r"dog  dog2$", line) for line in lines)
    assert len(lines) == 8


def test_outline_shows_odd_names_as_they_are(odd: Tree) -> None:
    text = "\n".join(printed(odd))
    for name in ("$x_1$", "a<b>&c", "[bold]b[/bold]", "狐🦊é", "two\\nlines", "\\x1b[31mred\\x00", "\\u202eltr"):
        assert name in text
    assert "\x1b" not in text


@given(st.text())
def test_visible_names_are_one_printable_line(name: str) -> None:
    assert visible(name).isprintable()


def test_outline_of_a_deep_tree() -> None:
    node = Node("b", "s1", (leaf("a"), leaf("b")), level=1)
    depth = sys.getrecursionlimit() + 10
    for level in range(2, depth + 1):
        node = Node(f"s{level}", f"s{level}", (node, leaf(f"x{level}")), level=level)
    branches, stack = 0, [outline(Tree(node))]
    while stack:
        branches += 1
        stack += stack.pop().children
    assert branches == 2 * depth + 1


# -- the picture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
def test_plot_is_the_same_each_time(tree: Tree, tmp_path: Path, ending: str) -> None:
    pictures = [tmp_path / f"{name}{ending}" for name in "ab"]
    for picture in pictures:
        plot(tree, picture)
    first, second = (picture.read_bytes() for picture in pictures)
    assert first == second
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])


def test_plot_shows_odd_names(odd: Tree, tmp_path: Path) -> None:
    plot(odd, tmp_path / "odd.svg")
    text = [element.text for element in ElementTree.parse(tmp_path / "odd.svg").iter() if element.tag.endswith("}text")]
    for name in ("$x_1$", "$", "a<b>&c", "[bold]b[/bold]", "狐🦊é", "x" * 39 + "…", "two\\nlines", "\\x1b[31mred\\x00"):
        assert text.count(name) == 2, name


def test_plot_says_when_the_font_lacks_characters(odd: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plot(odd, tmp_path / "odd.png")
    assert "odd.png: the font lacks some characters" in caplog.text
    with Image.open(tmp_path / "odd.png") as picture:
        assert 500 < picture.width < 2000
        assert 200 < picture.height < 1000


@pytest.mark.parametrize("count", [61, 300])
def test_plot_of_a_large_tree_fits_a_screen_format(tmp_path: Path, count: int) -> None:
    tree = large(count)
    plot(tree, tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as picture:
        picture.verify()
        assert max(picture.size) <= MAX_PIXELS
        assert 0.5 < picture.width / picture.height < 3
    plot(tree, tmp_path / "large.svg")
    text = [e.text for e in ElementTree.parse(tmp_path / "large.svg").iter() if e.tag.endswith("}text")]
    assert {node.name for node in tree.root.walk()} <= set(text)
    assert sum("the class of number" in t for t in text) == count


def test_no_text_of_the_plot_overlaps_another_or_is_cut(odd: Tree, tmp_path: Path) -> None:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    for number, tree in enumerate([large(61), grouped("abc", "def", "g"), _latin(odd)]):
        plot(tree, tmp_path / f"{number}.svg")
        picture = ElementTree.parse(tmp_path / f"{number}.svg").getroot()
        boxes = []
        for text in (e for e in picture.iter() if e.tag.endswith("}text")):
            font = FontProperties(size=8, weight="bold" if "bold" in text.get("style") else "normal")
            x, y = float(text.get("x")), float(text.get("y"))
            boxes.append((x, x + TextPath((0, 0), text.text, prop=font, usetex=False).get_extents().x1, y - 6, y + 2))
        width, height = map(float, picture.get("viewBox").split()[2:])
        assert len(boxes) >= sum(1 for _ in tree.root.walk())
        for x0, x1, y0, y1 in boxes:
            assert 0 < x0 < x1 < width
            assert 0 < y0 < y1 < height
        for (a0, a1, b0, b1), (c0, c1, d0, d1) in combinations(boxes, 2):
            assert a1 < c0 or c1 < a0 or b1 < d0 or d1 < b0


def _latin(tree: Tree) -> Tree:
    """Names that the font has, and that mean nothing but themselves where a test measures them."""
    names = iter(["W" * 40, "i", "M" * 300, "a b c", "_" * 12])
    leaves = [leaf(next(names), c) for c in tree.classes[:5]]
    inner = [Node(child.name, f"s{i}", (child,), level=i + 1) for i, child in enumerate(leaves)]
    return Tree(Node("root", "root", tuple(inner), level=9))


def test_plot_of_a_png_too_large_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrzs.hierarchy.describe.MAX_PIXELS", 500)
    with pytest.raises(UsageError, match=r"300 classes .* 500 pixels .* big\.svg or big\.pdf"):
        plot(large(300), tmp_path / "big.png")
    assert not list(tmp_path.iterdir())
    plot(large(300), tmp_path / "big.svg")


def test_plot_of_another_kind(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.svg, \.png"):
        plot(tree, tmp_path / "tree.txt")
