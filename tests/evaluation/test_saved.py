from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrzs.data import loader
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation import adversarial
from hrzs.evaluation.adversarial import AdversarialSet
from hrzs.evaluation.image_file import read_images, write_images
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.outcome import gallery_of
from hrzs.evaluation.plan import Unit
from hrzs.evaluation.rows import overall_of, rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.evaluation.saved import SavedImages, SavedSet, find_saved, task_of
from hrzs.evaluation.store import Store
from hrzs.hierarchy.tree import Node, Tree
from hrzs.models.classifier import SCORINGS
from hrzs.models.clip import ClipModel
from hrzs.models.saving import read_header, write_safetensors
from hrzs.results.report import Row
from hrzs.tasks import Task, open_task

EPS = Fraction(8, 255)
OPTIONS = EvalOptions(steps=3, batch_size=9)
NOTHING = DataOptions()
Change = Callable[[Tensor, Tensor], Tensor]


def make(model: ClipModel, task: Task, folder: Path, unit: Unit, **overrides: Any) -> AdversarialSet:
    folder.mkdir(parents=True)
    options = replace(OPTIONS, **overrides)
    made = AdversarialSet(model, task, options, unit, folder, origin=NOTHING)
    made.run(lambda *_: None)
    return made


@pytest.fixture(autouse=True)
def _nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "draw_gallery", lambda path, *_: path.write_bytes(b"drawn"))


@pytest.fixture
def plain(small: ClipModel) -> Task:
    """24 shapes with their own tree."""
    return open_task("shapes", small, DataOptions(limit=24), purpose="eval")


@pytest.fixture
def folder(small: ClipModel, plain: Task, tmp_path: Path) -> Path:
    """Leaf attacks on `small`."""
    make(small, plain, tmp_path / "adv", Unit("leaf-pgd", 0, "prompt", EPS))
    return tmp_path / "adv"


def evaluate(
    model: ClipModel, folder: Path, store: Path | None = None, given: DataOptions = NOTHING, **overrides: Any
) -> Evaluation:
    sets = find_saved(folder)
    task = task_of(sets[0], model, sets[0].source(given))
    return Evaluation(model, task, replace(OPTIONS, **overrides), Store(store), sets)


def run(evaluation: Evaluation) -> list[Row]:
    evaluation.run()
    return rows_of(evaluation)


def figures(rows: list[Row], scoring: str = "prompt") -> dict[str, list[float]]:
    chosen = [row for row in rows if row.attack != "none" and row.scoring == scoring]
    return {name: [getattr(row, name) for row in chosen] for name in ("clean", "robust")}


# -- figures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both(
    evaluate: Callable[..., Evaluation], task: Task, tmp_path: Path, monkeypatch: Any
) -> tuple[dict[str, Any], list[Row]]:
    """The summary of a leaf attack on a model that is right about every image, and the rows of its images there."""
    reference = evaluate()
    made = AdversarialSet(reference.model, task, OPTIONS, Unit("leaf-pgd", 0, "prompt", EPS), tmp_path)
    made.classifier.prepared.copy_(reference.classifier.prepared)
    made.run(lambda *_: None)
    again = Evaluation(reference.model, task, OPTIONS, saved=find_saved(tmp_path))
    again.classifier.prepared.copy_(reference.classifier.prepared)
    return made.summary(), run(again)


def test_on_the_same_model_figures_are_those_of_the_attack(both: tuple[dict[str, Any], list[Row]]) -> None:
    summary, rows = both
    assert figures(rows) == {name: summary[name] for name in ("clean", "robust")}
    assert summary["robust"][0] < summary["clean"][0] == 1.0


def test_figures_are_those_of_an_attack_of_today(
    evaluate: Callable[..., Evaluation], both: tuple[dict[str, Any], list[Row]]
) -> None:
    today = evaluate(attack=("leaf-pgd",), eps=(EPS,))
    for scoring in SCORINGS:  # away from the aim too
        assert figures(both[1], scoring) == figures(run(today), scoring)


