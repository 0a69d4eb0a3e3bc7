"""Images in batches: decoded in this process or ahead of it in others, sent as uint8, float32 on the device.

Worker processes stay for the next pass over the same dataset. They end when another dataset is read with workers, when
theirs is collected, or with the program.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
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
    fetched = _ahead(dataset, lists, count, is_pinned=device.type == "cuda") if count else _here(dataset, lists)
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
    """Images as a worker sends them: not as tensors, for these go through shared memory, which Docker has little of."""

    pixels: UInt8[np.ndarray, "B H W 3"] | UInt8[Tensor, "B H W 3"]
    labels: list[int]
    ids: tuple[str, ...]

    def pin_memory(self) -> _Read:
        """The same in memory from which a GPU copies by itself. torch calls it in a thread."""
        return replace(self, pixels=torch.as_tensor(self.pixels).pin_memory())


class _Fetch(torch.utils.data.Dataset["_Read | HrzsError"]):
    """Reads a list of images. An error is a value: raised in a worker, its message would come back mangled."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset: Dataset | None = dataset

    def __call__(self, indices: list[int]) -> _Read | HrzsError:
        data = self.dataset
        assert data is not None
        pixels = np.empty((0, 0, 0, 3), np.uint8)
        try:
            for place, index in enumerate(indices):
                image = np.asarray(data.picture(index))
                if not place:
                    pixels = np.empty((len(indices), *image.shape), np.uint8)
                if image.shape != pixels.shape[1:]:
                    (h, w, _), (_, h0, w0, _) = image.shape, pixels.shape
                    return HrzsError(
                        f"Image {data.ids[index]} is {w}×{h} where {data.ids[indices[0]]} is {w0}×{h0}: "
                        "images of different sizes have to be resized first."
                    )
                pixels[place] = image
        except HrzsError as error:
            return error
        return _Read(pixels, [data.labels[i] for i in indices], tuple(data.ids[i] for i in indices))

    __getitems__ = __call__


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
                yield _batch(found, torch.as_tensor(found.pixels))
                continue
            now, coming = coming, (found, _sent(found, device, stream))
            if now is not None:
                yield _arrived(*now, stream)
        if coming is not None:
            yield _arrived(*coming, stream)


def _sent(found: _Read, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    if stream is None:
        return torch.as_tensor(found.pixels).to(device)
    pinned = found if isinstance(found.pixels, Tensor) else found.pin_memory()
    with torch.cuda.stream(stream):
        return torch.as_tensor(pinned.pixels).to(device, non_blocking=True)


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


def _ahead(
    dataset: Dataset, lists: Iterator[list[int]], workers: int, *, is_pinned: bool
) -> Generator[_Read | HrzsError, None, None]:
    reader, is_whole = _Reader.take(dataset, workers, is_pinned=is_pinned), False
    try:
        yield from reader.read(lists)
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
        if is_whole:
            reader.keep()
        else:
            reader.close()


class _Turns:
    """The lists of the present pass: torch's batch sampler, which each pass fills anew."""

    def __init__(self) -> None:
        self.left: Iterator[list[int]] = iter(())

    def __iter__(self) -> _Turns:
        return self

    def __next__(self) -> list[int]:
        return next(self.left)


class _Reader:
    """Worker processes that read one dataset, pass after pass. The last one that was used is kept."""

    kept: ClassVar[_Reader | None] = None

    def __init__(self, dataset: Dataset, workers: int, *, is_pinned: bool) -> None:
        self.workers, self.is_pinned = workers, is_pinned
        self.of = weakref.ref(dataset, _Reader._collected)
        self._fetch, self._turns = _Fetch(dataset), _Turns()
        self._loader: torch.utils.data.DataLoader[Any] | None = torch.utils.data.DataLoader(
            self._fetch,
            batch_sampler=self._turns,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=is_pinned,
            collate_fn=_as_fetched,
            worker_init_fn=_begin,
            # Without its own generator the loader would draw from the global one, and reading would change training.
            generator=torch.Generator(),
        )
        self._pass: Iterator[_Read | HrzsError] | None = None

    @classmethod
    def take(cls, dataset: Dataset, workers: int, *, is_pinned: bool) -> _Reader:
        """The kept one if it fits, else a new one; until it is given back with `keep`, nobody else has it."""
        found, cls.kept = cls.kept, None
        if found is not None and found.of() is dataset and (found.workers, found.is_pinned) == (workers, is_pinned):
            return found
        if found is not None:
            found.close()
        return cls(dataset, workers, is_pinned=is_pinned)

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
        self._turns.left = lists
        was_enabled = gc.isenabled()
        gc.disable()  # until `_begin`, if this starts the workers
        try:
            with _Watch.over():
                self._pass = iter(self._loader)
        finally:
            if was_enabled:
                gc.enable()
        _Watch.start()
        # The workers have theirs. So long as this process held it, it would never be collected.
        self._fetch.dataset = None
        while True:
            assert self._pass is not None
            with _Watch.over():
                found = next(self._pass, None)
            if found is None:
                return
            yield found


def _as_fetched(found: Any) -> Any:
    return found


def _begin(_: int) -> None:
    """A worker leaves it to the program what Ctrl-C and a closed terminal mean, and ends with it.

    Garbage that it has from the program stays as it is: among it may be other readers, whose workers would be ended.
    """
    gc.freeze()
    gc.enable()
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


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
