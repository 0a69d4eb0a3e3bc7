"""The forms that class trees of others come in, read into nodes; every fault is found in one pass, with its line.

What a path holds is told by its extension, by its content where there is none that says so:

- **yaml**, our own (``.yaml``, ``.yml``): see `hrzs.hierarchy.yaml_form`.
- **table** (``.csv``, ``.tsv``, ``.tab``): one class to a line, cells parted by tabs, semicolons or commas, whichever
  of them, in this order, the first line has. Cells may be in double quotes, within one line; blank lines and lines
  that begin with ``#`` are skipped. *Without a header* a line is the path from the most general superclass down to
  the class, its last cell: ``animal,dog,poodle``; a shallow class has fewer cells, and empty ones at the end do not
  count. *With a header* one column is called ``class``; ``id`` (such as a WordNet id) and ``name`` are optional, and
  all other columns are the superclasses, the most general on the left; the cells on the right may be empty. Where the
  header has several ranks of biology, ``class`` is one of them. There, and without ``class``, the class is the column
  ``name``, or else the deepest rank, or else the last column. A superclass is its path: ``other`` below ``animal``
  and ``other`` below ``plant`` are two. With the two columns ``parent`` and ``child`` the table is a list of pairs.
  A header is told by its usual words, or asked for. A column that numbers the rows is left out.
- **pairs**: ``parent child`` to a line (the isa lists of making-better-mistakes), or JSON: a list of pairs, or
  ``{parent: [child, …]}`` where some child is a parent too. The nodes that are no parent are the classes.
- **json** (``.json``): ``{name: {name: [class, …]}}``, lists and maps nested as you like.
- **breeds**: a folder with ``class_hierarchy.txt`` (pairs), ``node_names.txt`` (``ID<TAB>name, synonym``) and
  ``dataset_class_info.json`` (``[[index, ID, "name, synonym"], …]``), as MadryLab's BREEDS and robustness have it.
- **folders**: any other folder. Those inside it that hold further folders are superclasses, those that hold none the
  classes; names that begin with a dot are skipped.

Pairs may give a node several parents. *It keeps the one that lies deepest*, by the longest way from the top, and of
equally deep ones the first listed.

A superclass without an id gets its own name, with ``_`` for blanks; where several share that, their parent's is put
before it, and what is still shared is numbered. Roots, if there are several, are put beneath one called ``entity``.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hrzs.classes.folders import EXTENSIONS
from hrzs.classes.specs import split_of
from hrzs.errors import UsageError
from hrzs.hierarchy import yaml_form
from hrzs.hierarchy.tree import Node
from hrzs.hierarchy.yaml_form import MAX_DEPTH
from hrzs.safe_yaml import MAX_NODES, BadYamlError, List, Map, Scalar, Yaml, read_source
from hrzs.sources import json_text

# Ids are made of two names, so this bounds the memory that a hostile file can ask for.
MAX_NAME = 500
# A table repeats the superclasses on every line: the 21,841 classes of ImageNet-21k take 420,000 cells.
MAX_CELLS = 1_000_000

FORMATS = (
    "a tree file of hrzs (.yaml), a table of paths (.csv, .tsv), `parent child` lines, JSON, a folder of BREEDS' "
    "files, or nested class folders"
)

_BREEDS = ("class_hierarchy.txt", "node_names.txt", "dataset_class_info.json")


# A line of a table, and its cells.
_Row = tuple[int, list[str]]
# The ranks of biology, the most general first.
_RANKS = (
    "domain", "realm", "kingdom", "subkingdom", "phylum", "division", "subphylum", "superclass", "class", "subclass",
    "superorder", "order", "suborder", "superfamily", "family", "subfamily", "tribe", "genus", "subgenus", "species",
    "subspecies", "variety", "breed",
)  # fmt: skip
# A line of nothing but these is a header.
_HEADINGS = {
    *_RANKS, "supercategory", "category", "subcategory", "supergroup", "group", "subgroup", "coarse", "fine", "type",
    "coarselabel", "finelabel", "coarseclass", "fineclass", "subtype", "level", "label", "name", "classname", "id",
}  # fmt: skip


class Fault(NamedTuple):
    """What is wrong with a file or folder, and on which line of it (from 1; 0 for the whole)."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


