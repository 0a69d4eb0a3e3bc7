from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

from hrzs.data import loader
from hrzs.errors import HrzsError
from hrzs.evaluation.adversarial import AdversarialSet
from hrzs.evaluation.runner import Evaluation, Unit
from hrzs.models.loading import read_header
from hrzs.tasks import Task

EPS = Fraction(8, 255)


@pytest.fixture
def made(evaluate: Callable[..., Evaluation]) -> AdversarialSet:
    """A leaf attack on a model that is right about every image."""
    evaluation = evaluate()
    unit = Unit("leaf-pgd", 0, "prompt", EPS)
    adversarial = AdversarialSet(evaluation.model, evaluation.task, evaluation.options, unit)
    adversarial.classifier.prepared.copy_(evaluation.classifier.prepared)
    seen: list[tuple[int, int]] = []
    adversarial.run(lambda done, total: seen.append((done, total)))
    assert seen == [(9, 24), (18, 24), (24, 24)]
    return adversarial


def test_files(made: AdversarialSet, task: Task, tmp_path: Path) -> None:
    made.write(tmp_path, png=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adversarial.safetensors", "gallery.png", "images", "manifest.jsonl",
    ]  # fmt: skip
    clean = torch.cat([batch.images for batch in loader(task.data, 24)])
    tensors = load_file(tmp_path / "adversarial.safetensors")
    images = tensors["images"]
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.cat(made.images))
    assert tensors["labels"].tolist() == list(task.data.labels)
    assert 0 < Fraction((images.double() - clean.double()).abs().max().item()) <= EPS
    assert images.min() >= 0
    assert images.max() <= 1

    manifest = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["id"] for line in manifest] == list(task.data.ids)
    for i, line in enumerate(manifest):
        assert line.keys() == {"index", "id", "label", "before", "after", "linf", "l2"}
        assert line["label"] == task.tree.classes[task.data.labels[i]]
        assert line["before"][0] == line["label"]  # right when clean: leaves go by class id
        assert len(line["before"]) == len(line["after"]) == task.tree.top
        delta = (images[i].double() - clean[i].double()).flatten()
        assert line["linf"] == delta.abs().max().item()
        assert line["l2"] == pytest.approx(delta.norm().item())
    after = sum(line["after"][0] == line["label"] for line in manifest) / 24

    header = read_header(tmp_path / "adversarial.safetensors")
    assert (header["attack"], header["attack_level"], header["eps"], header["norm"]) == ("leaf-pgd", 0, "8/255", "linf")
    assert header["task"]["tree_digest"] == task.tree.digest
    assert header["accuracies"]["clean"][0] == 1.0
    assert header["accuracies"]["robust"][0] == pytest.approx(after, abs=1e-4)
    assert after < 1

    pngs = sorted((tmp_path / "images").iterdir())
    assert len(pngs) == 24
    rounded = torch.stack([pil_to_tensor(Image.open(png)) for png in pngs]).float() / 255
    assert (rounded - images).abs().max() <= 0.5 / 255 + 1e-6
    with torch.no_grad():
        predicted = made.classifier.predict(made.model.encode_image(rounded))[0, 0]
    held = (predicted == torch.tensor(task.data.labels)).double().mean().item()
    assert header["accuracies"]["robust_after_8_bit"][0] == pytest.approx(held, abs=1e-4)


def test_gallery_is_a_picture_of_the_most_telling(made: AdversarialSet, tmp_path: Path) -> None:
    made.write(tmp_path, png=False)
    with Image.open(tmp_path / "gallery.png") as picture:
        picture.load()
        assert picture.size[0] > 1000
    assert not (tmp_path / "images").exists()
    assert "robust_after_8_bit" not in read_header(tmp_path / "adversarial.safetensors")["accuracies"]


def test_unwritable_folder(made: AdversarialSet, tmp_path: Path) -> None:
    with pytest.raises(HrzsError, match="could not be written"):
        made.write(tmp_path / "missing", png=False)
