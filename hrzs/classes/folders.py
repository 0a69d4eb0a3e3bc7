"""What a folder or a tar holds: images laid out as ``class/image``, with splits or without, or webdataset shards.

This is the one reader of it: `hrzs.data` takes the images, ``hrzs build-tree`` the classes. The layout is told from the
list of paths alone, so a folder and a tar of it are the same dataset. Whatever looks like an image, a class or a shard
and is left out is counted (`LeftOut`).
"""

from __future__ import annotations

import csv
import io
import logging
import os
import posixpath
import re
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from hrzs.classes.specs import split_of
from hrzs.errors import UsageError

logger = logging.getLogger(__name__)

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".gif",
)  # fmt: skip
LAYOUT = "Expected <class>/<image>, or <split>/<class>/<image> with splits train, val, test."
#: The labels of ImageNet's validation images, as Kaggle has them.
KAGGLE = "LOC_val_solution.csv"

ENDINGS = f"Image files end in {', '.join(EXTENSIONS)}."
TWICE = "image met twice, under another name (both are read)"
HIDDEN = "hidden image"
_NO_CLASS = "image without a class folder"

#: Images too, but of formats that are not read.
NOT_READ = {
    ".arw", ".avif", ".cr2", ".dds", ".dng", ".eps", ".exr", ".fits", ".hdr", ".heic", ".heif", ".ico", ".j2k", ".jp2",
    ".jpf", ".jpx", ".jxl", ".nef", ".pcx", ".pfm", ".psd", ".raw", ".svg", ".tga", ".xcf",
}  # fmt: skip
# Archives, and what unpacks them.
_ARCHIVES = {
    ".tar": "", ".tar.gz": "gunzip -k", ".tgz": "gunzip -k", ".tar.bz2": "bunzip2 -k", ".tar.xz": "unxz -k",
    ".tar.zst": "unzstd", ".tar.lz4": "unlz4", ".zip": "unzip", ".7z": "7z x", ".rar": "unrar x",
}  # fmt: skip


class Bunch(NamedTuple):
    """Images of one class in one folder, in order: ``folder/name`` is the path of each, and ``shown/name`` its id.

    So the id is the same whether the source is a folder, one of its split subfolders, or a tar of either.
    """

    folder: str
    shown: str
    names: list[str]

    @property
    def paths(self) -> list[str]:
        return [f"{self.folder}/{name}" for name in self.names]

    @property
    def ids(self) -> list[str]:
        return [f"{self.shown}/{name}" for name in self.names]


class LeftOut:
    """Counts what is left out or met twice, by reason; it remembers an example of each."""

    def __init__(self, other: LeftOut | None = None) -> None:
        self.counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        if other is not None:
            self.update(other)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        self._examples.setdefault(reason, example)

    def update(self, other: LeftOut) -> None:
        for reason, count in other.counts.items():
            self.add(reason, other._examples[reason], count)

    def rows(self) -> list[tuple[str, str, int]]:
        """(reason, example, count) of each, as `add` takes them."""
        return [(reason, self._examples[reason], count) for reason, count in self.counts.items()]

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {count} ({'' if count == 1 else 'such as '}{self._examples[reason]})"
            for reason, count in self.counts.items()
        )


class Source:
    """A place of images: lists their paths (with ``/`` between the parts) and reads them.

    Attributes:
        left_out: what `members` does not list.
        folders: the paths of its folders, once `members` was called.
    """

    def __init__(self, path: Path) -> None:
        check_name(path, str(path))
        self.path = path
        self.left_out = LeftOut()
        self.folders: set[str] = set()

    def members(self) -> Iterable[str]:
        raise NotImplementedError

    def names(self) -> dict[str, list[str]]:
        """The names of the members of each folder; a folder without any is not there."""
        found: dict[str, list[str]] = defaultdict(list)
        for member in self.members():
            folder, _, name = member.rpartition("/")
            found[folder].append(name)
        return found

    def read(self, member: str) -> bytes:
        raise NotImplementedError

    def describe(self, member: str) -> str:
        """The name of one image in messages."""
        raise NotImplementedError


