"""Certificates from votes: against the closed form, against the procedure written anew, up the tree, and coverage."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln
from scipy.stats import norm

from hrzs.hierarchy.tree import Tree
from hrzs.results.certificates import certificate, lower_bounds, radii_of, radii_shown, smoothed


def naive_bound(votes: int, samples: int, alpha: float) -> float:
    """The p at which so many votes or more have probability α, by bisection of the binomial tail."""
    if votes == 0:
        return 0.0
    j = np.arange(votes, samples + 1)
    ways = gammaln(samples + 1) - gammaln(j + 1) - gammaln(samples - j + 1)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if np.exp(ways + j * math.log(middle) + (samples - j) * math.log1p(-middle)).sum() < alpha:
            low = middle
        else:
            high = middle
    return low


def naive_certify(selection: list[int], estimation: list[int], sigma: float, alpha: float) -> tuple[int | None, float]:
    """CERTIFY of Cohen et al. (2019), from the answers to noisy copies in the order that they came."""
    counts = Counter(selection)
    top = sorted(counts, key=lambda node: (-counts[node], node))[0]
    bound = naive_bound(sum(answer == top for answer in estimation), len(estimation), alpha)
    return (top, sigma * norm.ppf(bound)) if bound > 1 / 2 else (None, 0.0)


@pytest.mark.parametrize("samples", [1, 7, 100, 10_000])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_is_that_of_the_binomial_tail(samples: int, alpha: float) -> None:
    votes = sorted({0, 1, samples // 2, samples * 9 // 10, samples - 1, samples})
    found = lower_bounds(torch.tensor(votes), samples, alpha)
    assert found.tolist() == pytest.approx([naive_bound(k, samples, alpha) for k in votes], abs=1e-9)
    assert found[-1].item() == pytest.approx(alpha ** (1 / samples), abs=1e-14)


def test_the_largest_radius_in_closed_form() -> None:
    """``σ Φ⁻¹(α^(1/N))``, where every sample has voted for the node: 3.8 σ for 100,000 samples at α 0.001."""
    (radius,) = radii_of(torch.tensor([100_000]), 100_000, sigma=1.0, alpha=0.001).tolist()
    assert radius == pytest.approx(norm.ppf(0.001 ** (1 / 100_000)), rel=1e-12)
    assert round(radius, 1) == 3.8


def test_half_the_votes_abstain() -> None:
    votes = torch.arange(101)
    radii = radii_of(votes, 100, sigma=0.5, alpha=0.001)
    bounds = lower_bounds(votes, 100, 0.001)
    assert torch.equal(radii > 0, bounds > 0.5)
    assert (radii[:51] == 0).all()
    assert (radii.diff() >= 0).all()


ANSWERS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=4), st.integers(0, 2))
def test_as_the_procedure_written_anew(tree: Tree, drawn: list[tuple[list[int], list[int]]], level: int) -> None:
    samples = len(drawn[0][1])
    drawn = [(first, (second * samples)[:samples]) for first, second in drawn]
    ancestor = tree.ancestors[level].tolist()
    found = smoothed(
        [Counter(first) for first, _ in drawn], [Counter(second) for _, second in drawn], tree.ancestors[level],
        samples, sigma=0.5, alpha=0.05,
    )  # fmt: skip
    for i, (first, second) in enumerate(drawn):
        node, radius = naive_certify([ancestor[a] for a in first], [ancestor[a] for a in second], 0.5, 0.05)
        assert found.radii[i].item() == pytest.approx(radius, abs=1e-9)
        if node is None:
            assert found.radii[i] == 0
        else:
            assert found.chosen[i] == node
        assert found.votes[i] == sum(ancestor[a] == found.chosen[i] for a in second)


@given(
    st.dictionaries(st.integers(0, 5), st.integers(1, 100), min_size=1),
    st.dictionaries(st.integers(0, 5), st.integers(1, 1000), min_size=1),
)
def test_no_radius_shrinks_up_the_tree(tree: Tree, first: dict[int, int], second: dict[int, int]) -> None:
    """With the same votes, wherever the node chosen above is the ancestor of the one chosen below."""
    levels = [
        smoothed([first], [second], tree.ancestors[level], sum(second.values()), sigma=0.25, alpha=0.001)
        for level in range(tree.height)
    ]
    for low in range(tree.height):
        leaf = next(c for c in range(6) if tree.ancestors[low, c] == levels[low].chosen[0])
        for high in range(low + 1, tree.height):
            if levels[high].chosen[0] == tree.ancestors[high, leaf]:
                assert levels[high].votes[0] >= levels[low].votes[0]
                assert levels[high].radii[0] >= levels[low].radii[0]


@pytest.mark.parametrize("p", [0.55, 0.8, 0.99])
def test_the_bound_covers(p: float) -> None:
    """In 1,000 runs it lies above the truth about as often as α says, and never much more often."""
    alpha, samples = 0.05, 500
    votes = np.random.default_rng(0).binomial(samples, p, 1000)
    misses = int((lower_bounds(torch.from_numpy(votes), samples, alpha) > p).sum())
    # The true rate is at most α: 5 standard deviations above it is no chance.
    assert 0 < misses <= 1000 * alpha + 5 * math.sqrt(1000 * alpha * (1 - alpha))


def test_jointly_over_levels_the_claims_cover(tree: Tree) -> None:
    """α / L at every level: in 1,000 runs some level is wrong about an image no more often than α says."""
    share, alpha, samples = torch.tensor([0.55, 0.2, 0.1, 0.05, 0.06, 0.04]), 0.05, 300
    drawn = np.random.default_rng(1).multinomial(samples, share.double().numpy() / share.double().sum().item(), 1000)
    votes = [{leaf: int(count) for leaf, count in enumerate(row) if count} for row in drawn]
    wrong = torch.zeros(1000, dtype=torch.bool)
    for level in range(tree.height):
        found = smoothed(votes, votes[::-1], tree.ancestors[level], samples, sigma=1.0, alpha=alpha / tree.height)
        truth = torch.zeros(len(tree.levels[level])).index_add(0, tree.ancestors[level], share / share.sum())
        p = truth.double()[found.chosen].clamp(1e-9, 1 - 1e-9)
        wrong |= (found.radii > 0) & (found.radii > torch.special.ndtri(p) + 1e-6)
    assert 0 < int(wrong.sum()) <= 1000 * alpha + 5 * math.sqrt(1000 * alpha * (1 - alpha))


def made(level_alpha: float = 0.05, **about: Any) -> Any:
    """Six images of two nodes: four right by all votes, one abstention, one certainly wrong."""
    ancestor = torch.tensor([0, 1])
    all_, half = {0: 100}, {0: 50, 1: 50}
    votes = [all_, all_, all_, half, {1: 100}, all_]
    found = smoothed(votes, votes, ancestor, 100, sigma=0.5, alpha=level_alpha)
    truth = torch.tensor([0, 0, 0, 0, 1, 1])
    return certificate(
        found, truth, 100, sigma=0.5, level_alpha=level_alpha, dataset="d", level=0, classes=2, selection=100,
        alpha=level_alpha, confidence="per-level", seconds=0.0, chosen="", votes="", **about,
    )  # fmt: skip


def test_figures_of_a_level_by_hand() -> None:
    one = made()
    largest = 0.5 * norm.ppf(0.05 ** (1 / 100))
    assert one.largest_radius == pytest.approx(largest)
    assert (one.n, one.nodes, one.preview) == (6, 2, True)
    assert one.abstained == pytest.approx(1 / 6)
    assert one.abstained_balanced == pytest.approx((1 / 4 + 0) / 2)
    # The tie names the first node, which is right; nothing is certified about it.
    assert one.clean == pytest.approx(5 / 6)
    assert one.clean_balanced == pytest.approx((1 + 1 / 2) / 2)
    for point in one.certified:
        assert point.value == pytest.approx(4 / 6)
        assert point.balanced == pytest.approx((3 / 4 + 1 / 2) / 2)
        assert point.ci95[0] < point.value < point.ci95[1]
    assert one.average_radius == pytest.approx(4 / 6 * largest)
    assert one.average_radius_balanced == pytest.approx((3 / 4 + 1 / 2) / 2 * largest)
    assert (one.constant, one.constant_balanced) == (4 / 6, 1 / 2)


def test_radii_end_at_the_largest() -> None:
    radii = radii_shown(100, sigma=0.5, alpha=0.05)
    assert radii[:4] == [0.0, 0.125, 0.25, 0.375]
    assert radii == sorted(set(radii))
    assert radii[-1] == radii_of(torch.tensor([100]), 100, sigma=0.5, alpha=0.05).item()
    assert radii_shown(1, sigma=0.5, alpha=0.05) == [0.0]  # one sample certifies nothing