def test_rows_have_the_form_of_every_other(
    both: tuple[dict[str, Any], list[Row]], small: ClipModel, task: Task
) -> None:
    other = Evaluation(small, task, replace(OPTIONS, attack=("leaf-pgd",), eps=(EPS,)))
    expected = run(other)
    rows = both[1]
    where = (
        "dataset",
        "split",
        "n",
        "eps",
        "attack",
        "attack_level",
        "level",
        "scoring",
        "transfer",
        "attacked_through",
    )
    assert [[getattr(row, key) for key in where] for row in rows] == [
        [getattr(row, key) for key in where] for row in expected
    ]
    sources = [(row.source_model, row.source_model_digest) for row in rows]
    clean = sum(row.attack == "none" for row in rows)
    assert sources == [(None, None)] * clean + [(small.info.source, "random:0")] * (len(rows) - clean)


def test_another_model_is_scored_on_the_same_images(folder: Path, model: ClipModel, plain: Task) -> None:
    rows = run(evaluate(model, folder))
    assert {row.transfer for row in rows if row.attack == "leaf-pgd"} == {True}
    images = read_images(folder / "adversarial.safetensors", range(24))
    clean = next(loader(plain.data, 24)).images
    labels = torch.tensor(list(plain.data.labels))
    judge = Evaluation(model, plain, replace(OPTIONS, attack=("none",))).classifier
    with torch.no_grad():
        held = [(judge.predict(model.encode_image(x))[0] == plain.tree.ancestors[:-1, labels]) for x in (clean, images)]
    expected = (held[0] & held[1]).double().mean(1).tolist()
    assert figures(rows)["robust"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "other", [None, "model_digest", "model_config", "head", "prompts_digest", "tree_digest", "no digest"]
)
def test_white_box_is_the_very_same(folder: Path, small: ClipModel, other: str | None) -> None:
    saved = find_saved(folder)[0]
    header = json.loads(json.dumps(saved.header))
    if other == "no digest":  # nobody knows, then
        header["model_digest"] = ""
        small.info = replace(small.info, digest="")
    elif other == "tree_digest":
        header["task"]["tree_digest"] = "another"
    elif other is not None:
        header[other] = "another"
    task = task_of(saved, small, saved.source(NOTHING))
    rows = run(Evaluation(small, task, OPTIONS, saved=[replace(saved, header=header)]))
    at_aim = next(row for row in rows if row.attack == "leaf-pgd" and row.level == 0)
    assert at_aim.transfer is (other is not None)


def test_behind_a_defence_they_are_static(folder: Path, small: ClipModel) -> None:
    saved = find_saved(folder)
    task = task_of(saved[0], small, saved[0].source(NOTHING))
    bare, behind = (run(Evaluation(small, task, replace(OPTIONS, defence=d), saved=saved)) for d in ((), ("noise",)))
    attacked = [row for row in behind if row.attack != "none"]
    assert {(row.adversary, row.transfer, row.defence) for row in attacked} == {("static", True, "noise")}
    assert [row.level for row in behind] == [row.level for row in bare]


def test_other_prompts_are_transfer(folder: Path, small: ClipModel) -> None:
    rows = run(evaluate(small, folder, template="tecoa"))
    assert {row.transfer for row in rows if row.attack != "none"} == {True}


