"""The forms that lists of classes come in. A file is read in the one form that all its lines have, or is refused.

- **Plain**: a class to a line, ``ID``, ``ID<TAB>NAME`` or ``ID<TAB>NAME<TAB>SYNSET``. A WordNet id before or behind a
  name is the synset. It is the id too, unless a hyphen or the like joins the two as in names of folders:
  ``n02119789 kit fox, Vulpes macrotis``, ``n02085620-Chihuahua``.
- **Numbered**: ``0,Stop sign``, ``0: tench``, ``1 001.Black_footed_Albatross``, ``n01443537 1 goldfish``,
  ``airplane 0``. All lines have a number in the same place, and no two the same. A number that only a blank parts from
  the name has to count from 0 or 1 as well, since names may hold numbers. A header of usual words may come first.
- **Scenes**: ``/a/alcove 0``, ``/a/apse/indoor``: in all lines the first folder is the first letter of the second.
- **Quoted**: a text in quotes to a line, perhaps with a comma behind it.
- **Structured**: JSON, Python or YAML. A list of names; maps from numbers or WordNet ids to names, or from names to
  numbers; such a list or map below ``id2label`` (HF) or ``names`` (YOLO).

Blank lines, and lines that begin with ``#``, are skipped, but not where a line's place is its label.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from hrzs.classes.folders import Folder, class_folders, shards_in
from hrzs.classes.specs import (
    ClassSpec,
    dataset_classes,
    folder_class,
    holds_wnid,
    is_wnid,
    part_wnid,
    prompt_name,
    split_of,
)
from hrzs.errors import UsageError
from hrzs.files import exists
from hrzs.safe_yaml import BadYamlError, List, Map, Scalar, Yaml, parse

logger = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**20
MAX_LINE = 2000

_REMEDY = "write one class to a line, ID or ID<TAB>NAME"
_HEADINGS = {
    "id", "index", "idx", "number", "target", "class", "classid", "classname", "label", "labelid", "labelname", "name",
    "signname", "synset", "wnid", "category", "categoryid", "categoryname",
}  # fmt: skip
# A number before the name; a WordNet id; a number behind that one.
_HEAD = re.compile(
    r"(?:([0-9]+)(\s*(?:[,;:=|]|[-=]>)\s*|[.)]\s+|\s+))?"
    r"(?:(n[0-9]{8})(?:[\s,;:]+([0-9]+))?[\s,;:]+)?(?=\S)"
)
# As NLTK calls one.
_SYNSET = re.compile(r"(\S+)\.n\.[0-9]+")
_QUOTED = re.compile(r"""(["'])(.*)\1""")
# What no name looks like: a quotation, a piece of a list or map, an escape, a control character.
_PIECE = re.compile(r"""\w?(["']).*\1|[*•]\s.*|[{\[].*|\(["'].*|.*[,:]|.*[\\\x00-\x1f\x7f-\x9f].*""", re.DOTALL)
_STRUCTURED = re.compile(r"(?:\w+\s*=\s*)?(?=[\[{])")


class _WrongFormError(Exception):
    """What is wrong on a line (0: with the whole)."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


@dataclass(frozen=True)
class _Entry:
    """What stands for one class, on which line, and its number in the list if it has one."""

    line: int
    text: str
    number: int | None = None


def read_class_list(file: Path, *, option: str = "--classes", by_line: bool = False) -> list[ClassSpec]:
    """The classes of a file, in the order of their numbers or else of the file.

    Args:
        option: what names the file in messages.
        by_line: line n is label n (from 0): no line is skipped, numbers count from 0 or 1 without a gap, and classes
            may share an id.

    Raises:
        UsageError: the file cannot be read, is no UTF-8 text, or has no form that is known; the message has the line.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"{option} {file}: cannot read it: {error.strerror}; it should have one class per line"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {file}: it is no UTF-8 text; save it as UTF-8, with one class per line") from error
    try:
        if len(data) > MAX_BYTES:
            raise _WrongFormError(0, f"the file is larger than {MAX_BYTES // 2**20} MB: no list of classes")
        specs = _specs(text, file.suffix.lower(), by_line)
    except _WrongFormError as wrong:
        raise UsageError(f"{option} {file}{f':{wrong.line}' if wrong.line else ''}: {wrong.message}") from None
    if not specs:
        raise UsageError(f"{option} {file}: the file is empty; it should have one class per line")
    return specs


def named_classes(spec: str) -> tuple[list[ClassSpec], str] | None:
    """The classes of a folder, a file, a known dataset, or of names with commas; and what to call them all.

    None for what is none of these, such as a folder of shards.

    Raises:
        UsageError: it is one, but has no classes that can be read.
    """
    path = Path(spec)
    if exists(path) and path.is_dir():
        folder, label = Folder(path), path.resolve().name
        if shards_in(folder)[0]:
            return None
        if split_of(label):
            label = f"{path.resolve().parent.name}/{label}"
        return [folder_class(name) for name in class_folders(folder)], label
    if exists(path) and path.suffix != ".tar":
        return read_class_list(path), path.name
    if "," in spec and not exists(path):
        names = [name.strip() for name in spec.split(",")]
        if "" in names:
            raise UsageError(f"--classes {spec}: there is an empty name between the commas")
        return [class_of(name) for name in names], f"{len(names)} names"
    listed = dataset_classes(spec)
    return None if listed is None else (listed, spec)


def class_of(text: str) -> ClassSpec:
    """The class that ``text`` names, or WordNet id and name.

    Raises:
        UsageError: a WordNet id stands in it otherwise, or it is a quotation or a piece of a program.
    """
    try:
        return _class(_Entry(0, text))
    except _WrongFormError as wrong:
        raise UsageError(f"--classes {text}: {wrong.message}") from None


def quoted(line: str) -> str | None:
    """The text of a line that is a quotation, perhaps with a comma behind it, as in a list of Python or JSON."""
    match = _QUOTED.fullmatch(line.strip().removesuffix(",").rstrip())
    return match[2] if match and match[1] not in match[2] and "\\" not in match[2] else None


def structure(text: str) -> Yaml | None:
    """The value in JSON, Python or YAML; None for nothing.

    Raises:
        BadYamlError: it is none of these.
    """

    def refuse(line: int, message: str) -> NoReturn:
        raise BadYamlError(line, message)

    if (start := _STRUCTURED.match(text.lstrip())) is not None:
        lines = text[: len(text) - len(text.lstrip())].count("\n")
        text = "\n" * lines + text.lstrip()[start.end() :]
    value = parse(text.encode(), 20, refuse)
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Scalar) and "\\" in item.value and not item.plain:
            refuse(item.line, f"{item.value!r} holds a backslash: write the character that it means")
        elif isinstance(item, List):
            stack += item.items
        elif isinstance(item, Map):
            stack += [part for pair in item.pairs for part in pair]
    return value