class Folder(Source):
    """A directory. Links are followed, but no folder is visited twice, and only regular files are listed."""

    def members(self) -> Iterable[str]:
        return (_joined(folder, name) for folder, names in self.names().items() for name in names)

    def names(self) -> dict[str, list[str]]:
        return self._listed

    @cached_property
    def _listed(self) -> dict[str, list[str]]:
        listed: dict[str, list[str]] = {}
        visited: set[tuple[int, int]] = set()
        devices, numbers = array("Q"), array("Q")  # of the images
        # Links wait until the end: so a folder inside that a link leads to is met under its own name.
        waiting, links = deque([""]), deque[str]()
        while waiting or links:
            inside = (waiting or links).popleft()
            try:
                status = (self.path / inside).stat()
                if (status.st_dev, status.st_ino) in visited:
                    self.left_out.add("link to a folder that is met elsewhere", inside)
                    continue
                visited.add((status.st_dev, status.st_ino))
                self.folders.add(inside)
                entries = sorted(os.scandir(self.path / inside), key=lambda entry: entry.name)
            except OSError as error:
                raise UsageError(f"--data {self.path / inside}: cannot be read ({error.strerror})") from error
            names: list[str] = []
            for entry in entries:
                kind = _kind(entry)
                if kind == "file":
                    names.append(entry.name)
                    if is_image(entry.name):
                        is_link = entry.is_symlink()
                        devices.append(entry.stat().st_dev if is_link else status.st_dev)
                        numbers.append(entry.stat().st_ino if is_link else entry.inode())
                    continue
                path = _joined(inside, entry.name)
                if kind == "folder":
                    (links if entry.is_symlink() else waiting).append(path)
                elif kind == "nothing" or is_image(path):
                    reason = "link that leads nowhere" if kind == "nothing" else "image name, but no regular file"
                    self.left_out.add(reason, path)
            if names:
                listed[inside] = names
        in_order = np.sort(np.array(numbers, dtype=np.uint64))
        if len(set(devices)) > 1 or (in_order[1:] == in_order[:-1]).any():
            met: set[tuple[int, int]] = set()
            images = (_joined(folder, name) for folder, names in listed.items() for name in names if is_image(name))
            for path, place in zip(images, zip(devices, numbers, strict=True), strict=True):
                if place in met:
                    self.left_out.add(TWICE, path)
                met.add(place)
        return listed

    def read(self, member: str) -> bytes:
        return (self.path / member).read_bytes()

    def describe(self, member: str) -> str:
        return str(self.path / member)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "nothing" if entry.is_symlink() and not Path(entry.path).exists() else "other"
    except OSError:  # links that lead in circles
        return "nothing"


def is_image(path: str) -> bool:
    """Does the name say that this is an image of a format that is read?"""
    return path.lower().endswith(EXTENSIONS)


def is_hidden(path: str) -> bool:
    """Is it, or a folder above it, called ``.something``, or ``__MACOSX``, which macOS adds to archives?"""
    return "/." in f"/{path}" or "__MACOSX/" in path


def check_name(source: Path, member: str) -> None:
    """
    Raises:
        UsageError: the name is not UTF-8; in no report, digest or prompt could it stand.
    """
    try:
        member.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"--data {source}: the name {member!a} is not UTF-8. Rename it, such as with "
            "`convmv -f latin1 -t utf8 -r --notest`."
        ) from None


def check_names(source: Path, inside: str, names: Sequence[str]) -> None:
    """`check_name` of ``inside`` and each of ``names``, in little time if all are well."""
    try:
        "".join([inside, *names]).encode()
    except UnicodeEncodeError:
        for name in names:
            check_name(source, inside + name)


class Layout(NamedTuple):
    """The sorted images of each class of each split (None: undivided data), and what is left out.

    ``unlabelled`` are splits whose images are in no class folders, each with the reason for which they are not read.
    """

    splits: dict[str | None, dict[str, list[Bunch]]]
    left_out: LeftOut
    unlabelled: dict[str, str]

    @property
    def classes(self) -> list[str]:
        """The classes of all splits, sorted."""
        return sorted({c for classes in self.splits.values() for c in classes})


