"""Data of ImageNet's size: how long it takes to open, and how fast it is read beside torchvision (`make bench`)."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hrzs.data import loader, open_dataset, resize_to

pytestmark = pytest.mark.benchmark

CLASSES, OF_CLASS = 1000, 1281
SHARDS, OF_SHARD = 128, 10_000

#: Runs in a process of its own. CPU seconds and peak MB beyond those of the imports, of each step.
PROGRAM = """
import gc, json, os, resource, sys, time
import hrzs.evaluation, hrzs.training.trainer
from hrzs.data import digest, open_dataset, subset

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
base, found = peak(), {}
def step(name, function):
    began = time.process_time()
    result = function()
    found[name] = [round(time.process_time() - began, 2), round(peak() - base)]
    return result

train = step("open (train, without the tenth that is held out)", lambda: open_dataset(sys.argv[1], "train"))
step("digest", lambda: digest(train))
balanced = step("class-balanced order", lambda: subset(train, limit=None))
step("open again (val, the tenth)", lambda: open_dataset(sys.argv[1], "val"))

# What a worker process makes its own by looking at every id and label once.
gc.collect()
gc.freeze()
end, start = os.pipe()
if not os.fork():
    def own(): return sum(int(l.split()[1]) for l in open("/proc/self/smaps_rollup") if l.startswith("Private_")) / 1024
    before = own()
    for i in range(len(balanced)):
        balanced.ids[i], balanced.labels[i], balanced.indices[i]
    os.write(start, json.dumps(own() - before).encode())
    os._exit(0)
os.wait()
print(json.dumps({"images": len(train), "steps": found, "worker": round(json.loads(os.read(end, 99)))}))
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """Removed afterwards, unlike ``tmp_path``: a million files are many."""
    with tempfile.TemporaryDirectory(prefix="hrzs-bench-") as folder:
        yield Path(folder)


def make_folder(place: Path) -> Path:
    for c in range(CLASSES):
        folder = place / f"images/n{c:08d}"
        folder.mkdir(parents=True)
        for i in range(OF_CLASS):
            os.close(os.open(folder / f"n{c:08d}_{i}.JPEG", os.O_CREAT | os.O_WRONLY))
    return place / "images"


def make_shards(place: Path) -> Path:
    """``KEY.cls`` and ``KEY.jpg``, the image of three bytes."""

    def member(name: str, content: bytes) -> bytes:
        head = bytearray(plain)
        head[:100] = name.encode().ljust(100, b"\0")
        head[124:136] = b"%011o\0" % len(content)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        return bytes(head) + content.ljust(tarfile.BLOCKSIZE, b"\0")

    plain = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT)
    (place / "shards").mkdir()
    for shard in range(SHARDS):
        keys = range(shard * OF_SHARD, (shard + 1) * OF_SHARD)
        members = (
            member(f"{key:09d}.{ending}", content)
            for key in keys
            for ending, content in (("cls", b"%d" % (key % CLASSES)), ("jpg", b"jpg"))
        )
        (place / f"shards/{shard:04d}.tar").write_bytes(b"".join(members) + bytes(10240))
    return place / "shards"


@pytest.mark.parametrize(
    ("make", "bound", "megabytes"), [(make_folder, 20, 700), (make_shards, 120, 700)], ids=["folder", "shards"]
)
def test_a_million_images_open_in_seconds(
    make: Callable[[Path], Path], bound: float, megabytes: float, place: Path
) -> None:
    path = make(place)
    environment = os.environ | {"HRZS_CACHE": "1", "XDG_CACHE_HOME": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    kept = sum(file.stat().st_size for file in (place / "cache").rglob("*") if file.is_file()) / 1e6
    print(f"\n{found['images']:,} images of {path.name}, {time.perf_counter() - began:.0f} s with imports:")
    for step, (seconds, peak) in found["steps"].items():
        print(f"  {step}: {seconds:.1f} s of CPU time; peak {peak} MB beyond the imports")
    print(f"  a worker that saw every id and label has {found['worker']} MB of its own; indices on disk: {kept:.0f} MB")
    assert (
        found["images"]
        == {"images": CLASSES * (OF_CLASS - OF_CLASS // 10), "shards": SHARDS * OF_SHARD * 9 // 10}[path.name]
    )
    opened, again = (found["steps"][name][0] for name in (next(iter(found["steps"])), "open again (val, the tenth)"))
    assert opened <= bound
    assert path.name == "images" or again <= 0.7 * opened
    assert max(peak for _, peak in found["steps"].values()) <= megabytes
    assert found["worker"] <= 64


def photographs(folder: Path, count: int) -> None:
    """JPEGs of 500 × 375, of about the size in bytes of ImageNet's."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-20, 21, (375, 500, 3))
        file = folder / f"class{i % 4}" / f"{i:04d}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)


def test_reading_is_as_fast_as_that_of_torchvision(place: Path) -> None:
    """The same files to the same pixels; CPU time, that of the workers with it, and wall time beside."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

    photographs(place / "test", 600)
    transform = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor()])
    theirs, opened = ImageFolder(place / "test", transform), open_dataset(str(place), "test")

    def torchvision(workers: int) -> list[torch.Tensor]:
        return [images for images, _ in torch.utils.data.DataLoader(theirs, 64, num_workers=workers)]

    def hrzs(workers: int) -> list[torch.Tensor]:
        data = resize_to(opened, 224)  # with which its workers end, so that their time is known
        return [batch.images for batch in loader(data, 64, workers)]

    assert all(torch.equal(a, b) for a, b in zip(torchvision(0), hrzs(0), strict=True))
    for workers in (0, 1, 2):
        times: dict[str, list[tuple[float, float]]] = {"torchvision": [], "hrzs": []}
        for _ in range(4):
            for read in (torchvision, hrzs):
                cpu, began = cpu_seconds(), time.perf_counter()
                read(workers)
                times[read.__name__].append((cpu_seconds() - cpu, time.perf_counter() - began))
        (a, wall_a), (b, wall_b) = (tuple(map(min, zip(*each, strict=True))) for each in times.values())
        print(
            f"\n--workers {workers}: torchvision's ImageFolder / ours, CPU time: {a / b:.3f} (bound 0.97), wall time: "
            f"{wall_a / wall_b:.3f}; ours: {600 / b:.0f} images a second of CPU time, {600 / wall_b:.0f} a second"
        )
        assert a / b >= 0.97


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
