"""Which images and which tree: what the commands with ``--data``, and the same calls in Python, are told of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hrzs.errors import UsageError
from hrzs.files import exists
from hrzs.option import check, listed, option

RESIZE = ("auto", "in-graph", "before")


@dataclass(frozen=True)
class DataOptions:
    """Options of the data; names are those of the command line.

    ``data`` None stands for ``shapes``, or for the data that saved images come from. ``tree`` is a file (``FILE#2`` is
    the second tree in it), the name of a dataset whose tree is published, several of these, or a `Tree`; None stands
    for the published tree of the data.

    Raises:
        UsageError: ``resize`` is none of `RESIZE`.
    """

    # fmt: off
    data: tuple[str, ...] | None = option(None, "shapes, a dataset's name, a folder class/image, a .tar, or list.", shown="shapes")
    data_root: Path | None = option(None, "Where named datasets lie.", shown="$HRZS_DATA")
    split: str | None = option(None, "train, val or test.")
    classes: tuple[str, ...] | None = option(None, "Only these classes of the data: a file with one per line, or a,b,c.")
    limit: int | None = option(None, "Only this many images, balanced over the classes.")
    skip: int = option(0, "Leave out the first N of that balanced order: --skip N and --limit N are disjoint.")
    resize: str = option("auto", "in-graph (ε in native pixels), before, or auto: in-graph for small images.", choices=RESIZE)
    # `Any`, for the sake of `hrzs --help`: importing `Tree` takes as long as all the rest of it.
    tree: Any = option(None, "Tree file, FILE#2 is its second tree; or a dataset's name: its published tree.")
    bad_images: str = option("stop", "An image that cannot be decoded stops the work (what is done is kept), or such images are looked for beforehand and left out.", choices=("stop", "skip"))
    check_images: bool = option(False, "Decode every image beforehand, and refuse all that cannot be decoded at once.")
    # fmt: on

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> DataOptions:
        """The defaults, then what was given: names, paths and texts as the command line or Python has them.

        Args:
            given: options by the names of the fields; None is not given.

        Raises:
            UsageError: ``resize`` is unknown, or ``classes`` cannot be read or names fewer than two.
        """
        values = {name: value for name, value in given.items() if value is not None}
        if "data" in values:
            given_data = values["data"]
            names = _names_in(given_data) if isinstance(given_data, str) else map(str, listed(given_data))
            values["data"] = tuple(dict.fromkeys(names))
        if not all(name.strip() for name in values.get("data", ("shapes",))):
            raise UsageError(f"--data {given['data']!r}: a name is missing")
        if "data_root" in values:
            values["data_root"] = Path(values["data_root"])
        if "classes" in values:
            values["classes"] = _class_ids(values["classes"])
        tree = values.get("tree")
        if isinstance(tree, list | tuple):
            values["tree"] = tuple(map(str, tree))
        elif isinstance(tree, Path):
            values["tree"] = str(tree)
        return cls(**values)

    @property
    def specs(self) -> tuple[str, ...]:
        """The datasets."""
        return self.data or ("shapes",)

    @property
    def spec(self) -> str:
        """The only dataset.

        Raises:
            UsageError: there are several.
        """
        if len(self.specs) > 1:
            raise UsageError(f"--data {','.join(self.specs)}: one dataset, not {len(self.specs)}")
        return self.specs[0]

    def as_config(self) -> dict[str, Any]:
        """As ``--config`` reads it back; a tree in memory has no name that could be."""
        plain = {f.name.replace("_", "-"): _plain(getattr(self, f.name)) for f in fields(self)}
        return plain | {"data": ",".join(self.specs)}


def _names_in(text: str) -> list[str]:
    """The names between the commas; a path that exists is one name, even with commas in it."""
    parts, names = text.split(","), list[str]()
    while parts:
        ends = range(len(parts), 1, -1)
        end = next((n for n in ends if exists(",".join(parts[:n]).strip())), 1)
        names.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    return names


def _class_ids(given: Any) -> tuple[str, ...]:
    """``--classes``: what `hrzs build-tree --classes` reads, but for a tar, or a sequence of class ids."""
    from hrzs.classes.forms import named_classes  # not for `hrzs --help`

    found = named_classes(str(given)) if isinstance(given, str | Path) and str(given) else None
    names = tuple(spec.class_id for spec in found[0]) if found else tuple(name for name in listed(given) if name)
    if len(names) < 2:
        raise UsageError(f"--classes {given!r}: at least two classes are needed: a file with one per line, or a,b,c")
    return names


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, str | int) else None
