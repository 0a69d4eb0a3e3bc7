"""Each dataset of this field from a miniature in its real on-disk format: one image to a class and split."""

import io
import json
import logging
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from hrzs.classes.specs import dataset_classes
from hrzs.data import open_dataset
from hrzs.data.named import NAMED, open_named
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.models.clip import ClipModel
from hrzs.tasks import open_task

Maker = Callable[..., Path]

SIZES = {"cifar10": 32, "cifar100": 32, "stl10": 96, "eurosat": 64, "pcam": 96}


def ids(name: str) -> list[str]:
    return [spec.class_id for spec in dataset_classes(name) or ()]


def colour(label: int) -> tuple[int, int, int]:
    """Dark to bright in steps that JPEG keeps apart: the image tells its label."""
    return (40 + 40 * (label % 5), 40 + 40 * (label // 5 % 5), 40 + 40 * (label // 25 % 5))


@cache
def jpeg(label: int, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour(label)).save(stream, "jpeg", quality=95)
    return stream.getvalue()


def write(file: Path, label: int = 0, size: tuple[int, int] = (20, 16)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(label, size))


def lines(file: Path, texts: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{text}\n" for text in texts))


def savemat(file: Path, content: dict[str, Any]) -> None:
    from scipy.io import savemat

    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, content)


def cifar(root: Path, name: str, folder: str, batches: list[str], key: str, meta: str, meta_key: str) -> None:
    classes = ids(name)
    pixels = np.concatenate([np.repeat(np.array(colour(k), np.uint8), 32 * 32)[None] for k in range(len(classes))])
    (root / folder).mkdir()
    for batch in batches:
        content = {"data": pixels, key: list(range(len(classes))), "filenames": [f"{c}.png" for c in classes]}
        (root / folder / batch).write_bytes(pickle.dumps(content, protocol=2))
    (root / folder / meta).write_bytes(pickle.dumps({meta_key: classes}, protocol=2))


def cifar10(root: Path, classes: list[str]) -> None:
    batches = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    cifar(root, "cifar10", "cifar-10-batches-py", batches, "labels", "batches.meta", "label_names")


def cifar100(root: Path, classes: list[str]) -> None:
    cifar(root, "cifar100", "cifar-100-python", ["train", "test"], "fine_labels", "meta", "fine_label_names")


def stl10(root: Path, classes: list[str]) -> None:
    folder = root / "stl10_binary"
    pixels = np.concatenate([np.repeat(np.array(colour(k), np.uint8), 96 * 96) for k in range(len(classes))])
    lines(folder / "class_names.txt", classes)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(pixels.tobytes())
        (folder / f"{split}_y.bin").write_bytes(np.arange(1, len(classes) + 1, dtype=np.uint8).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")


def imagenet(root: Path, classes: list[str]) -> None:
    for label, c in enumerate(classes):
        write(root / f"imagenet/val/{c}/ILSVRC2012_val_{label:08d}.JPEG", label)


def caltech101(root: Path, classes: list[str]) -> None:
    folder = root / "caltech101/101_ObjectCategories"
    for label, c in enumerate(classes):
        write(folder / c / "image_0001.jpg", label)
    write(folder / "BACKGROUND_Google/image_0001.jpg")


def caltech256(root: Path, classes: list[str]) -> None:
    for label, c in enumerate(classes):
        write(root / f"caltech256/256_ObjectCategories/{c}/{label + 1:03d}_0001.jpg", label)


def oxford_pets(root: Path, classes: list[str]) -> None:
    folder = root / "oxford-iiit-pet"
    listed = []
    for label, c in enumerate(classes):
        stem = f"{c.replace(' ', '_') if label % 2 else c.replace(' ', '_').lower()}_1"
        listed.append(f"{stem} {label + 1} {1 + label % 2} 1")
        write(folder / f"images/{stem}.jpg", label)
    for split in ("trainval", "test"):
        lines(folder / f"annotations/{split}.txt", listed)


def flowers102(root: Path, classes: list[str]) -> None:
    folder, n = root / "flowers-102", len(classes)
    numbers = np.arange(1, 3 * n + 1)
    savemat(folder / "imagelabels.mat", {"labels": (numbers - 1) % n + 1})
    sets = numbers.reshape(3, n)
    savemat(folder / "setid.mat", {"trnid": sets[0], "valid": sets[1], "tstid": sets[2]})
    for number in numbers.tolist():
        write(folder / f"jpg/image_{number:05d}.jpg", (number - 1) % n)


def food101(root: Path, classes: list[str]) -> None:
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"meta/{split}.json").write_text(json.dumps({c: [f"{c}/1005649"] for c in classes}))
    for label, c in enumerate(classes):
        write(folder / f"images/{c}/1005649.jpg", label)


def stanford_cars(root: Path, classes: list[str]) -> None:
    folder = root / "stanford_cars"
    fields = [("bbox_x1", object), ("class", object), ("fname", object)]
    notes = np.array([[(1, k + 1, f"{k + 1:05d}.jpg") for k in range(len(classes))]], dtype=fields)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([classes], dtype=object)})
    savemat(folder / "devkit/cars_train_annos.mat", {"annotations": notes})
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": notes})
    for k in range(len(classes)):
        write(folder / f"cars_train/{k + 1:05d}.jpg", k)
        write(folder / f"cars_test/{k + 1:05d}.jpg", k)