def _specs(text: str, suffix: str, by_line: bool) -> list[ClassSpec]:
    # `str.splitlines` would part lines at characters that no editor shows as the end of one.
    lines = [_Entry(n, line.strip(" ")) for n, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)]
    filled = [line for line in lines if line.text.strip() and not line.text.startswith("#")]
    structured = (
        suffix in (".json", ".yaml", ".yml")
        or any(line.text == "names:" for line in filled)
        or (bool(filled) and _STRUCTURED.match(filled[0].text) is not None)
        or (bool(filled) and all(line.text.startswith("- ") for line in filled))
    )
    if structured:
        entries = _structured(text)
    else:
        if by_line:
            filled = _all(lines)
        if long := next((line for line in filled if len(line.text) > MAX_LINE), None):
            raise _WrongFormError(long.line, f"a line of {len(long.text)} characters; {_REMEDY}")
        entries = _lines(filled, suffix, by_line)
    numbers = [entry.number for entry in entries if entry.number is not None]
    first = 1 if not structured and numbers[:1] == [1] else 0
    if by_line and numbers and numbers != list(range(first, first + len(numbers))):
        raise _WrongFormError(0, "its numbers do not count up one by one, but line n has to be label n")
    entries.sort(key=lambda entry: entry.number or 0)
    specs = [_class(entry) for entry in entries]
    if not by_line:
        _check_distinct(specs, entries)
    return specs


