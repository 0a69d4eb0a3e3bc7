"""Images laid out as ``class/image`` (`hrzs.classes.folders`), in a folder or in a ``.tar`` that is read in place."""

from __future__ import annotations

import io
import logging
import posixpath
import struct
import tarfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image, UnidentifiedImageError

from hrzs.classes.folders import LAYOUT, TWICE, Bunch, LeftOut, Source, is_image, layout
from hrzs.classes.match import class_list, recognise
from hrzs.classes.specs import prompt_name
from hrzs.classes.texts import Texts
from hrzs.data.base import REMEDY, Dataset, ImageError, suggest
from hrzs.errors import UsageError
from hrzs.models.cache import kept_json

logger = logging.getLogger(__name__)

#: The splits of a dataset (None: undivided data), each opened on call.
Openers = dict[str | None, Callable[[], Dataset]]

#: Endings of the files of webdataset shards that say a label.
LABELS = (".cls", ".json")

# Images up to this side are attacked at their own size, and resized within the model.
_LARGEST_NATIVE = 96
_PROBES = 64

# Pillow's readers of these formats decode by themselves; others start programs, as that of EPS does.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")

# Tars of fewer bytes are read as fast as their index.
_WORTH_AN_INDEX = 2**24

# What Pillow's readers raise on damaged files.
BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def decode(data: bytes, name: str) -> Image.Image:
    """The RGB image in ``data``.

    Raises:
        HrzsError: the data is damaged, or no image; the message has ``name``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            grey16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
            if image.mode in ("I", "F") and not grey16:
                raise ValueError(f"pixels of mode {image.mode} have no range that is known; save it with 8 bits")
            # Of 16 bits the upper 8 count, as Pillow has it for images of 16-bit colour; it would clip grey ones.
            eight = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if grey16 else image
            rgb: Image.Image = eight.convert("RGB")
            return rgb
    except BROKEN as error:
        reason = f"none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"Image {name} cannot be decoded ({reason}). {REMEDY}") from error


class Files(ABC):
    """Where the images of a dataset lie: each is read by its number."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """
        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """The name of one image in messages."""


@dataclass(frozen=True)
class FolderFiles(Files):
    """``paths`` are relative to ``root``."""

    root: Path
    paths: Texts

    def read(self, index: int) -> bytes:
        return (self.root / self.paths[index]).read_bytes()

    def describe(self, index: int) -> str:
        return str(self.root / self.paths[index])


@dataclass(frozen=True)
class TarFiles(Files):
    """Image i is ``sizes[i]`` bytes from ``offsets[i]`` on of ``tars[which[i]]``, where it is called ``members[i]``."""

    tars: tuple[Path, ...]
    which: Integer[np.ndarray, " n"]
    offsets: Integer[np.ndarray, " n"]
    sizes: Integer[np.ndarray, " n"]
    members: Texts

    def read(self, index: int) -> bytes:
        path: Path = self.tars[self.which[index]]
        with path.open("rb") as file:
            file.seek(int(self.offsets[index]))
            return file.read(int(self.sizes[index]))

    def describe(self, index: int) -> str:
        return f"{self.tars[self.which[index]]}:{self.members[index]}"

    def take(self, order: Integer[np.ndarray, " m"]) -> TarFiles:
        """The images at ``order``."""
        which, offsets, sizes = self.which[order], self.offsets[order], self.sizes[order]
        return TarFiles(self.tars, which, offsets, sizes, self.members.take(order))


