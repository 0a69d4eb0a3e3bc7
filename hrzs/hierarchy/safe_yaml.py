"""Reading YAML of strangers: text, lists and maps with their lines, within fixed bounds, and nothing else.

Never builds objects, resolves no tag, follows no alias. It works from the event stream with a stack of its own,
for libyaml's composer recurses and dies of deep nesting.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hrzs.errors import UsageError

MAX_BYTES = 64 * 2**20
MAX_NODES = 500_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Scalar:
    line: int
    value: str
    plain: bool  # written without quotes


@dataclass(slots=True)
class List:
    line: int
    items: list[Yaml] = field(default_factory=list)


@dataclass(slots=True)
class Map:
    line: int
    pairs: list[tuple[Yaml, Yaml]] = field(default_factory=list)


Yaml = Scalar | List | Map


class BadYamlError(Exception):
    """The text ends here as far as reading goes: ``line`` (from 1) and what is wrong there."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


def read_text(path: str | Path) -> str:
    """The text of a file, or of standard input for ``-``.

    Raises:
        UsageError: it cannot be opened.
        BadYamlError: it is larger than ``MAX_BYTES`` or not UTF-8.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the tree file {path}: {error.strerror}; `hrzs build-tree -o {path}` makes one"
        ) from error
    if len(data) > MAX_BYTES:
        raise BadYamlError(1, f"the file is larger than {MAX_BYTES // 2**20} MB: no class tree")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadYamlError(data.count(b"\n", 0, error.start) + 1, "the text is not UTF-8") from error


def parse(text: str, max_depth: int) -> Yaml | None:
    """The one document in ``text``; None when there is none.

    Raises:
        BadYamlError: no YAML; an anchor, alias or tag; a second document; more than ``MAX_NODES`` nodes or
            more than ``max_depth`` collections inside one another.
    """
    root: Yaml | None = None
    stack: list[List | Map] = []
    keys: list[Yaml | None] = []  # beside the stack: the key that waits for its value
    documents = nodes = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            line = _line(event)
            if isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
                keys.pop()
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise BadYamlError(line, "a second document begins here: there must be one")
            elif isinstance(event, yaml.NodeEvent):
                nodes += 1
                if nodes > MAX_NODES:
                    raise BadYamlError(line, f"more than {MAX_NODES} nodes: no class tree")
                node = _node(event, line)
                if not stack:
                    root = node
                elif isinstance(parent := stack[-1], List):
                    parent.items.append(node)
                elif (key := keys[-1]) is None:
                    keys[-1] = node
                else:
                    parent.pairs.append((key, node))
                    keys[-1] = None
                if not isinstance(node, Scalar):
                    stack.append(node)
                    keys.append(None)
                    if len(stack) > max_depth:
                        raise BadYamlError(line, "nested too deep for a class tree")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadYamlError(mark.line + 1 if mark else 1, f"no YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes and PyYAML characters, so the place is found anew.
        odd = yaml.reader.Reader.NON_PRINTABLE.search(text)
        raise BadYamlError(text.count("\n", 0, odd.start()) + 1 if odd else 1, f"no YAML: {error.reason}") from error
    return root


def _node(event: yaml.NodeEvent, line: int) -> Yaml:
    if event.anchor is not None:
        raise BadYamlError(line, f"anchors and aliases ({event.anchor}) are not allowed here: write the node out")
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        raise BadYamlError(line, f"tags ({event.tag}) are not allowed here")
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(line, event.value, plain=not event.style)
    return List(line) if isinstance(event, yaml.SequenceStartEvent) else Map(line)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
