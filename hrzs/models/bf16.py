"""Is bf16 worth asking for on this CPU? Its flags do not say: with the same ones some are faster, others slower."""

from __future__ import annotations

import time

import torch
from torch import Tensor


def bf16_speed() -> float:
    """How many times as fast as in fp32 this CPU multiplies matrices in bf16, by a measurement of some milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # CPU time counts no waiting then, neither for other threads nor for a busy machine
    try:
        full, half = torch.ones(64, 768), torch.ones(64, 768, dtype=torch.bfloat16)
        weights = torch.ones(768, 768), torch.ones(768, 768, dtype=torch.bfloat16)
        # In turns; the first product of a kind sets up its kernel, and the fastest is free of that.
        pairs = [(_seconds(full, weights[0]), _seconds(half, weights[1])) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    return min(slow for slow, _ in pairs) / min(fast for _, fast in pairs)


def _seconds(a: Tensor, b: Tensor) -> float:
    began = time.process_time()
    torch.mm(a, b)
    return time.process_time() - began
