"""Reading YAML of strangers: text, lists and maps with their lines, within fixed bounds, and nothing else.

Never builds objects, resolves no tag, follows no alias. It works from the event stream with a stack of its own,
for the composer recurses: over libyaml 0.2.5, which PyYAML 6.0.2 still brings, it dies of deep nesting.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hrzs.errors import UsageError

MAX_BYTES = 32 * 2**20
MAX_NODES = 400_000
MAX_TEXT = 10_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# libyaml compares each %TAG directive with all before it: a file of nothing else would keep it busy for hours.
# The literal comes first because the search for it is fast.
_DIRECTIVE = re.compile(rb"%(?:(?<=\A%)|(?<=\A\xef\xbb\xbf%)|(?<=[\r\n]%)|(?<=\xc2\x85%)|(?<=\xe2\x80[\xa8\xa9]%))")


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


def read_source(path: str | Path) -> bytes:
    """The text of a file, or of standard input for ``-``, in UTF-8.

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
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"cannot read the tree file {path}: {reason}; `hrzs build-tree -o {path}` makes one"
        ) from error
    if len(data) > MAX_BYTES:
        raise BadYamlError(1, f"the file is larger than {MAX_BYTES // 2**20} MB: no class tree")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise BadYamlError(data.count(b"\n", 0, error.start) + 1, "the text is not UTF-8") from error
    return data


_TOO_DEEP = "nested too deep for a class tree"


def parse(data: bytes, max_depth: int, fault: Callable[[int, str], None]) -> Yaml | None:
    """The one document in ``data``, which is UTF-8; None when there is none.

    Anchors, aliases and tags go to ``fault`` with their line; reading goes on without them, an alias being text.

    Raises:
        BadYamlError: no YAML; a directive; a second document; more than ``MAX_NODES`` nodes, more than ``max_depth``
            collections inside one another, or a text of more than ``MAX_TEXT`` characters.
    """
    directive = _DIRECTIVE.search(data)
    if directive:
        line = data.count(b"\n", 0, directive.end()) + 1
        raise BadYamlError(line, "a line begins with %: directives are not allowed here")
    try:
        return assemble(_nodes(data, fault), max_depth)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = mark.line + 1 if mark else 1, str(error.problem or error.context)
        if "maximum nesting depth" in problem:  # a newer libyaml has a bound of its own, which may be met first
            raise BadYamlError(line, _TOO_DEEP) from error
        raise BadYamlError(line, f"no YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes and PyYAML characters, so the place is found anew.
        text = data.decode("utf-8-sig")
        odd = yaml.reader.Reader.NON_PRINTABLE.search(text)
        raise BadYamlError(text.count("\n", 0, odd.start()) + 1 if odd else 1, f"no YAML: {error.reason}") from error


def assemble(nodes: Iterable[Yaml | None], max_depth: int) -> Yaml | None:
    """The node that all others stand in. What stands in a list or map follows it, and then None.

    Raises:
        BadYamlError: more than ``MAX_NODES`` nodes, or more than ``max_depth`` collections inside one another.
    """
    root: Yaml | None = None
    stack: list[List | Map] = []
    keys: list[Yaml | None] = []  # beside the stack: the key that waits for its value
    count = 0
    for node in nodes:
        if node is None:
            # JSON may have an end too many, of which its reader tells later.
            del stack[-1:], keys[-1:]
            continue
        count += 1
        if count > MAX_NODES:
            raise BadYamlError(node.line, f"more than {MAX_NODES} nodes: no class tree")
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
                raise BadYamlError(node.line, _TOO_DEEP)
    return root


def _nodes(data: bytes, fault: Callable[[int, str], None]) -> Iterator[Yaml | None]:
    documents = 0
    for event in yaml.parse(data, Loader=_LOADER):
        if isinstance(event, yaml.NodeEvent):
            yield _node(event, fault)
        elif isinstance(event, yaml.CollectionEndEvent):
            yield None
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise BadYamlError(_line(event), "a second document begins here: there must be one")


def _node(event: yaml.NodeEvent, fault: Callable[[int, str], None]) -> Yaml:
    line = _line(event)
    if event.anchor is not None:
        fault(line, f"anchors and aliases ({_brief(event.anchor)}) are not allowed here: write the node out")
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        fault(line, f"tags ({_brief(event.tag)}) are not allowed here")
    if isinstance(event, yaml.ScalarEvent):
        if len(event.value) > MAX_TEXT:
            raise BadYamlError(line, f"a text of {len(event.value)} characters: no class tree")
        return Scalar(line, event.value, plain=not event.style)
    if isinstance(event, yaml.AliasEvent):
        return Scalar(line, f"*{event.anchor}", plain=True)
    return List(line) if isinstance(event, yaml.SequenceStartEvent) else Map(line)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _brief(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:59]}…"