@dataclass(frozen=True)
class Contents:
    """What was read: the trees, the classes in the order of the file, and the headers of YAML trees, one for each."""

    format: str
    roots: tuple[Node, ...]
    classes: tuple[str, ...]
    headers: tuple[dict[str, object], ...] = ()
    notes: tuple[str, ...] = ()


def read(path: str, has_header: bool | None = None) -> tuple[Contents | None, list[Fault]]:
    """The trees in a file or folder (``-``: YAML on standard input), or its faults; never both.

    Args:
        has_header: whether a table has a header; None: it has to show.
    """
    if path == "-":
        return _standard_input()
    reader = _Reader(path, has_header)
    try:
        contents = reader.read()
    except BadYamlError as error:
        reader.faults.append(Fault(path, error.line, error.message))
    except UsageError as error:
        reader.faults.append(Fault(path, 0, str(error)))
    except OSError as error:
        reader.faults.append(Fault(path, 0, f"cannot be read: {error.strerror}"))
    return (None, sorted(set(reader.faults))) if reader.faults else (contents, [])


@cache
def _standard_input() -> tuple[Contents | None, list[Fault]]:
    """It can be read only once, but the tree is asked for twice: for its classes, and then for itself."""
    reader = _Reader("-")
    contents = reader.yaml()
    return contents, reader.faults


@dataclass(slots=True, eq=False)
class _Draft:
    """A node as read: ``key`` is what the file calls it; ``name`` and ``id`` are what it says besides."""

    key: str
    line: int
    name: str = ""
    id: str = ""
    is_class: bool = False
    file: str = ""  # where it is not the one that is read
    children: list[_Draft] = field(default_factory=list)

    def walk(self) -> Iterator[_Draft]:
        stack = [self]
        while stack:
            draft = stack.pop()
            yield draft
            stack.extend(reversed(draft.children))


