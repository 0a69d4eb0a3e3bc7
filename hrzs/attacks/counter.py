"""Random numbers for many images in one call, on any device: hashes of a counter, without a generator.

Each image has a seed of its own, so that its numbers depend on neither batch size nor order. The hash is SplitMix64
(Steele, Lea & Flood, OOPSLA 2014), on 64-bit integers: the same bits on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# SplitMix64's constants as signed numbers, which is how torch has them; products wrap.
_GAMMA, _FIRST, _SECOND = (c - 2**64 for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def is_used_on(device: torch.device) -> bool:
    """Are numbers hashed there? On a CPU a generator for each image is faster; an accelerator would wait for those."""
    return device.type != "cpu"


def uniform(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Float[Tensor, "B ..."]:
    """Numbers in [0, 1), multiples of 2⁻²⁴: for each seed as many as ``shape`` has elements."""
    # Not blocking: the host need not wait for the work it has given to the device so far.
    keys = torch.tensor([seed & (2**63 - 1) for seed in seeds], dtype=torch.int64).to(device, non_blocking=True)
    counter = torch.arange(1, math.prod(shape) + 1, device=device)
    bits = _mix(_mix(keys)[:, None] + counter * _GAMMA)
    return _shift(bits, 40).to(torch.float32).mul_(2**-24).view(len(keys), *shape)


def normal(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Float[Tensor, "B ..."]:
    """Standard normal numbers: for each seed as many as ``shape`` has elements (Box & Muller 1958)."""
    radius, angle = uniform(seeds, (2, *shape), device).unbind(1)
    return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()


def standard_normal(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Float[Tensor, "B ..."]:
    """`normal`, or on a CPU the numbers of a generator for each seed."""
    if is_used_on(device):
        return normal(seeds, shape, device)
    drawn, generator = torch.empty(len(seeds), *shape), torch.Generator()
    for one, seed in zip(drawn, seeds, strict=True):
        torch.randn(tuple(shape), generator=generator.manual_seed(seed), out=one)
    return drawn


def _mix(z: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Int64[Tensor, "..."], places: int) -> Int64[Tensor, "..."]:
    """``z`` shifted right, with zeros from the left; torch's own shift repeats the sign bit."""
    return (z >> places) & ((1 << (64 - places)) - 1)
