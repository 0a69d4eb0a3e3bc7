"""An exported folder is what open_clip, clip-benchmark's own command and hrzs load; it is there whole or not at all."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

import hrzs
from hrzs import publishing
from hrzs.data import open_dataset
from hrzs.errors import HrzsError, UsageError
from hrzs.models.clip import ClipModel
from hrzs.results.report import Report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hierarchical run of one step, with all that a run leaves."""
    folder: Path = tmp_path_factory.mktemp("publishing") / "run"
    return hrzs.finetune(hrzs.load("tiny"), folder, max_steps=1, batch_size=24, validate_every=0, limit=48)


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return hrzs.evaluate(hrzs.load(run), limit=24, attack="leaf-pgd", steps=1, canaries=False)


@pytest.fixture(scope="module")
def exported(run: Path, report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("exported") / "robust-tiny"
    return hrzs.export(run, folder, reports=[report], formats=("open_clip", "transformers"))


def metadata(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def test_it_has_what_the_hub_asks_for_and_nothing_of_the_run(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "README.md", "open_clip_config.json", "open_clip_model.safetensors", "config.json", "model.safetensors",
        "preprocessor_config.json", "tokenizer_config.json", "vocab.json", "merges.txt",
    }  # fmt: skip
    assert metadata(exported) == {
        "library_name": "open_clip", "pipeline_tag": "zero-shot-image-classification", "license": "mit",
        "tags": ["clip", "zero-shot-image-classification", "adversarial-robustness", "hrzs"],
    }  # fmt: skip


def test_the_card_says_how_it_was_made_and_measured(exported: Path, report: Report) -> None:
    card = (exported / "README.md").read_text()
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert (settings["method"], settings["max-steps"], settings["data"]) == ("hierarchical", 1, "shapes")
    assert "pmg-original" not in settings  # no method of this run read it
    assert hrzs.load(exported).info.run["tree_digest"] in card
    (row,) = (row for row in report.results if (row.attack, row.level) == ("leaf-pgd", 0))
    assert row.robust is not None
    assert row.robust_ci95 is not None
    low, high = (100 * end for end in row.robust_ci95)
    line = next(line for line in card.splitlines() if line.startswith("| 0 |"))
    assert f"{100 * row.robust:.1f} [{low:.1f}, {high:.1f}]" in line
    assert "ε = 2/255" in card
    assert "- steps: 1\n" in card
    assert "- head: hyperbolic\n" in card


@torch.no_grad()
def test_open_clip_loads_it(exported: Path) -> None:
    model = hrzs.load(exported)
    clip = open_clip.create_model(f"local-dir:{exported}").eval()
    pixels = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(clip.encode_image(model.preprocess(pixels)), model.encode_image(pixels))


def test_hrzs_loads_it_with_its_head(exported: Path, run: Path) -> None:
    before, after = hrzs.load(run), hrzs.load(f"local-dir:{exported}")
    assert before.geometry is not None
    assert after.geometry is not None
    assert after.geometry.values() == before.geometry.values()
    assert after.info.digest == before.info.digest


def test_transformers_never_takes_a_run_for_its_own(run: Path, tmp_path: Path) -> None:
    """Without a config.json it loads any model.safetensors, and leaves random what it does not find."""
    transformers = pytest.importorskip("transformers")
    with pytest.raises(OSError, match=r"model\.safetensors|config\.json"):
        transformers.CLIPModel.from_pretrained(hrzs.export(run, tmp_path / "open_clip-alone"))


_CLIP_BENCHMARK = """
import sys, torch
from clip_benchmark import cli
from clip_benchmark.metrics import zeroshot_classification

def accuracy(logits, target, topk):  # that of 1.6.2 fails under NumPy >= 2.4
    return [(logits.topk(k).indices == target[:, None]).any(1).float().mean().item() for k in topk]

zeroshot_classification.accuracy = accuracy
cli.main()
"""


def test_clip_benchmark_finds_the_same_accuracy(exported: Path, tmp_path: Path) -> None:
    """Its own command line, on a folder of its own form, which hrzs reads too."""
    pytest.importorskip("clip_benchmark")
    shapes, data = open_dataset("shapes", "test"), tmp_path / "shapes"
    (data / "test").mkdir(parents=True)
    (data / "classnames.txt").write_text("\n".join(shapes.classes) + "\n")
    (data / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (data / "test" / "nshards.txt").write_text("1")
    with tarfile.open(data / "test" / "0.tar", "w") as tar:
        for i in range(0, len(shapes), 50):
            image = Image.fromarray((shapes[i].image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            png = io.BytesIO()
            image.save(png, "PNG")
            for suffix, content in (("png", png.getvalue()), ("cls", str(shapes[i].label).encode())):
                entry = tarfile.TarInfo(f"{i:04d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    call = ["eval", "--dataset", "wds/shapes", "--dataset_root", data, "--model", f"local-dir:{exported}",
            "--pretrained", "", "--output", tmp_path / "theirs.json", "--num_workers", "0", "--no_amp"]  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", _CLIP_BENCHMARK, *map(str, call)], capture_output=True, text=True,
                           env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    theirs = json.loads((tmp_path / "theirs.json").read_text())["metrics"]["acc1"]
    ours = hrzs.evaluate(hrzs.load(exported), data=str(data), tree="hierarchies/shapes.yaml", attack="none",
                         head="cosine", template="a photo of a {}.", canaries=False)  # fmt: skip
    assert ours.results[0].n == 24
    assert theirs == pytest.approx(ours.results[0].clean)


def test_a_model_in_memory(model: ClipModel, tmp_path: Path) -> None:
    folder = hrzs.export(model, tmp_path / "deep" / "untuned", name="Of | a <b>kind")
    card = (folder / "README.md").read_text()
    assert "# Of \\| a &lt;b>kind\n" in card
    assert "hrzs did not fine-tune it" in card
    assert "No evaluation came with this model" in card
    assert torch.equal(hrzs.load(folder).encode_text(["a dog"]), model.encode_text(["a dog"]))


@pytest.mark.parametrize("formats", [(), ("onnx",), ("open_clip", "")])
def test_formats_that_are_none(formats: tuple[str, ...], model: ClipModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--format '.*': of open_clip, transformers"):
        hrzs.export(model, tmp_path / "out", formats=formats)


def test_a_report_of_another_model_is_refused(model: ClipModel, report: Report, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--evaluation: a report on other weights"):
        hrzs.export(model, tmp_path / "out", reports=[report])
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(UsageError, match=r"--evaluation .*no\.json: no report"):
        hrzs.export(model, tmp_path / "out", reports=[tmp_path / "no.json"])
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_is_left_half(
    model: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UsageError, match="something is there already"):
            hrzs.export(model, taken)
    empty = tmp_path / "empty"
    empty.mkdir()
    hrzs.export(model, empty)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing, "write_text", full)
    with pytest.raises(HrzsError, match="No space left on device"):
        hrzs.export(model, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "empty"}


def test_a_card_of_certificates_and_old_reports(exported: Path, report: Report, tmp_path: Path) -> None:
    """A report without rows of attacks, without versions and without tasks has a card too."""
    bare = msgspec.structs.replace(report, tasks=(), versions={}, results=report.results[:1])
    folder = hrzs.export(exported / "open_clip_model.safetensors", tmp_path / "out", reports=[bare])
    assert "### shapes/test, 24 images\n" in (folder / "README.md").read_text()
