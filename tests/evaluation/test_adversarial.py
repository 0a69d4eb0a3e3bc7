from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

from hrzs.data import loader
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation import adversarial
from hrzs.evaluation.adversarial import AdversarialSet, is_finished
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import Unit
from hrzs.evaluation.runner import Evaluation
from hrzs.models.saving import read_header
from hrzs.results.pages import gallery
from hrzs.tasks import Task

EPS = Fraction(8, 255)
TENSORS, MANIFEST = ".adversarial.safetensors.partial", ".manifest.jsonl.partial"
Make = Callable[..., AdversarialSet]


@pytest.fixture
def make(evaluate: Callable[..., Evaluation], monkeypatch: pytest.MonkeyPatch) -> Make:
    """A leaf attack on a model that is right about every image, into a folder; options as overrides.

    Nothing is drawn: that takes longer than the rest.
    """
    evaluation = evaluate()
    monkeypatch.setattr(adversarial, "draw_gallery", lambda path, *_: path.write_bytes(b"drawn"))

    def make(folder: Path, *, resume: bool = False, eps: Fraction = EPS, **overrides: Any) -> AdversarialSet:
        options = EvalOptions(**{"steps": 3, "batch_size": 9, **overrides})
        unit = Unit("leaf-pgd", 0, "prompt", eps)
        folder.mkdir(exist_ok=True)
        origin = DataOptions(split="val")
        made = AdversarialSet(evaluation.model, evaluation.task, options, unit, folder, origin=origin, resume=resume)
        made.classifier.prepared.copy_(evaluation.classifier.prepared)
        return made

    return make


def quiet(done: int, total: int) -> None:
    pass


def result(folder: Path) -> dict[str, bytes]:
    assert is_finished(folder)
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_files(make: Make, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "draw_gallery", gallery.draw_gallery)
    made, seen = make(tmp_path), []
    made.run(lambda done, total: seen.append((done, total)), png=True)
    assert seen == [(9, 24), (18, 24), (24, 24)]
    assert made.finished
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adversarial.safetensors", "gallery.png", "images", "manifest.jsonl", "summary.json",
    ]  # fmt: skip
    clean = torch.cat([batch.images for batch in loader(task.data, 24)])
    tensors = load_file(tmp_path / "adversarial.safetensors")
    assert tensors.keys() == {"images", "labels"}
    images = tensors["images"]
    assert images.dtype == torch.float32
    assert tensors["labels"].dtype == torch.int64
    assert tensors["labels"].tolist() == list(task.data.labels)
    assert 0 < Fraction((images.double() - clean.double()).abs().max().item()) <= EPS
    assert images.min() >= 0
    assert images.max() <= 1

    manifest = lines(tmp_path / "manifest.jsonl")
    assert [line["id"] for line in manifest] == list(task.data.ids)
    for i, line in enumerate(manifest):
        assert list(line) == ["index", "id", "label", "before", "after", "after_8_bit", "success", "linf", "l2"]
        assert line["index"] == i
        assert line["label"] == task.tree.classes[task.data.labels[i]]
        assert line["before"][0] == line["label"]  # right when clean: leaves go by class id
        assert len(line["before"]) == len(line["after"]) == len(line["after_8_bit"]) == task.tree.height
        assert line["success"] == (line["after"][0] != line["label"])
        delta = (images[i].double() - clean[i].double()).flatten()
        assert line["linf"] == delta.abs().max().item()
        assert line["l2"] == pytest.approx(delta.norm().item())
    assert {line["success"] for line in manifest} == {True, False}

    pngs = sorted((tmp_path / "images").iterdir())
    assert len(pngs) == 24
    rounded = torch.stack([pil_to_tensor(Image.open(png)) for png in pngs]).float() / 255
    assert (rounded - images).abs().max() <= 0.5 / 255 + 1e-6
    with torch.no_grad():
        nodes = made.classifier.predict(made.model.encode_image(rounded))[0]
    classes = [task.tree.classes[i] for i in nodes[0].tolist()]
    assert [line["after_8_bit"][0] for line in manifest] == classes

    held = [line["label"] == line["after"][0] for line in manifest]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == made.summary()
    assert summary["clean"][0] == 1.0
    assert summary["robust"][0] == sum(held) / 24 < 1
    assert summary["robust_after_8_bit"][0] == sum(map(str.__eq__, classes, [r["label"] for r in manifest])) / 24
    assert [len(summary[name]) for name in ("clean", "robust", "robust_after_8_bit")] == [task.tree.height] * 3
    with Image.open(tmp_path / "gallery.png") as picture:
        picture.load()
        assert picture.size[0] > 1000


def test_header_says_what_the_images_are(make: Make, task: Task, tmp_path: Path) -> None:
    made = make(tmp_path, seed=7, template="tecoa")
    made.run(quiet)
    header = read_header(tmp_path / "adversarial.safetensors")
    expected = {
        "attack": "leaf-pgd", "attack_level": 0, "scoring": "prompt", "eps": "8/255", "step_size": "2/255", "steps": 3,
        "norm": "linf", "restarts": 1, "random_start": True, "early_stop": False, "seed": 7, "precision": "fp32", "head": "cosine", "template": "tecoa",
        "prompts_digest": made.classifier.prompts.digest, "model_digest": "random:0",
        "model": made.model.info.source, "model_config": made.model.info.config, "task": json.loads(json.dumps(task.describe())),
        "origin": {"data": "shapes", "data_root": None, "split": "val", "tree": None, "classes": None},
    }  # fmt: skip
    assert {key: header.get(key) for key in expected} == expected
    assert not (tmp_path / "images").exists()


