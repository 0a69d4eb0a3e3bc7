"""Images in batches: decoded in this process or ahead of it in others, sent as uint8, float32 on the device.

Worker processes stay for the next pass over the same dataset. They end when another dataset is read with workers, when
theirs is collected, or with the program.
"""

from __future__ import annotations

import gc
import math
import mmap
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
import torch.utils.data
from jaxtyping import UInt8
from torch import Tensor

from hrzs.data.base import Batch, Dataset, ImageError, as_images
from hrzs.errors import HrzsError

#: The most workers of a process that nobody gave a number.
MOST_WORKERS = 16
#: Decoding so many images takes about as long as starting a worker and its first batch.
_WORTH_A_WORKER = 64


def read(
    dataset: Dataset,
    batches: Iterable[Sequence[int]],
    *,
    workers: int | None = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The images of ``dataset`` at each list of indices in ``batches``, in this order.

    The batches do not depend on ``workers`` and ``device``: not a bit of them.

    Args:
        batches: may be lazy, and endless: it is asked for two lists a worker ahead, and for one more off the CPU.
        workers: number of processes that read ahead (0: this process reads; None: see `workers_for`).
        device: where ``images`` are. ``labels`` are on the CPU.

    Raises:
        ImageError: an image cannot be decoded (the message names it), or a process that reads ahead has died.
        HrzsError: an image differs in size from others of its batch; the message names it.
    """
    device = torch.device(device)
    count = workers_for(workers, dataset, device)
    lists = ([int(index) for index in batch] for batch in batches)
    fetched = _ahead(dataset, lists, count) if count else _here(dataset, lists)
    return _batches(fetched, device)


def loader(
    dataset: Dataset,
    batch_size: int,
    workers: int | None = 0,
    order: Sequence[int] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """`read` of ``batch_size`` images at a time in ``order`` (default: all, in their own); the last may be fewer."""
    chosen = range(len(dataset)) if order is None else order
    batches = (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))
    return read(dataset, batches, workers=workers, device=device)


def workers_for(workers: int | None, dataset: Dataset, device: torch.device) -> int:
    """The number of processes that read ahead: ``workers``, or if that is None, what is best by what was measured.

    On a CPU it is 0: they would take their time from the model. For a GPU it is a worker per core that this process may
    use, shared with the others of the machine that ``torchrun`` started, up to `MOST_WORKERS`.
    """
    if workers is not None:
        return workers
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(share, MOST_WORKERS, len(dataset) // _WORTH_A_WORKER)


# -- from pixels to a batch on the device ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    """Images as they are read. A worker may have put the pixels into a slot, and then sends the slot and their shape.

    Without slots it sends an array: a tensor would go through a file in /dev/shm, of which Docker has 64 MB.
    """

    pixels: UInt8[np.ndarray, "B H W 3"] | tuple[int, tuple[int, ...]]
    labels: list[int]
    ids: tuple[str, ...]


class _Slots:
    """Memory for ``count`` batches of at most ``size`` bytes, which worker processes share with the program.

    It is none of /dev/shm, and no pipe is as fast. A process has it that was forked from the one that made it.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._memory = mmap.mmap(-1, max(1, count * size))

    def at(self, slot: int, shape: tuple[int, ...]) -> UInt8[np.ndarray, "B H W 3"] | None:
        """A slot as an array of this shape; None if it is too small."""
        count = math.prod(shape)
        if count > self.size:
            return None
        return np.frombuffer(self._memory, np.uint8, count, slot * self.size).reshape(shape)


class _Fetch(torch.utils.data.Dataset["_Read | HrzsError"]):
    """Reads a list of images. An error is a value: raised in a worker, its message would come back mangled."""

    def __init__(self, dataset: Dataset, slots: _Slots | None = None) -> None:
        self.dataset: Dataset | None = dataset
        self._slots = slots

    def __call__(self, indices: list[int], slot: int | None = None) -> _Read | HrzsError:
        data = self.dataset
        assert data is not None
        pixels, is_sent = np.empty((0, 0, 0, 3), np.uint8), True
        try:
            for place, index in enumerate(indices):
                image = np.asarray(data.picture(index))
                if not place:
                    shape = (len(indices), *image.shape)
                    room = None if self._slots is None or slot is None else self._slots.at(slot, shape)
                    pixels, is_sent = (np.empty(shape, np.uint8), True) if room is None else (room, False)
                if image.shape != pixels.shape[1:]:
                    (h, w, _), (_, h0, w0, _) = image.shape, pixels.shape
                    return HrzsError(
                        f"Image {data.ids[index]} is {w}×{h} where {data.ids[indices[0]]} is {w0}×{h0}: "
                        "images of different sizes have to be resized first."
                    )
                pixels[place] = image
        except HrzsError as error:
            return error
        labels, ids = [data.labels[i] for i in indices], tuple(data.ids[i] for i in indices)
        return _Read(pixels if is_sent or slot is None else (slot, pixels.shape), labels, ids)

    def __getitems__(self, asked: tuple[list[int], int | None]) -> _Read | HrzsError:
        return self(*asked)


def _batches(fetched: Generator[_Read | HrzsError, None, None], device: torch.device) -> Iterator[Batch]:
    """On a device, the next batch is on its way while one is worked on."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    coming: tuple[_Read, Tensor] | None = None
    with closing(fetched):
        for found in fetched:
            if isinstance(found, HrzsError):
                if coming is not None:
                    yield _arrived(*coming, stream)
                try:
                    raise found
                finally:
                    del found  # else the error would hold this frame, and this frame the error
            if device.type == "cpu":
                yield _batch(found, torch.from_numpy(found.pixels))
                continue
            now, coming = coming, (found, _sent(found, device, stream))
            if now is not None:
                yield _arrived(*now, stream)
        if coming is not None:
            yield _arrived(*coming, stream)


def _sent(found: _Read, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    here = torch.from_numpy(found.pixels)
    if stream is None:
        return here.to(device)
    pinned = here.pin_memory()  # from there a GPU copies by itself
    with torch.cuda.stream(stream):
        return pinned.to(device, non_blocking=True)


def _arrived(found: _Read, pixels: Tensor, stream: torch.cuda.Stream | None) -> Batch:
    if stream is not None:
        present = torch.cuda.current_stream(pixels.device)
        present.wait_stream(stream)
        pixels.record_stream(present)  # the allocator is not to use this memory again before the conversion is done
    return _batch(found, pixels)


def _batch(found: _Read, pixels: Tensor) -> Batch:
    return Batch(as_images(pixels), torch.tensor(found.labels, dtype=torch.int64), found.ids)


def _here(dataset: Dataset, lists: Iterator[list[int]]) -> Generator[_Read | HrzsError, None, None]:
    yield from map(_Fetch(dataset), lists)


# -- processes that read ahead -----------------------------------------------------------------------------------------


def _ahead(dataset: Dataset, lists: Iterator[list[int]], workers: int) -> Generator[_Read | HrzsError, None, None]:
    reader, is_whole = None, False
    try:
        first = next(lists, None)
        if first is None:
            return
        size = len(first) * 3 * dataset.native_size**2 if dataset.native_size is not None else 0
        reader = _Reader.take(dataset, workers, size)
        yield from reader.read(chain([first], lists))
        is_whole = True
    except GeneratorExit:  # the caller has enough
        is_whole = True
        raise
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise ImageError(
            f"--workers {workers}: a process that reads images cannot go on ({str(error).strip()}). The memory, or "
            "/dev/shm, may be too small. Run again, with --resume, and with fewer --workers or --workers 0."
        ) from error
    finally:
        if reader is not None and is_whole:
            reader.keep()
        elif reader is not None:
            reader.close()


class _Turns:
    """The lists of the present pass, each with a free slot: torch's batch sampler, which each pass fills anew."""

    def __init__(self) -> None:
        self.left: Iterator[list[int]] = iter(())
        self.free: list[int] = []

    def __iter__(self) -> _Turns:
        return self

    def __next__(self) -> tuple[list[int], int | None]:
        indices = next(self.left)
        return indices, self.free.pop() if self.free else None


class _Reader:
    """Worker processes that read one dataset, pass after pass. The last one that was used is kept."""

    kept: ClassVar[_Reader | None] = None

    def __init__(self, dataset: Dataset, workers: int, size: int) -> None:
        self.workers = workers
        self.of = weakref.ref(dataset, _Reader._collected)
        # Two batches a worker are on their way, one comes, and one is in use.
        self.slots = _Slots(2 * workers + 2, size) if size and _is_forked() else None
        self._fetch, self._turns = _Fetch(dataset, self.slots), _Turns()
        turns: Any = self._turns  # torch would have lists, and only hands on what there is
        self._loader: torch.utils.data.DataLoader[Any] | None = torch.utils.data.DataLoader(
            self._fetch,
            batch_sampler=turns,
            num_workers=workers,
            persistent_workers=True,
            prefetch_factor=2,
            collate_fn=_as_fetched,
            worker_init_fn=_begin,
            # Without its own generator the loader would draw from the global one, and reading would change training.
            generator=torch.Generator(),
        )
        self._pass: Iterator[_Read | HrzsError] | None = None

    @classmethod
    def take(cls, dataset: Dataset, workers: int, size: int) -> _Reader:
        """The kept one if it fits, else a new one; until it is given back with `keep`, nobody else has it.

        Args:
            size: bytes of the pixels of a batch; 0 if that is not known.
        """
        found, cls.kept = cls.kept, None
        if found is not None:
            is_large = size == 0 or (found.slots is not None and size <= found.slots.size)
            if found.of() is dataset and found.workers == workers and (is_large or not _is_forked()):
                return found
            found.close()
        return cls(dataset, workers, size)

    def keep(self) -> None:
        self._turns.left = iter(())
        before, _Reader.kept = _Reader.kept, self
        if before is not None:
            before.close()
        if self.of() is None:
            self._collected(self.of)

    def close(self) -> None:
        """End the processes."""
        # torch has no public way to. Left to the garbage collector, each worker may take it 5 seconds.
        end = getattr(self._pass, "_shutdown_workers", None)
        self._turns.left, self._pass, self._loader = iter(()), None, None
        if end is not None:
            end()

    @classmethod
    def _collected(cls, of: weakref.ref[Dataset]) -> None:
        if cls.kept is not None and cls.kept.of is of:
            cls.kept.close()
            cls.kept = None

    def read(self, lists: Iterator[list[int]]) -> Iterator[_Read | HrzsError]:
        assert self._loader is not None
        # torch waits for all that an earlier pass has begun before it asks for the first list: then every slot is free.
        self._turns.left, self._turns.free = lists, [*range(self.slots.count if self.slots else 0)]
        with _Watch.over(), _starting() if self._pass is None else nullcontext():
            self._pass = iter(self._loader)
        _Watch.start()
        # The workers have theirs. So long as this process held it, it would never be collected.
        self._fetch.dataset = None
        while True:
            assert self._pass is not None
            with _Watch.over():
                found = next(self._pass, None)
            if found is None:
                return
            if self.slots is None or isinstance(found, HrzsError) or not isinstance(found.pixels, tuple):
                yield found
                continue
            slot, shape = found.pixels
            yield replace(found, pixels=self.slots.at(slot, shape))
            self._turns.free.append(slot)  # whoever asks for the next has done with this one


def _is_forked() -> bool:
    """Do worker processes begin as copies of this one, as on Linux before Python 3.14?"""
    return multiprocessing.get_start_method() == "fork"


def _as_fetched(found: Any) -> Any:
    return found


#: What asks the program to stop. A worker leaves it to the program what the first two mean, and ends with it.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGTERM") if hasattr(signal, name)]


@contextmanager
def _starting() -> Iterator[None]:
    """Inside, processes start in which until `_begin` no signal is answered and no garbage is collected.

    A signal for the program waits. Garbage may be other readers: their workers would be ended.
    """
    was_enabled, can_block = gc.isenabled(), hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if can_block else set()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_: int) -> None:
    gc.freeze()
    gc.enable()
    for signum in _SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


class _Watch:
    """Says when a worker has died. torch would raise wherever the program then is, in the middle of a training step."""

    raise_if_dead: Any = None
    awaiting = False

    @classmethod
    def start(cls) -> None:
        """Take the place of the handler that torch has set with its first workers."""
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") and is_main else None
        if callable(handler) and handler != cls._on_child:
            cls.raise_if_dead = handler
            signal.signal(signal.SIGCHLD, cls._on_child)

    @classmethod
    def _on_child(cls, signum: int, frame: Any) -> None:
        if cls.awaiting:
            cls.raise_if_dead(signum, frame)

    @classmethod
    @contextmanager
    def over(cls) -> Iterator[None]:
        """Inside, the death of a worker is an error, also one that died before."""
        cls.awaiting = True
        try:
            if cls.raise_if_dead is not None:
                cls.raise_if_dead(0, None)
            yield
        finally:
            cls.awaiting = False