class _Reader:
    """Reads one path, and gathers every fault on the way."""

    def __init__(self, path: str, has_header: bool | None = None) -> None:
        self.path, self.has_header = path, has_header
        self.faults: list[Fault] = []
        self.notes: list[str] = []

    def fault(self, line: int, message: str, file: str = "") -> None:
        self.faults.append(Fault(file or self.path, line, message))

    def read(self) -> Contents | None:
        place = Path(self.path)
        if place.is_dir():
            return self.breeds(place) if (place / _BREEDS[0]).is_file() else self.folders(place)
        if not place.exists():
            self.fault(0, f"there is no such file or folder; it should be {FORMATS}")
            return None
        suffix = place.suffix.lower()
        if suffix in (".yaml", ".yml"):
            return self.yaml()
        text = _text(place)
        first = next((line for _, line in _lines(text)), "")
        if suffix == ".json" or first.startswith(("{", "[")):
            return self.json(text)
        if suffix in (".csv", ".tsv", ".tab"):
            return self.table(text)
        if first.startswith("hrzs-tree:"):
            return self.yaml()
        if any(mark in first for mark in "\t;,"):
            return self.table(text)
        if len(first.split()) == 2:
            return self.pairs("pairs", self.pair_lines(text))
        self.fault(0, f"this is no class tree in a form that hrzs knows; it should be {FORMATS}")
        return None

    # -- our own -----------------------------------------------------------------------------------------------

    def yaml(self) -> Contents | None:
        trees, faults = yaml_form.read(self.path)
        self.faults += [Fault(self.path, fault.line, fault.message) for fault in faults]
        if faults:
            return None
        return Contents("yaml", tuple(t.root for t in trees), trees[0].classes, tuple(t.header for t in trees))

    # -- tables ------------------------------------------------------------------------------------------------

    def table(self, text: str) -> Contents | None:
        columns, rows = self.header(self.rows(text))
        if sorted(columns) == ["child", "parent"]:
            return self.pairs("pairs", self.pair_rows(rows, columns.index("parent"), columns.index("child")))
        levels, places = self.columns(columns)
        root = _Draft("entity", 0)
        inner: dict[tuple[int, str], _Draft] = {}
        paths: list[tuple[int, list[str], str]] = []
        for line, cells in rows:
            identity = name = ""
            if columns:
                if len(cells) > len(columns):
                    self.fault(line, f"there are {len(cells)} cells, and the header names {len(columns)}")
                    continue
                cells += [""] * (len(columns) - len(cells))
                path = _trimmed([cells[i] for i in levels])
                key, identity, name = ("" if i is None else cells[i] for i in places)
            else:
                *path, key = _trimmed(cells) or [""]
            if not (key and all(path)):
                self.fault(line, "an empty name" + (" between two others" if key else ": there is no class"))
                continue
            if len(path) >= MAX_DEPTH:
                self.fault(line, f"{len(path)} superclasses over one class: at most {MAX_DEPTH - 1} can be")
                continue
            paths.append((line, path, key))
            parent = root
            for superclass in path:
                if (id(parent), superclass) not in inner:
                    inner[id(parent), superclass] = child = _Draft(superclass, line)
                    parent.children.append(child)
                parent = inner[id(parent), superclass]
            parent.children.append(_Draft(key, line, name, identity, is_class=True))
        if not columns:
            self.superclasses_as_classes(paths)
        return self.finish("table", root)

    def header(self, rows: list[_Row]) -> tuple[list[str], list[_Row]]:
        """The names of the columns, none for a table without a header, and the rows below it.

        Columns that number the rows, as pandas writes them, are left out of both.
        """
        if not rows:
            return [], rows
        (line, first), below = rows[0], rows[1:]
        columns = [cell.casefold() for cell in first]
        numbered = _numbered(below)
        headed = self.has_header
        if headed is None:
            words = {re.sub(r"[\W_\d]", "", column) for column in columns}
            unnamed = {i for i, column in enumerate(columns) if column in ("", "unnamed: 0")}
            usual = "class" in columns or sorted(columns) == ["child", "parent"]
            usual = usual or words - {"index", "idx"} <= _HEADINGS
            if usual or unnamed & numbered:
                headed = True
            elif len(columns) < 2 or len(columns) < max((len(cells) for _, cells in below), default=0):
                headed = False
            else:
                others = {cell for _, cells in below for cell in cells}
                # A header has nothing in common with what is below it.
                if below and others.isdisjoint(first) and not _numbered(rows):
                    self.fault(
                        line,
                        f"{_brief(', '.join(first))} may be a header or a class with its superclasses: say --header or "
                        "--no-header",
                    )
                headed = False
        if not headed:
            columns, below, numbered = [], rows, _numbered(rows)
        for column in {"class", "id", "name", *_RANKS}.intersection(columns):
            if columns.count(column) > 1:
                self.fault(line, f"there are {columns.count(column)} columns called {column!r}")
        spare = numbered & {0, *(i for i, column in enumerate(columns) if column in ("", "index", "idx"))}
        spare -= {i for i, column in enumerate(columns) if column in ("class", "id", "name", "parent", "child")}
        if not spare or max(len(cells) for _, cells in rows) <= len(spare):
            return columns, below
        self.notes.append(f"{self.path}: column {min(spare) + 1} numbers the rows, and is left out")
        below = [(line, [cell for i, cell in enumerate(cells) if i not in spare]) for line, cells in below]
        return [column for i, column in enumerate(columns) if i not in spare], below

    @staticmethod
    def columns(columns: list[str]) -> tuple[list[int], tuple[int | None, ...]]:
        """Which columns are superclasses, the most general first; and those of the class, its id and its name."""
        at = {column: i for i, column in enumerate(columns)}
        # In biology, a class is a rank like the others.
        is_rank = len(at.keys() & set(_RANKS) - {"class", "superclass", "subclass"}) > 1
        if "class" in at and not is_rank:
            levels = [i for i, column in enumerate(columns) if column not in ("class", "id", "name")]
            return levels, (at["class"], at.get("id"), at.get("name"))
        levels = [i for i, column in enumerate(columns) if column not in ("id", "name")]
        if all(columns[i] in _RANKS for i in levels):
            levels.sort(key=lambda i: _RANKS.index(columns[i]))
        leaf = at.get("name")
        if leaf is None:
            leaf = levels.pop() if levels else None
        return levels, (leaf, at.get("id"), None)

    def superclasses_as_classes(self, paths: list[tuple[int, list[str], str]]) -> None:
        first: dict[str, int] = {}
        for line, path, _ in paths:
            for name in path:
                first.setdefault(name, line)
        for line, path, key in paths:
            if key in first and key not in path:
                self.fault(
                    line,
                    f"class {_brief(key)} is a superclass on line {first[key]}; if the lines are pairs, head them with "
                    "`parent,child`; if both are meant, give the columns a header, one of them `class`",
                )

    def rows(self, text: str) -> list[_Row]:
        rows, count = [], 0
        delimiter = ""
        for line, content in _lines(text):
            delimiter = delimiter or next((mark for mark in "\t;," if mark in content), ",")
            count += 1 + content.count(delimiter)
            if count > MAX_CELLS:
                raise BadYamlError(line, f"more than {MAX_CELLS} cells: no class tree")
            try:
                # Each line by itself: a quote left open would swallow the rest of the file, and all its faults.
                cells = next(csv.reader([content], delimiter=delimiter, skipinitialspace=True, strict=True))
            except csv.Error as error:
                unbalanced = content.count('"') % 2
                self.fault(line, "a double quote is not closed on its line" if unbalanced else f"no table: {error}")
                continue
            rows.append((line, [cell.strip() for cell in cells]))
        return rows

    # -- pairs -------------------------------------------------------------------------------------------------

    def pair_rows(self, rows: list[_Row], parent: int, child: int) -> Iterator[tuple[int, str, str]]:
        for line, cells in rows:
            if len(cells) == 2 and all(cells):
                yield line, cells[parent], cells[child]
            else:
                self.fault(line, f"a pair is a parent and a child, none of them empty; here are {len(cells)} cells")

    def pair_lines(self, text: str, file: str = "") -> Iterator[tuple[int, str, str]]:
        for count, (line, content) in enumerate(_lines(text)):
            words = [word.strip() for word in content.split("\t")] if "\t" in content else content.split(maxsplit=2)
            if count >= MAX_NODES:
                raise BadYamlError(line, f"more than {MAX_NODES} pairs: no class tree")
            if len(words) == 2 and all(words):
                yield line, words[0], words[1]
            else:
                self.fault(line, f"{_brief(content)} is no pair `parent child`", file)

    def pairs(
        self,
        form: str,
        pairs: Iterable[tuple[int, str, str]],
        names: Mapping[str, str] | None = None,
        classes: Sequence[str] | None = None,
        file: str = "",
    ) -> Contents | None:
        """The tree in a list of ``(line, parent, child)``; its leaves are ``classes``, or all that are no parent."""
        parents: dict[str, dict[str, int]] = defaultdict(dict)
        children: dict[str, dict[str, int]] = defaultdict(dict)
        lines: dict[str, int] = {}
        for line, parent, child in pairs:
            parents[child].setdefault(parent, line)
            children[parent].setdefault(child, line)
            lines.setdefault(parent, line)
            lines.setdefault(child, line)
        depth = _depths(lines, parents, children)
        self.cycles([node for node in lines if node not in depth], parents, file)
        if self.faults:
            return None
        kept = {child: max(above, key=lambda parent: depth[parent]) for child, above in parents.items()}
        several = [child for child, above in parents.items() if len(above) > 1]
        if several:
            shown = ", ".join(f"{_brief(child)} beneath {_brief(kept[child])}" for child in several[:3])
            self.notes.append(
                f"{self.path}: {len(several)} nodes have several parents, and each keeps the deepest of them "
                f"({shown}{', …' if len(several) > 3 else ''})"
            )
        drafts = {node: _Draft(node, line, file=file) for node, line in lines.items()}
        root = _Draft("entity", 0)
        leaves = {node for node in lines if not children.get(node)} if classes is None else set(classes)
        for node, draft in drafts.items():
            draft.is_class = node in leaves
            if names is not None:
                draft.id, draft.name = node, names.get(node, "")
            (drafts[kept[node]] if node in kept else root).children.append(draft)
            if draft.is_class and children.get(node):
                line = min(children[node].values())
                self.fault(line, f"class {_brief(node)} is a parent here, but a class is a leaf", file)
        return self.finish(form, root, classes)

    def cycles(self, stuck: list[str], parents: Mapping[str, Mapping[str, int]], file: str) -> None:
        """Name every cycle among ``stuck``: the nodes that no way from the top reaches."""
        rest, seen = set(stuck), set[str]()
        for start in stuck:
            way: dict[str, None] = {}
            node = start
            while node not in seen and node not in way:
                way[node] = None
                node = next(parent for parent in parents[node] if parent in rest)
            if node in way:
                cycle = list(way)[list(way).index(node) :]
                shown = " < ".join(map(_brief, [*cycle[:5], *(["…"] if len(cycle) > 5 else []), node]))
                above = parents[node]
                self.fault(next(above[p] for p in above if p in rest), f"cycle: {shown}", file)
            seen.update(way)

    # -- JSON --------------------------------------------------------------------------------------------------

    def json(self, text: str) -> Contents | None:
        top = json_text.parse(text, max_depth=MAX_DEPTH)
        if isinstance(top, Scalar):
            self.fault(top.line, "a map or a list is needed, such as {name: {name: [class, class]}}")
            return None
        pairs = self.json_pairs(top)
        if pairs is not None:
            return self.pairs("pairs", pairs)
        root = _Draft("entity", 0)
        stack: list[tuple[_Draft, Yaml]] = [(root, top)]
        while stack:
            draft, value = stack.pop()
            if isinstance(value, Scalar):
                what = f"{_brief(value.value)} stands below {_brief(draft.key)}"
                self.fault(value.line, f"{what}, in place of a list or map")
            elif isinstance(value, List):
                stack += reversed(list(self.json_list(draft, value)))
            else:
                stack += reversed(list(self.json_map(draft, value)))
            if value in (List(value.line), Map(value.line)) and draft is not root:
                self.fault(value.line, f"superclass {_brief(draft.key)} has no classes; a class stands in a list")
        return self.finish("json", root)

    def json_list(self, draft: _Draft, value: List) -> Iterator[tuple[_Draft, Yaml]]:
        for item in value.items:
            if isinstance(item, Map):
                yield draft, item
            elif (name := self.json_text(item, "a class")) is not None:
                draft.children.append(_Draft(name, item.line, is_class=True))

    def json_map(self, draft: _Draft, value: Map) -> Iterator[tuple[_Draft, Yaml]]:
        first = {child.key: child.line for child in draft.children if not child.is_class}
        for key, item in value.pairs:
            name = self.json_text(key, "a superclass")
            if name is None:
                continue
            if name in first:
                self.fault(key.line, f"superclass {_brief(name)} is there twice, first on line {first[name]}")
                continue
            first[name] = key.line
            child = _Draft(name, key.line)
            draft.children.append(child)
            yield child, item

    def json_text(self, value: Yaml, what: str) -> str | None:
        if isinstance(value, Scalar) and not value.plain and value.value.strip():
            return value.value
        self.fault(value.line, f"{what} is text in double quotes, and not empty")
        return None

    def json_pairs(self, top: List | Map) -> list[tuple[int, str, str]] | None:
        """The pairs that ``top`` lists; None where it is a nested tree."""
        listed: list[tuple[Yaml, Yaml]] = []
        if isinstance(top, List):
            if not any(isinstance(item, List) for item in top.items):
                return None
            for item in top.items:
                if isinstance(item, List) and len(item.items) == 2:
                    listed.append((item.items[0], item.items[1]))
                else:
                    self.fault(item.line, 'a pair is a list of two names: ["parent", "child"]')
        else:
            for key, value in top.pairs:
                if not isinstance(value, List) or any(not isinstance(item, Scalar) for item in value.items):
                    return None
                listed += [(key, item) for item in value.items]
            parents = {key.value for key, _ in top.pairs if isinstance(key, Scalar)}
            if not any(isinstance(child, Scalar) and child.value in parents for _, child in listed):
                return None
        pairs = []
        for parent, child in listed:
            names = self.json_text(parent, "a parent"), self.json_text(child, "a child")
            if names[0] is not None and names[1] is not None:
                pairs.append((child.line, names[0], names[1]))
        return pairs

    # -- folders -----------------------------------------------------------------------------------------------

    def breeds(self, place: Path) -> Contents | None:
        hierarchy, names_file, info = (str(place / name) for name in _BREEDS)
        texts = {}
        for file in (hierarchy, names_file, info):
            try:
                texts[file] = _text(file)
            except BadYamlError as error:
                self.fault(error.line, error.message, file)
            except UsageError:
                self.fault(0, f"it cannot be read; {', '.join(_BREEDS)} belong together", file)
        names: dict[str, str] = {}
        for line, content in _lines(texts.get(names_file, "")):
            node, _, text = (part.strip() for part in content.partition("\t"))
            if not (node and text):
                self.fault(line, f"{_brief(content)} is no `ID<TAB>name`", names_file)
            elif node in names:
                self.fault(line, f"{_brief(node)} is named twice", names_file)
            names.setdefault(node, _first(text))
        classes = self.breeds_classes(texts[info], info, names) if info in texts else []
        try:
            pairs = list(self.pair_lines(texts.get(hierarchy, ""), hierarchy))
        except BadYamlError as error:
            self.fault(error.line, error.message, hierarchy)
            pairs = []
        placed = {child for _, _, child in pairs}
        homeless = [node for node in classes if node not in placed]
        if homeless and not self.faults:
            shown = ", ".join(homeless[:3]) + (", …" if len(homeless) > 3 else "")
            self.notes.append(f"{hierarchy} has no place for {len(homeless)} classes of {_BREEDS[2]}: {shown}")
        return self.pairs("breeds", pairs, names, [node for node in classes if node in placed], hierarchy)

    def breeds_classes(self, text: str, file: str, names: dict[str, str]) -> list[str]:
        """The classes in the order of their index; their names go into ``names``."""
        try:
            top = json_text.parse(text, max_depth=MAX_DEPTH)
        except BadYamlError as error:
            self.fault(error.line, error.message, file)
            return []
        found: dict[str, int] = {}
        for row in top.items if isinstance(top, List) else [top]:
            cells = [c.value if isinstance(c, Scalar) else "" for c in row.items] if isinstance(row, List) else []
            if len(cells) != 3 or not all(cells) or not re.fullmatch(r"[0-9]{1,9}", cells[0]):
                self.fault(row.line, 'a class is a list [index, "ID", "name"]', file)
            elif cells[1] in found:
                self.fault(row.line, f"class {_brief(cells[1])} is listed twice", file)
            else:
                found[cells[1]] = int(cells[0])
                names[cells[1]] = _first(cells[2])
        return sorted(found, key=lambda node: found[node])

    def folders(self, place: Path) -> Contents | None:

        root = _Draft(place.resolve().name or "entity", 0)
        stack: list[tuple[Path, _Draft, tuple[str, ...]]] = [(place, root, ())]
        count = 0
        while stack:
            folder, draft, above = stack.pop()
            inside, images = self.scan(folder)
            here = (*above, os.path.realpath(folder))
            count += len(inside)
            shown = _printable(str(folder))
            if count > MAX_NODES:
                raise BadYamlError(0, f"more than {MAX_NODES} folders: no class tree")
            if draft is root and inside and all(split_of(name) for name in inside):
                self.fault(0, f"it is divided into splits; name one of them, such as {folder / inside[0]}")
                return None
            if inside and images:
                self.fault(0, f"it holds images, such as {images}, beside folders; a class holds none", shown)
            if len(here) > MAX_DEPTH:
                self.fault(0, f"nested too deep: at most {MAX_DEPTH} folders inside one another", shown)
                continue
            draft.is_class = not inside and draft is not root
            for name in inside:
                child = _Draft(name, 0, file=_printable(str(folder / name)))
                if os.path.realpath(folder / name) in here:
                    self.fault(0, "cycle: this link leads to a folder above it", child.file)
                elif name != _printable(name):
                    self.fault(0, "the name of this folder is not UTF-8", child.file)
                else:
                    draft.children.append(child)
                    stack.append((folder / name, child, here))
        return self.finish("folders", root)

    def scan(self, folder: Path) -> tuple[list[str], str]:
        """The folders inside a folder, and one of its images."""
        inside, images = [], ""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    # Asking about each of a million images takes long where they are links.
                    if entry.name.lower().endswith(EXTENSIONS):
                        images = min(images or entry.name, entry.name)
                    elif entry.is_dir():
                        inside.append(entry.name)
        except OSError as error:
            self.fault(0, f"cannot be read: {error.strerror}", _printable(str(folder)))
        return sorted(inside), _printable(images)

    # -- what is common to them --------------------------------------------------------------------------------

    def finish(self, form: str, root: _Draft, classes: Sequence[str] | None = None) -> Contents | None:
        """The tree of drafts as nodes, if it has no faults; ``classes`` in their order, by default the file's."""
        drafts = list(root.walk())
        for draft in reversed(drafts):
            draft.children = [child for child in draft.children if child.is_class or child.children]
        if len(root.children) == 1 and not root.children[0].is_class:
            root = root.children[0]
        self.check(root, siblings=form != "folders")
        if self.faults:
            return None
        if classes is None:
            classes = [leaf.key for leaf in _in_file_order(root)]
        return Contents(form, (_node(root),), tuple(classes), notes=tuple(self.notes))

    def check(self, root: _Draft, siblings: bool) -> None:
        first: dict[str, _Draft] = {}
        for leaf in _in_file_order(root):
            other = first.setdefault(leaf.key, leaf)
            if other is not leaf:
                where = f"on line {other.line}" if other.line else f"as {other.file}"
                self.fault(leaf.line, f"class {_brief(leaf.key)} is there twice, first {where}", leaf.file)
        if not first and not self.faults:
            self.fault(0, "there are no classes in it")
        depth = {id(root): 0}
        for draft in root.walk():
            depth |= {id(child): depth[id(draft)] + 1 for child in draft.children}
            if depth[id(draft)] == MAX_DEPTH + 1:
                self.fault(draft.line, f"nested too deep: at most {MAX_DEPTH} superclasses over a class", draft.file)
            if max(len(draft.key), len(draft.name), len(draft.id)) > MAX_NAME:
                self.fault(draft.line, f"a name of more than {MAX_NAME} characters: {_brief(draft.key)}", draft.file)
            inner = {child.key: child.line for child in draft.children if not child.is_class}
            for child in draft.children:
                if siblings and child.is_class and child.key in inner:
                    where = f"class {_brief(child.key)} is a superclass too, on line {inner[child.key]}"
                    self.fault(child.line, f"{where}; put the class beneath that", child.file)


