"""The scripts behind docs/results.md run from end to end, with next to no steps and images."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
#: WordNet ids; every fourth is unseen.
CLASSES = ("n01443537", "n01629819", "n01774384", "n02094433", "n02099601", "n02099712", "n02106662", "n02113799",
           "n02123045", "n02123394", "n02410509", "n02814533")  # fmt: skip
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def script(name: str, *arguments: object) -> str:
    """What a script prints."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        "OMP_NUM_THREADS": "1",
        "HRZS_CACHE": "0",
    }
    command = [sys.executable, str(ROOT / "docs" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of noise, 4 to train on and 18 to validate on in each class, and a model's config."""
    folder = tmp_path_factory.mktemp("evidence")
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 18)):
        for c in CLASSES:
            (folder / "images" / split / c).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / c / f"{split}_{i:02}.png")
    (folder / "clip.json").write_text(json.dumps(CONFIG))
    return folder


def common(place: Path) -> list[object]:
    return ["--images", place / "images", "--config", place / "clip.json", "--weights", "none", "--device", "cpu",
            "--miniature"]  # fmt: skip


def test_results_are_made_resumed_and_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "results").mkdir()
    for rate in ("2e-4", "8e-4"):  # tried already, and worse
        record = {"last": {"validation": {"criterion": -1.0, "clean": [0.0], "robust": [0.0]}}}
        (place / "results" / f"training-tune-tecoa-{rate}.json").write_text(json.dumps(record))
    rows = ["--rows", "untouched;tecoa", "--stages", "tune,main", "--results", place / "results"]
    made = script("make_results", *common(place), *rows, "--work", place / "work")
    assert "0 failed, 0 left to do" in made
    load("evidence"), load("paired")  # the scripts import them by these names
    load("make_results").main([*map(str, ("--plan", "--miniature", *rows, "--work", place / "elsewhere"))])
    assert capsys.readouterr().out.startswith("0.0 h")
    report = json.loads((place / "results" / "tecoa-s1-seen.json").read_text())
    nodes = json.loads((place / "results" / "nodes.json").read_text())
    assert len(nodes[report["tasks"][0]["image_ids"]]["nodes"][0]) == report["tasks"][0]["n"]
    load("show_results").main([*map(str, ("--results", place / "results", "--figures", place / "figures"))])
    shown = capsys.readouterr().out
    assert "| a constant answer |" in shown
    assert "| tecoa | 3 |" in shown


def test_certificates_are_made_and_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = place / "certified"
    results.mkdir()
    for rate in ("1e-4", "2e-4", "4e-4", "8e-4"):  # the rate of `noise` is that of `clean`
        look = {"criterion": float(rate == "2e-4"), "clean": [0.0], "robust": [0.0]}
        record = {"first": {}, "last": {"validation": look}}
        (results / f"training-tune-clean-{rate}.json").write_text(json.dumps(record))
    rows = ["--rows", "untouched;noise", "--stages", "certificates", "--results", results]
    made = script("make_results", *common(place), *rows, "--work", place / "noisy")
    assert "0 failed, 0 left to do" in made
    assert json.loads((results / "training-noise.json").read_text())["lr"] == "2e-4"
    load("evidence"), load("paired")
    load("show_results").main([*map(str, ("--results", results, "--figures", place / "figures"))])
    shown = capsys.readouterr().out
    assert "**Certified accuracy within an ℓ2 radius r, balanced**" in shown
    assert "| untouched | 0 |" in shown
    assert "Certified accuracy, noise less untouched" in shown
    assert "<svg" in (place / "figures" / "certified.svg").read_text()


def test_defences_are_attacked_and_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = place / "defended"
    results.mkdir()
    rows = ["--rows", "untouched", "--stages", "defences", "--results", results]
    made = script("make_results", *common(place), *rows, "--work", place / "behind")
    assert "0 failed, 0 left to do" in made
    load("evidence"), load("paired")
    load("show_results").main([*map(str, ("--results", results, "--figures", place / "figures"))])
    behind, harder = capsys.readouterr().out.split("**Behind defences")[1].split("**The same under")
    assert [re.findall(rf"untouched \| {name} \| (\d)", behind) for name in ("none", "ttc", "r-tpt")] == [
        ["3"],
        ["3"],
        ["2"],
    ]
    assert re.findall(r"untouched \| (\S+)", harder) == [*load("evidence").HARDER]


def test_a_row_that_fails_is_named_and_the_rest_goes_on(place: Path) -> None:
    evidence, make = load("evidence"), load("make_results")
    done: list[str] = []

    def work(where: Any, job: Any) -> None:
        if job.name == "bad":
            raise ValueError("no such option\nat all")
        (where.work / job.name).touch()

    def left(_: Any) -> Any:
        return (
            SimpleNamespace(name=name, ready=True) for name in ("bad", "good", "better") if not (place / name).exists()
        )

    bench = make.Place(place, sizes=evidence.MINIATURE)
    failed = make.work_off(bench, left, 2, math.inf, work, lambda: done.append(""))
    assert failed == {"bad": "ValueError: no such option"}
    assert (place / "good").exists()
    assert (place / "better").exists()
    assert len(done) == 3
    assert "Traceback" in (place / "logs" / "bad.log").read_text()
    assert make.work_off(bench, left, 1, 0.0, work) == {}  # after the deadline nothing is begun


