"""Descriptions of trees: figures of a tree and of a forest, an outline for the terminal, and a picture."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.tree import Tree as RichTree

logger = logging.getLogger(__name__)

PICTURES = (".svg", ".png", ".pdf")
#: The longest side of a PNG, in pixels: what viewers and browsers still open.
MAX_PIXELS = 10_000


# -- figures ----------------------------------------------------------------------------------------------------------


def statistics(tree: Tree) -> dict[str, Any]:
    """Figures of a tree, ready for JSON. Entropies are in nats, each class taken as equally frequent.

    - ``levels``: for each level its ``nodes``, how many of them are ``shallow`` leaves that pass through, the
      ``entropy`` of the partition, and the number of classes in its ``largest`` node.
    - ``branching``: ``mean`` and ``max`` number of children of a superclass.
    - ``shallow_leaves``: classes whose superclass stands above level 1.
    - ``single_child_nodes``: ids of superclasses with one child, which say nothing new.
    - ``duplicate_names``: names that several nodes share, with the class or node ids of these nodes.
    - ``leaf_ancestors``: classes that are ancestors of others, as rectangle is of square: the leaf's id is also the id
      of a superclass. The value lists the other classes beneath that superclass, whose images both names fit.
    """
    nodes = list(tree.root.walk())
    inner = [node for node in nodes if not node.is_leaf]
    sizes = _sizes(tree.root)
    total = len(tree.classes)
    levels = [
        {
            "level": level,
            "nodes": len(standing),
            "shallow": sum(node.is_leaf for node in standing) if level else 0,
            "entropy": round(abs(sum(sizes[id(n)] / total * log(total / sizes[id(n)]) for n in standing)), 4),
            "largest": max(sizes[id(n)] for n in standing),
        }
        for level, standing in enumerate(tree.levels)
    ]
    named: dict[str, list[str]] = {}
    for node in nodes:
        named.setdefault(node.name, []).append(node.class_id or node.id)
    superclass = {node.id: node for node in inner}
    beneath = {
        leaf.class_id: [other.class_id for other in superclass[leaf.id].leaves() if other is not leaf]
        for leaf in tree.root.leaves()
        if leaf.id in superclass
    }
    return {
        "classes": total,
        "levels": levels,
        "branching": {
            "mean": round(sum(len(node.children) for node in inner) / len(inner), 2),
            "max": max(len(node.children) for node in inner),
        },
        "shallow_leaves": [
            child.class_id for node in inner if node.level > 1 for child in node.children if child.is_leaf
        ],
        "single_child_nodes": [node.id for node in inner if len(node.children) == 1],
        "duplicate_names": {name: ids for name, ids in named.items() if len(ids) > 1},
        "leaf_ancestors": {class_id: others for class_id, others in beneath.items() if others},
        "digest": tree.digest,
    }


def agreement(first: Tree, second: Tree) -> dict[str, Any]:
    """How alike two trees over the same classes are, ready for JSON; all three measures are 1 for equal trees.

    - ``same_lca_height``: the share of pairs of classes whose lowest common ancestor has the same level in both.
    - ``baker_gamma``: Spearman's rank correlation of these levels over all pairs, ties at their middle rank (Baker,
      JASA 69, 1974). It asks for the order only, so trees of different height compare; null if one tree is flat.
    - ``adjusted_rand``: for each level below both roots the adjusted Rand index of the two partitions (Hubert and
      Arabie, Journal of Classification 2, 1985): 0 is what chance gives.

    Raises:
        UsageError: the trees have different classes.
    """
    if set(first.classes) != set(second.classes):
        raise UsageError("the trees of a forest have the same classes; these differ: build both with one --classes")
    a, b = _partitions(first, first.classes), _partitions(second, first.classes)
    # together[i, j]: pairs of classes with LCA height at most i in the first tree and at most j in the second.
    together = np.array([[_pairs(x * len(x) + y) for y in b] for x in a])
    total = int(together[-1, -1])
    heights = np.diff(np.diff(together, axis=0), axis=1)
    rand = []
    for level in range(1, min(first.height, second.height)):
        both, one, other = (int(together[at]) for at in ((level, level), (level, -1), (-1, level)))
        chance, most = one * other / total, (one + other) / 2
        rand.append(1.0 if most == chance else round((both - chance) / (most - chance), 4))
    gamma = _spearman(heights)
    return {
        "same_lca_height": round(int(np.trace(heights)) / total, 4),
        "baker_gamma": None if gamma is None else round(gamma, 4),
        "adjusted_rand": [{"level": level, "value": value} for level, value in enumerate(rand, 1)],
    }


def forest_statistics(trees: Sequence[Tree]) -> dict[str, Any]:
    """What the trees of a forest have in common, ready for JSON.

    ``agreement`` holds under ``pairs`` the `agreement` of every two trees, numbered from 1, and under ``mean`` the mean
    of its first two measures over these pairs.

    Raises:
        UsageError: the trees have different classes.
    """
    pairs = [
        {"trees": [i, j], **agreement(first, second)}
        for (i, first), (j, second) in combinations(enumerate(trees, 1), 2)
    ]
    measures = ("same_lca_height", "baker_gamma")
    values = {name: [pair[name] for pair in pairs if pair[name] is not None] for name in measures}
    mean = {name: round(sum(found) / len(found), 4) if found else None for name, found in values.items()}
    return {"agreement": {"mean": mean, "pairs": pairs}}


def _sizes(root: Node) -> dict[int, int]:
    """The number of leaves beneath every node, by identity."""
    sizes: dict[int, int] = {}
    for node in reversed(list(root.walk())):  # children before parents
        sizes[id(node)] = sum(sizes[id(child)] for child in node.children) if node.children else 1
    return sizes


def _partitions(tree: Tree, classes: Sequence[str]) -> Int64[np.ndarray, "levels C"]:
    """For each level the number of the node that each of ``classes`` stands in; `Tree.ancestors` would need torch."""
    position = {class_id: i for i, class_id in enumerate(classes)}
    node_of = np.empty((tree.height + 1, len(classes)), np.int64)
    for level, nodes in enumerate(tree.levels):
        for number, node in enumerate(nodes):
            node_of[level, [position[leaf.class_id or ""] for leaf in node.leaves()]] = number
    return node_of


def _pairs(blocks: Int64[np.ndarray, "C"]) -> int:
    """The number of pairs of elements in the same block."""
    sizes = np.unique(blocks, return_counts=True)[1].astype(np.int64)
    return int((sizes * (sizes - 1)).sum()) // 2


def _spearman(counts: Int64[np.ndarray, "a b"]) -> float | None:
    """Spearman's rank correlation of a table of counts with ordered rows and columns; None if either is constant."""
    table = counts / counts.sum()
    # Middle ranks as shares, from their mean of one half.
    x, y = (np.cumsum(m) - m / 2 - 0.5 for m in (table.sum(1), table.sum(0)))
    spread = float((table.sum(1) @ x**2) * (table.sum(0) @ y**2))
    return None if spread < 1e-18 else float(x @ table @ y) / math.sqrt(spread)


