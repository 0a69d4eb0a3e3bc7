"""Known datasets by name, from local files: nothing is ever downloaded.

``<root>/<name>`` holds images laid out as ``class/image``, webdataset shards, or the files of torchvision.datasets.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import EpsImagePlugin, Image

from hrzs.classes.match import class_list
from hrzs.data.base import REMEDY, Dataset, ImageError
from hrzs.data.folder import BROKEN, Unlabelled
from hrzs.data.webdataset import open_path
from hrzs.errors import DataMissingError, UsageError

Splits = dict[str | None, Callable[[], Dataset]]

# What torchvision's readers raise on files that are missing, cut short or in another format.
_UNREADABLE = (RuntimeError, OSError, ImportError, ValueError, LookupError, EOFError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Named:
    """One dataset of the table `NAMED`.

    ``build`` is its class in torchvision.datasets, ``splits`` the arguments of that class for each of our splits (None:
    undivided data), and ``files`` what a split needs. ``marker`` is a glob that tells torchvision's layout from others.
    ``archives`` says what the authors publish, and where it is unpacked below ``<root>/<name>``. ``labels`` reads the
    labels of all images. ``order`` is an order that is the same on every machine, where torchvision takes the file
    system's. ``left_out`` are folders that are no class. Names for prompts are in ``hrzs/classes/lists``.
    """

    about: str
    build: str | None = None
    marker: str = ""
    archives: str = ""
    files: tuple[str, ...] = ()
    splits: Mapping[str | None, Mapping[str, Any]] | None = None
    native_size: int | None = None
    labels: Callable[[Any], Sequence[int]] = lambda data: data._labels
    order: Callable[[Any], Sequence[int]] | None = None
    left_out: tuple[str, ...] = ()
    package: str | None = None


def _same(*splits: str) -> dict[str | None, dict[str, str]]:
    return {split: {"split": split} for split in splits}


def _by_path(data: Any) -> list[int]:
    return sorted(range(len(data)), key=lambda i: data._image_files[i].as_posix())


def _pcam_labels(data: Any) -> list[int]:
    """The labels, from their own file: torchvision would decode every image for them."""
    file = data._base_folder / data._FILES[data._split]["targets"][0]
    with data.h5py.File(file) as labels:
        return [int(label) for label in labels["y"][:].ravel()]


_CIFAR_SPLITS: dict[str | None, dict[str, bool]] = {"train": {"train": True}, "test": {"train": False}}
NAMED: dict[str, Named] = {
    "cifar10": Named(
        "CIFAR-10, 32×32",
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz, unpacked there",
        tuple(f"cifar-10-batches-py/{f}" for f in
              ("batches.meta", *(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
        _CIFAR_SPLITS,
        32,
        lambda d: d.targets,
    ),
    "cifar100": Named(
        "CIFAR-100, 32×32",
        "CIFAR100",
        "cifar-100-python",
        "cifar-100-python.tar.gz, unpacked there",
        ("cifar-100-python/meta", "cifar-100-python/train", "cifar-100-python/test"),
        _CIFAR_SPLITS,
        32,
        lambda d: d.targets,
    ),
    "stl10": Named(
        "STL-10, 96×96",
        "STL10",
        "stl10_binary",
        "stl10_binary.tar.gz, unpacked there",
        tuple(f"stl10_binary/{f}" for f in
              ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")),
        _same("train", "test"),
        96,
        lambda d: d.labels.tolist(),
    ),
    "imagenet": Named(
        "ImageNet-1k, folders of WordNet ids under train/ and val/",
        archives="ILSVRC2012_img_val.tar, its images sorted into val/<WordNet id>/ by the labels of the devkit",
    ),
    "caltech101": Named(
        "Caltech-101, objects",
        "Caltech101",
        "caltech101/101_ObjectCategories",
        "caltech-101.zip, of it 101_ObjectCategories.tar.gz unpacked in caltech101/",
        ("caltech101/101_ObjectCategories/BACKGROUND_Google",),
        {None: {}},
        labels=lambda d: d.y,
        left_out=("BACKGROUND_Google",),
    ),
    "caltech256": Named(
        "Caltech-256, objects",
        "Caltech256",
        "caltech256/256_ObjectCategories",
        "256_ObjectCategories.tar, unpacked in caltech256/",
        ("caltech256/256_ObjectCategories/257.clutter",),
        {None: {}},
        labels=lambda d: d.y,
    ),
    "oxford_pets": Named(
        "Oxford-IIIT Pets, 37 breeds",
        "OxfordIIITPet",
        "oxford-iiit-pet",
        "images.tar.gz and annotations.tar.gz, unpacked in oxford-iiit-pet/",
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations/{split}.txt"),
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
    ),
    "flowers102": Named(
        "Oxford Flowers, 102 kinds",
        "Flowers102",
        "flowers-102",
        "102flowers.tgz unpacked in flowers-102/, with setid.mat and imagelabels.mat beside its jpg/",
        ("flowers-102/jpg", "flowers-102/setid.mat", "flowers-102/imagelabels.mat"),
        _same("train", "val", "test"),
    ),
    "food101": Named(
        "Food-101, dishes",
        "Food101",
        "food-101",
        "food-101.tar.gz, unpacked there",
        ("food-101/images", "food-101/meta/{split}.json"),
        _same("train", "test"),
    ),
    "stanford_cars": Named(
        "Stanford Cars, 196 models",
        "StanfordCars",
        "stanford_cars/devkit",
        "cars_train.tgz, cars_test.tgz and car_devkit.tgz unpacked in stanford_cars/, with "
        "cars_test_annos_withlabels.mat beside them (torchvision's own link is dead; copies are on Kaggle)",
        ("stanford_cars/devkit/cars_meta.mat", "stanford_cars/cars_{split}"),
        {
            "train": {"split": "train"},
            "test": {"split": "test"},
        },
        labels=lambda d: [label for _, label in d._samples],
    ),
    "sun397": Named(
        "SUN397, scenes",
        "SUN397",
        "SUN397/ClassName.txt",
        "SUN397.tar.gz, unpacked there",
        ("SUN397/ClassName.txt",),
        {None: {}},
        order=_by_path,
    ),
    "country211": Named(
        "Country211, photographs by country",
        "Country211",
        "country211/valid",
        "country211.tgz, unpacked there",
        ("country211/{split}",),
        {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
        labels=lambda d: d.targets,
    ),
    "fgvc_aircraft": Named(
        "FGVC Aircraft, 100 variants",
        "FGVCAircraft",
        "fgvc-aircraft-2013b",
        "fgvc-aircraft-2013b.tar.gz, unpacked there",
        tuple(f"fgvc-aircraft-2013b/data/{f}" for f in ("images", "variants.txt", "images_variant_{split}.txt")),
        _same("train", "val", "test"),
    ),
    "eurosat": Named(
        "EuroSAT, land use, 64×64",
        "EuroSAT",
        "eurosat/2750",
        "EuroSAT.zip (RGB), unpacked in eurosat/",
        ("eurosat/2750",),
        {None: {}},
        64,
        lambda d: d.targets,
    ),
    "dtd": Named(
        "DTD, textures",
        "DTD",
        "dtd/dtd",
        "dtd-r1.0.1.tar.gz, unpacked in dtd/",
        ("dtd/dtd/images", "dtd/dtd/labels/{split}1.txt"),
        _same("train", "val", "test"),
    ),
    "pcam": Named(
        "PatchCamelyon, lymph nodes, 96×96",
        "PCAM",
        "pcam/camelyonpatch_level_2_split_*_x.h5",
        "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5.gz, each unpacked in pcam/",
        tuple(f"pcam/camelyonpatch_level_2_split_{{file}}_{part}.h5" for part in "xy"),
        _same("train", "val", "test"),
        96,
        _pcam_labels,
        package="h5py",
    ),
}  # fmt: skip


class TorchvisionImages(Dataset):
    """One split of a dataset that torchvision.datasets reads."""

    def __init__(self, name: str, split: str, data: Any, entry: Named) -> None:
        self.name, self.split = name, split
        listed = class_list(name)
        assert listed is not None
        self.classes = tuple(getattr(data, "classes", None) or getattr(data, "categories", None) or listed.ids)
        names = dict(zip(listed.ids, listed.names, strict=True))
        if unknown := [c for c in self.classes if c not in names]:
            raise ValueError(f"{unknown[0]!r} is no class of {name}")
        self.class_names = tuple(names[c] for c in self.classes)
        labels = entry.labels(data)
        self._order = range(len(labels)) if entry.order is None else entry.order(data)
        self.labels = [int(labels[i]) for i in self._order]
        if self.labels and not 0 <= min(self.labels) <= max(self.labels) < len(self.classes):
            raise ValueError(f"labels from {min(self.labels)} to {max(self.labels)} for {len(self.classes)} classes")
        self.ids = [f"{name}/{split}/{i:06d}" for i in range(len(self.labels))]
        self.native_size = entry.native_size
        self._data = data

    def picture(self, index: int) -> Image.Image:
        # torchvision opens files with every reader of Pillow. Only that of EPS would start a program.
        EpsImagePlugin.gs_binary = False
        try:
            image: Image.Image = self._data[self._order[index]][0]
            return image.convert("RGB")
        except BROKEN as error:
            raise ImageError(f"Image {self.ids[index]} cannot be decoded ({error}). {REMEDY}") from error


def open_named(name: str, root: Path | None) -> Splits:
    """The splits of a dataset of `NAMED`, from ``root``.

    Raises:
        DataMissingError: files are missing; the message says what to put where.
    """
    entry = NAMED[name]
    if root is None:
        raise DataMissingError(f"--data {name} needs --data-root FOLDER or $HRZS_DATA. {_where(name, Path('FOLDER'))}")
    for place in (root / name, root):
        if entry.build and any(place.glob(entry.marker)):
            return _open_torchvision(name, entry, place, root)
    if not (root / name).is_dir():
        raise DataMissingError(f"--data {name}: there is no {root / name}. {_where(name, root)}")
    try:
        found = open_path(root / name, name, is_named=True, left_out=entry.left_out)
    except UsageError as error:
        raise DataMissingError(f"{error} {_where(name, root)}") from error
    return {
        s: Unlabelled(f"{o.why} {_where(name, root)}") if isinstance(o, Unlabelled) else o for s, o in found.items()
    }


def _where(name: str, root: Path) -> str:
    entry = NAMED[name]
    return (
        f"Put the images under {root / name}/<split>/<class>/<image> (splits train, val, test; or none), or in "
        f"{root / name} the authors' {entry.archives}. hrzs downloads no data."
    )


def _open_torchvision(name: str, entry: Named, place: Path, root: Path) -> Splits:
    if entry.package is not None and find_spec(entry.package) is None:
        raise DataMissingError(
            f"--data {name}: its files are read by the package {entry.package}, which is not installed: "
            f"pip install {entry.package}"
        )
    from torchvision import datasets

    assert entry.build is not None
    assert entry.splits is not None
    build = getattr(datasets, entry.build)

    def opener(split: str | None, options: Mapping[str, Any]) -> Callable[[], Dataset]:
        def open_split() -> Dataset:
            try:
                data = build(str(place), download=False, **options)
                return TorchvisionImages(name, split or "all", data, entry)
            except _UNREADABLE as error:
                missing = _missing(entry, place, options)
                shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
                fault = f"missing: {shown}" if missing else f"damaged or incomplete ({_reason(error)})"
                raise DataMissingError(f"--data {name} in {place}: {fault}. {_where(name, root)}") from error

        return open_split

    return {split: opener(split, options) for split, options in entry.splits.items()}


def _missing(entry: Named, place: Path, options: Mapping[str, Any]) -> list[str]:
    # Some names of files call the split val ``valid``.
    known = {**options, "file": {"val": "valid"}.get(options.get("split", ""), options.get("split"))}
    files = (file.format(**known) for file in entry.files)
    return [file for file in files if not (place / file).exists()]


def _reason(error: Exception) -> str:
    """The message of torchvision, without its advice to download, which hrzs never does."""
    return str(error).partition(" You can use download=True")[0].rstrip(".")
