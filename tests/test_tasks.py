from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hrzs.data import ImageError, open_dataset
from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel
from hrzs.results.report import Data
from hrzs.tasks import open_task, open_validation

PUBLISHED = Path(__file__).parents[1] / "hierarchies" / "shapes.yaml"


def test_defaults_are_the_data_and_its_published_tree(model: ClipModel) -> None:
    task = open_task("shapes", model, purpose="eval")
    assert task.tree.classes == task.data.classes
    assert (task.tree_source, task.resize) == ("shapes.yaml", "in-graph")
    assert len(task.data) == len(open_dataset("shapes", "test"))
    about = task.describe()
    assert (about["dataset"], about["split"], about["n"], about["classes"]) == ("shapes", "test", len(task.data), 24)
    assert about["levels"][0] == 24
    assert about["levels"][-1] == 1
    assert about["tree_digest"] == task.tree.digest


def test_purpose_chooses_the_split(model: ClipModel) -> None:
    assert open_task("shapes", model, purpose="train").data.split == "train"
    assert open_task("shapes", model, DataOptions(split="val"), purpose="train").data.split == "val"


def test_classes_cut_the_data_and_the_tree_alike(model: ClipModel) -> None:
    names = ("star", "square", "circle", "rectangle")
    task = open_task("shapes", model, DataOptions(classes=names, limit=10), purpose="eval")
    assert task.data.classes == task.tree.classes == names
    assert task.data.labels == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [len(level) for level in task.tree.levels] == sorted({len(level) for level in task.tree.levels})[::-1]


def test_limit_and_skip_are_disjoint_and_digests_tell(model: ClipModel) -> None:
    first = open_task("shapes", model, DataOptions(limit=48), purpose="eval")
    second = open_task("shapes", model, DataOptions(limit=48, skip=48), purpose="eval")
    assert not set(first.data.ids) & set(second.data.ids)
    assert first.describe()["image_ids"] != second.describe()["image_ids"]


def test_images_by_name_at_a_given_size(model: ClipModel) -> None:
    ids = open_task("shapes", model, DataOptions(limit=5), purpose="eval").data.ids[::-1]
    task = open_task("shapes", model, DataOptions(resize="before"), purpose="eval", ids=ids, size=20)
    assert task.data.ids == ids
    assert task.data[0].image.shape == (3, 20, 20)
    assert len(task.tree.classes) == 24