class Images(Dataset):
    """The images of one split, each read from its source when asked for.

    ``names`` are the prompt names of those classes whose id does not tell it.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Iterable[str],
        files: Files,
        ids: Texts,
        labels: Sequence[int],
        names: Mapping[str, str] | None = None,
        like: str | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        self.name, self.split, self.like = name, split, like
        self.left_out = left_out or LeftOut()
        self.classes = tuple(classes)
        self.class_names = tuple((names or {}).get(c) or prompt_name(c) for c in self.classes)
        self._files, self.ids, self.labels = files, ids, labels
        self.native_size = self._common_size()

    def picture(self, index: int) -> Image.Image:
        try:
            data = self._files.read(index)
        except OSError as error:
            raise ImageError(
                f"Image {self._files.describe(index)} cannot be read: {error.strerror}. {REMEDY}"
            ) from error
        return decode(data, self._files.describe(index))

    def _common_size(self) -> int | None:
        """The side of the images, if 64 of them, spread over all, are square, small and of one size; else None."""
        sizes = set()
        for i in range(0, len(self), max(1, len(self) // _PROBES)):
            try:
                with Image.open(io.BytesIO(self._files.read(i)), formats=FORMATS) as image:
                    sizes.add(image.size)
            except BROKEN:
                continue  # `picture` reports it, but only if --skip and --limit do not leave it out.
        if len(sizes) != 1:
            return None
        ((width, height),) = sizes
        return width if width == height <= _LARGEST_NATIVE else None


class Tar(Source):
    """An uncompressed tar file. Its index is read once, and kept on disk; an image is then one seek and one read.

    Links inside it are read as what they lead to.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not path.is_file():
            raise UsageError(f"--data {path}: no folder and no regular file")
        try:
            found = _index(path)
        except tarfile.ReadError as error:
            raise UsageError(
                f"--data {path}: not an uncompressed tar file, or one cut short ({error}). "
                f"A compressed one is unpacked to a .tar first: gunzip -k {path.name}."
            ) from error
        except OSError as error:
            raise UsageError(f"--data {path}: cannot be read ({error.strerror})") from error
        self.folders = set(found["folders"])
        for reason, example, count in found["left_out"]:
            self.left_out.add(reason, example, count)
        self._members: list[str] = found["members"]
        self._offsets = np.cumsum(np.array(found["steps"], dtype=np.int64))
        self._sizes = np.array(found["sizes"], dtype=np.int64)
        self._labels: dict[str, str] = found["labels"]

    def members(self) -> Sequence[str]:
        return self._members

    @cached_property
    def _number(self) -> dict[str, int]:
        return {member: number for number, member in enumerate(self._members)}

    def __contains__(self, member: str) -> bool:
        return member in self._number

    def read(self, member: str) -> bytes:
        if (label := self._labels.get(member)) is not None:
            return label.encode()
        number = self._number[member]
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            return file.read(int(self._sizes[number]))

    def describe(self, member: str) -> str:
        return f"{self.path}:{member}"

    def files(self, members: Iterable[str]) -> TarFiles:
        """Where these lie."""
        numbers = np.fromiter((self._number[member] for member in members), np.int64)
        which = np.zeros(len(numbers), np.uint16)
        names = Texts.of(self._members[number] for number in numbers.tolist())
        return TarFiles((self.path,), which, self._offsets[numbers], self._sizes[numbers], names)


