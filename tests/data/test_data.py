from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from hrzs.data import DATASETS, describe_datasets, open_dataset
from hrzs.errors import UsageError

Maker = Callable[..., Path]


def test_shapes_by_default() -> None:
    assert open_dataset("shapes").split == "test"
    train = open_dataset("shapes", purpose="train")
    assert (train.split, train.native_size, train.default_eps) == ("train", 64, Fraction(2, 255))
    assert ("right_triangle", "right triangle") in zip(train.classes, train.class_names, strict=True)


def test_undivided_folder_is_whole_for_eval_and_divided_for_training(make_folder: Maker) -> None:
    root = str(make_folder(f"{c}/{i}.png" for c in "ab" for i in range(10)))
    whole, train = open_dataset(root), open_dataset(root, purpose="train")
    val = open_dataset(root, "val", purpose="train")
    assert (whole.split, train.split, val.split) == ("all", "train", "val")
    assert (len(whole), len(train), len(val)) == (20, 18, 2)
    assert Counter([*train.ids, *val.ids]) == Counter(whole.ids)


def test_splits_that_are_there_are_used_whole(tree_of_images: Path) -> None:
    root = str(tree_of_images)
    assert open_dataset(root).split == "val"
    assert len(open_dataset(root, purpose="train")) == 15


def test_train_without_val_gives_up_a_tenth(make_folder: Maker) -> None:
    root = str(make_folder([*(f"train/a/{i}.png" for i in range(20)), "test/a/x.png"]))
    assert open_dataset(root).split == "test"
    assert len(open_dataset(root, purpose="train")) == 18
    assert len(open_dataset(root, "val")) == 2


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("cifar11", None, r"--data cifar11: no dataset of this name.*Did you mean cifar10"),
        ("zzz", None, r"--data zzz: no dataset of this name.*There are: shapes, cifar10"),
        ("data-{00..09}.tar", None, r"10 of 10 shards are missing: data-00.tar, data-01.tar, data-02.tar, …"),
        ("https://example.org/{0..1}.tar", None, r"read where they lie on this machine.*Download them first \(curl -O"),
        ("pipe:curl -s http://example.org/{0..1}.tar", None, r"read where they lie on this machine"),
        ("train-00000.parquet", None, r"parquet is not read\. Write the images to a folder for each class"),
        ("shapes", "tset", "--split tset: shapes has no such split, it has test, train, val"),
    ],
)
def test_unknown_data(spec: str, split: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(spec, split)


def test_missing_split_of_a_folder(tree_of_images: Path) -> None:
    with pytest.raises(UsageError, match=r"--split test: .* it has train, val"):
        open_dataset(str(tree_of_images), "test")


def test_every_name_is_described() -> None:
    described = dict(describe_datasets())
    assert described.keys() >= DATASETS.keys()
    assert all("\n" not in line and line for line in described.values())