def test_every_level_of_a_parent_folder(small: ClipModel, plain: Task, tmp_path: Path) -> None:
    for level in (1, 2):
        make(small, plain, tmp_path / f"level-{level}", Unit("superclass-pgd", level, "prompt", EPS))
    made = evaluate(small, tmp_path)
    assert [u.level for u in made.units] == [None, 1, 2]
    rows = [row for row in run(made) if row.attack != "none"]
    assert {row.attack_level for row in rows} == {1, 2}
    direct = [row for row in rows if row.transfer is False]
    assert [(row.level, row.scoring) for row in direct] == [(1, "prompt"), (2, "prompt")]
    assert [row.robust for row in direct] == [
        json.loads((tmp_path / f"level-{level}" / "summary.json").read_text())["robust"][level] for level in (1, 2)
    ]
    (about,) = overall_of(made)
    assert set(about.severity) == {u.title for u in made.units}
    assert isinstance(made.images, SavedImages)
    assert made.images.provenance()[made.units[1].title]["attack_level"] == 1


def test_gallery_shows_the_saved_images(folder: Path, small: ClipModel, plain: Task, monkeypatch: Any) -> None:
    made = evaluate(small, folder)
    made.run()
    # A model that was right about every image until it was attacked.
    nodes = made.predictions[made.units[0].key].nodes
    nodes.copy_(plain.tree.ancestors[:-1, made.labels].expand_as(nodes))
    shown = gallery_of(made)
    assert shown is not None
    assert shown.title == "leaf-pgd at level 0, ε 8/255"
    for example in shown.examples:
        row = list(plain.data.ids).index(example.id)
        assert torch.equal(example.adversarial, read_images(folder / "adversarial.safetensors", [row])[0])