def sun397(root: Path, classes: list[str]) -> None:
    lines(root / "SUN397/ClassName.txt", [f"/{c[0]}/{c}" for c in classes])
    for label, c in enumerate(classes):
        write(root / f"SUN397/{c[0]}/{c}/sun_aaaa.jpg", label)


def country211(root: Path, classes: list[str]) -> None:
    for split in ("train", "valid", "test"):
        for label, c in enumerate(classes):
            write(root / f"country211/{split}/{c}/1234567.jpg", label)


def fgvc_aircraft(root: Path, classes: list[str]) -> None:
    folder = root / "fgvc-aircraft-2013b/data"
    lines(folder / "variants.txt", classes)
    for split in ("train", "val", "test"):
        lines(folder / f"images_variant_{split}.txt", [f"{k + 1000000} {c}" for k, c in enumerate(classes)])
    for k in range(len(classes)):
        write(folder / f"images/{k + 1000000}.jpg", k)


def eurosat(root: Path, classes: list[str]) -> None:
    for label, c in enumerate(classes):
        write(root / f"eurosat/2750/{c}/{c}_1.jpg", label, (64, 64))


def dtd(root: Path, classes: list[str]) -> None:
    folder = root / "dtd/dtd"
    for split in ("train", "val", "test"):
        lines(folder / f"labels/{split}1.txt", [f"{c}/{c}_0001.jpg" for c in classes])
    for label, c in enumerate(classes):
        write(folder / f"images/{c}/{c}_0001.jpg", label)


def pcam(root: Path, classes: list[str]) -> None:
    h5py = pytest.importorskip("h5py", reason="PCAM's files are HDF5")
    (root / "pcam").mkdir()
    pixels = np.stack([np.broadcast_to(np.array(colour(k), np.uint8), (96, 96, 3)) for k in range(2)])
    for split in ("train", "valid", "test"):
        for part, key, values in (("x", "x", pixels), ("y", "y", np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1))):
            with h5py.File(root / f"pcam/camelyonpatch_level_2_split_{split}_{part}.h5", "w") as file:
                file[key] = values


MINIATURES = {
    make.__name__: make
    for make in (
        cifar10, cifar100, stl10, imagenet, caltech101, caltech256, oxford_pets, flowers102, food101, stanford_cars,
        sun397, country211, fgvc_aircraft, eurosat, dtd, pcam,
    )
}  # fmt: skip
UNDIVIDED = {"caltech101", "caltech256", "sun397", "eurosat"}
WITH_VAL = {"flowers102", "country211", "fgvc_aircraft", "dtd", "pcam"}


