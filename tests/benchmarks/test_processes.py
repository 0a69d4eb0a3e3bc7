"""What a second process brings (`make bench`): wall time, so both cores must be free."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-B-32 with a text transformer of one layer, which runs once per run."""
    found = open_clip.get_model_config("ViT-B-32")
    found["text_cfg"]["layers"] = 1
    file: Path = tmp_path_factory.mktemp("processes") / "ViT-B-32-short-text.json"
    file.write_text(json.dumps(found))
    return file


def steps(processes: int, config: Path, images: int, count: int) -> dict[str, Any]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    script = Path(__file__).parent / "shared_steps.py"
    made = subprocess.run(
        [*launch, str(script), str(config), str(images), str(count)],
        check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "HRZS_CACHE": "0"},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(made.stdout)
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a second process needs a second core")
def test_two_processes_beside_one(config: Path) -> None:
    """Of one thread each, on the same global batch of 32 images, PGD-3. A process then holds half of the images."""
    one, two = steps(1, config, 32, 2), steps(2, config, 32, 2)
    measured = two["images_per_second"] / one["images_per_second"]
    print(f"\ntwo processes / one, hierarchical, ViT-B-32, 32 images: {measured:.2f} times the images/s (bound ≥ 1.7); "
          f"memory of a process {two['memory_mb']:.0f} MB / {one['memory_mb']:.0f} MB")  # fmt: skip
    assert measured >= 1.7
    assert two["memory_mb"] <= one["memory_mb"]


def test_memory_of_a_process_does_not_grow_with_their_number(config: Path) -> None:
    """With two images each."""
    two, four = steps(2, config, 4, 1)["memory_mb"], steps(4, config, 8, 1)["memory_mb"]
    print(f"\nmemory of each of four processes / of each of two, two images each: {four / two:.3f} (bound ≤ 1.05)")
    assert four <= 1.05 * two
