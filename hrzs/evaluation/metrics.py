"""Figures from predictions: pure functions on arrays of one image per element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion, as fractions (Wilson, JASA 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # The bounds of none and of all are exact; computed, they would be off by a rounding.
    return 0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half


@dataclass(frozen=True)
class Predictions:
    """Predicted nodes under both scorings at every level 0 … L-1, and where the attack won at its own aim."""

    nodes: Int[Tensor, "scorings levels n"]
    won: Bool[Tensor, "n"]


def right(tree: Tree, labels: Int[Tensor, "n"], nodes: Int[Tensor, "scorings levels n"]) -> Bool[Tensor, "s l n"]:
    """Which predictions are the true ancestors."""
    truth: Bool[Tensor, "s l n"] = nodes == tree.ancestors[: tree.top, labels]
    return truth


def any_level(
    clean: Bool[Tensor, "levels n"], attacked: Sequence[tuple[Bool[Tensor, "levels n"], Bool[Tensor, "n"]]]
) -> Bool[Tensor, "n"]:
    """Right at every level, clean and under every attack of the suite, none of which ever won at its own aim."""
    robust = clean.all(0)
    for adversarial, won in attacked:
        robust = robust & adversarial.all(0) & ~won
    return robust


def severity(tree: Tree, labels: Int[Tensor, "n"], predicted: Int[Tensor, "n"]) -> dict[str, float | None]:
    """Mean LCA height (in levels) of leaf predictions, over mistakes and over all images.

    The first alone can fall merely because easy images became mistakes; so both are given.
    """
    height = tree.lca_height(labels, predicted).double()
    mistakes = height > 0
    return {
        "lca_height_mistakes": height[mistakes].mean().item() if mistakes.any() else None,
        "lca_height_all": height.mean().item() if len(height) else None,
    }


def consistency(tree: Tree, nodes: Int[Tensor, "levels n"]) -> list[float | None]:
    """For each superclass level, how often the leaf prediction's ancestor is the superclass prediction."""
    if not nodes.shape[1]:
        return [None] * (tree.top - 1)
    return [(tree.ancestors[level, nodes[0]] == nodes[level]).double().mean().item() for level in range(1, tree.top)]