class _Index:
    """What a tar holds, and where."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: set[str] = set()
        self.left_out = LeftOut()
        self._places: dict[str, tuple[int, int]] = {}
        self._labels: dict[str, str] = {}
        links: dict[str, str] = {}
        length = path.stat().st_size
        with tarfile.open(path, mode="r:") as tar, path.open("rb", buffering=0) as file:
            member = tar.next()
            while member is not None:
                tar.members = []  # type: ignore[attr-defined]  # which else would hold every header
                if member.isreg() and not member.issparse() and member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"{member.name} should have {member.size:,} bytes")
                self._add(member, links)
                if member.name.endswith(LABELS) and member.isreg() and member.size <= tarfile.BLOCKSIZE:
                    # Read now, where the head of the disk is: a million of them one by one would take long.
                    file.seek(member.offset_data)
                    with suppress(UnicodeDecodeError):
                        self._labels[_clean(member.name)] = file.read(member.size).decode()
                member = _plain(file, tar) or tar.next()
            end = tar.offset
            # tarfile takes a damaged or incomplete header for the end of the tar, which really is blocks of zeros.
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no end mark after {len(self._places)} files")
        self._follow(links)
        met: set[tuple[int, int]] = set()
        for name, place in self._places.items():
            if is_image(name):
                if place in met:
                    self.left_out.add(TWICE, name)
                met.add(place)

    def _add(self, member: tarfile.TarInfo, links: dict[str, str]) -> None:
        name = _clean(member.name)
        if member.isdir():
            self.folders.add(name)
        elif member.isreg():
            if name in self._places:
                self.left_out.add("member met twice, of which the last counts", name)
            if member.issparse() and is_image(name):
                raise UsageError(
                    f"--data {self.path}: {name} is stored as a sparse file of {member.size:,} bytes, a form that is "
                    "not read in place. Pack the tar again without --sparse."
                )
            self._places[name] = (member.offset_data, member.size)
            self._labels.pop(name, None)
        elif member.islnk() or member.issym():
            base = "" if member.islnk() else posixpath.dirname(name)
            links[name] = _clean(posixpath.join(base, member.linkname))
        elif is_image(name):
            self.left_out.add("image name, but no regular file", name)

    def _follow(self, links: Mapping[str, str]) -> None:
        folders = self.folders | {top for name in self._places for top in _above(name)} if links else self.folders
        for name, target in links.items():
            met = {name}
            while target in links and target not in met:
                met.add(target)
                target = links[target]
            if target in self._places:
                self._places[name] = self._places[target]
                self._labels.pop(name, None)
            else:
                inside = target in folders or target == "."
                self.left_out.add(
                    "link to a folder that is met elsewhere" if inside else "link that leads nowhere", name
                )

    def as_json(self) -> dict[str, Any]:
        """Offsets as steps from each to the next, which are shorter."""
        offsets = [offset for offset, _ in self._places.values()]
        return {
            "members": list(self._places),
            "steps": [b - a for a, b in zip([0, *offsets], offsets, strict=False)],
            "sizes": [size for _, size in self._places.values()],
            "labels": self._labels,
            "folders": sorted(self.folders),
            "left_out": self.left_out.rows(),
        }


def _plain(file: io.FileIO, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member, if its header is one of the plainest kind; then ``tar``, which takes far longer, is moved on."""
    file.seek(tar.offset)
    head = file.read(tarfile.BLOCKSIZE)
    name, _, _ = head[:100].partition(b"\0")
    is_plain = (
        head[156:157] in (b"0", b"\0")
        and head[257:262] == b"ustar"
        and not head[345]  # the start of a long name
        and name.isascii()
        and not name.endswith(b"/")
        and not tar.pax_headers
    )
    size, said = (field.rstrip(b" \0") for field in (head[124:136], head[148:156]))
    if not (is_plain and name and size.isdigit() and said.strip().isdigit()):
        return None
    if sum(head) - sum(head[148:156]) + 8 * ord(" ") != int(said, 8):
        return None
    member = tarfile.TarInfo(name.decode())
    member.size, member.offset_data = int(size, 8), tar.offset + tarfile.BLOCKSIZE
    tar.offset = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return member


def _index(path: Path) -> dict[str, Any]:
    """`_Index.as_json`, from the disk if it is known and the file has the same size and time of change."""
    status = path.stat()
    if status.st_size < _WORTH_AN_INDEX:
        return _Index(path).as_json()
    about = {"path": str(path.resolve()), "size": status.st_size, "mtime": status.st_mtime_ns, "inode": status.st_ino}
    found: dict[str, Any] = kept_json("tars", about, lambda: _Index(path).as_json(), _fits)
    return found


def _fits(found: Any) -> bool:
    return len(found["members"]) == len(found["steps"]) == len(found["sizes"])


def _clean(name: str) -> str:
    return posixpath.normpath(name.removeprefix("./"))


def _above(name: str) -> Iterator[str]:
    """The folders above a member."""
    while name := posixpath.dirname(name):
        yield name


