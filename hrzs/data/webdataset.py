"""webdataset shards: tars of ``KEY.jpg`` beside ``KEY.cls`` or ``KEY.json``, read in place.

A label is a number or a class: the text of ``KEY.cls``, or the value in ``KEY.json`` of one of `JSON_KEYS`. The classes
stand in ``classnames.txt`` or ``classes.txt``, one to a line, beside the shards or beside their split folder, as in
exports of CLIP_benchmark: line n is label n, from 0. As in github.com/webdataset/webdataset, a key ends at the first
dot of the file name; ``a.v2.jpg`` is an image of its own only where ``a.v2.cls`` or ``a.v2.json`` is beside it.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from hrzs.classes.folders import (
    ENDINGS,
    EXTENSIONS,
    HIDDEN,
    NOT_READ,
    Folder,
    LeftOut,
    check_name,
    is_hidden,
    is_image,
    shard_splits,
    shards_in,
)
from hrzs.classes.forms import read_class_list
from hrzs.classes.match import ClassList, class_list, recognise
from hrzs.classes.specs import ClassSpec, split_of
from hrzs.classes.texts import Texts
from hrzs.data.base import Dataset, suggest
from hrzs.data.folder import LABELS, Images, Openers, Tar, TarFiles, open_images
from hrzs.errors import UsageError

logger = logging.getLogger(__name__)

CLASS_FILES = ("classnames.txt", "classes.txt")
#: Shards without a class file have fewer classes.
MOST_CLASSES = 100_000
# The most characters of a label.
_LONGEST = 1000
JSON_KEYS = ("cls", "label", "class", "class_name", "classname")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def open_path(path: Path, name: str, *, is_named: bool = False, left_out: Sequence[str] = ()) -> Openers:
    """The splits of a folder or a tar, which holds either ``class/image`` or webdataset shards.

    A folder holds shards if it has tars and no folders, or tars in its split folders (``test/0.tar``).
    """
    if path.is_dir():
        folder = Folder(path)
        shards, left = shards_in(folder)
        return (
            open_shards(shards, name, left)
            if shards
            else open_images(folder, name, is_named=is_named, left_out=left_out)
        )
    if not _is_shard(tar := Tar(path)):
        return open_images(tar, name)
    return open_shards(shard_splits([path]), _home(path.parent).name if name.isdigit() else name)


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
    return open_shards(shard_splits(paths), _home(folder).name)


def open_shards(shards: Mapping[str | None, Sequence[Path]], name: str, left_out: LeftOut | None = None) -> Openers:
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
        return lambda: _open_split(name, split, shards[split], classes, like, left_out)

    return {split: opener(split) for split in shards}


def _open_split(
    name: str,
    split: str | None,
    paths: Sequence[Path],
    classes: ClassList | None,
    like: str | None,
    left_out: LeftOut | None,
) -> Dataset:
    left, home = LeftOut(left_out), Path(os.path.commonpath([p.parent for p in paths]))
    check_name(home, str(home))
    shards: list[TarFiles] = []
    ids: list[Texts] = []
    labels: list[str] = []
    # One shard after the other: only one is there with all of its names.
    for number, path in enumerate(paths):
        tar, shard = Tar(path), path.relative_to(home).as_posix().removesuffix(".tar")
        left.update(tar.left_out)
        found = _labelled(tar, left, f"{shard}/")
        files = tar.files(member for member, _ in found)
        shards.append(replace(files, which=np.full(len(found), number, np.int32)))
        ids.append(Texts.of(f"{shard}/{member}" for member, _ in found))
        labels += [sys.intern(label) for _, label in found]
    if not labels:
        others = f" They hold {left}." if left.counts else ""
        raise UsageError(f"--data {home}: no image in its shards.{others} {ENDINGS}")
    files = TarFiles(
        tuple(paths),
        np.concatenate([f.which for f in shards]),
        np.concatenate([f.offsets for f in shards]),
        np.concatenate([f.sizes for f in shards]),
        Texts.joined([f.members for f in shards]),
    )
    if classes is None:
        classes = _classes_of(set(labels), home)
    label_of: dict[str, int] = {}
    for i, label in enumerate(labels):
        if label not in label_of:
            label_of[label] = _label_of(label, classes, files.describe(i))
    places = np.array([label_of[label] for label in labels])
    order = np.argsort(places, kind="stable")
    common = list(range(len(classes.ids)))  # the same objects for all: a million of their own take 32 MB
    return Images(
        name,
        split or "all",
        classes.ids,
        files.take(order),
        Texts.joined(ids).take(order),
        [common[label] for label in places[order].tolist()],
        dict(zip(classes.ids, classes.names, strict=True)),
        like,
        left,
    )


def _labelled(tar: Tar, left: LeftOut, shard: str) -> list[tuple[str, str]]:
    """(member, text of its label) of every image of a shard; one without a label is an error."""
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    endings = frozenset(EXTENSIONS)
    for path in tar.members():
        folder, _, file = path.rpartition("/")
        if is_hidden(path):
            if is_image(path):
                left.add(HIDDEN, shard + path)
            continue
        # A key ends at the first dot, unless there is a label under the longer name.
        name, _, extension = file.partition(".")
        key, extension = f"{folder}/{name}", extension.lower()
        if "." in extension:
            stem, ending = posixpath.splitext(path)
            if (ending in LABELS or is_image(path)) and _has_label(stem, tar):
                key, extension = stem, ending[1:].lower()
        samples[key][extension] = path
    found = []
    for key, files in samples.items():
        images = [path for extension, path in files.items() if f".{extension}" in endings]
        for extension, path in files.items():
            if is_image(path) and path not in images[:1]:
                left.add("image beyond the first of its key", shard + path)
            elif f".{extension}" in NOT_READ:
                left.add(f".{extension} file, which is not read", shard + path)
        if not images:
            if {"cls", "json"} & files.keys():
                left.add("label without an image that is read", shard + next(iter(files.values())))
            continue
        check_name(tar.path, images[0])
        label = _label(tar, files)
        if label is None:
            raise UsageError(
                f"--data: {tar.describe(images[0])} has no label: expected {Path(key).name}.cls beside it, or "
                f"{Path(key).name}.json with one of {', '.join(JSON_KEYS)}."
            )
        found.append((images[0], label))
    return found


def _has_label(stem: str, tar: Tar) -> bool:
    return any(f"{stem}{ending}" in tar for ending in LABELS)


def _label(source: Tar, files: Mapping[str, str]) -> str | None:
    if "cls" in files:
        data = source.read(files["cls"])
        try:
            text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"--data: {source.describe(files['cls'])} is not UTF-8: no label.") from error
        if "\n" in text or len(text) > _LONGEST:
            raise UsageError(f"--data: {source.describe(files['cls'])} is more than a label: it has {len(data)} bytes.")
        return text or None
    if "json" not in files:
        return None
    try:
        about = json.loads(source.read(files["json"]))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--data: {source.describe(files['json'])} is not JSON ({error}).") from error
    values = [about[key] for key in JSON_KEYS if about.get(key) is not None] if isinstance(about, dict) else []
    if values and (
        not isinstance(values[0], int | str) or isinstance(values[0], bool) or len(str(values[0])) > _LONGEST
    ):
        raise UsageError(
            f"--data: {source.describe(files['json'])} has the label {str(values[0])[:40]}: no number, no name."
        )
    return str(values[0]).strip() or None if values else None


def _number(label: str) -> int | None:
    """The number that a label is; None for a name."""
    return int(label) if re.fullmatch(r"-?\d{1,1000}", label) else None


def _classes_of(labels: set[str], home: Path) -> ClassList:
    """The classes of shards without a class file: the numbers up to the largest label, or the sorted names."""
    numbers = [_number(label) for label in labels]
    if None in numbers:
        return ClassList([ClassSpec(label) for label in sorted(labels)])
    if (most := max(n for n in numbers if n is not None)) >= MOST_CLASSES:
        raise UsageError(
            f"--data {home}: the largest label is {_short(str(most))}: of more than {MOST_CLASSES:,} classes, "
            f"the names are needed, in {CLASS_FILES[0]} beside the shards, if that is the label at all."
        )
    return ClassList([ClassSpec(str(i)) for i in range(most + 1)])


def _label_of(label: str, classes: ClassList, image: str) -> int:
    number = _number(label)
    if number is not None and 0 <= number < len(classes.ids):
        return number
    if number is not None and number < 0:
        raise UsageError(f"--data: {image} has the label {_short(label)}: labels count from 0, so it has none")
    if number is not None:
        raise UsageError(
            f"--data: {image} has the label {_short(label)}, but there are {len(classes.ids)} classes, numbered "
            f"from 0: {CLASS_FILES[0]} beside the shards does not belong to them."
        )
    found = classes.find(label)
    if len(found) != 1:
        reason = f"the name of {' and '.join(found)}" if found else f"none of them. {suggest(label, classes.ids)}"
        raise UsageError(f"--data: {image} has the label {_short(label)!r}, which among the classes is {reason}")
    return classes.ids.index(found[0])


def _short(label: str) -> str:
    return label if len(label) <= 40 else f"{label[:40]}… ({len(label)} characters)"


def _is_shard(tar: Tar) -> bool:
    images = {member.rpartition(".")[0] for member in tar.members() if is_image(member)}
    return any(m.endswith(LABELS) and m.rpartition(".")[0] in images for m in tar.members())


def _home(folder: Path) -> Path:
    """The dataset's own folder: the one above a split folder, else ``folder`` itself."""
    return folder.parent if split_of(folder.name) else folder
