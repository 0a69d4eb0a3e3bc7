"""What is read of a folder, by the one reader that `hrzs build-tree` and the data share; what is left out is counted."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hrzs.classes.folders import TWICE, Folder, Source, class_folders, layout, shard_splits, shards_in
from hrzs.data.folder import Tar
from hrzs.errors import UsageError

Maker = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Makes empty files, and folders where a name ends in ``/``; nothing here opens an image."""

    def made(*paths: str) -> Path:
        for path in paths:
            place = tmp_path / "data" / path
            (place if path.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
            if not path.endswith("/"):
                place.touch()
        return tmp_path / "data"

    return made


def ids(source: Source, split: str | None = None) -> list[str]:
    return [i for bunches in layout(source).splits[split].values() for bunch in bunches for i in bunch.ids]


def tar_of(folder: Path) -> Tar:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=folder.name)
    return Tar(path)


@pytest.mark.parametrize(
    ("paths", "left_out"),
    [
        (["a/1.png", "b/1.JPG", "c/"], {"class folder without images": 1}),
        (["a/1.png", "b/1.gif", "a/2.jfif", "b/2.heic", "b/3.HEIC", "a/4.svg"],
         {".heic file, which is not read": 2, ".svg file, which is not read": 1}),
        (["a/1.png", "b/1.png", "__MACOSX/a/._1.png", "a/._1.png", ".cache/a/1.png"], {"hidden image": 3}),
        (["a/1.png", "b/1.png", "logo.png"], {"image without a class folder": 1}),
        (["a/1.png", "b/1.png", "more.tar", "more.zip"],
         {".tar file, which is not read": 1, ".zip file, which is not read": 1}),
        (["x/a/1.png", "x/b/1.png", "x/labels/1.txt", "logo.png"],
         {"image without a class folder": 1, "class folder without images": 1}),
        (["a/1.png", "b/1.png", "labels/1.txt", ".git/", "notes.txt"], {"class folder without images": 1}),
    ],
)  # fmt: skip
def test_what_is_left_out_is_counted(
    make: Maker, paths: list[str], left_out: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    root = make(*paths)
    with caplog.at_level(logging.WARNING):
        assert class_folders(Folder(root)) == ["a", "b"]
    assert layout(Folder(root)).left_out.counts == layout(tar_of(root)).left_out.counts == left_out
    assert all(f"{reason}: {count} (" in caplog.text for reason, count in left_out.items())


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("Training", "Testing"), ("TRAIN", "VALID"), ("training_set", "test_set")]
)
def test_splits_whatever_their_case(make: Maker, train: str, test: str) -> None:
    found = layout(Folder(make(f"{train}/a/1.png", f"{test}/a/1.png", f"{test}/b/")))
    assert found.splits.keys() == {"train", "val" if test == "VALID" else "test"}
    assert found.classes == ["a"]
    assert found.left_out.counts == {"class folder without images": 1}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["val/a/1.png", "Valid/a/1.png"], "Valid/ and val/ both are the split val"),
        (["seg_train/a/1.png", "seg_test/a/1.png"], "seg_test/ and seg_train/ look like splits"),
        (["train/1.png", "val/2.png"], "has images but no folder per class"),
        (["train/images/1.png", "train/labels/1.txt", "val/images/1.png"], "detection.*YOLO"),
        (["images/train/1.png", "images/val/1.png", "labels/train/1.txt"], "has images but no folder per class"),
        (["a.tar.gz", "b.tar.gz"], r"no images, but 2 \.tar\.gz files\. Unpack them first: gunzip -k \*\.tar\.gz"),
        (["data/0.parquet"], r"no images, but 1 \.parquet files"),
    ],
)
def test_what_is_not_certain_is_refused(make: Maker, paths: list[str], message: str) -> None:
    root = make(*paths)
    for read in (layout, class_folders):
        with pytest.raises(UsageError, match=message):
            read(Folder(root))


def test_a_folder_is_visited_once(make: Maker) -> None:
    root = make("goldfish/1.png", "dog/1.png", "dog/2.png")
    (root / "goldfish/all").symlink_to("..")
    (root / "all").symlink_to(root)
    (root / "dog/fish").symlink_to("../goldfish")
    (root / "bird").symlink_to("nowhere")
    (root / "circle").symlink_to("circle")
    for source in (Folder(root), tar_of(root)):
        assert sorted(ids(source)) == ["dog/1.png", "dog/2.png", "goldfish/1.png"]
    assert layout(Folder(root)).left_out.counts == {
        "link to a folder that is met elsewhere": 3,
        "link that leads nowhere": 2,
    }


def test_a_linked_folder_outside_is_read(make: Maker, tmp_path: Path) -> None:
    root = make("dog/1.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/1.png").touch()
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    found = layout(Folder(root))
    assert found.classes == ["bird", "dog"]
    assert found.left_out.counts == {"link to a folder that is met elsewhere": 1}


def test_files_of_several_names_are_read_and_counted(make: Maker) -> None:
    root = make("dog/1.png", "cat/1.png")
    (root / "cat/2.png").hardlink_to(root / "dog/1.png")
    (root / "cat/3.png").symlink_to("../dog/1.png")
    for source in (Folder(root), tar_of(root)):
        assert sorted(ids(source)) == ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png"]
        assert layout(source).left_out.counts == {TWICE: 2}


def test_only_regular_files(make: Maker) -> None:
    root = make("dog/1.png", "dog/2.png")
    os.mkfifo(root / "dog/x.jpg")
    for source in (Folder(root), tar_of(root)):
        assert len(ids(source)) == 2
        assert layout(source).left_out.counts == {"image name, but no regular file": 1}


