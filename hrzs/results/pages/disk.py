"""A tree in the Poincaré disk: where a model has its nodes.

A `Disk` says what stands where. The page of a run shows it as a template does, a file as matplotlib does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex128, Float
from torch import Tensor

from hrzs.hierarchy.describe import check_picture, picture_style, save_picture, visible
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.depth import NodePoints

#: In a tree of so many nodes at most, leaves are named as well; and of so many nodes names are tried.
_NAME_LEAVES, _MOST_NAMES = 60, 300
#: What a letter of a name takes, in the units of a drawing; a longer name is cut.
_LETTER, _LONGEST = 6.2, 24


@dataclass(frozen=True)
class Dot:
    """A node in a drawing; ``radius`` is its norm in the unit disk."""

    node: Node
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Disk:
    """A drawing of the disk in a square of this width, y downwards, and figures of all that lies in it.

    Args:
        radius: that of the rim.
        lift: how the nodes came there, in words.
        share: that of the variance of the directions which the angles hold.
        norms: of all nodes by level, the highest first.
        ordered: of every edge, whether the parent lies nearer the centre than the child.
        dots: the nodes that are drawn, the highest first.
        edges: the corners of geodesics between these.
    """

    width: int
    radius: float
    lift: str
    share: float
    norms: dict[int, list[float]]
    ordered: list[bool]
    dots: list[Dot]
    edges: list[list[tuple[float, float]]]

    @classmethod
    def of(cls, placed: NodePoints, width: int, steps: int, most: int | None = None) -> Disk:
        """Draw ``most`` nodes, each edge through so many ``steps``."""
        middle, radius = width / 2, width / 2 - 8

        def place(z: complex) -> tuple[float, float]:
            return round(middle + radius * z.real, 1), round(middle - radius * z.imag, 1)

        plane, share = to_disk(placed.points)
        at = {id(node): complex(z) for node, z in zip(placed.nodes, plane, strict=True)}
        lengths = placed.points.double().norm(dim=1).tolist()
        nodes = sorted(zip(placed.nodes, lengths, strict=True), key=lambda found: -found[0].level)
        norms: dict[int, list[float]] = {}
        for node, norm in nodes:
            norms.setdefault(node.level, []).append(norm)
        norm_of = {id(node): norm for node, norm in nodes}
        ordered = [norm < norm_of[id(child)] for node, norm in nodes for child in node.children]
        dots = [Dot(node, *place(at[id(node)]), norm) for node, norm in nodes[:most]]
        drawn = {id(dot.node) for dot in dots}
        edges = [
            [place(complex(z)) for z in geodesic(at[id(dot.node)], at[id(child)], steps)]
            for dot in dots
            for child in dot.node.children
            if id(child) in drawn
        ]
        return cls(width, radius, placed.lift, share, norms, ordered, dots, edges)

    def names(self) -> Iterator[tuple[Node, str, float, float, str]]:
        """From the root downwards, each name that has a place free of points and of the names before it.

        Of each the node, what is written, and where it starts or, as the last word says, ends. In a large tree the
        leaves go without, and names may lie over their points.
        """
        few = len(self.dots) <= _NAME_LEAVES
        named = [dot for dot in self.dots if few or not dot.node.is_leaf][:_MOST_NAMES]
        taken = [(dot.x - 4, dot.y - 4, dot.x + 4, dot.y + 4) for dot in (self.dots if few else named)]
        for dot in named:
            name = visible(dot.node.name)
            name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
            width = _LETTER * len(name)
            for anchor, base in itertools.product(("start", "end"), (dot.y + 4, dot.y - 6, dot.y + 14)):
                x = dot.x + (9 if anchor == "start" else -9)
                first = x if anchor == "start" else x - width
                box = (first, base - 10, first + width, base + 3)
                if box[0] >= 0 and box[2] <= self.width and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    yield dot.node, name, round(x, 1), round(base, 1), anchor
                    break


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def level_name(level: int, tree: Tree) -> str:
    return "leaves" if level == 0 else "root" if level == tree.height else f"level {level}"


def spread(heights: Sequence[float]) -> list[tuple[float, float]]:
    """Points of these heights, a fixed way sideways (within ± 0.225), so that equal ones do not hide one another."""
    return [(0.45 * ((0.618034 * i + 0.5) % 1 - 0.5), height) for i, height in enumerate(heights)]


def to_disk(points: Float[Tensor, "N D"]) -> tuple[Complex128[np.ndarray, "N"], float]:
    """Points of the unit ball in the unit disk, as complex numbers: each keeps its norm, only directions are reduced.

    The angle is that of the first two principal components of the directions (centred); also returned is these two
    components' share of the variance. The sign of a component is such that its largest entry is positive.
    """
    norms = points.double().norm(dim=1)
    directions = points.double() / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    centred = directions - directions.mean(0)
    variance, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0)[None]).sign()
    plane = (centred @ axes).numpy()
    share = (variance[-2:].sum() / variance.sum().clamp_min(1e-300)).item()
    return norms.numpy() * np.exp(1j * np.arctan2(plane[:, 1], plane[:, 0])), share


def geodesic(p: complex, q: complex, steps: int = 24) -> Complex128[np.ndarray, "steps"]:
    """Points of the geodesic of the unit disk from ``p`` to ``q``, evenly spaced in its metric."""
    # Möbius translation takes p to the origin, where geodesics are straight; then back again.
    w = (q - p) / (1 - p.conjugate() * q)
    along = np.tanh(np.linspace(0, 1, steps) * np.arctanh(min(abs(w), 1 - 1e-12)))
    straight = along * (w / abs(w) if w else 1.0) + 0j
    back: Complex128[np.ndarray, "steps"] = (straight + p) / (1 + p.conjugate() * straight)
    return back


def plot_disk(placed: NodePoints, tree: Tree, file: Path) -> None:
    """Draw the nodes of ``tree`` in the Poincaré disk, and beside it their norms by level.

    Left: norms are exact, angles are those of `to_disk`, the tree's edges are geodesics of the disk; nodes are named
    from the root downwards where there is room (leaves in small trees only). Right: each node once, at the lowest level
    it stands at, and the median of the level. The titles say how the nodes came into the ball.

    Args:
        placed: where they lie, by `node_points`.

    Raises:
        UsageError: the file's ending is none of `PICTURES`.
        OSError: the file cannot be written.
    """
    check_picture(file)
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    disk = Disk.of(placed, width=620, steps=24)
    colours = colormaps["viridis_r"](np.linspace(0.1, 1, tree.height + 1))
    with picture_style(file):
        figure = Figure(figsize=(15, 8.6))
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
        figure.suptitle(f"{len(placed.nodes)} nodes of the tree in the Poincaré ball: {placed.lift}", fontsize=12)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        left.set_title(
            f"norms exact; angle: first two principal components of the directions ({disk.share:.0%} of their "
            "variance)\nedges: geodesics of the disk",
            fontsize=10,
        )
        left.set(xlim=(0, disk.width), ylim=(disk.width, 0), aspect="equal")
        left.axis("off")
        left.add_patch(Circle((disk.width / 2, disk.width / 2), disk.radius, fill=False, color="0.5"))
        alpha = min(1.0, 150 / len(disk.edges))
        left.add_collection(LineCollection(disk.edges, colors="0.6", linewidths=0.6, alpha=alpha))
        for level in range(tree.height + 1):
            dots, label = [dot for dot in disk.dots if dot.node.level == level], level_name(level, tree)
            x, y, norms = [dot.x for dot in dots], [dot.y for dot in dots], [dot.radius for dot in dots]
            left.scatter(x, y, s=12 + 14 * level, color=colours[level], zorder=2 + level, label=label)
            sideways = [level + s for s, _ in spread(norms)]
            right.scatter(sideways, norms, s=10, color=colours[level], alpha=0.7)
            if dots:
                right.hlines(np.median(norms), level - 0.35, level + 0.35, color="black", lw=1.5)
        left.legend(loc="lower left", fontsize=9, frameon=False)
        right.set_title("norm of each node by level; line: median", fontsize=10)
        right.set(xlabel="level (0: leaves)", ylabel="norm in the unit ball (1: its boundary)")
        right.set_xticks(range(tree.height + 1))
        right.set_xlim(tree.height + 0.5, -0.5)
        right.grid(axis="y", color="0.9")
        for node, name, *place, anchor in disk.names():
            text = left.text(
                *place, name, parse_math=False, zorder=99, ha="left" if anchor == "start" else "right",
                fontsize=8 if node.is_leaf else 9, color="0.35" if node.is_leaf else "black",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
            )  # fmt: skip
            # A name takes no part in the layout.
            text.set_in_layout(False)
        save_picture(figure, file)