def _all(lines: list[_Entry]) -> list[_Entry]:
    """Every line up to the last that says something, since its place is its label."""
    while lines and not lines[-1].text.strip():
        lines.pop()
    for label, line in enumerate(lines):
        if not line.text.strip():
            raise _WrongFormError(line.line, f"the line is empty, so label {label} has no name; write one there")
        if line.text.startswith("#"):
            logger.warning("line %d of the class file, %r, is the name of label %d", line.line, line.text, label)
    return lines


# -- lines ---------------------------------------------------------------------------------------------------------


def _lines(lines: list[_Entry], suffix: str, by_line: bool) -> list[_Entry]:
    if not lines:
        return []
    texts = [quoted(line.text) for line in lines]
    if all(text is not None for text in texts):
        return [replace(line, text=text or "") for line, text in zip(lines, texts, strict=True)]
    if not by_line and _is_header(lines[0].text, suffix):
        if "\t" in lines[0].text:
            raise _WrongFormError(lines[0].line, "this is a header; delete it: the columns are ID, NAME and SYNSET")
        lines = lines[1:]
    if suffix == ".csv" or any(re.search(r'(?:^|,)"', line.text) for line in lines):
        lines = [replace(line, text=_cells(line)) for line in lines]
    entries = _scenes(_numbered(lines))
    # Synonyms have a blank behind the comma.
    is_csv = suffix == ".csv" or all(re.search(r",\S", entry.text) for entry in entries)
    for entry in entries:
        parted = part_wnid(entry.text)
        if re.search(r",\S", parted[1] if parted else entry.text) and is_csv:
            raise _WrongFormError(
                entry.line, f"{entry.text!r} may be one name or several columns; {_REMEDY}, or a number and a name"
            )
    return entries


def _is_header(text: str, suffix: str) -> bool:
    cells = [re.sub(r"[\W_]", "", cell.casefold()) for cell in re.split(r"[,;\t]", text)]
    return (len(cells) > 1 or suffix == ".csv") and _HEADINGS.issuperset(filter(None, cells)) and any(cells)


