"""fp32 means fp32, whoever calls: from the command line or from Python, on CPUs and on GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_thread = threading.local()


@contextmanager
def exact_fp32() -> Iterator[None]:
    """A context in which fp32 products are exact, sums the same bits each time, and denormals zero.

    TF32 has 10 bits of mantissa, and bf16, which oneDNN takes on CPUs after ``set_float32_matmul_precision("medium")``,
    has 7: an attack's verdict in either is no verdict in fp32. By default torch lets convolutions use TF32 and sum in
    any order. Denormals make Adam many times slower on CPUs. All settings are restored afterwards.

    Also a decorator: ``@exact_fp32()``.
    """
    if getattr(_thread, "inside", False):
        yield
        return
    switches = _switches()
    before = [getattr(place, name) for place, name, _ in switches]
    flushed = _flushes_denormals()
    _thread.inside = True
    try:
        for place, name, value in switches:
            setattr(place, name, value)
        torch.set_flush_denormal(True)
        yield
    finally:
        for (place, name, _), value in zip(switches, before, strict=True):
            setattr(place, name, value)
        torch.set_flush_denormal(flushed)
        _thread.inside = False


class _Matmul:
    """torch's getter and setter of the precision of matrix products, as one attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


def _switches() -> list[tuple[Any, str, object]]:
    """torch's settings of fp32 arithmetic: (object, name of the attribute, value that makes it exact)."""
    backends: Any = torch.backends
    older = [(_Matmul(), "precision", "highest"), (backends.cudnn, "allow_tf32", False)]
    newer = []
    if hasattr(backends, "fp32_precision"):  # torch 2.9 on
        # Where a process has used the new names, torch refuses to read the old ones, which then mean nothing.
        older = [(place, name, value) for place, name, value in older if _is_readable(place, name)]
        products = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        products += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        newer = [(product, "fp32_precision", "ieee") for product in products]
    return [(backends.cudnn, "deterministic", True), *older, *newer]


def _is_readable(place: object, name: str) -> bool:
    try:
        getattr(place, name)
    except RuntimeError:
        return False
    return True


def _flushes_denormals() -> bool:
    """Does this thread take denormals for zero? torch can set this but not report it."""
    return bool((torch.full((), 1e-40) * 1).item() == 0)


def at_least_fp32(x: Tensor) -> Tensor:
    """``x`` in float32, if it is coarser. A model in float64 stays in float64, from the weights to the loss."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