def test_resumes(folder: Path, small: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read, calls = tmp_path / "store", SavedSet.read, 0
    whole = run(evaluate(small, folder))

    def interrupted(self: SavedSet, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return read(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(SavedSet, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(small, folder, store).run()
        seen: list[tuple[int, int]] = []
        made = evaluate(small, folder, store)
        made.run(lambda done, total, _: seen.append((done, total)))
    assert calls == 1 + 1 + 2  # the first batch is not read again
    assert seen[-1] == (16, 16)  # 48 forward passes, each a third of one with a gradient
    timeless = [[msgspec.structs.replace(row, seconds=None) for row in rows] for rows in (whole, rows_of(made))]
    assert timeless[0] == timeless[1]
    other = evaluate(small, folder, store, template="tecoa")
    assert other.identity() != made.identity()


def test_identity_knows_the_images(folder: Path, small: ClipModel) -> None:
    before = evaluate(small, folder).identity()
    manifest = folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"success": true', '"success": false', 1))
    assert evaluate(small, folder).identity() != before


# -- what is judged ----------------------------------------------------------------------------------------------


def beyond(images: Tensor, clean: Tensor) -> Tensor:
    """One pixel a single step of float32 beyond ε."""
    x = clean[0, 0, 0].clone()
    allowed = x.double() + float(EPS)
    x = allowed.float()
    x = torch.where(x.double() > allowed, x, torch.nextafter(x, torch.full_like(x, 2)))
    place = int((clean[0, 0, 0] < 0.9).nonzero()[0])
    images[0, 0, 0, place] = x[place]
    return images


def above_one(images: Tensor, clean: Tensor) -> Tensor:
    images[0, 0, 0, 0] = 1 + 1e-6
    return images


def not_a_number(images: Tensor, clean: Tensor) -> Tensor:
    images[0, 0, 0, 0] = torch.nan
    return images


@pytest.mark.parametrize("change", [beyond, above_one, not_a_number])
def test_what_left_the_ball_is_named(folder: Path, small: ClipModel, plain: Task, change: Change) -> None:
    file = folder / "adversarial.safetensors"
    clean = plain.data[13].image[None]
    write_images(file, 13, change(read_images(file, [13]), clean))
    made = evaluate(small, folder)
    with pytest.raises(HrzsError, match=f"image 13, '{plain.data.ids[13]}'.* allowed are 8/255") as error:
        made.run()
    assert not isinstance(error.value, UsageError)


def test_l2_is_judged_as_l2(small: ClipModel, plain: Task, tmp_path: Path) -> None:
    make(small, plain, tmp_path / "l2", Unit("leaf-pgd", 0, "prompt", Fraction(1, 2)), norm="l2")
    made = evaluate(small, tmp_path / "l2", steps=7)
    rows = run(made)
    assert {(row.norm, row.steps, row.step_size) for row in rows} == {(None,) * 3, ("l2", 3, "1/8")}
    file = tmp_path / "l2" / "adversarial.safetensors"
    image, clean = read_images(file, [3]), plain.data[3].image[None]
    write_images(file, 3, (image - 0.2 * (image - clean).sign()).clamp(0, 1))
    with pytest.raises(HrzsError, match=r"image 3.*\(l2\)"):
        evaluate(small, tmp_path / "l2").run()


# -- what is refused ---------------------------------------------------------------------------------------------


def test_data_must_hold_the_images(folder: Path, small: ClipModel) -> None:
    with pytest.raises(UsageError, match=r"--data shapes \(val\): it has no image 'shapes/test/.*24 of the 24"):
        evaluate(small, folder, given=DataOptions(("shapes",), split="val"))


def test_labels_must_agree(folder: Path, small: ClipModel, plain: Task) -> None:
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    lines[5] = json.dumps(json.loads(lines[5]) | {"label": "circles"})
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=f"image '{plain.data.ids[5]}' is of class .* and of class 'circles'"):
        evaluate(small, folder)


def test_classes_may_be_more_or_in_another_order(small: ClipModel, tmp_path: Path) -> None:
    names = ["star", "square", "circle", "rectangle"]
    few = open_task("shapes", small, DataOptions(classes=names, limit=8), purpose="eval")
    make(small, few, tmp_path / "few", Unit("leaf-pgd", 0, "prompt", EPS))
    rows = run(evaluate(small, tmp_path / "few"))
    assert {row.n for row in rows} == {8}
    assert next(row.classes for row in rows if row.level == 0) == 24
    assert {row.transfer for row in rows if row.attack != "none"} == {True}
    rows = run(evaluate(small, tmp_path / "few", given=DataOptions(classes=names[::-1])))
    assert next(row.classes for row in rows if row.level == 0) == 4


def test_size_is_that_of_the_saved_images(small: ClipModel, model: ClipModel, tmp_path: Path) -> None:
    before = open_task("shapes", small, DataOptions(limit=6, resize="before"), purpose="eval")
    assert before.data.native_size != model.image_size
    make(small, before, tmp_path / "adv", Unit("leaf-pgd", 0, "prompt", EPS))
    evaluate(model, tmp_path / "adv").run()  # judged: the clean images are resized as they were for the attack


def test_origin_is_followed_unless_given() -> None:
    origin = {"data": "d", "data_root": "r", "split": "train", "tree": "t.yaml", "classes": ["a", "b"]}
    saved = SavedSet(Path("f"), {"origin": origin}, (), (), ())
    there = DataOptions(("d",), Path("r"), "train", ("a", "b"), tree="t.yaml")
    assert saved.source(NOTHING) == there
    assert saved.source(DataOptions(split="val")) == replace(there, split="val")
    assert saved.source(DataOptions(("e",))) == replace(there, data=("e",), data_root=None, split=None)
    with pytest.raises(UsageError, match="--data: needed"):
        replace(saved, header={"origin": {}}).source(NOTHING)


def test_folders_that_will_not_do(folder: Path, small: ClipModel, plain: Task, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "missing"):
        with pytest.raises(UsageError, match=rf"--adversarial .*{nothing}: not a folder that `hrzs attack -o` wrote"):
            find_saved(tmp_path / nothing)
    for level, limit in ((0, 24), (1, 12)):
        cut = open_task("shapes", small, DataOptions(limit=limit), purpose="eval")
        make(small, cut, tmp_path / "mixed" / f"level-{level}", Unit("cw", level, "prompt", EPS))
    with pytest.raises(UsageError, match="level-0 and level-1 hold different images"):
        find_saved(tmp_path / "mixed")
    shutil.copytree(tmp_path / "mixed" / "level-0", tmp_path / "twice" / "level-0")
    shutil.copytree(tmp_path / "mixed" / "level-0", tmp_path / "twice" / "level-5")
    with pytest.raises(UsageError, match="hold the same attack"):
        find_saved(tmp_path / "twice")
    manifest = folder / "manifest.jsonl"
    text = manifest.read_text()
    manifest.write_text("\n".join(text.splitlines()[:-1]) + "\n")
    with pytest.raises(UsageError, match="24 images, but 23 lines"):
        find_saved(folder)
    manifest.write_text("[]\n")
    with pytest.raises(UsageError, match="was not written by hrzs"):
        find_saved(folder)
    manifest.rename(folder / f".{manifest.name}.partial")
    with pytest.raises(UsageError, match="not finished; `hrzs attack --resume` goes on"):
        find_saved(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": "1e9999999"}, "eps in the header .*not a number"),
        ({"eps": "1" * 5000}, "eps in the header .*not a number"),
        ({"eps": 0.1}, r"Expected `str`, got `float` - at `\$\.eps`"),
        ({"step_size": "1/0"}, "step_size in the header .*not a number"),
        ({"steps": "3"}, "Expected `int`"),
        ({"steps": 0}, "--steps 0"),
        ({"norm": "l7"}, "--norm 'l7'"),
        ({"attack": None}, "Expected `str`"),
        ({"task": []}, "Expected `object`"),
        ({"task": {"resize": "before", "tree_digest": "x", "resized_by": ["nearest", "squash"]}}, "Invalid enum"),
        ({"origin": {"data": 5}}, "Expected"),
    ],
)
def test_headers_of_strangers(folder: Path, change: dict[str, Any], message: str) -> None:
    file = folder / adversarial.TENSORS_FILE
    write_safetensors(load_file(file), file, read_header(file) | change)
    with pytest.raises(UsageError, match=message):
        find_saved(folder)


def test_deep_json_in_a_header(folder: Path) -> None:
    file = folder / adversarial.TENSORS_FILE
    header = {key: json.dumps(value) for key, value in read_header(file).items()}
    save_file(load_file(file), file, header | {"origin": "[" * 100_000})
    with pytest.raises(UsageError, match=r"its header was not written by hrzs \(nested too deeply\)"):
        find_saved(folder)


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"id": 5, "label": "a"}', '{"id": "a"}', '{"id": "a", "label": ' + "9" * 5000 + "}"]
)
def test_manifests_of_strangers(folder: Path, line: str) -> None:
    (folder / adversarial.MANIFEST_FILE).write_text(line + "\n")
    with pytest.raises(UsageError, match=r"manifest\.jsonl was not written by hrzs"):
        find_saved(folder)


def test_images_resized_for_another_model(small: ClipModel, tmp_path: Path) -> None:
    """The clean images are those that were attacked, however the model under test wants its own."""
    images = tmp_path / "images"
    for name in ("circle", "square"):
        (images / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name / "a.png")
    info = small.info
    leaves = tuple(Node(name, name, class_id=name) for name in ("circle", "square"))
    data = DataOptions(data=(str(images),), tree=Tree(Node("shape", "root", leaves, level=1)))
    try:
        small.info = replace(info, interpolation="bilinear", resize_mode="squash")
        task = open_task(str(images), small, data, purpose="eval")
        assert task.describe()["resized_by"] == ["bilinear", "squash"]
        make(small, task, tmp_path / "adv", Unit("leaf-pgd", 0, "prompt", EPS), steps=1)
    finally:
        small.info = info
    (saved,) = find_saved(tmp_path / "adv")
    clean = task_of(saved, small, data)
    assert torch.equal(clean.data[0].image, task.data[0].image)
    assert not torch.equal(clean.data[0].image, open_task(str(images), small, data, purpose="eval").data[0].image)
