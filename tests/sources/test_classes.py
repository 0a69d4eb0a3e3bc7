from __future__ import annotations

from pathlib import Path

import pytest

from hrzs.classes.specs import dataset_classes
from hrzs.data import open_dataset
from hrzs.data.shapes import Shapes
from hrzs.errors import UsageError
from hrzs.sources.classes import read_classes


def specs(spec: str | Path) -> list[tuple[str | None, ...]]:
    return [tuple(found) for found in read_classes(str(spec))[0]]


def test_text_file(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text(
        "\ufeff# how it was made\ncat\n\nn02119789 kit fox, Vulpes macrotis\n 7\tred panda \nn02084071\n8\tbass\tn01440764\n"
    )
    assert specs(file) == [
        ("cat", None, None),
        ("n02119789", "kit fox", None),
        ("7", "red panda", None),
        ("n02084071", None, None),
        ("8", "bass", "n01440764"),
    ]
    file.write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        specs(file)
    file.write_text("cat\n\tdog\n")
    with pytest.raises(UsageError, match=r"classes\.txt:2: there is no class before the tab"):
        specs(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="no UTF-8 text"):
        specs(file)


def test_names() -> None:
    assert specs("cat, dog") == [("cat", None, None), ("dog", None, None)]
    with pytest.raises(UsageError, match="empty name between the commas"):
        specs("cat,,dog")


@pytest.mark.parametrize("layout", ["{}", "train/{}", "data/{}", "valid/{}"])
def test_folder_has_the_classes_of_the_data(tmp_path: Path, layout: str) -> None:
    from PIL import Image

    for class_id in ("cat", "n02119789", "red_panda"):
        folder = tmp_path / layout.format(class_id)
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "1.png")
    found, label = read_classes(str(tmp_path))
    assert tuple(spec.class_id for spec in found) == open_dataset(str(tmp_path)).classes
    assert label == tmp_path.name


def test_an_id_in_a_folder_name_is_its_synset(tmp_path: Path) -> None:
    (tmp_path / "n02085620-Chihuahua").mkdir()
    (tmp_path / "n02085620-Chihuahua" / "1.png").touch()
    assert specs(tmp_path) == [("n02085620-Chihuahua", "Chihuahua", "n02085620")]


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(UsageError, match=f"--classes {tmp_path}: no images"):
        specs(tmp_path)


def test_label_of_a_split_folder_says_of_what(tmp_path: Path) -> None:
    folder = tmp_path / "animals" / "val"
    for class_id in ("n02084071", "n02119789"):
        (folder / class_id).mkdir(parents=True)
        (folder / class_id / "1.png").touch()
    assert read_classes(str(folder))[1] == "animals/val"


def test_dataset_by_name() -> None:
    found, label = read_classes("shapes")
    assert label == "shapes"
    assert tuple(spec.class_id for spec in found) == Shapes.classes
    assert tuple(spec.name for spec in found) == Shapes.class_names
    assert dataset_classes("../classes/shapes") is None
    with pytest.raises(UsageError, match=r"--classes shaps: .*shapes.*one class per line"):
        specs("shaps")