def test_wrong_when_clean_is_not_robust(make: Make, task: Task, tmp_path: Path) -> None:
    made = make(tmp_path, steps=1)
    task.data.labels = [(label + 1) % len(task.tree.classes) for label in task.data.labels]
    made.run(quiet)
    assert made.summary()["clean"][0] == made.summary()["robust"][0] == 0.0


# -- interrupted, and resumed to the same bytes -------------------------------------------------------------------


class Stop(BaseException):
    """What a signal does to a process, wherever it is."""


def test_goes_on_from_wherever_it_was_stopped(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "whole").run(quiet)
    whole = result(tmp_path / "whole")
    wrapped = [(adversarial, name) for name in ("allocate", "write_images", "fsync", "draw_gallery")]
    wrapped += [(Path, "replace"), (adversarial.os, "truncate")]
    moments = 0
    while True:
        folder, calls = tmp_path / f"stopped-{moments}", 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                if calls == moments:  # noqa: B023 -- called in this turn of the loop only
                    raise Stop
                calls += 1
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patched:
            for owner, name in wrapped:
                patched.setattr(owner, name, counted(getattr(owner, name)))
            try:
                make(folder).run(quiet)
            except Stop:
                assert not is_finished(folder)
            else:
                break
        make(folder, resume=True).run(quiet)
        assert result(folder) == whole, f"stopped before call {moments}"
        moments += 1
    # One allocation, three batches of two writes each, the gallery, and three renames.
    assert moments == 1 + 3 * 2 + 1 + 3


@pytest.mark.parametrize("cut", [-1, -40, 30, 0, b"\0" * 30, b'{"index": 18, "id'],
                         ids=["no line end", "half a line", "first line", "nothing", "zeros", "begun line"])  # fmt: skip
def test_a_torn_line_costs_its_batch(make: Make, tmp_path: Path, cut: int | bytes) -> None:
    make(tmp_path / "whole").run(quiet)
    stopped_after(2, make(tmp_path / "torn"))
    manifest = tmp_path / "torn" / MANIFEST
    whole = manifest.read_bytes()
    assert len(whole.splitlines()) == 18
    manifest.write_bytes(whole + cut if isinstance(cut, bytes) else whole[:cut])
    made = make(tmp_path / "torn", resume=True)
    assert made.done == {-1: 9, -40: 9, 30: 0, 0: 0}.get(cut, 18)  # type: ignore[call-overload]
    made.run(quiet)
    assert result(tmp_path / "torn") == result(tmp_path / "whole")


def stopped_after(batches: int, made: AdversarialSet) -> None:
    """Run, and be interrupted once so many batches are done."""

    def progress(done: int, total: int) -> None:
        if done == batches * made.options.batch_size:
            raise Stop

    with pytest.raises(Stop):
        made.run(progress)


def test_finished_batches_are_not_made_again(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(2, make(tmp_path))
    made, sizes, attack = make(tmp_path, resume=True), [], adversarial.AdversarialSet._describe
    monkeypatch.setattr(AdversarialSet, "_describe", lambda *a: sizes.append(len(a[2])) or attack(*a))
    made.run(quiet)
    assert sizes == [6]


def test_another_batch_size_may_go_on(make: Make, tmp_path: Path) -> None:
    stopped_after(2, make(tmp_path))
    made = make(tmp_path, resume=True, batch_size=4)
    assert made.done == 16
    made.run(quiet)
    assert [line["index"] for line in lines(tmp_path / "manifest.jsonl")] == list(range(24))


def test_without_resume_it_starts_anew(make: Make, tmp_path: Path) -> None:
    stopped_after(1, make(tmp_path))
    made = make(tmp_path, eps=EPS / 2)
    assert made.done == 0
    made.run(quiet)
    assert read_header(tmp_path / "adversarial.safetensors")["eps"] == "4/255"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eps": EPS / 2}, r"made with eps '8/255' \(now '4/255'\); step_size '2/255' \(now '1/255'\)"),
        ({"seed": 1}, r"seed 0 \(now 1\)"),
        ({"steps": 4}, r"steps 3 \(now 4\)"),
        ({"template": "tecoa"}, r"template 'photo' \(now 'tecoa'\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("finished", [False, True], ids=["partial", "finished"])
def test_other_options_are_refused(
    make: Make, tmp_path: Path, overrides: dict[str, Any], message: str, finished: bool
) -> None:
    if finished:
        make(tmp_path).run(quiet)
    else:
        stopped_after(1, make(tmp_path))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=message):
        make(tmp_path, resume=True, **overrides)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_other_images_are_refused(make: Make, task: Task, tmp_path: Path) -> None:
    stopped_after(1, make(tmp_path))
    task.data.ids = task.data.ids[::-1]  # the digest of the ids does not know their order
    with pytest.raises(UsageError, match="other images, or in another order"):
        make(tmp_path, resume=True)


def test_unwritable_folder(make: Make, tmp_path: Path) -> None:
    made = make(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(HrzsError, match="could not be written"):
        made.run(quiet)