@pytest.fixture
def _no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares the MD5 of CIFAR's, STL-10's and Flowers' files with the originals': a miniature has none."""
    from torchvision import datasets

    for build in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        for table in ("train_list", "test_list"):
            monkeypatch.setattr(build, table, [[file, None] for file, _ in getattr(build, table)])
    for build in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(build, "meta", {**build.meta, "md5": None})
    files = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


def test_all_sixteen_of_the_field_are_there() -> None:
    assert len(NAMED) == 16
    assert MINIATURES.keys() == NAMED.keys()


@pytest.mark.usefixtures("_no_checksums")
@pytest.mark.parametrize("name", MINIATURES)
def test_miniature(name: str, tmp_path: Path, model: ClipModel) -> None:
    classes = ids(name)
    MINIATURES[name](tmp_path, classes)

    task = open_task(name, model, DataOptions(data_root=tmp_path), purpose="eval")
    split = "all" if name in UNDIVIDED else "val" if name == "imagenet" else "test"
    data = open_dataset(name, root=tmp_path)
    assert (data.name, data.split, data.native_size) == (name, split, SIZES.get(name))
    assert data.classes == task.tree.classes == tuple(classes)
    assert task.tree_source == f"{name}.yaml"
    assert dict(zip(data.classes, data.class_names, strict=True)) == {
        spec.class_id: spec.name or spec.class_id for spec in dataset_classes(name) or ()
    }
    assert sorted(data.labels) == list(range(len(classes)))
    assert len(set(data.ids)) == len(data)
    for index in range(0, len(data), max(1, len(data) // 10)):
        sample = data[index]
        seen = (sample.image.mean((1, 2)) * 255).round()
        assert (seen - torch.tensor(colour(sample.label))).abs().max() <= 6, f"image {index} is not that of its label"


@pytest.mark.usefixtures("_no_checksums")
@pytest.mark.parametrize("name", MINIATURES)
def test_splits_of_a_miniature(name: str, tmp_path: Path) -> None:
    classes = ids(name)
    MINIATURES[name](tmp_path, classes)
    splits = open_named(name, tmp_path)
    own: set[str | None] = {"train", "test", *(["val"] if name in WITH_VAL else [])}
    assert splits.keys() == ({"val"} if name == "imagenet" else {None} if name in UNDIVIDED else own)
    for split, opened in splits.items():
        data = opened()
        assert data.split == (split or "all")
        assert set(data.labels) == set(range(len(classes)))
        # CIFAR-10 has five files for training.
        assert len(data) == len(classes) * (5 if (name, split) == ("cifar10", "train") else 1)


@pytest.mark.usefixtures("_no_checksums")
@pytest.mark.parametrize("name", ["cifar10", "oxford_pets", "eurosat"])
def test_the_root_may_hold_a_folder_of_the_name(name: str, tmp_path: Path) -> None:
    inner = tmp_path / name
    inner.mkdir()
    MINIATURES[name](inner, ids(name))
    assert len(open_dataset(name, root=tmp_path)) == len(ids(name))


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
    assert entry.files


@pytest.mark.parametrize("name", NAMED)
def test_missing_data_says_what_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=rf"--data {name}: there is no {tmp_path}/{name}\. Put the images under"
    ) as error:
        open_dataset(name, "test", root=tmp_path)
    # By name: what its authors publish.
    assert any(suffix in str(error.value) for suffix in (".tar", ".tgz", ".zip", ".h5"))


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("stl10", "stl10_binary/test_y.bin"),
        ("oxford_pets", "oxford-iiit-pet/annotations/test.txt"),
        ("flowers102", "flowers-102/setid.mat"),
        ("food101", "food-101/meta/test.json"),
        ("stanford_cars", "stanford_cars/devkit/cars_meta.mat"),
        ("stanford_cars", "stanford_cars/cars_test"),
        ("caltech101", "caltech101/101_ObjectCategories/BACKGROUND_Google"),
        ("country211", "country211/test"),
        ("fgvc_aircraft", "fgvc-aircraft-2013b/data/variants.txt"),
        ("dtd", "dtd/dtd/labels/test1.txt"),
    ],
)
@pytest.mark.usefixtures("_no_checksums")
def test_the_missing_file_is_named(name: str, lost: str, tmp_path: Path) -> None:
    MINIATURES[name](tmp_path, ids(name))
    target = tmp_path / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(UsageError, match=rf"--data {name} in {tmp_path}: missing: {lost}\. Put .*{tmp_path}/{name}/"):
        open_dataset(name, None if name in UNDIVIDED else "test", root=tmp_path)


def test_damaged_files_are_told_from_missing_ones(tmp_path: Path) -> None:
    """The miniature's checksums are not those of CIFAR-10: with the check in place it is refused."""
    cifar10(tmp_path, ids("cifar10"))
    with pytest.raises(UsageError, match=r"damaged or incomplete \(Dataset not found or corrupted\)\. Put") as error:
        open_dataset("cifar10", root=tmp_path)
    assert "download=True" not in str(error.value)


def test_pcam_without_h5py_says_which_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pcam").mkdir()
    (tmp_path / "pcam/camelyonpatch_level_2_split_test_x.h5").write_bytes(b"")
    monkeypatch.setattr("hrzs.data.named.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"--data pcam: .*package h5py.*pip install h5py"):
        open_dataset("pcam", root=tmp_path)


def test_missing_root_names_the_option_and_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HRZS_DATA", raising=False)
    with pytest.raises(UsageError, match=r"cifar10 needs --data-root FOLDER or \$HRZS_DATA"):
        open_dataset("cifar10")


def test_root_from_the_environment(make_folder: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(["imagenet/val/n01440764/1.png", "imagenet/val/n01443537/1.png"])
    monkeypatch.setenv("HRZS_DATA", str(root))
    data = open_dataset("imagenet", "val")
    assert (data.name, len(data), data.class_names) == ("imagenet", 2, ("tench", "goldfish"))


def test_undivided_is_whole_for_eval_and_divided_for_training(make_folder: Maker) -> None:
    root = make_folder((f"eurosat/2750/{c}/{i}.jpg" for c in ids("eurosat") for i in range(2)), (64, 64))
    assert len(open_dataset("eurosat", root=root)) == 20
    assert len(open_dataset("eurosat", root=root, purpose="train")) == 10
    assert len(open_dataset("eurosat", "val", root=root)) == 10


def test_sun397_has_the_same_order_on_every_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sun397(tmp_path, ids("sun397"))
    forward = open_dataset("sun397", root=tmp_path)
    found = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(found(self, pattern))))
    backward = open_dataset("sun397", root=tmp_path)
    assert forward.labels == backward.labels
    assert all(torch.equal(forward[i].image, backward[i].image) for i in range(0, 397, 40))


