from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hrzs.attacks.counter import normal, uniform

CPU = torch.device("cpu")
SEEDS = [0, 1, 2**56 - 1, 2**63 + 5]


def splitmix(state: int) -> int:
    """The finaliser, as it is published."""
    mask = 2**64 - 1
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
    return state ^ (state >> 31)


def test_uniform_is_the_published_hash() -> None:
    found = uniform(SEEDS, (3, 5), CPU)
    assert found.shape == (4, 3, 5)
    for row, seed in zip(found.flatten(1), SEEDS, strict=True):
        key = splitmix(seed % 2**63)
        states = [(key + (i + 1) * 0x9E3779B97F4A7C15) % 2**64 for i in range(15)]
        assert row.tolist() == [(splitmix(state) >> 40) / 2**24 for state in states]


@pytest.mark.parametrize("draw", [uniform, normal])
def test_numbers_do_not_depend_on_the_batch(draw: object) -> None:
    assert callable(draw)
    together = draw(SEEDS, (3, 4, 4), CPU)
    for row, seed in zip(together, SEEDS, strict=True):
        assert torch.equal(draw([seed], (3, 4, 4), CPU)[0], row)
    assert len(draw([], (3, 4, 4), CPU)) == 0


def moments(x: Tensor) -> tuple[float, float]:
    return x.double().mean().item(), x.double().std().item()


def test_distributions() -> None:
    seeds, n = list(range(50)), 50 * 20_000
    mean, deviation = moments(even := uniform(seeds, (20_000,), CPU))
    assert mean == pytest.approx(0.5, abs=5 / math.sqrt(12 * n))
    assert deviation == pytest.approx(math.sqrt(1 / 12), rel=0.003)
    assert 0 <= even.min() < 1e-4
    assert 1 - 1e-4 < even.max() < 1
    mean, deviation = moments(bell := normal(seeds, (20_000,), CPU))
    assert mean == pytest.approx(0, abs=5 / math.sqrt(n))
    assert deviation == pytest.approx(1, rel=0.005)
    assert (bell.abs() < 1.959964).double().mean().item() == pytest.approx(0.95, abs=0.002)
    assert bell.isfinite().all()


def test_neighbouring_seeds_and_places_have_nothing_in_common() -> None:
    found = uniform(list(range(64)), (4096,), CPU).double() - 0.5
    between = torch.corrcoef(found) - torch.eye(64)
    assert between.abs().max() < 6 / math.sqrt(4096)
    next_to = (found[:, 1:] * found[:, :-1]).mean().item() * 12
    assert abs(next_to) < 5 / math.sqrt(found.numel())
