"""Images laid out as ``class/image``, in a folder or in a ``.tar`` that is read in place.

The layout is told from the list of image paths alone, so a folder and a tar of it are the same dataset.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from hrzs.classes.match import class_list, recognise
from hrzs.classes.specs import SPLIT_FOLDERS, prompt_name
from hrzs.data.base import Dataset, suggest
from hrzs.errors import HrzsError, UsageError

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LAYOUT = "Expected <class>/<image>, or <split>/<class>/<image> with splits train, val, test."

# Images up to this side are attacked at their own size, and resized within the model.
_LARGEST_NATIVE = 96
_PROBES = 64

# What Pillow's readers raise on damaged files.
BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


class Member(NamedTuple):
    """The path of an image in its source, and its id: the part of the path from the class on.

    So the id is the same whether the source is a folder, one of its split subfolders, or a tar of either.
    """

    path: str
    id: str


Layout = dict[str | None, dict[str, list[Member]]]


def decode(data: bytes, name: str) -> Image.Image:
    """The RGB image in ``data``.

    Raises:
        HrzsError: the data is damaged, or no image; the message has ``name``.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb: Image.Image = image.convert("RGB")
            return rgb
    except BROKEN as error:
        raise HrzsError(
            f"Image {name} cannot be decoded ({error}). Replace it with an intact copy, or delete it, and run again."
        ) from error


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
    ) -> None:
        self.name, self.split, self.like = name, split, like
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
            raise HrzsError(f"Image {self._source.describe(path)} cannot be read: {error.strerror}.") from error
        return decode(data, self._source.describe(path))

    def _common_size(self) -> int | None:
        """The side of the images, if 64 of them, spread over all, are square, small and of one size; else None."""
        sizes = set()
        for i in range(0, len(self), max(1, len(self) // _PROBES)):
            try:
                with Image.open(io.BytesIO(self._source.read(self._paths[i]))) as image:
                    sizes.add(image.size)
            except BROKEN:
                continue  # `picture` reports it, but only if --skip and --limit do not leave it out.
        if len(sizes) != 1:
            return None
        ((width, height),) = sizes
        return width if width == height <= _LARGEST_NATIVE else None


class Source:
    """A place of images: lists their paths (with ``/`` between the parts) and reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def members(self) -> Iterator[str]:
        raise NotImplementedError

    def read(self, member: str) -> bytes:
        raise NotImplementedError

    def describe(self, member: str) -> str:
        """The name of one image in messages."""
        raise NotImplementedError


class Folder(Source):
    """A directory; links are followed."""

    def members(self) -> Iterator[str]:
        for top, folders, files in os.walk(self.path, followlinks=True):
            folders[:] = [f for f in folders if not f.startswith(".")]
            inside = Path(top).relative_to(self.path).as_posix()
            for file in files:
                yield file if inside == "." else f"{inside}/{file}"

    def read(self, member: str) -> bytes:
        return (self.path / member).read_bytes()

    def describe(self, member: str) -> str:
        return str(self.path / member)


class Tar(Source):
    """An uncompressed tar file. Its index is read once; an image is then one seek and one read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    if member.isfile():
                        self._places[member.name.removeprefix("./")] = (member.offset_data, member.size)
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

    def members(self) -> Iterator[str]:
        return iter(self._places)

    def read(self, member: str) -> bytes:
        offset, size = self._places[member]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def describe(self, member: str) -> str:
        return f"{self.path}:{member}"


def open_source(path: Path) -> Source:
    """The folder or tar file at ``path``.

    Raises:
        UsageError: it is neither.
    """
    return Folder(path) if path.is_dir() else Tar(path)


def layout(source: Source) -> Layout:
    """The sorted images of each class of each split; the split of undivided data is None.

    A single folder around everything, which archives often have, is skipped.

    Raises:
        UsageError: no class has images.
    """
    paths = [
        tuple(m.split("/"))
        for m in source.members()
        if m.lower().endswith(EXTENSIONS) and not any(part.startswith(".") for part in m.split("/"))
    ]
    depth = 0
    while paths and _is_wrapper({p[depth] for p in paths}, min(len(p) for p in paths) - depth):
        depth += 1
    tops = {p[depth] for p in paths if len(p) - depth >= 2}
    if not tops:
        lone = f"{len(paths)} images but no folder per class" if paths else "no images"
        raise UsageError(f"--data {source.path}: {lone}. {LAYOUT} Image files end in {', '.join(EXTENSIONS)}.")
    splits = {p[depth] for p in paths if len(p) - depth >= 3 and p[depth] in SPLIT_FOLDERS}
    if splits and (beside := sorted(tops - splits)):
        if flat := [name for name in beside if name in SPLIT_FOLDERS]:
            raise UsageError(
                f"--data {source.path}: {flat[0]}/ has images but no folder per class, unlike {min(splits)}/. {LAYOUT}"
            )
        logger.warning("%s: not a split, left out: %s", source.path, ", ".join(beside))

    found: Layout = defaultdict(lambda: defaultdict(list))
    for parts in sorted(paths):
        inner = parts[depth:]
        if splits:
            if inner[0] not in splits or len(inner) < 3:
                continue
            split, inner = SPLIT_FOLDERS[inner[0]], inner[1:]
        elif len(inner) < 2:
            continue
        else:
            split = None
        found[split][inner[0]].append(Member("/".join(parts), "/".join(inner)))
    return {split: dict(classes) for split, classes in found.items()}


def _is_wrapper(tops: set[str], shallowest: int) -> bool:
    return len(tops) == 1 and shallowest >= 3 and not tops & SPLIT_FOLDERS.keys()


def open_images(
    source: Source, name: str, *, is_named: bool = False, left_out: Sequence[str] = ()
) -> dict[str | None, Callable[[], Dataset]]:
    """The splits of ``source`` (None for undivided data), each opened on call. Every split has the classes of all.

    Folders that are called by ids or names of a dataset's class list become its ids, in its order. With ``is_named``
    the user asked for the dataset ``name``, so a folder that is none of its classes is an error, unless it is
    ``left_out``. Otherwise the folders are the user's own, and are recognised only if all of them are classes.

    Raises:
        UsageError: no class has images, or a folder is no class or may mean several.
    """
    splits = layout(source)
    folders = sorted({c for members in splits.values() for c in members} - set(left_out))
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
            return Images(name, split or "all", classes, members, source, names, like)

        return open_split

    return {split: opener(split) for split in splits}
