"""Certificates by randomised smoothing, from votes: nodes, radii in ℓ2, and certified accuracy at every level.

Cohen, Rosenfeld & Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019 (arXiv 1902.02918).
The smoothed classifier of a level names the node that Gaussian noise makes the most likely answer. The answer of the
base classifier at a level is the ancestor of its leaf: a classifier like any other, so the theorem holds as it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.results import metrics
from hrzs.results.report import PUBLISHED_SAMPLES, Certificate, Certified

#: How often each leaf was the answer to noisy copies of one image; leaves that never were are left out.
LeafVotes: TypeAlias = Mapping[int, int]

# Between the radii at which certified accuracy is reported, as a share of σ.
_STEP = 0.25


@dataclass(frozen=True)
class Smoothed:
    """The smoothed classifier at one level, image by image.

    Args:
        chosen: the node with the most votes of the selection; of several the first.
        votes: the votes of the estimation for that node.
        radii: the certified radius in ℓ2; 0 where it abstains.
        likeliest: the node with the most votes of the estimation, about which nothing is certified.
    """

    chosen: Int[Tensor, "n"]
    votes: Int[Tensor, "n"]
    radii: Float[Tensor, "n"]
    likeliest: Int[Tensor, "n"]


def lower_bounds(votes: Int[Tensor, "n"], samples: int, alpha: float) -> Float[Tensor, "n"]:
    """One-sided lower bounds of probabilities, float64: each holds with probability 1 - ``alpha``.

    The exact bound of Clopper & Pearson (Biometrika 1934), from ``votes`` of ``samples`` draws.
    """
    from scipy.stats import beta

    k = votes.numpy()
    # Without a vote the distribution is not defined, and the bound is 0.
    bounds = torch.from_numpy(beta.ppf(alpha, k.clip(1), samples - k.clip(1) + 1))
    return torch.where(votes > 0, bounds, 0.0)


def radii_of(votes: Int[Tensor, "n"], samples: int, *, sigma: float, alpha: float) -> Float[Tensor, "n"]:
    """``σ Φ⁻¹(p)`` with the lower bound ``p``, float64; 0, an abstention, where p ≤ 1/2 (theorem 1 of Cohen et al.)."""
    bounds = lower_bounds(votes, samples, alpha)
    return torch.where(bounds > 0.5, sigma * torch.special.ndtri(bounds.clamp(min=0.5)), 0.0)


def smoothed(
    selection: Sequence[LeafVotes],
    estimation: Sequence[LeafVotes],
    ancestor: Int[Tensor, "C"],
    samples: int,
    *,
    sigma: float,
    alpha: float,
) -> Smoothed:
    """Votes of the leaves, summed into the nodes of one level.

    With the same votes a node has at least those of each of its leaves, so its radius is no smaller.

    Args:
        ancestor: the node of each leaf at that level.
        samples: the number of votes of each image in ``estimation``.
        alpha: the probability, for each image, that its certificate is wrong.
    """
    of_leaf = ancestor.tolist()

    def summed(votes: LeafVotes) -> Counter[int]:
        found = Counter[int]()
        for leaf in sorted(votes):
            found[of_leaf[leaf]] += votes[leaf]
        return found

    def most(found: Counter[int]) -> int:
        return min(found, key=lambda node: (-found[node], node))

    counts = [summed(votes) for votes in estimation]
    chosen = [most(summed(votes)) for votes in selection]
    held = torch.tensor([found[node] for found, node in zip(counts, chosen, strict=True)], dtype=torch.long)
    radii = radii_of(held, samples, sigma=sigma, alpha=alpha)
    likeliest = torch.tensor([most(found) for found in counts], dtype=torch.long)
    return Smoothed(torch.tensor(chosen, dtype=torch.long), held, radii, likeliest)


def radii_shown(samples: int, *, sigma: float, alpha: float) -> list[float]:
    """The radii of a report: every quarter of σ from 0 on, and the largest that so many samples can certify."""
    largest = radii_of(torch.tensor([samples]), samples, sigma=sigma, alpha=alpha).item()
    count = 1
    while count * _STEP * sigma < largest:
        count += 1
    return [i * _STEP * sigma for i in range(count)] + ([largest] if largest > 0 else [])


def certificate(
    found: Smoothed, truth: Int[Tensor, "n"], samples: int, *, sigma: float, level_alpha: float, **about: Any
) -> Certificate:
    """The figures of one level.

    Args:
        truth: the node of each image.
        level_alpha: the probability, for each image, that its certificate at this level is wrong.
        about: further fields.
    """
    n, weights = len(truth), metrics.node_weights(truth)
    correct = found.chosen == truth
    gained = torch.where(correct, found.radii, 0.0)
    curve = []
    for radius in radii_shown(samples, sigma=sigma, alpha=level_alpha):
        curve.append(Certified(radius, *_figure(_held(correct, found.radii, radius), weights)))
    abstained = found.radii == 0
    clean, clean_ci95, clean_balanced, clean_balanced_ci95 = _figure(found.likeliest == truth, weights)
    return Certificate(
        n=n, nodes=len(set(truth.tolist())), samples=samples, sigma=sigma, level_alpha=level_alpha,
        preview=samples < PUBLISHED_SAMPLES,
        abstained=int(abstained.sum()) / n, abstained_balanced=metrics.balanced(abstained, weights),
        clean=clean, clean_ci95=clean_ci95, clean_balanced=clean_balanced, clean_balanced_ci95=clean_balanced_ci95,
        average_radius=gained.mean().item(), average_radius_balanced=(weights * gained).sum().item(),
        constant=metrics.constant_answer(truth), constant_balanced=1 / len(set(truth.tolist())),
        certified=tuple(curve), **about,
    )  # fmt: skip


def certified_images(one: Certificate, truth: Int[Tensor, "n"], radius: float) -> Bool[Tensor, "n"]:
    """Which images of a report are certified to be right within ``radius``, in the order of their ids.

    Args:
        truth: the node of each image at the certificate's level.
    """
    chosen, votes = (torch.tensor([int(word) for word in text.split()]) for text in (one.chosen, one.votes))
    return _held(chosen == truth, radii_of(votes, one.samples, sigma=one.sigma, alpha=one.level_alpha), radius)


def _held(correct: Bool[Tensor, "n"], radii: Float[Tensor, "n"], radius: float) -> Bool[Tensor, "n"]:
    held: Bool[Tensor, "n"] = correct & (radii > 0) & (radii >= radius)
    return held


def _figure(held: Tensor, weights: Tensor) -> tuple[float, tuple[float, float], float, tuple[float, float]]:
    count, n = int(held.sum()), len(held)
    return (
        count / n,
        metrics.wilson(count, n),
        metrics.balanced(held, weights),
        metrics.balanced_interval(held, weights),
    )
