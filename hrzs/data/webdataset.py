"""webdataset shards: tars of ``KEY.jpg`` beside ``KEY.cls`` or ``KEY.json``, read in place.

A label is a number or a class: the text of ``KEY.cls``, or the value in ``KEY.json`` of one of `JSON_KEYS`. The classes
stand in ``classnames.txt`` or ``classes.txt``, beside the shards or beside their split folder, as in exports of
CLIP_benchmark: line n is label n, from 0. As in github.com/webdataset/webdataset, a key ends at the first dot of the
file name.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from hrzs.classes.forms import read_class_list
from hrzs.classes.match import ClassList, class_list, recognise
from hrzs.classes.specs import SPLIT_FOLDERS, ClassSpec
from hrzs.data.base import Dataset, suggest
from hrzs.data.folder import EXTENSIONS, Images, Member, Source, Tar, open_images, open_source
from hrzs.errors import UsageError

logger = logging.getLogger(__name__)

CLASS_FILES = ("classnames.txt", "classes.txt")
JSON_KEYS = ("cls", "label", "class", "class_name", "classname")

Openers = dict[str | None, Callable[[], Dataset]]

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Shards(Source):
    """Several tars as one source; a member is called ``SHARD/MEMBER``."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(Path(os.path.commonpath([p.parent for p in paths])))
        self._places: dict[str, tuple[Tar, str]] = {}
        for path in paths:
            tar, shard = Tar(path), path.relative_to(self.path).as_posix().removesuffix(".tar")
            self._places.update({f"{shard}/{member}": (tar, member) for member in tar.members()})

    def members(self) -> Iterator[str]:
        return iter(self._places)

    def read(self, member: str) -> bytes:
        tar, inside = self._places[member]
        return tar.read(inside)

    def describe(self, member: str) -> str:
        tar, inside = self._places[member]
        return tar.describe(inside)


def open_path(path: Path, name: str, *, is_named: bool = False, left_out: Sequence[str] = ()) -> Openers:
    """The splits of a folder or a tar, which holds either ``class/image`` or webdataset shards.

    A folder holds shards if it has tars and no folders, or tars in its split folders (``test/0.tar``).
    """
    if path.is_dir():
        if shards := _shards_in(path):
            return open_shards(shards, name)
    elif _is_shard(tar := Tar(path)):
        return open_shards({_split_of(path.parent): [path]}, _home(path.parent).name if name.isdigit() else name)
    else:
        return open_images(tar, name)
    return open_images(open_source(path), name, is_named=is_named, left_out=left_out)


def open_pattern(pattern: str) -> Openers:
    """The splits of the shards ``DIR/{0000..0099}.tar``; the dataset is called after its folder.

    Raises:
        UsageError: ``pattern`` is no pattern, or a shard is missing.
    """
    ranges = [range(int(a), int(b) + 1) for a, b in _RANGE.findall(pattern)]
    parts = _RANGE.split(pattern)
    fixed, widths = parts[::3], [len(a) for a in parts[1::3]]
    if not ranges or not all(ranges) or "{" in "".join(fixed) or not pattern.endswith(".tar"):
        raise UsageError(f"--data {pattern}: not a pattern of shards; one looks like DIR/{{0000..0099}}.tar")
    paths = []
    for numbers in product(*ranges):
        texts = [f"{n:0{width}d}" for n, width in zip(numbers, widths, strict=True)]
        paths.append(Path("".join(part + text for part, text in zip(fixed, [*texts, ""], strict=True))))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        shown = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise UsageError(
            f"--data {pattern}: {len(missing)} of {len(paths)} shards are missing: {shown}. "
            "Put them there, or narrow the range."
        )
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    return open_shards({_split_of(folder): paths}, _home(folder).name)


def open_shards(shards: Mapping[str | None, Sequence[Path]], name: str) -> Openers:
    """The splits of ``shards``, each indexed when it is opened.

    Raises:
        UsageError: the class file cannot be read.
    """
    folder = next(iter(shards.values()))[0].resolve().parent
    file = next((f for place in (folder, _home(folder)) for c in CLASS_FILES if (f := place / c).is_file()), None)
    classes, like = class_list(name), None
    if file is not None:
        specs = read_class_list(file, option="--data", by_line=True)
        dataset = recognise([spec.class_id for spec in specs], name, in_order=True)
        classes = class_list(dataset) if dataset else ClassList(specs)
        like = dataset if dataset != name else None
        if like:
            logger.info("%s: the classes in %s are those of %s", name, file.name, like)

    def opener(split: str | None) -> Callable[[], Dataset]:
        return lambda: _open_split(name, split, Shards(shards[split]), classes, like)

    return {split: opener(split) for split in shards}