def _numbered(rows: list[_Row]) -> set[int]:
    """The columns that hold a number in every row, no two the same."""
    if len(rows) < 2:
        return set()
    columns = zip(*(cells for _, cells in rows), strict=False)
    return {
        i
        for i, column in enumerate(columns)
        if len(set(column)) == len(rows) and all(cell.isascii() and cell.isdigit() for cell in column)
    }


def _in_file_order(root: _Draft) -> list[_Draft]:
    """The classes; in a table those of a superclass need not stand together."""
    return sorted((draft for draft in root.walk() if draft.is_class), key=lambda draft: draft.line)


def _node(root: _Draft) -> Node:
    built: dict[int, Node] = {}
    ids = _ids(root)
    for draft in reversed(list(root.walk())):  # children before parents
        name = draft.name or _plain(draft.key)
        if draft.is_class:
            built[id(draft)] = Node(name, draft.id or draft.key, class_id=draft.key)
        else:
            built[id(draft)] = Node(name, ids[id(draft)], tuple(built.pop(id(child)) for child in draft.children))
    return built[id(root)]


def _ids(root: _Draft) -> dict[int, str]:
    """An id for each superclass, by the identity of its draft."""
    above = {id(child): draft for draft in root.walk() for child in draft.children}
    inner = [draft for draft in root.walk() if not draft.is_class]
    shared = Counter(_word(draft.key) for draft in inner)
    ids = {id(draft): draft.id for draft in inner if draft.id}
    taken, number = set(ids.values()), Counter[str]()
    for draft in inner:
        if id(draft) in ids:
            continue
        made = base = _word(draft.key)
        if id(draft) in above and (shared[base] > 1 or base in taken):
            made = base = f"{_word(above[id(draft)].key)}/{base}"
        while made in taken:
            number[base] += 1
            made = f"{base}~{number[base] + 1}"
        ids[id(draft)] = made
        taken.add(made)
    return ids