def layout(source: Source) -> Layout:
    """The layout of ``source``. A single folder around everything, which archives often have, is skipped.

    Raises:
        UsageError: no class has images, or the layout is none that is known for certain.
    """
    listed, left = source.names(), LeftOut(source.left_out)
    # Of each folder with images the parts of its path, and the names. A million images lie in few folders.
    holders: list[tuple[tuple[str, ...], list[str]]] = []
    others = Counter[str]()
    for folder, names in listed.items():
        inside = f"{folder}/" if folder else ""
        is_folder_hidden, images = is_hidden(inside), []
        for name in names:
            if is_image(name):
                if is_folder_hidden or name.startswith("."):
                    left.add(HIDDEN, inside + name)
                else:
                    images.append(name)
                continue
            ending = _ending(name)
            others[ending] += 1
            if ending in (*NOT_READ, *_ARCHIVES) and not is_hidden(inside + name):
                left.add(f"{ending} file, which is not read", inside + name)
        if images:
            check_names(source.path, inside, images)
            holders.append((tuple(folder.split("/")) if folder else (), sorted(images)))
    holders.sort()
    inner, wrapper = [parts for parts, _ in holders if parts], tuple[str, ...]()
    while inner and _is_wrapper(inner):
        wrapper = (*wrapper, inner[0][0])
        inner = [parts[1:] for parts in inner if len(parts) >= 2]
    depth, tops = len(wrapper), {parts[0] for parts in inner}
    if not tops:
        beside = f" Left out: {left}." if left.counts else ""
        lone = sum(len(images) for _, images in holders)
        raise UsageError(f"--data {source.path}: {_what_else(lone, others)}.{beside} {LAYOUT} {ENDINGS}")
    splits = {parts[0]: split for parts in inner if len(parts) >= 2 and (split := split_of(parts[0]))}
    flat = {top: split for top in tops - splits.keys() if (split := split_of(top))}
    if not splits and flat.keys() != tops:
        flat = {}  # classes, one of which is called train
    _check_splits(source, inner, splits | flat)

    found: dict[str | None, dict[str, list[Bunch]]] = defaultdict(lambda: defaultdict(list))
    unlabelled: dict[str, str] = {}
    labels = _kaggle_labels(source, source.members()) if "val" in flat.values() else {}
    for parts, images in holders:
        folder, where = "/".join(parts), parts[depth:]
        top = where[0] if where and parts[:depth] == wrapper else None
        split = splits.get(top) if top is not None else None
        if top is None or (split and len(where) < 2):
            left.add(_NO_CLASS, _joined(folder, images[0]), len(images))
        elif split:
            found[split][where[1]].append(Bunch(folder, "/".join(where[1:]), images))
        elif top in flat:
            bare = []
            for name in images:
                if flat[top] == "val" and (label := labels.get(name.partition(".")[0])):
                    found["val"][label].append(Bunch(folder, label, [name]))
                else:
                    bare.append(name)
            if bare:
                left.add(_NO_CLASS, f"{folder}/{bare[0]}", len(bare))
                unlabelled.setdefault(flat[top], _flat(top, flat[top]))
        elif splits or flat:
            left.add("image outside of the split folders", f"{folder}/{images[0]}", len(images))
        else:
            found[None][top].append(Bunch(folder, "/".join(where), images))
    if labels:
        in_val = {name for bunches in found.get("val", {}).values() for bunch in bunches for name in bunch.names}
        for row in sorted(labels.keys() - {name.partition(".")[0] for name in in_val}):
            left.add(f"row of {KAGGLE} without an image", row)
    if not found:
        raise UsageError(f"--data {source.path}: {min(unlabelled.values())}. {LAYOUT}")
    with_images = {"/".join(parts[:i]) for parts, _ in holders for i in range(1, len(parts) + 1)}
    for folder in sorted(source.folders - with_images - {"", "."}):
        where = tuple(folder.split("/"))
        in_split = where[:depth] == wrapper and len(where) == depth + 2 and where[depth] in splits
        at_top = where[:depth] == wrapper and len(where) == depth + 1 and not splits and not flat
        if (in_split or at_top) and not is_hidden(f"{folder}/"):
            left.add("class folder without images", folder)
    unlabelled = {split: why for split, why in unlabelled.items() if split not in found}
    result = Layout(
        {split: {c: _in_order(bunches) for c, bunches in classes.items()} for split, classes in found.items()},
        left,
        unlabelled,
    )
    if result.classes == ["images"]:
        raise UsageError(
            f"--data {source.path}: all images lie in images/ and no folder says their class, as in data for detection "
            f"(YOLO). {LAYOUT}"
        )
    shown = [b.shown.split("/") for classes in result.splits.values() for bunches in classes.values() for b in bunches]
    if all(len(parts) > 1 and len(parts[0]) == 1 and parts[1][:1] == parts[0] for parts in shown):
        first = next(iter(next(iter(result.splits.values())).values()))[0]
        raise UsageError(
            f"--data {source.path}: its folders are letters, as in Places365, with the classes below, such as "
            f"{'/'.join(first.shown.split('/')[:2])}; move the class folders up, next to one another"
        )
    return result