def test_resizing_before_brings_images_to_the_models_size(model: ClipModel, tmp_path: Path) -> None:
    from PIL import Image

    for i, name in enumerate(("circle", "star")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (50 + 10 * i, 40)).save(tmp_path / name / "0.png")
    task = open_task(str(tmp_path), model, DataOptions(tree=str(PUBLISHED)), purpose="eval")
    assert task.resize == "before"
    assert {task.data[i].image.shape[1:] for i in range(2)} == {(model.image_size, model.image_size)}
    assert task.tree.classes == ("circle", "star")
    with pytest.raises(UsageError, match="--resize in-graph"):
        open_task(str(tmp_path), model, DataOptions(tree=str(PUBLISHED), resize="in-graph"), purpose="eval")
    with pytest.raises(UsageError, match=r"no tree is published .*`hrzs build-tree --classes"):
        open_task(str(tmp_path), model, purpose="eval")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "later"}, "--resize 'later'"),
        ({"tree": "missing.yaml"}, "missing.yaml"),
        ({"limit": 0}, "--limit 0"),
        ({"split": "dev"}, "--split dev"),
        ({"classes": ("circle", "sphere")}, "no class 'sphere'"),
    ],
)
def test_refusals_name_the_option(model: ClipModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_task("shapes", model, DataOptions.of(options), purpose="eval")


def test_validation_images_are_held_out_and_of_the_same_classes(model: ClipModel) -> None:
    names = ("star", "square", "circle")
    task = open_task("shapes", model, DataOptions(classes=names), purpose="train")
    held_out = open_validation("shapes", task, model, limit=9)
    assert (held_out.split, held_out.classes) == ("val", names)
    assert sorted(held_out.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert not set(held_out.ids) & set(task.data.ids)
    assert held_out[0].image.shape == task.data[0].image.shape
    # What an evaluation of the same split has to leave out to see none of them.
    rest = open_task("shapes", model, DataOptions(split="val", classes=names, skip=9), purpose="eval")
    assert not set(held_out.ids) & set(rest.data.ids)


def test_a_folder_without_splits_gives_up_a_tenth(model: ClipModel, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("circle", "star"):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.new("RGB", (40 + i, 30), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    tree = str(PUBLISHED)
    task = open_task(str(tmp_path), model, DataOptions(tree=tree), purpose="train")
    held_out = open_validation(str(tmp_path), task, model, limit=100)
    assert 0 < len(held_out) < 20
    assert len(held_out) + len(task.data) == 80
    assert held_out[0].image.shape == task.data[0].image.shape == (3, model.image_size, model.image_size)


def test_validation_on_what_is_trained_on_is_refused(model: ClipModel) -> None:
    task = open_task("shapes", model, purpose="train")
    with pytest.raises(UsageError, match=r"--val-split train: is what is trained on; --validate-every 0"):
        open_validation("shapes", task, model, split="train", limit=9)


def test_training_takes_all_trees_and_evaluation_the_first(model: ClipModel) -> None:
    files = [str(PUBLISHED), str(PUBLISHED)]
    assert len(open_task("shapes", model, DataOptions(tree=files), purpose="train").more_trees) == 1
    task = open_task("shapes", model, DataOptions(tree=files), purpose="eval")
    assert task.more_trees == ()
    assert task.tree.digest == open_task("shapes", model, purpose="eval").tree.digest


# -- nodes with the same prompt -----------------------------------------------------------------------------------


def twice(*names: str) -> str:
    """A tree of four shapes whose two superclasses have the same name, or other ones."""
    first, second = names
    return (
        "hrzs-tree: 1\ntree:\n- root thing:\n"
        f"  - a {first}:\n    - circle\n    - ellipse\n  - b {second}:\n    - square\n    - star\n"
    )


SHAPES = ("circle", "ellipse", "square", "star")


def test_the_same_prompt_twice_is_warned_of_and_recorded(
    model: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 14: two nodes of a level were called food, and nothing said so."""
    (tmp_path / "t.yaml").write_text(twice("figure", "Figure"))
    task = open_task("shapes", model, DataOptions(tree=str(tmp_path / "t.yaml"), classes=SHAPES), purpose="eval")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "shapes: level 1: figure (a) and Figure (b) have the same prompt, 'a photo of a figure.'" in warning
    assert "prompts: [ANOTHER NAME]" in warning
    nodes = [{"node": "a", "name": "figure"}, {"node": "b", "name": "Figure"}]
    assert task.describe()["same_prompts"] == [{"level": 1, "prompt": "a photo of a figure.", "nodes": nodes}]


def test_nothing_is_said_of_other_trees(model: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t.yaml").write_text(twice("round figure", "figure with corners"))
    task = open_task("shapes", model, DataOptions(tree=str(tmp_path / "t.yaml"), classes=SHAPES), purpose="eval")
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert "same_prompts" not in task.describe()


def test_prompts_are_compared_as_the_template_makes_them(
    model: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands behind the end of the context tells nothing apart."""
    (tmp_path / "t.yaml").write_text(twice("round figure", "figure with corners"))
    template = "one of very " + "many " * 80 + "pictures of a {}"
    open_task(
        "shapes", model, DataOptions(tree=str(tmp_path / "t.yaml"), classes=SHAPES), purpose="eval", template=template
    )
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "level 0: circle, ellipse, square and star have the same prompt" in warning
    assert "level 1: round figure (a) and figure with corners (b)" in warning


def test_all_trees_that_train_are_looked_at(model: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = []
    for name, names in (("one", ("round figure", "figure with corners")), ("two", ("figure", "figure"))):
        files.append(str(tmp_path / f"{name}.yaml"))
        Path(files[-1]).write_text(twice(*names))
    task = open_task("shapes", model, DataOptions(tree=files, classes=SHAPES), purpose="train")
    assert [r.levelname for r in caplog.records if "the same prompt" in r.getMessage()] == ["WARNING"]
    assert task.namesakes == ()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """40 images of two classes, one of them cut short, and one in a folder where no class is."""
    from PIL import Image

    for name in ("circle", "star"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (40, 40)).save(tmp_path / name / f"{i:02d}.png")
    (tmp_path / "star/07.png").write_bytes((tmp_path / "star/07.png").read_bytes()[:60])
    Image.new("RGB", (40, 40)).save(tmp_path / "logo.png")
    return tmp_path


def test_skipped_images_are_part_of_the_plan_and_reported(model: ClipModel, damaged: Path) -> None:
    stop, skip = (
        open_task(str(damaged), model, DataOptions(tree=str(PUBLISHED), bad_images=what), purpose="eval").describe()
        for what in ("stop", "skip")
    )
    assert (stop["n"], skip["n"]) == (40, 39)
    assert stop["image_ids"] != skip["image_ids"]
    assert "unreadable" not in stop
    assert skip["unreadable"] == ["star/07.png"]
    assert stop["left_out"] == skip["left_out"] == {"image without a class folder": 1}
    assert msgspec.convert(skip, Data).unreadable == ("star/07.png",)


@pytest.mark.parametrize("limit", [None, 10])
def test_images_are_looked_at_beforehand(model: ClipModel, damaged: Path, limit: int | None) -> None:
    options = DataOptions(tree=str(PUBLISHED), check_images=True, limit=limit)
    if limit is not None:  # only the images of the run are looked at
        assert open_task(str(damaged), model, options, purpose="eval").describe()["n"] == 10
        return
    with pytest.raises(UsageError, match=r"--check-images: .*: 1 of 40 images cannot be decoded.*star/07\.png"):
        open_task(str(damaged), model, options, purpose="eval")


def test_what_is_left_out_is_said_once(model: ClipModel, damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = open_task(str(damaged), model, DataOptions(tree=str(PUBLISHED)), purpose="train")
    open_validation(str(damaged), task, model, limit=2)
    assert caplog.text.count("image without a class folder: 1 (logo.png)") == 1


def test_validation_images_are_looked_at_too(model: ClipModel, damaged: Path) -> None:
    for split in ("train", "val"):
        for name in ("circle", "star"):
            (damaged / split).mkdir(exist_ok=True)
            shutil.copytree(damaged / name, damaged / split / name)
    (damaged / "train/star/07.png").unlink()
    task = open_task(str(damaged), model, DataOptions(tree=str(PUBLISHED), check_images=True), purpose="train")
    with pytest.raises(ImageError, match=r"\(val\): 1 of 40 images cannot be decoded"):
        open_validation(str(damaged), task, model, limit=100)
    task = open_task(str(damaged), model, DataOptions(tree=str(PUBLISHED), bad_images="skip"), purpose="train")
    assert open_validation(str(damaged), task, model, limit=100).unreadable == ("star/07.png",)