def _open_split(name: str, split: str | None, source: Shards, classes: ClassList | None, like: str | None) -> Dataset:
    labelled = _labelled(source)
    if classes is None:
        classes = _classes_of({label for _, label in labelled})
    members: dict[str, list[Member]] = defaultdict(list)
    for path, label in labelled:
        members[_class_of(label, classes, source.describe(path))].append(Member(path, path))
    names = dict(zip(classes.ids, classes.names, strict=True))
    return Images(name, split or "all", classes.ids, members, source, names, like)


def _labelled(source: Shards) -> list[tuple[str, str]]:
    """(member, text of its label) of every image; no image, or one without a label, is an error."""
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for path in source.members():
        folder, _, file = path.rpartition("/")
        key, _, extension = file.partition(".")
        if key:
            samples[f"{folder}/{key}"][extension.lower()] = path
    found = []
    for key, files in samples.items():
        image = next((path for extension, path in files.items() if f".{extension}" in EXTENSIONS), None)
        if image is None:
            continue
        label = _label(source, files)
        if label is None:
            raise UsageError(
                f"--data: {source.describe(image)} has no label: expected {Path(key).name}.cls beside it, or "
                f"{Path(key).name}.json with one of {', '.join(JSON_KEYS)}."
            )
        found.append((image, label))
    if not found:
        raise UsageError(f"--data {source.path}: no image in its shards. Image files end in {', '.join(EXTENSIONS)}.")
    return found


def _label(source: Shards, files: Mapping[str, str]) -> str | None:
    if "cls" in files:
        return source.read(files["cls"]).decode(errors="replace").strip() or None
    if "json" not in files:
        return None
    try:
        about = json.loads(source.read(files["json"]))
    except ValueError as error:
        raise UsageError(f"--data: {source.describe(files['json'])} is not JSON ({error}).") from error
    values = [about[key] for key in JSON_KEYS if key in about] if isinstance(about, dict) else []
    return str(values[0]).strip() or None if values else None


def _classes_of(labels: set[str]) -> ClassList:
    """The classes of shards without a class file: the numbers up to the largest label, or the sorted names."""
    if all(label.isdecimal() for label in labels):
        return ClassList([ClassSpec(str(i)) for i in range(max(map(int, labels)) + 1)])
    return ClassList([ClassSpec(label) for label in sorted(labels)])


def _class_of(label: str, classes: ClassList, image: str) -> str:
    if label.isdecimal():
        if int(label) < len(classes.ids):
            return classes.ids[int(label)]
        raise UsageError(
            f"--data: {image} has the label {label}, but there are {len(classes.ids)} classes, numbered from 0: "
            f"{CLASS_FILES[0]} beside the shards does not belong to them."
        )
    found = classes.find(label)
    if len(found) != 1:
        reason = f"the name of {' and '.join(found)}" if found else f"none of them. {suggest(label, classes.ids)}"
        raise UsageError(f"--data: {image} has the label {label!r}, which among the classes is {reason}")
    return found[0]


def _shards_in(folder: Path) -> dict[str | None, list[Path]]:
    subfolders = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    if not subfolders:
        return {_split_of(folder.resolve()): tars} if (tars := _tars(folder)) else {}
    return {_split_of(f): tars for f in sorted(subfolders) if f.name in SPLIT_FOLDERS and (tars := _tars(f))}


def _tars(folder: Path) -> list[Path]:
    """The tars in the order of their numbers: ``9.tar`` before ``10.tar``."""
    return sorted(folder.glob("*.tar"), key=lambda path: (len(path.name), path.name))


def _is_shard(tar: Tar) -> bool:
    images = {member.rpartition(".")[0] for member in tar.members() if member.lower().endswith(EXTENSIONS)}
    return any(m.endswith((".cls", ".json")) and m.rpartition(".")[0] in images for m in tar.members())


def _split_of(folder: Path) -> str | None:
    return SPLIT_FOLDERS.get(folder.name)


def _home(folder: Path) -> Path:
    """The dataset's own folder: the one above a split folder, else ``folder`` itself."""
    return folder.parent if folder.name in SPLIT_FOLDERS else folder
