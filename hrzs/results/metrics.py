"""Figures from predictions: pure functions on arrays of one image per element."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.hierarchy.tree import Tree
from hrzs.models.classifier import PROMPT, SCORINGS


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion, as fractions (Wilson, JASA 1927)."""
    return (0.0, 1.0) if n == 0 else _score_interval(successes / n, float(n), z)


def _score_interval(p: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share ``p`` of ``n`` images, where ``n`` need not be whole."""
    zz = z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # At 0 and 1 a bound is exact; computed, it would be off by a rounding error.
    return 0.0 if p == 0 else centre - half, 1.0 if p == 1 else centre + half


# -- balanced over nodes -------------------------------------------------------------------------------------------


def node_weights(nodes: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The weight of each image if the K nodes present weigh the same: ``w_i = 1 / (K · images of its node)``; float64.

    The weighted share of right images is the mean over these nodes of the accuracy on each: balanced accuracy, or macro
    recall. A node without any image is no part of it. The weights sum to 1.

    Args:
        nodes: each image's true node at one level.
    """
    count = nodes.bincount()
    weights: Float[Tensor, "n"] = 1 / ((count > 0).sum() * count.double()[nodes])
    return weights


def weights_over_levels(nodes: Int[Tensor, "levels n"]) -> Float[Tensor, "n"]:
    """The mean over levels of `node_weights`: the weight of an image in a figure that spans all levels.

    A weighted share is then the mean over levels of the share balanced over that level's nodes.
    """
    weights: Float[Tensor, "n"] = torch.stack([node_weights(level) for level in nodes]).mean(0)
    return weights


def balanced(correct: Bool[Tensor, "n"], weights: Float[Tensor, "n"]) -> float:
    """The share of right images by weight; exactly 0 for none and 1 for all."""
    return 1.0 if correct.all() else min(1.0, math.fsum(weights[correct].tolist()))


def balanced_interval(correct: Bool[Tensor, "n"], weights: Float[Tensor, "n"]) -> tuple[float, float]:
    """Wilson's 95% interval of `balanced`, for Kish's effective number of images ``1 / Σ w_i²`` (Kish 1965).

    It is never degenerate: where no image or every image is right, it still has a width. With equal weights it is
    `wilson`'s. It is approximate: it takes images to vary alike in every node, so it is somewhat too narrow where the
    nodes with the fewest images are the ones of middling accuracy, and too wide where they are not.
    """
    if not len(weights):
        return 0.0, 1.0
    return _score_interval(balanced(correct, weights), 1 / weights.square().sum().item())


def constant_answer(nodes: Int[Tensor, "n"], weights: Float[Tensor, "n"] | None = None) -> float:
    """The accuracy of the best constant answer, one node for every image: the share of the largest node, by weight.

    Without weights every image counts alike. With `node_weights` of the same nodes it is 1/K, whichever node is named.
    """
    if not len(nodes):
        return 0.0
    if weights is None:
        return int(nodes.bincount().max()) / len(nodes)
    return nodes.bincount(weights).max().item()


@dataclass(frozen=True)
class Predictions:
    """Predicted nodes under both scorings at every level 0 … L-1, and where the attack won at its own aim.

    ``distances`` holds each image's hierarchical distance at each of `TOP` (see `hierarchical_distances`).
    """

    nodes: Int[Tensor, "scorings levels n"]
    success: Bool[Tensor, "n"]
    distances: Float[Tensor, "tops n"]

    @staticmethod
    def empty(tree: Tree, n: int) -> Predictions:
        """Predictions of ``n`` images, which `put` fills in."""
        nodes = torch.zeros(len(SCORINGS), tree.height, n, dtype=torch.long)
        return Predictions(nodes, torch.zeros(n, dtype=torch.bool), torch.zeros(len(TOP), n, dtype=torch.float64))

    def put(self, rows: Int[Tensor, "m"], part: Predictions) -> None:
        """Store ``part`` at ``rows``."""
        self.nodes[:, :, rows] = part.nodes
        self.success[rows] = part.success
        self.distances[:, rows] = part.distances


def correct(tree: Tree, labels: Int[Tensor, "n"], nodes: Int[Tensor, "scorings levels n"]) -> Bool[Tensor, "s l n"]:
    """Which predictions are the true ancestors."""
    truth: Bool[Tensor, "s l n"] = nodes == tree.ancestors[: tree.height, labels]
    return truth


def any_level(
    clean: Bool[Tensor, "levels n"], attacked: Sequence[tuple[Bool[Tensor, "levels n"], Bool[Tensor, "n"]]]
) -> Bool[Tensor, "n"]:
    """Right at every level, clean and under every attack of the suite, none of which ever won at its own aim."""
    robust = clean.all(0)
    for adversarial, success in attacked:
        robust = robust & adversarial.all(0) & ~success
    return robust


#: The k of HD@k.
TOP = (1, 5, 20)


def hierarchical_distances(
    tree: Tree, labels: Int[Tensor, "n"], likeliest: Int[Tensor, "n k"]
) -> Float[Tensor, "tops n"]:
    """HD@k of each image: mean LCA height, in levels, between its class and its k likeliest, for each k of `TOP`.

    Bertinetto et al., "Making Better Mistakes", CVPR 2020, section 4.1 ("average hierarchical distance of top-k"). A
    perfect prediction has HD@1 = 0; HD@k for k > 1 is never 0, since the likeliest k cannot all be the class itself.

    Args:
        likeliest: leaves, the likeliest first; as many as there are, where they are fewer than the largest k.
    """
    heights = tree.lca_height(labels[:, None].expand_as(likeliest), likeliest).double()
    return torch.stack([heights[:, :k].mean(1) for k in TOP])


def severity(tree: Tree, labels: Int[Tensor, "n"], found: Predictions) -> dict[str, Any]:
    """Mean LCA height (in levels) of leaf predictions, over mistakes and over all images, and HD@k.

    The first alone can fall merely because easy images became mistakes; so both are given.
    """
    height = tree.lca_height(labels, found.nodes[PROMPT, 0]).double()
    mistakes = height > 0
    return {
        "lca_height_mistakes": height[mistakes].mean().item() if mistakes.any() else None,
        "lca_height_all": height.mean().item() if len(height) else None,
        **{f"hd@{k}": d.mean().item() if len(d) else None for k, d in zip(TOP, found.distances, strict=True)},
    }


def to_bits(correct: Bool[Tensor, "n"]) -> str:
    """One bit for each image, the first in the highest place, as hexadecimal digits."""
    padded = [*correct.tolist(), *[False] * (-len(correct) % 4)]
    return "".join(f"{int(''.join('01'[b] for b in padded[i : i + 4]), 2):x}" for i in range(0, len(padded), 4))


def from_bits(bits: str, n: int) -> Bool[Tensor, "n"]:
    """The inverse of `to_bits`.

    Raises:
        ValueError: not hexadecimal digits of this many images.
    """
    if len(bits) != -(-n // 4):
        raise ValueError(f"{len(bits)} hexadecimal digits for {n} images")
    return torch.tensor(
        [bool(int(digit, 16) >> place & 1) for digit in bits for place in (3, 2, 1, 0)][:n], dtype=torch.bool
    )


def consistency(tree: Tree, nodes: Int[Tensor, "levels n"]) -> list[float | None]:
    """For each superclass level, how often the leaf prediction's ancestor is the superclass prediction."""
    if not nodes.shape[1]:
        return [None] * (tree.height - 1)
    return [(tree.ancestors[level, nodes[0]] == nodes[level]).double().mean().item() for level in range(1, tree.height)]
