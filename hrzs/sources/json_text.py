"""Reading JSON of strangers, as `hrzs.safe_yaml` reads YAML: with the line of each value, and bounded.

Python's own parser judges what is JSON, but it knows no lines, keeps the last of two equal keys, and has no bound. A
YAML reader would refuse or alter strings: surrogate pairs, control characters, NEL, keys of over 1024 characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from hrzs.safe_yaml import BadYamlError, List, Map, Scalar, Yaml, assemble

# Numbers stay text, however long. NaN and Infinity are no JSON: looking them up fails.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=dict[str, object]().__getitem__)
_MARK = re.compile(r"[^ \t\r\n,:]")


def parse(text: str, max_depth: int) -> Yaml:
    """The value in ``text``. Strings are not ``plain``, numbers and ``true``, ``false``, ``null`` are.

    Raises:
        BadYamlError: no JSON, or more nodes or depth than `assemble` allows.
    """
    try:
        root = assemble(_nodes(text), max_depth)
        # Only now is its size known to be bounded.
        _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadYamlError(error.lineno, f"no JSON: {error.msg}") from None
    assert root is not None
    return root


def _nodes(text: str) -> Iterator[Yaml | None]:
    """The values and keys, and None at each closing bracket, wherever the commas and colons stand."""
    line, place = 1, 0
    while match := _MARK.search(text, place):
        line += text.count("\n", place, match.start())
        place, mark = match.end(), match[0]
        if mark in "[{":
            yield List(line) if mark == "[" else Map(line)
        elif mark in "]}":
            yield None
        else:
            start, quoted = match.start(), mark == '"'
            try:
                value, place = _DECODER.raw_decode(text, start)
                if quoted:
                    value.encode()  # half a surrogate pair could never be written
            except (LookupError, UnicodeEncodeError):
                raise BadYamlError(line, f"no JSON: {text[start : start + 20]!r} means nothing") from None
            yield Scalar(line, value if quoted else text[start:place], plain=not quoted)