def test_pcam_labels_open_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pcam(tmp_path, ids("pcam"))
    from torchvision import datasets

    monkeypatch.setattr(datasets.PCAM, "__getitem__", lambda *_: pytest.fail("an image was decoded"))
    assert open_dataset("pcam", root=tmp_path).labels == [0, 1]


def test_no_other_program_decodes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision opens whatever Pillow can, and Pillow gives EPS to Ghostscript."""
    dtd(tmp_path, ids("dtd"))
    data = open_dataset("dtd", root=tmp_path)
    file = tmp_path / "dtd/dtd/images/banded/banded_0001.jpg"
    file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(HrzsError, match="dtd/test/000000 cannot be decoded"):
        data[0]


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    dtd(tmp_path, ids("dtd"))
    data = open_dataset("dtd", root=tmp_path)
    (tmp_path / "dtd/dtd/images/banded/banded_0001.jpg").write_bytes(b"")
    with pytest.raises(HrzsError, match="dtd/test/000000 cannot be decoded"):
        data[0]


# -- folders of images under the name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folders", "classes"),
    [
        ("cifar10", ["test/Airplane", "test/FROG"], ["airplane", "frog"]),
        ("cifar100", ["maple-tree", "Aquarium Fish"], ["aquarium_fish", "maple_tree"]),
        ("oxford_pets", ["maine_coon", "american_pit_bull_terrier"], ["American Pit Bull Terrier", "Maine Coon"]),
        ("imagenet", ["val/tench", "val/n01443537"], ["n01440764", "n01443537"]),
        ("sun397", ["athletic_field_outdoor", "abbey"], ["abbey", "athletic_field/outdoor"]),
        ("eurosat", ["annual crop land", "Forest"], ["AnnualCrop", "Forest"]),
        ("caltech256", ["ak47", "002.american-flag"], ["001.ak47", "002.american-flag"]),
        ("caltech101", ["BACKGROUND_Google", "ant", "Faces"], ["Faces", "ant"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_folders_by_id_or_name_however_spelt(
    make_folder: Maker, name: str, folders: list[str], classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(f"{name}/{folder}/1.png" for folder in folders)
    with caplog.at_level(logging.INFO):
        data = open_dataset(name, root=root)
    assert list(data.classes) == [c for c in ids(name) if c in classes]
    assert data.labels == list(range(len(classes)))
    told = [record for record in caplog.records if "told by their names" in record.message]
    assert len(told) == (0 if name == "caltech101" else 1)


def test_a_folder_of_ones_own_called_as_a_dataset_keeps_its_classes(make_folder: Maker) -> None:
    root = make_folder(["airplane/1.png", "my_dog/1.png"], name="cifar10")
    assert open_dataset(str(root)).classes == ("airplane", "my_dog")
    shutil.rmtree(root)
    root = make_folder(["Airplane/1.png", "dog/1.png"], name="cifar10")
    assert open_dataset(str(root)).classes == ("airplane", "dog")


def test_a_folder_with_exactly_the_classes_of_a_dataset_is_like_it(make_folder: Maker) -> None:
    data = open_dataset(str(make_folder(f"{c.upper()}/1.png" for c in ids("cifar10"))))
    assert (data.name, data.like, data.classes) == ("pictures", "cifar10", tuple(ids("cifar10")))


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("cifar10", "airplan", r"'airplan' in .*cifar10 is no class of cifar10\. Did you mean airplane"),
        ("imagenet", "missile", "'missile' in .* is the name of n03773504 and n04008634; call it by its id"),
        ("stanford_cars", "cars_test", r"no class of stanford_cars.*cars_test_annos_withlabels\.mat"),
    ],
)
def test_a_folder_that_is_no_class_is_refused(make_folder: Maker, name: str, folder: str, message: str) -> None:
    root = make_folder([f"{name}/{folder}/1.png", f"{name}/{ids(name)[1]}/1.png"])
    with pytest.raises(UsageError, match=message):
        open_dataset(name, root=root)


def test_imagenet_val_not_sorted_into_classes_is_refused(make_folder: Maker) -> None:
    root = make_folder(["imagenet/train/n01440764/1.png", "imagenet/val/ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(UsageError, match=r"val/ has images but no folder per class.*sorted into val"):
        open_dataset("imagenet", root=root)