def test_bigger_model_in_miniature(place: Path) -> None:
    output = place / "bigger.json"
    rows = ["--rows", "untouched,hierarchical,tecoa", "--work", place / "bigger", "--threads", 1]
    script("bigger_model", *common(place), *rows, "--output", output)
    found = json.loads(output.read_text())
    assert found["failed"] == {}
    assert found["skipped"] == []
    assert {(row["part"], row["row"]) for row in found["rows"]} == {
        ("vit", "pretrain"),
        *((part, row) for part in ("small", "vit") for row in ("untouched", "hierarchical", "tecoa")),
    }
    for part in ("small", "vit"):
        (verdict,) = (entry["verdict"] for entry in found["differences"][part] if entry["less"] == "tecoa")
        assert verdict in ("confirmed", "refuted", "undecided")


def test_differences_hold_images_and_seeds() -> None:
    paired = load("paired")
    # Tables of Student's t: 0.025 beyond 2.776 with 4 degrees of freedom, beyond 1.962 with 1000.
    assert paired.t_quantile(4) == pytest.approx(2.776, abs=1e-3)
    assert paired.t_quantile(1000) == pytest.approx(1.962, abs=1e-3)
    assert paired.t_tails(0.0, 3) == 1.0
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 500, generator=generator) < p for p in (0.6, 0.4))
    weights = torch.full((500,), 1 / 500, dtype=torch.float64)
    alone, three = paired.paired(a[:1], b[:1], weights), paired.paired(a, b, weights)
    assert alone.half == pytest.approx(100 * 1.965 * (a[0].double() - b[0].double()).std().item() / 500**0.5, rel=1e-3)
    assert three.middle == pytest.approx(20, abs=5)
    # Seeds that share nothing are so many more images: their variance is not counted a second time.
    assert three.half == pytest.approx(alone.half / 3**0.5, rel=0.1)
    assert paired.paired(a, a, weights).is_equivalence


@pytest.mark.parametrize("spread", [0.0, 0.04])
def test_intervals_hold_the_truth_as_often_as_they_say(spread: float) -> None:
    """Two methods that are alike: what differs is chance, of images and (``spread``, in accuracy) of seeds.

    At least as often: without an effect of seeds the interval is too long, for three say little of how few they are.
    """
    paired = load("paired")
    generator = torch.Generator().manual_seed(0)
    n, held, tries = 300, 0, 400
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    for _ in range(tries):
        images = torch.rand(n, generator=generator)  # how hard each is, for both
        sides = [
            torch.rand(3, n, generator=generator) < images + spread * torch.randn(3, 1, generator=generator)
            for _ in range(2)
        ]
        found = paired.paired(*sides, weights)
        assert (found.p < 0.05) == (abs(found.middle) > found.half)
        held += abs(found.middle) <= found.half
    assert held / tries >= 0.93


def test_images_from_the_device_are_those_of_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = load("decoded")
    from hrzs.data import loader, open_dataset, read, subset
    from hrzs.evaluation import canaries, runner
    from hrzs.training import trainer, validation

    theirs = {"read": read, "loader": loader}
    taken = [(m, name) for m in (canaries, runner, trainer, validation) for name in theirs if hasattr(m, name)]
    for module, name in taken:
        monkeypatch.setattr(module, name, theirs[name])  # so that it is put back
    decoded.load_from_device("cpu")
    assert {module for module, _ in taken} == {canaries, runner, trainer, validation}
    data = subset(open_dataset("shapes", "val"), limit=12)
    kept = decoded.decode(data)
    for view, whole in ((subset(kept, limit=7, skip=2), subset(data, limit=7, skip=2)), (kept, data)):
        for module, name in taken:
            given = ([[3, 1, 4], [1]],) if name == "read" else (3, 0, [3, 1, 4, 1])
            for ours, theirs_ in zip(getattr(module, name)(view, *given), theirs[name](whole, *given), strict=True):
                assert torch.equal(ours.images, theirs_.images)
                assert torch.equal(ours.labels, theirs_.labels)
                assert ours.ids == theirs_.ids
            assert getattr(module, name) is not theirs[name]


def test_corruptions_depend_on_the_image_alone() -> None:
    decoded = load("decoded")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for name in decoded.STRENGTH:
        whole = decoded.corrupted(pixels, "abcd", name)
        assert whole.dtype == np.uint8
        assert (whole != pixels).any()
        assert (decoded.corrupted(pixels[2:], "cd", name) == whole[2:]).all()