def _in_order(bunches: list[Bunch]) -> list[Bunch]:
    """The images of several folders in the order of the parts of their paths, in as few bunches as that takes."""
    if len(bunches) == 1:
        return bunches
    each = sorted(
        ((*bunch.folder.split("/"), name), bunch.folder, bunch.shown) for bunch in bunches for name in bunch.names
    )
    return [
        Bunch(folder, shown, [parts[-1] for parts, _, _ in group])
        for (folder, shown), group in groupby(each, key=lambda one: one[1:])
    ]


def class_folders(source: Source) -> list[str]:
    """The names of the class folders that have images, sorted, found as `hrzs.data` finds them.

    Raises:
        UsageError: there are none.
    """
    try:
        found = layout(source)
    except UsageError as error:
        raise UsageError(str(error).replace("--data", "--classes", 1)) from error
    warn_left_out(str(source.path), found.left_out)
    return found.classes


def warn_left_out(name: str, left: LeftOut) -> None:
    """Say what of the data is left out, if anything is."""
    if left.counts:
        logger.warning("%s: left out or met twice: %s", name, left)


def shards_in(source: Folder) -> tuple[dict[str | None, list[Path]], LeftOut]:
    """The webdataset shards of each split in a folder, or none; and what is left out beside them.

    They lie in split folders, or in the folder itself if no image lies in a folder there. The shards of one folder are
    divided by the splits that their names say (`shard_splits`).

    Raises:
        UsageError: names of shards say of some which split they are, and not of all.
    """
    left = LeftOut(source.left_out)
    if not any(name.lower().endswith(".tar") for names in source.names().values() for name in names):
        return {}, left
    paths = [tuple(m.split("/")) for m in source.members() if not is_hidden(m)]
    tars = [p for p in paths if p[-1].lower().endswith(".tar")]
    home = tuple(PurePosixPath(posixpath.commonpath([posixpath.join("/", *p[:-1]) for p in tars] or ["/"])).parts[1:])
    home = home[:-1] if home and split_of(home[-1]) else home
    within = {p: p[len(home) : -1] for p in tars}
    chosen = [p for p, where in within.items() if len(where) == 1 and split_of(where[0])]
    if not chosen and not any(is_image(p[-1]) and len(p) >= 2 for p in paths):
        chosen = [p for p, where in within.items() if not where]
    if not chosen:
        return {}, left
    for member in source.members():
        if tuple(member.split("/")) in within.keys() - chosen:
            left.add("shard outside of the split folders", member)
        elif _ending(member) in _ARCHIVES.keys() - {".tar"}:
            left.add(f"{_ending(member)} file, which is not read (decompress it first)", member)
        elif is_image(member):
            left.add("image beside the shards", member)
        elif is_hidden(member) and member.endswith(".tar"):
            left.add("hidden shard", member)
    return shard_splits([source.path.joinpath(*p) for p in chosen]), left


