"""Reading JSON of strangers, as `hrzs.hierarchy.safe_yaml` reads YAML: with the line of each value, and bounded.

Python's own parser knows no lines, keeps the last of two equal keys, and recurses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from hrzs.hierarchy.safe_yaml import MAX_NODES, BadYamlError, List, Map, Scalar, Yaml

# The bound on escapes is one on memory: the engine remembers each of them.
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<mark>[\[\]{},:])
      | (?P<string>"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*){0,10000}")
      | (?P<word>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)
      | (?P<bad>[^ \t\r\n])
    )""",
    re.VERBOSE,
)
_VALUE, _KEY, _COLON, _NEXT = "a value", "a key in double quotes", "a colon", "a comma or a closing bracket"


def parse(text: str, max_depth: int) -> Yaml:
    """The value in ``text``. Strings are not ``plain``, numbers and ``true``, ``false``, ``null`` are.

    Raises:
        BadYamlError: no JSON, more than ``MAX_NODES`` values, or more than ``max_depth`` lists and maps inside another.
    """
    root: Yaml | None = None
    stack: list[List | Map] = []
    keys: list[Scalar | None] = []  # beside the stack: the key that waits for its value
    expected, may_end, nodes, line = _VALUE, False, 0, 1
    for line, kind, token in _tokens(text):
        if kind == "mark" and token in "]}":
            if not stack or not (expected is _NEXT or may_end) or isinstance(stack[-1], List) != (token == "]"):
                raise _unexpected(line, token, expected)
            stack.pop()
            keys.pop()
            expected, may_end = _NEXT, False
            continue
        may_end = False
        if expected is _NEXT:
            if token != "," or not stack:
                raise _unexpected(line, token, expected if stack else "the end of the file")
            expected = _VALUE if isinstance(stack[-1], List) else _KEY
            continue
        if expected is _COLON:
            if token != ":":
                raise _unexpected(line, token, expected)
            expected = _VALUE
            continue
        if (kind == "mark" and token in ",:") or (expected is _KEY and kind != "string"):
            raise _unexpected(line, token, expected)
        node = _node(line, kind, token)
        nodes += 1
        if nodes > MAX_NODES:
            raise BadYamlError(line, f"more than {MAX_NODES} values: no class tree")
        if expected is _KEY:
            assert isinstance(node, Scalar)
            keys[-1] = node
            expected = _COLON
            continue
        if not stack:
            root = node
        elif isinstance(parent := stack[-1], List):
            parent.items.append(node)
        else:
            key = keys[-1]
            assert key is not None
            parent.pairs.append((key, node))
        expected = _NEXT
        if not isinstance(node, Scalar):
            stack.append(node)
            keys.append(None)
            if len(stack) > max_depth:
                raise BadYamlError(line, "nested too deep for a class tree")
            expected, may_end = (_VALUE if isinstance(node, List) else _KEY), True
    if root is None or stack:
        raise BadYamlError(line, f"no JSON: the text ends where {expected} should follow")
    return root


def _tokens(text: str) -> Iterator[tuple[int, str, str]]:
    line, end = 1, 0
    while match := _TOKEN.match(text, end):
        kind = match.lastgroup or ""
        line += text.count("\n", end, match.start(kind))
        if kind == "bad":
            start = match.start(kind)
            what = "a string that does not end on its line" if text[start] == '"' else repr(text[start : start + 20])
            raise BadYamlError(line, f"no JSON: {what}")
        yield line, kind, match[kind]
        end = match.end()


def _node(line: int, kind: str, token: str) -> Yaml:
    if kind == "mark":
        return List(line) if token == "[" else Map(line)
    if kind == "word":
        return Scalar(line, token, plain=True)
    try:
        value = str(json.loads(token))
        value.encode()  # half a surrogate pair could never be written
    except ValueError:
        raise BadYamlError(line, f"no JSON: an escape in {token[:60]} means nothing") from None
    return Scalar(line, value, plain=False)


def _unexpected(line: int, token: str, expected: str) -> BadYamlError:
    return BadYamlError(line, f"no JSON: {token[:60]} stands where {expected} should")
