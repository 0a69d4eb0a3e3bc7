"""Images laid out as ``class/image`` (`hrzs.classes.folders`), in a folder or in a ``.tar`` that is read in place."""

from __future__ import annotations

import io
import logging
import posixpath
import struct
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from hrzs.classes.folders import LAYOUT, TWICE, LeftOut, Member, Source, is_image, layout
from hrzs.classes.match import class_list, recognise
from hrzs.classes.specs import prompt_name
from hrzs.data.base import REMEDY, Dataset, ImageError, suggest
from hrzs.errors import UsageError

logger = logging.getLogger(__name__)

#: The splits of a dataset (None: undivided data), each opened on call.
Openers = dict[str | None, Callable[[], Dataset]]

# Images up to this side are attacked at their own size, and resized within the model.
_LARGEST_NATIVE = 96
_PROBES = 64

# Pillow's readers of these formats decode by themselves; others start programs, as that of EPS does.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")

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


class Images(Dataset):
    """The images of one split, each read from its source when asked for.

    ``names`` are the prompt names of those classes whose id does not tell it.
    """

    def __init__(
        self,
        name: str,
        split: str,
        classes: Iterable[str],
        members: Mapping[str, Sequence[Member]],
        source: Source,
        names: Mapping[str, str] | None = None,
        like: str | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        self.name, self.split, self.like = name, split, like
        self.left_out = left_out or LeftOut()
        self.classes = tuple(classes)
        self.class_names = tuple((names or {}).get(c) or prompt_name(c) for c in self.classes)
        self._source = source
        self._paths = [m.path for c in self.classes for m in members.get(c, ())]
        self.ids = [m.id for c in self.classes for m in members.get(c, ())]
        self.labels = [label for label, c in enumerate(self.classes) for _ in members.get(c, ())]
        self.native_size = self._common_size()

    def picture(self, index: int) -> Image.Image:
        path = self._paths[index]
        try:
            data = self._source.read(path)
        except OSError as error:
            raise ImageError(
                f"Image {self._source.describe(path)} cannot be read: {error.strerror}. {REMEDY}"
            ) from error
        return decode(data, self._source.describe(path))

    def _common_size(self) -> int | None:
        """The side of the images, if 64 of them, spread over all, are square, small and of one size; else None."""
        sizes = set()
        for i in range(0, len(self), max(1, len(self) // _PROBES)):
            try:
                with Image.open(io.BytesIO(self._source.read(self._paths[i])), formats=FORMATS) as image:
                    sizes.add(image.size)
            except BROKEN:
                continue  # `picture` reports it, but only if --skip and --limit do not leave it out.
        if len(sizes) != 1:
            return None
        ((width, height),) = sizes
        return width if width == height <= _LARGEST_NATIVE else None


class Tar(Source):
    """An uncompressed tar file. Its index is read once; an image is then one seek and one read.

    Links inside it are read as what they lead to.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        if not path.is_file():
            raise UsageError(f"--data {path}: no folder and no regular file")
        length = path.stat().st_size
        try:
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse() and member.offset_data + member.size > length:
                        raise tarfile.ReadError(f"{member.name} should have {member.size:,} bytes")
                    self._add(member, links)
                end = tar.offset
            # tarfile takes a damaged or incomplete header for the end of the tar, which really is blocks of zeros.
            with path.open("rb") as file:
                file.seek(end)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end mark after {len(self._places)} files")
        except tarfile.ReadError as error:
            raise UsageError(
                f"--data {path}: not an uncompressed tar file, or one cut short ({error}). "
                f"A compressed one is unpacked to a .tar first: gunzip -k {path.name}."
            ) from error
        except OSError as error:
            raise UsageError(f"--data {path}: cannot be read ({error.strerror})") from error
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
            else:
                inside = target in folders or target == "."
                self.left_out.add(
                    "link to a folder that is met elsewhere" if inside else "link that leads nowhere", name
                )

    def members(self) -> Iterable[str]:
        return self._places.keys()

    def read(self, member: str) -> bytes:
        offset, size = self._places[member]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def describe(self, member: str) -> str:
        return f"{self.path}:{member}"


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
            found.left_out.add(f"image of {folder}, which is no class", of_class[folder][0].path, len(of_class[folder]))
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
            members: dict[str, list[Member]] = defaultdict(list)
            for folder, images in splits[split].items():
                if folder in class_of:
                    members[class_of[folder][0]] += images
            return Images(name, split or "all", classes, members, source, names, like, found.left_out)

        return open_split

    unlabelled: Openers = {
        split: Unlabelled(f"--data {source.path}: {why}. {LAYOUT}") for split, why in found.unlabelled.items()
    }
    return {**{split: opener(split) for split in splits}, **unlabelled}
