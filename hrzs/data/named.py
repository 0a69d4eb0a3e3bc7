"""The datasets of this field by name, from local files: nothing is ever downloaded.

`<root>/<name>` holds either images laid out as `class/image`, or what torchvision.datasets would have put there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hrzs.data.base import Dataset, prompt_name
from hrzs.data.folder import open_images, open_source
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.classes import dataset_classes

Splits = dict[str | None, Callable[[], Dataset]]


@dataclass(frozen=True)
class Named:
    """One line of the table.

    `build` names the class in torchvision.datasets; `splits` the arguments for each of our splits (None: it comes
    undivided); `marker` a file or folder that tells its layout. Names for prompts are in `hrzs/data/classes`.
    """

    about: str
    build: str | None = None
    marker: str = ""
    splits: Mapping[str | None, Mapping[str, Any]] | None = None
    native_size: int | None = None
    labels: Callable[[Any], Sequence[int]] = lambda data: data._labels


def _same(*splits: str) -> dict[str | None, dict[str, str]]:
    return {split: {"split": split} for split in splits}


_CIFAR_SPLITS: dict[str | None, dict[str, bool]] = {"train": {"train": True}, "test": {"train": False}}
NAMED: dict[str, Named] = {
    "cifar10": Named("CIFAR-10, 32×32", "CIFAR10", "cifar-10-batches-py", _CIFAR_SPLITS, 32, lambda d: d.targets),
    "cifar100": Named("CIFAR-100, 32×32", "CIFAR100", "cifar-100-python", _CIFAR_SPLITS, 32, lambda d: d.targets),
    "stl10": Named("STL-10, 96×96", "STL10", "stl10_binary", _same("train", "test"), 96, lambda d: d.labels.tolist()),
    "imagenet": Named("ImageNet-1k, folders of WordNet ids under train/ and val/"),
    "caltech101": Named(
        "Caltech-101, objects", "Caltech101", "caltech101/101_ObjectCategories", {None: {}}, labels=lambda d: d.y
    ),
    "caltech256": Named(
        "Caltech-256, objects", "Caltech256", "caltech256/256_ObjectCategories", {None: {}}, labels=lambda d: d.y
    ),
    "oxford_pets": Named(
        "Oxford-IIIT Pets, 37 breeds",
        "OxfordIIITPet",
        "oxford-iiit-pet/annotations",
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
    ),
    "flowers102": Named(
        "Oxford Flowers, 102 kinds", "Flowers102", "flowers-102/setid.mat", _same("train", "val", "test")
    ),
    "food101": Named("Food-101, dishes", "Food101", "food-101/meta", _same("train", "test")),
    "stanford_cars": Named(
        "Stanford Cars, 196 models",
        "StanfordCars",
        "stanford_cars/devkit",
        _same("train", "test"),
        labels=lambda d: [label for _, label in d._samples],
    ),
    "sun397": Named("SUN397, scenes", "SUN397", "SUN397/ClassName.txt", {None: {}}),
    "country211": Named(
        "Country211, photographs by country",
        "Country211",
        "country211/valid",
        {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
        labels=lambda d: d.targets,
    ),
    "fgvc_aircraft": Named(
        "FGVC Aircraft, 100 variants", "FGVCAircraft", "fgvc-aircraft-2013b/data", _same("train", "val", "test")
    ),
    "eurosat": Named("EuroSAT, land use, 64×64", "EuroSAT", "eurosat/2750", {None: {}}, 64, lambda d: d.targets),
    "dtd": Named("DTD, textures", "DTD", "dtd/dtd/images", _same("train", "val", "test")),
    "pcam": Named(
        "PatchCamelyon, lymph nodes, 96×96",
        "PCAM",
        "pcam/camelyonpatch_level_2_split_test_x.h5",
        _same("train", "val", "test"),
        96,
        lambda d: [d[i][1] for i in range(len(d))],
    ),
}


class TorchvisionImages(Dataset):
    """One split of a dataset that torchvision.datasets reads."""

    def __init__(self, name: str, split: str, data: Any, entry: Named) -> None:
        self.name, self.split = name, split
        listed = {spec.class_id: spec.name for spec in dataset_classes(name) or ()}
        self.classes = tuple(getattr(data, "classes", None) or getattr(data, "categories", None) or listed)
        self.class_names = tuple(listed.get(c) or prompt_name(c) for c in self.classes)
        self.labels = [int(label) for label in entry.labels(data)]
        self.ids = [f"{name}/{split}/{i:06d}" for i in range(len(self.labels))]
        self.native_size = entry.native_size
        self._data = data

    def picture(self, index: int) -> Image.Image:
        try:
            image: Image.Image = self._data[index][0]
            return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise HrzsError(
                f"Image {self.ids[index]} cannot be decoded ({error}). Replace the files of {self.name} and run again."
            ) from error


def open_named(name: str, root: Path | None) -> Splits:
    """The splits of a dataset of the table, from `root`. Raises UsageError, saying what to put where."""
    entry = NAMED[name]
    if root is None:
        raise UsageError(f"--data {name} needs --data-root FOLDER or $HRZS_DATA: {_where(name, Path('FOLDER'))}")
    for place in (root / name, root):
        if entry.build and (place / entry.marker).exists():
            return _open_torchvision(name, entry, place, root)
    if (root / name).is_dir():
        return open_images(open_source(root / name), name)
    raise UsageError(f"--data {name}: there is no {root / name}. {_where(name, root)}")


def _where(name: str, root: Path) -> str:
    entry = NAMED[name]
    text = f"Put the images under {root / name}/<split>/<class>/<image> (splits train, val, test; or none)"
    if entry.build:
        text += f", or torchvision's files of {entry.build} so that {root / name / entry.marker} exists"
    return f"{text}. hrzs downloads no data."


def _open_torchvision(name: str, entry: Named, place: Path, root: Path) -> Splits:
    from torchvision import datasets

    assert entry.build is not None
    assert entry.splits is not None
    build = getattr(datasets, entry.build)

    def opener(split: str | None, options: Mapping[str, Any]) -> Callable[[], Dataset]:
        def open_split() -> Dataset:
            try:
                data = build(str(place), download=False, **options)
            except (RuntimeError, OSError, ImportError) as error:
                raise UsageError(f"--data {name} in {place}: {error} {_where(name, root)}") from error
            return TorchvisionImages(name, split or "all", data, entry)

        return open_split

    return {split: opener(split, options) for split, options in entry.splits.items()}
