import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from hrzs.data import Dataset, ImageError, loader, read, reading
from hrzs.data.base import as_images
from hrzs.errors import HrzsError


class Plain(Dataset):
    """Images of one colour, two classes, the size of each as told; ``drawn`` are the indices of those asked for."""

    name, split = "plain", "all"
    classes, class_names = ("c0", "c1"), ("thing 0", "thing 1")

    def __init__(self, count: int, sizes: Sequence[tuple[int, int]] = ((6, 6),)) -> None:
        self.labels = [i % 2 for i in range(count)]
        self.ids = [f"c{i % 2}/{i}.png" for i in range(count)]
        self.sizes = sizes
        self.native_size = sizes[0][0]
        self.drawn: list[int] = []

    def picture(self, index: int) -> Image.Image:
        self.drawn.append(index)
        return Image.new("RGB", self.sizes[index % len(self.sizes)], (index % 256, index // 256, 255))


class Broken(Plain):
    def picture(self, index: int) -> Image.Image:
        if index == 3:
            raise ImageError(f"Image {self.ids[index]} cannot be decoded.")
        return super().picture(index)


def workers() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Workers that a test has kept end with its datasets."""
    yield
    gc.collect()
    assert workers() == set()


def test_every_byte_becomes_itself_over_255() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    images = as_images(pixels)
    assert torch.equal(images, pixels.permute(0, 3, 1, 2).to(torch.float32).div(255))
    assert images.is_contiguous()


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("native_size", [6, None])
def test_batches_do_not_depend_on_workers(count: int, native_size: int | None) -> None:
    """Nor on whether workers know beforehand how much memory a batch takes."""
    data = Plain(600)
    data.native_size = native_size
    before = torch.random.get_rng_state()
    batches = list(loader(data, 4, count, order=[9, 0, 3, 3, 511]))
    assert [b.ids for b in batches] == [("c1/9.png", "c0/0.png", "c1/3.png", "c1/3.png"), ("c1/511.png",)]
    assert batches[0].labels.tolist() == [1, 0, 1, 1]
    expected = torch.tensor([[9, 0, 255], [0, 0, 255], [3, 0, 255], [3, 0, 255]]).float().div(255)[:, :, None, None]
    assert torch.equal(batches[0].images, expected.expand(4, 3, 6, 6))
    assert torch.equal(batches[1].images[0], data[511].image)
    # Reading data must not change what a training run draws next.
    assert torch.equal(before, torch.random.get_rng_state())


def test_loader_goes_through_all_in_order() -> None:
    data = Plain(7)
    assert [i for batch in loader(data, 3) for i in batch.ids] == data.ids


@pytest.mark.parametrize("count", [0, 2])
def test_lists_are_asked_for_as_they_are_needed(count: int) -> None:
    """Of an endless iterable, and of numpy's integers; each worker has two lists ahead."""
    asked: list[int] = []

    def lists() -> Iterator[Sequence[int]]:
        for step in itertools.count():
            asked.append(step)
            yield np.array([step % 50, 7])  # type: ignore[misc]

    data = Plain(50)
    batches = read(data, lists(), workers=count)
    for step in range(120):
        batch = next(batches)
        assert batch.ids == (data.ids[step % 50], data.ids[7])
        assert len(asked) <= step + 1 + 2 * count
    del batches


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_batches_of_any_size_one_after_the_other(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into the memory that is shared, or is made when there is none, comes through a pipe."""
    monkeypatch.setattr(reading, "_is_forked", lambda: start == "fork")
    data = Plain(300)
    lists = [[1], [2, 3, 4], [5], *([i] for i in range(6, 90)), [*range(90, 300)]]
    for _ in range(2):
        for batch, indices in zip(read(data, lists, workers=2), lists, strict=True):
            assert (batch.images[:, 0, 0, 0] * 255).round().tolist() == [i % 256 for i in indices]
    first = workers()
    for many in (200, 100, 300):
        (batch, *_) = loader(data, many, 2)
        assert (batch.images[:, 0, 0, 0] * 255).round().tolist() == [i % 256 for i in range(many)]
    assert (workers() == first) == (start == "spawn")


def test_pixels_are_not_sent_if_they_can_be_shared() -> None:
    slots = reading._Slots(3, 8 * 64 * 64 * 3)
    fetch = reading._Fetch(Plain(8, sizes=[(64, 64)]), slots)
    sent = fetch.__getitems__(([*range(8)], 1))
    assert len(ForkingPickler.dumps(sent)) < 1000
    assert isinstance(sent, reading._Read)
    shared = slots.at(*sent.pixels)  # type: ignore[misc]
    assert np.array_equal(shared, fetch([*range(8)]).pixels)  # type: ignore[union-attr]


def test_nothing_is_read_that_is_not_asked_for() -> None:
    """A run that goes on in the middle of an epoch cuts the order before anything is decoded."""
    data, order = Plain(40), [*range(39, -1, -1)]
    assert [i for batch in loader(data, 4, order=order[24:]) for i in batch.ids] == [data.ids[i] for i in order[24:]]
    assert data.drawn == order[24:]


def test_an_empty_pass() -> None:
    data = Plain(4)
    assert list(loader(data, 4, 1, order=[])) == []
    assert len(list(loader(data, 4, 1))) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_the_broken_image_is_named_after_the_batches_before_it(count: int) -> None:
    data = Broken(8)
    batches = loader(data, 2, count)
    assert next(batches).ids == ("c0/0.png", "c1/1.png")
    with pytest.raises(ImageError, match=r"^Image c1/3\.png cannot be decoded\.$"):
        next(batches)
    assert next(loader(data, 2, count, [4, 5])).ids == ("c0/4.png", "c1/5.png")


def test_images_that_differ_in_size_are_named() -> None:
    with pytest.raises(HrzsError, match=r"c1/1\.png is 6×7 where c0/0\.png is 6×6"):
        list(loader(Plain(4, sizes=[(6, 6), (6, 7)]), 2))


def test_workers_send_the_pixels_themselves() -> None:
    """A tensor would be sent as the name of a piece of shared memory, of which Docker has 64 MB."""
    sent = reading._Fetch(Plain(8, sizes=[(64, 64)]))([*range(8)])
    assert len(ForkingPickler.dumps(sent)) > 8 * 64 * 64 * 3


# -- workers that stay -------------------------------------------------------------------------------------------------


def test_workers_stay_for_the_next_pass() -> None:
    data = Plain(40)
    assert len(list(loader(data, 4, 2))) == 10
    first = workers()
    assert len(first) == 2
    for order in ([5], [*range(40)], [39, 38, 37]):
        assert [i for batch in loader(data, 2, 2, order) for i in batch.ids] == [data.ids[i] for i in order]
        assert workers() == first


def test_a_pass_that_is_broken_off_leaves_nothing_to_the_next() -> None:
    data = Plain(40)
    assert next(loader(data, 2, 2)).ids == tuple(data.ids[:2])
    first = workers()
    for start in (10, 20, 30):
        batches = loader(data, 2, 2, range(start, 40))
        assert next(batches).ids == tuple(data.ids[start : start + 2])
        batches.close()  # type: ignore[attr-defined]
    assert workers() == first


def test_two_passes_at_once() -> None:
    data = Plain(12)
    for one, two in zip(loader(data, 3, 1), loader(data, 3, 1, range(11, -1, -1)), strict=True):
        assert one.ids == two.ids[::-1] or set(one.ids) != set(two.ids)
        assert torch.equal(one.images[0], data[data.ids.index(one.ids[0])].image)
        assert torch.equal(two.images[0], data[data.ids.index(two.ids[0])].image)
    assert len(workers()) == 1


def test_workers_end_with_their_dataset_or_when_another_is_read() -> None:
    one, two = Plain(4), Plain(4)
    list(loader(one, 2, 1))
    first = workers()
    list(loader(two, 2, 1))
    assert len(workers()) == 1
    assert not workers() & first
    del two
    gc.collect()
    assert workers() == set()


@pytest.mark.parametrize("ahead", [0.0, 0.5])
def test_a_worker_that_is_killed_is_noticed(ahead: float) -> None:
    """While a batch is awaited, or before; what the program does in between is not broken off."""
    data = Plain(40_000, sizes=[(64, 64)])
    batches = loader(data, 64, 2)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    time.sleep(ahead)
    with pytest.raises(ImageError, match=r"--workers 2: a process that reads images cannot go on .*--workers 0"):
        list(batches)
    assert len(next(loader(data, 64, 2)).ids) == 64


def test_workers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", refuse)
    with pytest.raises(ImageError, match=r"--workers 2: .* \(\[Errno 28\] No space left on device\)"):
        list(loader(Plain(4), 2, 2))


def test_workers_end_after_an_error_of_another_kind() -> None:
    def lists() -> Iterator[list[int]]:
        yield from ([0], [1], [2])
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        list(read(Plain(4), lists(), workers=1))
    gc.collect()
    assert workers() == set()


PROGRAM = """
import multiprocessing, os, signal, sys
sys.path.insert(0, sys.argv[1])
from hrzs.data import loader, open_dataset
from hrzs.stopping import Stopped, listen, stop_here, unbroken
data = open_dataset("shapes", "val")
try:
    with listen(), unbroken():
        for batch in loader(data, 2, 2):
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            if sys.argv[2] == "stop":
                os.killpg(0, signal.SIGINT)
            stop_here()
            break
except Stopped as stopped:
    sys.exit(stopped.status)
"""


@pytest.mark.parametrize(("how", "status"), [("end", 0), ("stop", 130)])
def test_workers_end_with_the_program(how: str, status: int) -> None:
    """Also if Ctrl-C reaches all of its processes; only the program itself says so."""
    root = str(reading.__file__).rpartition("/hrzs/")[0]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, root, how], capture_output=True, text=True, start_new_session=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == (2 if how == "stop" else 0), done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "device", "count", "processes", "expected"),
    [
        (3, "cpu", 10, "1", 3),
        (0, "cuda", 5000, "1", 0),
        (None, "cpu", 5000, "1", 0),
        (None, "cuda", 5000, "1", 12),
        (None, "cuda", 5000, "4", 3),
        (None, "cuda", 5000, "64", 1),
        (None, "cuda", 200, "1", 3),
        (None, "cuda", 20, "1", 0),
    ],
)
def test_number_of_workers(
    given: int | None, device: str, count: int, processes: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert reading.workers_for(given, Plain(count), torch.device(device)) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("count", [0, 2])
def test_batches_on_a_gpu_have_the_same_bits(count: int) -> None:
    data = Plain(600)
    for here, there in zip(loader(data, 64), loader(data, 64, count, device="cuda"), strict=True):
        assert there.images.device.type == "cuda"
        assert torch.equal(here.images, there.images.cpu())
        assert (here.ids, here.labels.tolist()) == (there.ids, there.labels.tolist())
