"""Is bf16 faster than fp32 on this CPU? Its flags do not tell: with the same flags some CPUs are, others are not."""

from __future__ import annotations

import time

import torch
from torch import Tensor


def bf16_speed() -> float:
    """The speed of matrix products in bf16 on this CPU, as a multiple of fp32's; a measurement of some milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # then CPU time includes no waiting for other threads or a busy machine
    try:
        full, half = torch.ones(64, 768), torch.ones(64, 768, dtype=torch.bfloat16)
        weights = torch.ones(768, 768), torch.ones(768, 768, dtype=torch.bfloat16)
        # Both kinds in turn. The first product of a kind sets up its kernel, so only the fastest counts.
        pairs = [(_seconds(full, weights[0]), _seconds(half, weights[1])) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    return min(slow for slow, _ in pairs) / min(fast for _, fast in pairs)


def _seconds(a: Tensor, b: Tensor) -> float:
    began = time.process_time()
    torch.mm(a, b)
    return time.process_time() - began