def shard_splits(paths: Sequence[Path]) -> dict[str | None, list[Path]]:
    """Shards by the split that the name of their folder says, or else their own names (``demo-train-0000.tar``).

    Within a split they are in the order of their numbers: ``9.tar`` before ``10.tar``.

    Raises:
        UsageError: names in one folder say of some which split they are, and not of all, or more than one.
    """
    found: dict[str | None, list[Path]] = defaultdict(list)
    for folder, group in groupby(sorted(paths, key=lambda p: (p.parent, len(p.name), p.name)), lambda p: p.parent):
        shards = list(group)
        said: list[set[str]] = [
            {s for word in re.findall("[a-z]+", p.stem.lower()) if (s := split_of(word))} for p in shards
        ]
        is_said = any(said)
        if any(len(each) > 1 for each in said):  # such as `stress-test-train-0.tar` beside `stress-test-val-0.tar`
            common = set[str].intersection(*said)
            said = [each - common for each in said]
        own = split_of(folder.resolve().name)
        if own and len({frozenset(each) for each in said}) == 1:
            found[own] += shards
            continue
        for shard, each in zip(shards, said, strict=True):
            if own or (is_said and len(each) != 1):
                raise UsageError(
                    f"--data {folder}: the names of its shards do not say of each which split it is, such as "
                    f"{shard.name}. Sort them into folders train/, val/ and test/."
                )
            found[next(iter(each), None)].append(shard)
    return dict(found)


def _flat(folder: str, split: str) -> str:
    kaggle = f", and there is no {KAGGLE} in this folder or above it" if split == "val" else ""
    return f"{folder}/ has images but no folder per class{kaggle}"


def _is_wrapper(inner: Sequence[Sequence[str]]) -> bool:
    tops = {p[0] for p in inner}
    return len(tops) == 1 and max(map(len, inner)) >= 2 and not any(map(split_of, tops))


def _check_splits(source: Source, inner: Iterable[Sequence[str]], splits: Mapping[str, str]) -> None:
    """Is it certain which folders are splits?"""
    for split, count in Counter(splits.values()).items():
        if count > 1:
            names = " and ".join(f"{top}/" for top in sorted(splits) if splits[top] == split)
            raise UsageError(f"--data {source.path}: {names} both are the split {split}. Take one of them away.")
    if splits:
        return
    # `seg_train/` and `seg_test/`, with the same classes in both
    classes: dict[str, set[str]] = defaultdict(set)
    for parts in inner:
        if len(parts) >= 2 and any(map(split_of, re.findall("[a-z]+", parts[0].lower()))):
            classes[parts[0]].add(parts[1])
    if len(classes) >= 2 and set.intersection(*classes.values()):
        raise UsageError(
            f"--data {source.path}: {' and '.join(f'{top}/' for top in sorted(classes))} look like splits. Call them "
            "train, val or test, or give one of them."
        )


def _ending(path: str) -> str:
    name = path.rpartition("/")[2].lower()
    return next((e for e in _ARCHIVES if name.endswith(e)), posixpath.splitext(name)[1])


NO_PARQUET = (
    "parquet is not read. Write the images to a folder for each class first, such as with the package datasets: "
    "row['image'].save(f'DIR/{row[\"label\"]}/{i}.png') for each row of load_dataset('parquet', data_files=FILES)"
)


def _what_else(lone: int, others: Counter[str]) -> str:
    """What there is where no class has images."""
    if lone:
        return f"{lone} images but no folder per class"
    kinds = [f"{count} {ending} files" for ending, count in others.most_common(3) if ending]
    unpack = next((f". Unpack them first: {tool} *{e}" for e, tool in _ARCHIVES.items() if e in others and tool), "")
    unpack = f"; {NO_PARQUET}" if ".parquet" in others else unpack
    return "no images" + (f", but {', '.join(kinds)}{unpack}" if kinds else "")


def _kaggle_labels(source: Source, members: Iterable[str]) -> dict[str, str]:
    """The class of each image, by the stem of its name, from `KAGGLE` in the source or above it; none without it."""
    inside = next((m for m in members if m.rpartition("/")[2] == KAGGLE), None)
    above = [place / KAGGLE for place in source.path.resolve().parents[:4]] if isinstance(source, Folder) else []
    file = next((f for f in above if f.is_file()), None)
    if inside is None and file is None:
        return {}
    data = source.read(inside) if inside is not None else Path(str(file)).read_bytes()
    rows = csv.reader(io.StringIO(data.decode(errors="replace")))
    return {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].split() and row[0] != "ImageId"}
