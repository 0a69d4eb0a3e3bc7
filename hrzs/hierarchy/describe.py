"""Looking at a tree: figures, an outline for the terminal, and a picture."""

from __future__ import annotations

from collections import Counter
from math import log
from pathlib import Path
from typing import TYPE_CHECKING

from hrzs.errors import UsageError
from hrzs.hierarchy.tree import Node, Tree

if TYPE_CHECKING:
    from rich.tree import Tree as RichTree

PICTURES = (".svg", ".png", ".pdf")


def statistics(tree: Tree) -> dict[str, object]:
    """Figures of a tree, ready for JSON. Entropies are in nats, each class taken as equally frequent."""
    inner = [node for node in tree.root.walk() if not node.is_leaf]
    sizes = {id(node): sum(1 for _ in node.leaves()) for node in tree.root.walk()}
    total = len(tree.classes)
    parent = {id(child): node for node in inner for child in node.children}
    levels = [
        {
            "level": level,
            "nodes": len(nodes),
            "entropy": round(abs(sum(sizes[id(n)] / total * log(total / sizes[id(n)]) for n in nodes)), 4),
            "largest": max(sizes[id(n)] for n in nodes),
        }
        for level, nodes in enumerate(tree.levels)
    ]
    names = Counter(node.name for node in tree.root.walk())
    return {
        "classes": total,
        "levels": levels,
        "branching": {
            "mean": round(sum(len(node.children) for node in inner) / len(inner), 2),
            "max": max(len(node.children) for node in inner),
        },
        "shallow_leaves": [leaf.class_id for leaf in tree.root.leaves() if parent[id(leaf)].level > 1],
        "single_child_nodes": [node.id for node in inner if len(node.children) == 1],
        "duplicate_names": {
            name: [n.class_id or n.id for n in tree.root.walk() if n.name == name] for name in names if names[name] > 1
        },
        "digest": tree.digest,
    }


def outline(tree: Tree) -> RichTree:
    """The tree for a terminal: level, name and number of classes of each superclass."""
    from rich.text import Text
    from rich.tree import Tree as RichTree

    def label(node: Node) -> Text:
        if node.is_leaf:
            other = f"  {node.class_id}" if node.class_id != node.name else ""
            return Text.assemble(node.name, (other, "dim"))
        leaves = sum(1 for _ in node.leaves())
        return Text.assemble((node.name, "bold"), (f"  level {node.level}, {leaves} classes", "cyan"))

    drawn = RichTree(label(tree.root))
    stack = [(tree.root, drawn)]
    while stack:
        node, branch = stack.pop()
        stack.extend((child, branch.add(label(child))) for child in node.children)
    return drawn


def plot(tree: Tree, file: Path) -> None:
    """Draw the tree from the root on the left to the leaves on the right, one line of text to a leaf.

    Raises:
        UsageError: the file's ending is none of ``PICTURES``.
    """
    if file.suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {file}: the ending says what to write: {', '.join(PICTURES)}")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    leaves = list(tree.root.leaves())
    row: dict[int, float] = {id(leaf): float(number) for number, leaf in enumerate(leaves)}
    figure = Figure(figsize=(4 + 2.2 * tree.top, 0.6 + 0.2 * len(leaves)), layout="constrained")
    axes = figure.add_subplot()
    for node in reversed(list(tree.root.walk())):  # children before parents
        if node.is_leaf:
            axes.text(0.05, row[id(node)], node.name, va="center", fontsize=8, parse_math=False)
            continue
        rows = [row[id(child)] for child in node.children]
        row[id(node)] = (min(rows) + max(rows)) / 2
        # The vertical stroke stands a little below the node's level, so that those of one level do not touch.
        stroke = -node.level + 0.35
        axes.plot([stroke, stroke], [min(rows), max(rows)], color="0.6", lw=1)
        axes.plot([-node.level, stroke], [row[id(node)]] * 2, color="0.6", lw=1)
        for child, y in zip(node.children, rows, strict=True):
            axes.plot([stroke, -child.level], [y, y], color="0.6", lw=1)
        axes.text(
            -node.level + 0.3, row[id(node)], node.name, va="center", ha="right", fontsize=8, weight="bold",
            parse_math=False, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    longest = max(len(leaf.name) for leaf in leaves)
    axes.set_xlim(-tree.top - 0.5, 0.2 + 0.035 * longest * (4 + 2.2 * tree.top) / 8)
    axes.set_ylim(len(leaves) - 0.5, -0.5)
    axes.set_xticks(range(-tree.top, 1), [f"level {level}" for level in range(tree.top, -1, -1)], fontsize=8)
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    # A fixed salt and no date: the same tree gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "hrzs"}):
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix.lower() == ".svg" else None)