def _cells(line: _Entry) -> str:
    """A line of CSV without its quotes, where these hold no comma that would then part cells."""
    try:
        cells = next(csv.reader([line.text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise _WrongFormError(line.line, f"no CSV: {error}") from None
    return ",".join(re.sub(r",\s*", ", ", cell) for cell in cells)


def _numbered(lines: list[_Entry]) -> list[_Entry]:
    """The lines without the numbers that count them."""
    for place in (_before, _within, _behind):
        found = [place(line) for line in lines]
        parted = [entry for entry, _ in found if entry is not None]
        marked = any(mark for entry, mark in found if entry is not None)
        counting = _counts(parted) and len(parted) == len(lines)
        if len(parted) < len(lines):
            _check_stray(place, lines, found)
        elif counting or (marked and place is not _behind) or _is_scene(parted):
            _check_numbers(parted)
            logger.info("the classes are numbered: %r is read as number %d and %r",
                        lines[0].text, parted[0].number, parted[0].text)  # fmt: skip
            return parted
        elif len({entry.number for entry in parted}) == len(parted) > 1 and (
            place is _before or max(entry.number or 0 for entry in parted) < 1000  # more may be years
        ):
            raise _WrongFormError(
                lines[0].line,
                f"the number in {lines[0].text!r} may count the classes or be part of the name, since the numbers do "
                f"not run from 0 or 1; {_REMEDY}",
            )
    return lines


# Each gives the line without its number, and whether a mark other than a blank parts the two.


def _before(line: _Entry) -> tuple[_Entry | None, bool]:
    match = _HEAD.match(line.text)
    if not match or not match[1] or len(match[1]) > 9 or "\t" in line.text:
        return None, False
    return replace(line, text=line.text[match.end(2) :], number=int(match[1])), bool(match[2].strip(" .)"))


def _within(line: _Entry) -> tuple[_Entry | None, bool]:
    match = _HEAD.match(line.text)
    if not match or not match[4] or len(match[4]) > 9 or match[1]:
        return None, False
    return replace(line, text=f"{match[3]} {line.text[match.end() :]}", number=int(match[4])), True


def _behind(line: _Entry) -> tuple[_Entry | None, bool]:
    name = line.text.rstrip("0123456789")
    number, stem = line.text[len(name) :], name.rstrip(" ,;:")
    if not 0 < len(number) <= 9 or not stem or stem == name or "\t" in line.text:
        return None, False
    return replace(line, text=stem, number=int(number)), bool(name[len(stem) :].strip())


def _counts(entries: Sequence[_Entry]) -> bool:
    numbers = sorted(entry.number or 0 for entry in entries)
    return bool(numbers) and numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _check_numbers(entries: Sequence[_Entry]) -> None:
    first: dict[int | None, _Entry] = {}
    for entry in entries:
        if (other := first.setdefault(entry.number, entry)) is not entry:
            raise _WrongFormError(entry.line, f"the number {entry.number} stands on line {other.line} already")


def _check_stray(
    place: Callable[[_Entry], tuple[_Entry | None, bool]],
    lines: Sequence[_Entry],
    found: Sequence[tuple[_Entry | None, bool]],
) -> None:
    """Refuse lines that are numbered in part: there, a number would become part of a name in silence."""
    parted = [(n, entry, mark) for n, (entry, mark) in enumerate(found) if entry is not None]
    offsets = [(entry.number or 0) - n for n, entry, _ in parted]
    in_step = len(parted) > 1 and any(offsets.count(offset) > 1 for offset in (0, 1))
    if parted and place is not _behind and (in_step or any(mark for *_, mark in parted)):
        odd = next(line for line, (entry, _) in zip(lines, found, strict=True) if entry is None)
        raise _WrongFormError(
            odd.line, f"{odd.text!r} has no number, but other lines have one; number all of them or none"
        )


_SCENE = re.compile(r"/?([a-z])/(\1.*)")


def _is_scene(entries: Sequence[_Entry]) -> bool:
    return all(_SCENE.fullmatch(entry.text) for entry in entries)


def _scenes(entries: list[_Entry]) -> list[_Entry]:
    if entries and _is_scene(entries):
        return [replace(entry, text=_SCENE.sub(r"\2", entry.text)) for entry in entries]
    if path := next((entry for entry in entries if entry.text.startswith("/")), None):
        raise _WrongFormError(path.line, f"{path.text!r} is a path; {_REMEDY}")
    return entries


# -- structures ----------------------------------------------------------------------------------------------------


def _structured(text: str) -> list[_Entry]:
    try:
        top = structure(text)
    except BadYamlError as error:
        raise _WrongFormError(error.line, f"neither JSON, Python nor YAML: {error.message}; {_REMEDY}") from None
    if isinstance(top, Map):
        top = next((value for key, value in top.pairs if _word(key) in ("id2label", "names")), top)
    if isinstance(top, List) and top.items:
        return [_Entry(item.line, _name(item)) for item in top.items]
    if not isinstance(top, Map) or not top.pairs:
        raise _WrongFormError(0, f"neither a list of names nor a map of numbers to names; {_REMEDY}")
    keys = [_word(key) for key, _ in top.pairs]
    values = [_word(value) for _, value in top.pairs]
    if all(map(_is_number, keys)):
        entries = [_Entry(key.line, _name(value), int(_word(key))) for key, value in top.pairs]
    elif all(map(_is_number, values)):
        entries = [_Entry(key.line, _name(key), int(_word(value))) for key, value in top.pairs]
    elif all(map(is_wnid, keys)):
        entries = [_Entry(key.line, f"{_word(key)} {_name(value)}") for key, value in top.pairs]
    else:
        odd = next(key for key in (key for key, _ in top.pairs) if not _is_number(_word(key)))
        raise _WrongFormError(odd.line, f"{_word(odd)!r} maps to something else than a class number; {_REMEDY}")
    _check_numbers([entry for entry in entries if entry.number is not None])
    return entries


def _word(value: Yaml) -> str:
    return value.value.strip() if isinstance(value, Scalar) else ""


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _name(value: Yaml) -> str:
    """A name, or a WordNet id and a name as in Keras's ``["n01440764", "tench"]``."""
    if isinstance(value, List) and len(value.items) == 2 and is_wnid(_word(value.items[0])):
        return f"{_word(value.items[0])} {_name(value.items[1])}"
    if (
        not isinstance(value, Scalar)
        or not _word(value)
        or (value.plain and _word(value).casefold() in ("none", "null", "~", "true", "false"))
    ):
        raise _WrongFormError(value.line, f"a name is missing here, or it is no text; {_REMEDY}")
    return _word(value)


# -- classes -------------------------------------------------------------------------------------------------------


def _class(entry: _Entry) -> ClassSpec:
    class_id, name, synset, *more = (*(part.strip() for part in entry.text.split("\t")), "", "")
    if not class_id:
        raise _WrongFormError(entry.line, "there is no class before the tab")
    if any(more) or (synset and not is_wnid(synset) and not _SYNSET.fullmatch(synset)):
        raise _WrongFormError(entry.line, "the columns are not ID<TAB>NAME<TAB>SYNSET, such as n02119789")
    if not name and (parted := part_wnid(class_id)):
        wnid, words = parted
        if re.search(rf"^{wnid}[-_.]|[-_.]{wnid}$", class_id):
            return folder_class(class_id)
        # map_clsloc.txt has blanks as underscores.
        class_id, name = wnid, words if " " in words else words.replace("_", " ")
    if not name and (match := _SYNSET.fullmatch(class_id)):
        return ClassSpec(class_id, prompt_name(match[1]), class_id)
    if is_wnid(class_id):
        name = name.split(",")[0].strip(" \"'")  # synonyms follow
    return _checked(entry, ClassSpec(class_id, name or None, synset or None))


def _checked(entry: _Entry, spec: ClassSpec) -> ClassSpec:
    if spec.name and spec.name.isdecimal() and not spec.class_id.isdecimal():
        raise _WrongFormError(entry.line, f"the name of {spec.class_id!r} is a number, {spec.name}; {_REMEDY}")
    for text in filter(None, (spec.class_id, spec.name)):
        if holds_wnid(text) and not is_wnid(text):
            raise _WrongFormError(
                entry.line, f"a WordNet id stands within {text!r}; write it first, with a blank behind it"
            )
        if _PIECE.fullmatch(text):
            raise _WrongFormError(entry.line, f"{text!r} is a piece of something else than a list of names; {_REMEDY}")
    return spec


def _check_distinct(specs: Sequence[ClassSpec], entries: Sequence[_Entry]) -> None:
    first: dict[str, _Entry] = {}
    for spec, entry in zip(specs, entries, strict=True):
        if (other := first.setdefault(spec.class_id, entry)) is not entry:
            raise _WrongFormError(
                entry.line,
                f"class {spec.class_id!r} stands on line {other.line} already; give each an id of its own: ID<TAB>NAME",
            )