def _depths(
    nodes: Iterable[str], parents: Mapping[str, Mapping[str, int]], children: Mapping[str, Mapping[str, int]]
) -> dict[str, int]:
    """The length of the longest way from the top to each node; nodes on a cycle or beneath one are left out."""
    waits = {node: len(parents.get(node, ())) for node in nodes}
    depth = {node: 0 for node, count in waits.items() if not count}
    ready = list(depth)
    longest = dict(depth)
    while ready:
        node = ready.pop()
        depth[node] = longest[node]
        for child in children.get(node, ()):
            longest[child] = max(longest.get(child, 0), longest[node] + 1)
            waits[child] -= 1
            if not waits[child]:
                ready.append(child)
    return depth


def _text(file: str | Path) -> str:
    return read_source(file).decode("utf-8-sig")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, without the blanks around them (tabs at the end of a row are cells)."""
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        content = line.strip(" \n")
        if content.strip() and not content.lstrip().startswith("#"):
            yield number, content


def _trimmed(cells: list[str]) -> list[str]:
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _plain(key: str) -> str:
    return " ".join(key.replace("_", " ").split()) or key


def _word(key: str) -> str:
    # A blank or an @ would end an id in the YAML form.
    return re.sub(r"[\s@]+", "_", key)


def _first(synonyms: str) -> str:
    return synonyms.split(",")[0].strip() or synonyms


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
