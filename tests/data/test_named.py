import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hrzs.data import open_dataset
from hrzs.data.named import NAMED
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.classes import dataset_classes

Maker = Callable[..., Path]


def test_all_sixteen_of_the_field_are_there() -> None:
    assert len(NAMED) == 16


@pytest.mark.parametrize("name", NAMED)
def test_table_agrees_with_torchvision(name: str) -> None:
    from torchvision import datasets

    entry = NAMED[name]
    if entry.build is None:
        assert name == "imagenet"
        return
    assert hasattr(datasets, entry.build)
    assert entry.marker
    assert entry.splits


@pytest.mark.parametrize("name", NAMED)
def test_missing_data_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--data {name}: there is no {tmp_path}/{name}\. Put the images under"):
        open_dataset(name, "test", root=tmp_path)


def test_missing_root_names_the_option_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HRZS_DATA", raising=False)
    with pytest.raises(UsageError, match=r"cifar10 needs --data-root FOLDER or \$HRZS_DATA"):
        open_dataset("cifar10")


def test_root_from_the_environment(tree_of_images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.move(tree_of_images, tree_of_images.parent / "imagenet")
    monkeypatch.setenv("HRZS_DATA", str(tree_of_images.parent))
    data = open_dataset("imagenet", "val")
    assert (data.name, len(data)) == ("imagenet", 15)


@pytest.mark.parametrize("nested", ["", "eurosat/"], ids=["root", "root/name"])
def test_torchvision_layout(make_folder: Maker, nested: str) -> None:
    classes = [spec.class_id for spec in dataset_classes("eurosat") or ()]
    root = make_folder((f"{nested}eurosat/2750/{c}/{i}.jpg" for c in classes for i in range(2)), (64, 64))
    data = open_dataset("eurosat", root=root)
    assert (data.name, data.split, len(data), data.native_size) == ("eurosat", "all", 20, 64)
    assert data.labels == [i // 2 for i in range(20)]
    assert data.class_names[0] == "annual crop land"
    assert data[19].image.shape == (3, 64, 64)
    assert (data[19].id, data[19].label) == ("eurosat/all/000019", 9)
    assert len(open_dataset("eurosat", "val", root=root)) == 10


def test_torchvision_splits(make_folder: Maker) -> None:
    root = make_folder((f"dtd/dtd/images/{c}/{c}_{i}.jpg" for c in ("banded", "dotted") for i in range(3)), (20, 10))
    lists = root / "dtd/dtd/labels"
    lists.mkdir()
    for i, split in enumerate(("train", "val", "test")):
        (lists / f"{split}1.txt").write_text(f"banded/banded_{i}.jpg\ndotted/dotted_{i}.jpg\n")
    data = open_dataset("dtd", root=root)
    assert (data.split, data.classes, data.labels, data.native_size) == ("test", ("banded", "dotted"), [0, 1], None)
    assert len(open_dataset("dtd", root=root, purpose="train")) == 2
    (root / "dtd/dtd/images/dotted/dotted_2.jpg").write_bytes(b"")
    with pytest.raises(HrzsError, match="dtd/test/000001 cannot be decoded"):
        data[1]


def test_damaged_torchvision_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UsageError, match=rf"--data cifar10 in .*corrupted.*Put the images under {tmp_path}/cifar10/"):
        open_dataset("cifar10", root=tmp_path)