@dataclass(frozen=True)
class Unlabelled:
    """A split that is there, but whose images have no labels: to open it is an error."""

    why: str

    def __call__(self) -> Dataset:
        raise UsageError(self.why)


def open_images(source: Source, name: str, *, is_named: bool = False, left_out: Sequence[str] = ()) -> Openers:
    """The splits of ``source`` (None for undivided data), each opened on call. Every split has the classes of all.

    Folders that are called by ids or names of a dataset's class list become its ids, in its order. With ``is_named``
    the user asked for the dataset ``name``, so a folder that is none of its classes is an error, unless it is
    ``left_out``. Otherwise the folders are the user's own, and are recognised only if all of them are classes.

    Raises:
        UsageError: no class has images, or a folder is no class or may mean several.
    """
    found = layout(source)
    splits = found.splits
    for of_class in splits.values():
        for folder in of_class.keys() & left_out:
            for bunch in of_class[folder]:
                found.left_out.add(f"image of {folder}, which is no class", bunch.paths[0], len(bunch.names))
    folders = [folder for folder in found.classes if folder not in left_out]
    listed, like = class_list(name), None
    if listed is None and (like := recognise(folders, name, in_order=False)):
        listed = class_list(like)
        logger.info("%s: the classes are those of %s", name, like)
    class_of = {folder: listed.find(folder) if listed else [folder] for folder in folders}
    wrong = next((folder for folder in folders if len(class_of[folder]) != 1), None)
    if listed is None or (wrong is not None and not is_named):
        classes, names = folders, {}
        class_of = {folder: [folder] for folder in folders}
    elif wrong is not None:
        meant = " and ".join(class_of[wrong])
        fault = f"the name of {meant}; call it by its id" if meant else f"no class of {name}"
        raise UsageError(
            f"--data {name}: the folder {wrong!r} in {source.path} is {fault}. "
            f"{'' if meant else suggest(wrong, listed.ids)}".strip()
        )
    else:
        present = {c for (c,) in class_of.values()}
        classes = [c for c in listed.ids if c in present]
        names = dict(zip(listed.ids, listed.names, strict=True))
        met: set[str] = set()
        for folder, (c,) in class_of.items():
            if c in met:
                found.left_out.add("class met twice, in folders of different names (both are read)", folder)
            met.add(c)
        if by_name := [(folder, c) for folder, (c,) in class_of.items() if folder != c]:
            folder, c = by_name[0]
            more = f" and {len(by_name) - 1} more" if len(by_name) > 1 else ""
            logger.info("%s: folders are told by their names: %s is %s%s", name, folder, c, more)

    def opener(split: str | None) -> Callable[[], Dataset]:
        def open_split() -> Dataset:
            of_class: dict[str, list[Bunch]] = defaultdict(list)
            for folder, bunches in splits[split].items():
                if folder in class_of:
                    of_class[class_of[folder][0]] += bunches
            ordered = [(label, bunch) for label, c in enumerate(classes) for bunch in of_class.get(c, ())]
            labels = [label for label, bunch in ordered for _ in bunch.names]
            paths = Texts.of(path for _, bunch in ordered for path in bunch.paths)
            if all(bunch.folder.endswith(bunch.shown) for _, bunch in ordered):
                skipped = [len(bunch.folder.encode()) - len(bunch.shown.encode()) for _, bunch in ordered]
                ids = paths.without_start(np.repeat(skipped, [len(bunch.names) for _, bunch in ordered]))
            else:
                ids = Texts.of(shown for _, bunch in ordered for shown in bunch.ids)
            files = source.files(paths) if isinstance(source, Tar) else FolderFiles(source.path, paths)
            return Images(name, split or "all", classes, files, ids, labels, names, like, found.left_out)

        return open_split

    unlabelled: Openers = {
        split: Unlabelled(f"--data {source.path}: {why}. {LAYOUT}") for split, why in found.unlabelled.items()
    }
    return {**{split: opener(split) for split in splits}, **unlabelled}