def test_a_name_that_is_not_utf8_is_named(make: Maker) -> None:
    root = make("dog/1.png")
    folder = os.fsencode(root) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder), "1.png").touch()
    for source in (Folder(root), tar_of(root)):
        with pytest.raises(UsageError, match=r"caf\\udce9/1\.png' is not UTF-8\. Rename it"):
            layout(source)


def test_the_folder_itself_may_have_no_such_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"caf\\udce9' is not UTF-8"):
        Folder(tmp_path / os.fsdecode(b"caf\xe9"))


def test_where_nothing_is_read_it_is_said_what_is_there(make: Maker) -> None:
    root = make("dog/1.heic", "dog/.2.png")
    os.mkfifo(root / "dog/x.jpg")
    with pytest.raises(
        UsageError, match=r"no images, but 1 \.heic files\. Left out: .*no regular file: 1 \(dog/x\.jpg\)"
    ):
        layout(Folder(root))


def test_a_folder_that_cannot_be_read_is_named(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scan = make("cat/1.png", "dog/1.png"), os.scandir

    def refuse(path: Path) -> object:
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"data/dog: cannot be read \(Permission denied\)"):
        layout(Folder(root))


# -- ImageNet as Kaggle has it ------------------------------------------------------------------------------------

KAGGLE = (
    "train/n01440764/1.JPEG",
    "train/n01443537/2.JPEG",
    "val/v_1.JPEG",
    "val/v_2.JPEG",
    "val/v_3.JPEG",
    "test/t_1.JPEG",
)
SOLUTION = "ImageId,PredictionString\nv_0,n01443537 1 2 3 4\nv_1,n01443537 85 1 499 272 \nv_2,n01440764 1 2 3 4 n01440764 5 6 7 8\n"


@pytest.mark.parametrize("place", [".", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_imagenet(make: Maker, place: str) -> None:
    root = make(*(f"ILSVRC/Data/CLS-LOC/{path}" for path in KAGGLE))
    (root / "LOC_val_solution.csv").write_text(SOLUTION)
    found = layout(Folder(root / place))
    assert sorted(ids(Folder(root / place), "val")) == ["n01440764/v_2.JPEG", "n01443537/v_1.JPEG"]
    assert ids(Folder(root / place), "train") == ["n01440764/1.JPEG", "n01443537/2.JPEG"]
    assert found.left_out.counts == {
        "image without a class folder": 2,
        "row of LOC_val_solution.csv without an image": 1,
    }
    assert found.unlabelled.keys() == {"test"}


def test_kaggles_imagenet_without_the_labels(make: Maker) -> None:
    found = layout(Folder(make(*KAGGLE)))
    assert found.splits.keys() == {"train"}
    assert found.unlabelled.keys() == {"val", "test"}
    assert "no LOC_val_solution.csv" in found.unlabelled["val"]


def test_labels_of_other_images_are_no_images(make: Maker) -> None:
    root = make("val/other.JPEG")
    (root / "LOC_val_solution.csv").write_text(SOLUTION)
    with pytest.raises(UsageError, match=r"val/ has images but no folder per class"):
        layout(Folder(root))


# -- shards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["demo-train-0000.tar", "demo-train-0001.tar", "demo-validation-00.tar"],
         {"train": ["demo-train-0000.tar", "demo-train-0001.tar"], "val": ["demo-validation-00.tar"]}),
        (["Train_9.tar", "Train_10.tar", "TEST0.tar"], {"train": ["Train_9.tar", "Train_10.tar"], "test": ["TEST0.tar"]}),
        (["stress-test-train-0.tar", "stress-test-val-0.tar"],
         {"train": ["stress-test-train-0.tar"], "val": ["stress-test-val-0.tar"]}),
        (["1.tar", "0.tar", "._0.tar"], {None: ["0.tar", "1.tar"]}),
        (["test/0.tar", "test/1.tar", "train/x-train-0.tar"], {"test": ["0.tar", "1.tar"], "train": ["x-train-0.tar"]}),
        (["data/x-train-0.tar", "data/x-test-0.tar", "logo.png"], {"train": ["x-train-0.tar"], "test": ["x-test-0.tar"]}),
        (["Val/speed-test-0.tar"], {"val": ["speed-test-0.tar"]}),
        (["0.tar", "a/1.png"], {}),
    ],
)  # fmt: skip
def test_the_split_of_a_shard(make: Maker, names: list[str], expected: dict[str | None, list[str]]) -> None:
    found, _ = shards_in(Folder(make(*names)))
    assert {split: [p.name for p in paths] for split, paths in found.items()} == expected


@pytest.mark.parametrize(
    "names",
    [["x-0.tar", "x-val-0.tar"], ["x-train-val-0.tar"], ["train/a-train-0.tar", "train/a-val-0.tar"],
     ["x-train-0.tar", "x-holdout-0.tar"]],
)  # fmt: skip
def test_shards_that_may_mix_are_refused(make: Maker, names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"do not say of each which split it is.*Sort them into folders train/"):
        shards_in(Folder(make(*names)))


def test_what_lies_beside_shards_is_counted(make: Maker) -> None:
    _, left_out = shards_in(Folder(make("test/0.tar", "test/1.tar.gz", "extra.tar", "test/a.png", "test/._0.tar")))
    assert left_out.counts == {
        ".tar.gz file, which is not read (decompress it first)": 1,
        "image beside the shards": 1,
        "hidden shard": 1,
        "shard outside of the split folders": 1,
    }


def test_shards_of_one_split_are_in_the_order_of_their_numbers() -> None:
    paths = [Path(f"x/{i}.tar") for i in (10, 9, 100)]
    assert shard_splits(paths) == {None: [Path("x/9.tar"), Path("x/10.tar"), Path("x/100.tar")]}
