"""A tree in the Poincaré disk: where a model has its nodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Complex128, Float
from torch import Tensor

from hrzs.hierarchy.describe import check_picture, picture_style, save_picture, visible
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.depth import NodePoints

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: In a tree of so many nodes at most, leaves are named in the disk as well.
_NAME_LEAVES = 60


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

    disk, share = to_disk(placed.points)
    at = {id(node): complex(z) for node, z in zip(placed.nodes, disk, strict=True)}
    colours = colormaps["viridis_r"](np.linspace(0.1, 1, tree.height + 1))
    by_level = [[node for node in placed.nodes if node.level == level] for level in range(tree.height + 1)]
    with picture_style(file):
        figure = Figure(figsize=(15, 8.6))
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
        figure.suptitle(f"{len(placed.nodes)} nodes of the tree in the Poincaré ball: {placed.lift}", fontsize=12)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        left.set_title(
            f"norms exact; angle: first two principal components of the directions ({share:.0%} of their variance)\n"
            "edges: geodesics of the disk",
            fontsize=10,
        )
        left.set(xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), aspect="equal")
        left.axis("off")
        left.add_patch(Circle((0, 0), 1, fill=False, color="0.5"))
        edges = [geodesic(at[id(node)], at[id(child)]) for node in tree.root.walk() for child in node.children]
        lines = [np.stack([edge.real, edge.imag], 1) for edge in edges]
        left.add_collection(LineCollection(lines, colors="0.6", linewidths=0.6, alpha=min(1.0, 150 / len(lines))))
        for level, nodes in enumerate(by_level):
            z = np.array([at[id(node)] for node in nodes], complex)
            label = "leaves" if level == 0 else "root" if level == tree.height else f"level {level}"
            left.scatter(z.real, z.imag, s=12 + 14 * level, color=colours[level], zorder=2 + level, label=label)
            # A fixed spread sideways, so that equal norms do not hide one another.
            sideways = level + 0.5 * ((np.arange(len(z)) * 0.618034 + 0.5) % 1 - 0.5)
            right.scatter(sideways, abs(z), s=10, color=colours[level], alpha=0.7)
            if len(z):
                right.hlines(np.median(abs(z)), level - 0.35, level + 0.35, color="black", lw=1.5)
        left.legend(loc="lower left", fontsize=9, frameon=False)
        right.set_title("norm of each node by level; line: median", fontsize=10)
        right.set(xlabel="level (0: leaves)", ylabel="norm in the unit ball (1: its boundary)")
        right.set_xticks(range(tree.height + 1))
        right.set_xlim(tree.height + 0.5, -0.5)
        right.grid(axis="y", color="0.9")
        # Where names overlap is known only once everything has its place.
        figure.draw_without_rendering()
        named = by_level if len(placed.nodes) <= _NAME_LEAVES else by_level[1:]
        _name(left, [node for nodes in reversed(named) for node in nodes], at)
        save_picture(figure, file)


def _name(axes: Axes, nodes: list[Node], at: dict[int, complex]) -> None:
    """Write the names of ``nodes`` beside their points, each that has a place free of names and points before it."""
    from matplotlib.transforms import Bbox

    taken: list[Bbox] = []
    for node in nodes:
        z = at[id(node)]
        centre = axes.transData.transform((z.real, z.imag))
        taken.append(Bbox([centre - 4, centre + 4]))
        for x, y in ((6, 5), (6, -5), (-6, 5), (-6, -5)):
            text = axes.annotate(
                visible(node.name)[:30], (z.real, z.imag), (x, y), textcoords="offset points", parse_math=False,
                fontsize=8 if node.is_leaf else 9, color="0.35" if node.is_leaf else "black", zorder=99,
                ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.5},
            )  # fmt: skip
            # A name takes no part in the layout, which is settled.
            text.set_in_layout(False)
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