# -- the terminal -----------------------------------------------------------------------------------------------------


def visible(name: str) -> str:
    """``name`` with its control characters escaped: it fills one line, and no file can command a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def outline(tree: Tree) -> RichTree:
    """The tree for a terminal: level, name and number of classes of each superclass."""
    from rich.text import Text
    from rich.tree import Tree as RichTree

    sizes = _sizes(tree.root)

    def label(node: Node) -> Text:
        name = visible(node.name)
        if node.is_leaf:
            other = f"  {visible(node.class_id or '')}" if node.class_id != node.name else ""
            return Text.assemble(name, (other, "dim"))
        count = sizes[id(node)]
        return Text.assemble(
            (name, "bold"), (f"  level {node.level}, {count} class{'es' if count > 1 else ''}", "cyan")
        )

    drawn = RichTree(label(tree.root))
    stack = [(tree.root, drawn)]
    while stack:
        node, branch = stack.pop()
        stack.extend((child, branch.add(label(child))) for child in node.children)
    return drawn


# -- the picture ------------------------------------------------------------------------------------------------------

# Inches: the height of a line, the room between columns, the margin; points: the size of the type.
_LINE, _GAP, _MARGIN, _TYPE = 0.16, 0.3, 0.3, 8.0
_DPI, _LEAST_DPI = 110.0, 70.0
# A tree of up to so many classes is one piece; a larger one is cut into pieces side by side, about 3 wide to 2 high.
_ONE_PIECE = 60
_LONGEST_NAME = 40
_TEXT: dict[str, Any] = {"va": "center", "fontsize": _TYPE, "parse_math": False}

_Stroke: TypeAlias = list[tuple[float, float]]


def plot(tree: Tree, file: Path) -> None:
    """Draw the whole tree from the root on the left to the leaves on the right, one line of text to a leaf.

    A tree of more than 60 classes is cut into pieces side by side; a superclass that goes on in the next piece is drawn
    there again, in italics. Names of more than 40 characters are cut. In an SVG, text stays text and can be searched.

    Raises:
        UsageError: the file's ending is none of ``PICTURES``, or a PNG of ``MAX_PIXELS`` a side could not be read.
        OSError: the file cannot be written.
    """
    check_picture(file)
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    with picture_style(file):
        columns = _Columns.of(tree)
        leaves = list(tree.root.leaves())
        pieces = _pieces(len(leaves), columns.total)
        height = (max(len(piece) for piece in pieces) + 3) * _LINE
        size = (max(len(pieces) * columns.total, 5.0) + 2 * _MARGIN, height + 2 * _MARGIN)
        dpi = min(_DPI, (MAX_PIXELS - 1) / max(size))
        if file.suffix.lower() == ".png" and dpi < _LEAST_DPI:
            raise UsageError(
                f"--plot {file}: {len(leaves)} classes cannot be read in a PNG of {MAX_PIXELS} pixels a side; "
                f"write {file.with_suffix('.svg').name} or {file.with_suffix('.pdf').name}"
            )
        figure = Figure(figsize=size)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-_MARGIN, size[0] - _MARGIN), ylim=(height + _MARGIN, -_MARGIN))
        axes.axis("off")
        counts = " ".join(str(len(nodes)) for nodes in tree.levels)
        axes.text(0, 0, f"nodes at each level from the leaves to the root: {counts}", color="0.4", **_TEXT)
        strokes: list[_Stroke] = []
        begun: set[int] = set()
        for number, piece in enumerate(pieces):
            strokes += _draw_piece(axes, tree, leaves[piece.start : piece.stop], columns, number * columns.total, begun)
        axes.add_collection(LineCollection(strokes, colors="0.6", linewidths=0.8))
        save_picture(figure, file, dpi)


def check_picture(file: Path) -> None:
    """Raise UsageError unless the ending of ``file`` is one of ``PICTURES``."""
    if file.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {file}: the ending says what to write: {', '.join(PICTURES)}")


@contextmanager
def picture_style(file: Path) -> Iterator[None]:
    """A context to draw in: the same bytes each time, text as text in an SVG, one warning of what the font lacks."""
    import matplotlib as mpl

    style = {"svg.hashsalt": "hrzs", "svg.fonttype": "none", "font.family": "DejaVu Sans", "text.usetex": False}
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context(style):
        warnings.simplefilter("always")
        yield
    lacking = [w for w in caught if "missing from font" in str(w.message)]
    if lacking and file.suffix.lower() != ".svg":
        logger.warning("%s: the font lacks some characters of the names; an .svg takes the viewer's fonts", file)
    for w in caught:
        if w not in lacking:
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


def save_picture(figure: Figure, file: Path, dpi: float = _DPI) -> None:
    """Write the figure in the kind its ending says, without the date. Raises OSError if that cannot be done."""
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(file, dpi=dpi, metadata=undated.get(file.suffix.lower()))


@dataclass(frozen=True)
class _Columns:
    """A column for each level, wide enough for all its names; lengths are in inches.

    ``name`` and ``width`` are those of each node, by identity; ``left`` is the left end of each level's column,
    ``total`` the width of all columns.
    """

    name: dict[int, str]
    width: dict[int, float]
    left: dict[int, float]
    total: float

    @staticmethod
    def of(tree: Tree) -> _Columns:
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties

        renderer = RendererAgg(1, 1, _DPI)
        normal, bold = (FontProperties(size=_TYPE, weight=weight) for weight in ("normal", "bold"))
        name, width = {}, {}
        for node in tree.root.walk():
            text = visible(node.name)
            text = name[id(node)] = text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
            font = normal if node.is_leaf else bold
            width[id(node)] = renderer.get_text_width_height_descent(text, font, ismath=False)[0] / _DPI
        left, total = {}, 0.0
        for level in range(tree.height, -1, -1):
            left[level] = total
            # The heading of a column takes less than half an inch.
            total += _GAP + max([0.5] + [width[id(node)] for node in tree.levels[level] if node.level == level])
        return _Columns(name, width, left, total)


def _draw_piece(
    axes: Axes, tree: Tree, leaves: list[Node], columns: _Columns, at: float, begun: set[int]
) -> list[_Stroke]:
    """Write the names of ``leaves`` and all above them, ``at`` inches from the left; return the strokes between them.

    ``begun``: the superclasses drawn in earlier pieces, to which those of this piece are added.
    """
    for level, x in columns.left.items():
        axes.text(at + x, 1.5 * _LINE, f"level {level}", color="0.4", **_TEXT)
    row = {id(leaf): (3 + line) * _LINE for line, leaf in enumerate(leaves)}
    strokes: list[_Stroke] = []
    for node in reversed(list(tree.root.walk())):  # children before parents
        x = at + columns.left[node.level]
        children = [child for child in node.children if id(child) in row]
        if children:
            rows = [row[id(child)] for child in children]
            y = row[id(node)] = (rows[0] + rows[-1]) / 2
            stem = at + columns.left[node.level - 1] - _GAP / 2
            strokes.append([(x + columns.width[id(node)] + 0.04, y), (stem, y)])
            strokes.append([(stem, rows[0]), (stem, rows[-1])])
            strokes += [
                [(stem, r), (at + columns.left[child.level] - 0.04, r)] for child, r in zip(children, rows, strict=True)
            ]
            slant = "italic" if id(node) in begun else "normal"
            begun.add(id(node))
            axes.text(x, y, columns.name[id(node)], weight="bold", style=slant, **_TEXT)
        elif id(node) in row:
            axes.text(x, row[id(node)], columns.name[id(node)], **_TEXT)
    return strokes


def _pieces(count: int, width: float) -> list[range]:
    """The leaves that each piece of the picture holds; ``width`` is that of a piece, in inches."""
    if count <= _ONE_PIECE:
        return [range(count)]
    pieces = math.ceil(count / (math.sqrt(count * _LINE * width / 1.5) / _LINE))
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]
