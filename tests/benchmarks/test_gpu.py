"""`make gpu` is ready when a GPU comes: the same script, with next to nothing of everything, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest

#: What each part finds.
EXPECTED = {
    "about": {"torch", "CUDA", "Python", "CPU cores", "rate"},
    "tests": {"passed", "failed", "error", "last lines"},
    "training": {
        "fp32, 4 images, tecoa, 1 tree", "fp32, 4 images, hierarchical, 1 tree", "fp32, 4 images, hierarchical, 5 trees",
    },
    "evaluation": {
        "tiny, fgsm", "tiny, leaf-pgd", "tiny, hierarchical-pgd", "tiny, apgd-ce", "tiny, autoattack",
        "tiny, an evaluation by leaf-pgd", "a-small-ViT, PGD-2, fp32", "a-small-ViT, AutoAttack of 1 steps, fp32",
    },
    "resume": {
        "seconds of the whole run", "killed after steps", "operations without a deterministic form", "tensors",
        "other tensors",
    },
    "profile": {"hierarchical by host", "tecoa by host"},
    "torchrun": {"exit status"},
}  # fmt: skip


def test_all_parts_on_the_cpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(gpu.__file__)), "--small", "--device", "cpu", "--output", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([gpu.paths(), os.environ["PYTHONPATH"]])}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {part: state["failed"] for part, state in parts.items()} == dict.fromkeys(EXPECTED)
    found = {part: state["found"] for part, state in parts.items()}
    assert {part: set(some) for part, some in found.items()} == EXPECTED
    assert (found["tests"]["passed"], found["tests"]["failed"]) == (1, 0)
    for case in found["training"].values():
        assert case["operations"] > 500
        assert min(case["images/s"], case["GFLOP/image"], case["share of rate"]) > 0
    verdicts = [value for value in found["evaluation"].values() if "other verdicts" in value]
    assert len(verdicts) == 5
    assert all(value["other verdicts"] == value["other images"] == 0 for value in verdicts)
    assert found["resume"]["other tensors"] == 0 < found["resume"]["tensors"]
    text = (tmp_path / "gpu.txt").read_text()
    assert all(f"== {part}: " in text for part in EXPECTED)
    assert "hierarchical, 5 trees" in text


def test_a_part_that_fails_or_takes_too_long_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu.Bench) -> gpu.Found:
        yield "before", 1
        raise ValueError("out of luck")

    def slow(_: gpu.Bench) -> gpu.Found:
        yield "before", {"a": 1.0}
        subprocess.run(["sleep", "600"], check=True)

    def killed(_: gpu.Bench) -> gpu.Found:
        os._exit(7)
        yield

    def whole(bench: gpu.Bench) -> gpu.Found:
        yield "left", bench.left > 0

    made = {"broken": broken, "slow": slow, "killed": killed, "whole": whole}
    monkeypatch.setattr(gpu, "PARTS", {name: (part, 0.2) for name, part in made.items()})
    gpu.main(["--device", "cpu", "--output", str(tmp_path), "--parts", ",".join(made), "--seconds", "10"])
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert "ValueError: out of luck" in parts["broken"]["failed"]
    assert parts["broken"]["found"] == {"before": 1}
    assert parts["slow"]["failed"] == "cut off after 2 s"
    assert parts["slow"]["found"] == {"before": {"a": 1.0}}
    assert parts["killed"]["failed"] == "its process ended with 7"
    assert (parts["whole"]["failed"], parts["whole"]["found"]) == (None, {"left": True})
    assert "out of luck" in (tmp_path / "gpu.txt").read_text()
