"""Several processes that do one job, as ``torchrun`` starts them: gloo between CPUs, NCCL between GPUs.

Each process encodes its own part of a batch. The features of all parts are gathered, and every process computes the
whole loss, since class means and the text perturbation couple the images of a batch. So the backward pass sums the
gradients of the features over all processes, and the mean of the parameters' gradients over the processes is the
gradient that one process would find: for the encoder, and for whatever each process computes alike (docs/scaling.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from hrzs import stopping
from hrzs.errors import HrzsError, ProcessLostError
from hrzs.torchrun import place, restarts

Value = TypeVar("Value")

#: Gradients travel in packets of at most so many numbers, so that the copies take little memory.
PACKET = 2**24
# What `Group.agree` tells the others where it is no signal.
_FAULT = 1000


@dataclass(frozen=True)
class Group:
    """The processes of a job; by default one that is alone.

    All of them call the same methods in the same order, or the job stands still.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Is this the process that speaks and writes?"""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """The places of this process among ``n`` in a row. Parts differ in length by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def gather(self, own: Float[Tensor, "b ..."]) -> Float[Tensor, "B ..."]:
        """The rows of all processes, in the order of their ranks; each brings as many. Gradients come back summed.

        Raises:
            ProcessLostError: see there.
        """
        if self.size == 1:
            return own
        gathered: Tensor = _Gather.apply(own, self)
        return gathered

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of ``tensors`` by its mean over the processes.

        Raises:
            ProcessLostError: see there.
        """
        if self.size == 1:
            return
        for packet in _packets(tensors):
            flat = torch.cat([t.reshape(-1) for t in packet])
            with _talking():
                dist.all_reduce(flat)
            flat /= self.size
            for t, mean in zip(packet, torch.split(flat, [t.numel() for t in packet]), strict=True):
                t.copy_(mean.view_as(t))

    def share(self, value: Value) -> Value:
        """The ``value`` of the first process; what the others bring is not looked at.

        Raises:
            ProcessLostError: see there.
        """
        if self.size == 1:
            return value
        values: list[Any] = [value if self.is_first else None]
        with _talking():
            dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        shared: Value = values[0]
        return shared

    def collect(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks.

        Raises:
            ProcessLostError: see there.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _talking():
            dist.all_gather_object(values, value)
        return values

    def agree(self, fault: HrzsError | None = None) -> None:
        """Go on together, or stop together: where a signal has come to one process, or one has met a ``fault``.

        Raises:
            Stopped: a signal asked for it.
            HrzsError: the fault, whichever process has met it.
            ProcessLostError: see there.
        """
        if self.size == 1:
            if fault is not None:
                raise fault
            stopping.stop_here()
            return
        asked = stopping.asked()
        worst = torch.tensor(asked or 0 if fault is None else _FAULT)
        with _talking():
            dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        if worst == _FAULT:
            raise next(found for found in self.collect(fault) if found is not None)
        if worst:
            raise stopping.Stopped(int(worst))


#: A process by itself.
ALONE = Group()


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Inside, this process is in touch with the others that ``torchrun`` started.

    A process group that is there already is used as it is.

    Args:
        device: this process's own.

    Raises:
        UsageError: the environment says only in part which processes there are.
        ProcessLostError: the others cannot be reached.
    """
    if dist.is_available() and dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size())
        return
    rank, size, _ = place()
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _talking():
        # What is told of stopping and of files is on the CPU, so that it never waits for a GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, size = next(rendezvous("env://"))
        # The addresses of processes that have failed may still be in a store that torchrun keeps.
        store = dist.distributed_c10d.PrefixStore(f"restart-{restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield Group(rank, size)
    finally:
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """All-gather forward, sum over the processes backward."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(group.size)]
        with _talking():
            dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        with _talking():
            dist.all_reduce(total)
        return total[ctx.group.part(len(total))], None


def _packets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """``tensors`` in order, in runs of one dtype and of at most `PACKET` numbers, or one tensor."""
    run: list[Tensor] = []
    for t in tensors:
        if run and (t.dtype != run[0].dtype or sum(r.numel() for r in run) + t.numel() > PACKET):
            yield run
            run = []
        run.append(t)
    if run:
        yield run


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises
        # Of gloo's text, neither its file and line nor its advice.
        said = re.sub(r"^\[\S*\] ", "", str(error).strip()).split(". ")[0]
        raise ProcessLostError(
            f"another process of this job has ended, or cannot be reached ({said}); what was done is kept, and "
            "--resume goes on with it"
        ) from error
