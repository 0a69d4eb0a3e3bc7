"""Files that mean harm: each is refused within five seconds of processor time and 500 MB of memory."""

from __future__ import annotations

import io
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hrzs.errors import UsageError
from hrzs.safe_yaml import MAX_BYTES, BadYamlError, List, Map, Scalar, Yaml, parse, read_source

SECONDS = 5
BYTES = 500_000_000
MB = 2**20
HEAD = "hrzs-tree: 1\ntree:\n- r:\n"

CHECK = """
import sys
from hrzs.errors import UsageError
from hrzs.hierarchy.yaml_form import load_trees
for path in sys.argv[1:]:
    try:
        load_trees(path)
    except UsageError as error:
        print(str(error).splitlines()[1].removeprefix(f"  {path}:")[:200])
    else:
        print("valid")
"""

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
CHAIN = HEAD + "".join(f"{'  ' * depth}- s{depth}:\n" for depth in range(1, 90)) + f"{'  ' * 90}- t: "

HOSTILE: dict[str, tuple[Callable[[], str | bytes], str]] = {
    "brackets": (lambda: "[" * 1_000_000, "1: nested too deep"),
    "braces": (lambda: "{a: " * 1_000_000, "1: nested too deep"),
    "dashes": (lambda: "- " * 1_000_000, "1: nested too deep"),
    "question-marks": (lambda: "? " * 1_000_000, "1: nested too deep"),
    "outline": (lambda: HEAD + "".join(f"{'  ' * d}- s{d}:\n" for d in range(1, 2000)), "105: nested too deep"),
    "deep-header": (lambda: f"hrzs-tree: 1\nsource: {'{a: ' * 150}1{'}' * 150}\ntree: []\n", "3: `tree` is a list"),
    "laughs": (lambda: LAUGHS, "1: `hrzs-tree: 1` is missing"),
    "merge": (lambda: HEAD + "  - &x {class: a}\n  - {<<: *x, class: b}\n", "4: anchors and aliases (x)"),
    "object": (lambda: HEAD + "  - !!python/object/apply:os.system [ls]\n", "4: a list stands where"),
    "anchors": (lambda: HEAD + "".join(f"  - &a{i} c{i}\n" for i in range(150_000)), "4: anchors and aliases (a0)"),
    "wide": (lambda: HEAD + "  - a\n" * 150_000, "5: class 'a' stands on a second leaf"),
    "too-wide": (lambda: "[" + "[]," * 5_000_000, "1: more than 400000 nodes"),
    "deep-and-wide": (lambda: f"{CHAIN}[{', '.join(f'c{i}' for i in range(150_000))}, c0]\n", "93: class 'c0' stands"),
    "high": (lambda: HEAD.replace("r:", "r@9999:") + "".join(f"  - c{i}\n" for i in range(100_000)), "3: the root is at"),
    "classes": (lambda: f"hrzs-tree: 1\nclasses: [{', '.join(map(str, range(150_000)))}]\n" + HEAD[13:] + "  - a\n", "2: 10000"),
    "duplicate-keys": (lambda: HEAD + "  - {" + "class: a, " * 150_000 + "}\n", "4: 10000 faults found by here"),
    "documents": (lambda: "--- a\n" * 100_000, "2: a second document begins here"),
    "directives": (lambda: "".join(f"%TAG !a{i}! tag:x,{i}:\n" for i in range(1_000_000)) + "--- a\n", "1: a line begins with %"),
    "late-directives": (lambda: "--- a\n...\n" + "%TAG !a! b\n" * 1_000_000, "3: a line begins with %"),
    "percents": (lambda: "a" + "%" * 10 * MB, "1: a text of 10485761 characters"),
    "100-mb": (lambda: b"\0" * 100 * MB, "1: the file is larger than 32 MB"),
    "60-mb-scalar": (lambda: HEAD + "  - " + "x" * 60 * MB, "1: the file is larger than 32 MB"),
    "30-mb-scalar": (lambda: HEAD + "  - 🦊" + "x" * 30 * MB, "4: a text of 31457281 characters"),
    "30-mb-key": (lambda: "x" * 30 * MB + ": y\n", "1: a text of 31457280 characters"),
    "open-quote": (lambda: HEAD + '  - "' + "x\n" * 10 * MB, "10485764: no YAML: found unexpected end"),
    "blank-lines": (lambda: "\n" * 30 * MB, "1: the file is empty"),
    "tabs": (lambda: "\t" * 10 * MB, "1: no YAML: found character that cannot start any token"),
    "tab-indent": (lambda: HEAD + "\t- a\n", "4: no YAML: found character that cannot start any token"),
    "nul": (lambda: HEAD + "  - a\0b\n", "4: no YAML: control characters"),
    "utf-16": (lambda: (HEAD + "  - a\n  - b\n").encode("utf-16"), "1: the text is not UTF-8"),
    "utf-16-without-mark": (lambda: HEAD.encode("utf-16-le"), "1: no YAML: control characters"),
    "latin-1": (lambda: (HEAD + "  - caf\xe9\n").encode("latin-1"), "4: the text is not UTF-8"),
}  # fmt: skip


def within_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))


def run_within_limits(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], preexec_fn=within_limits, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_within_limits(tmp_path: Path, name: str) -> None:
    make, message = HOSTILE[name]
    text = make()
    file = tmp_path / "tree.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run_within_limits("-c", CHECK, str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(message), done.stdout


def test_endless_file_is_refused() -> None:
    done = run_within_limits("-c", CHECK, "/dev/zero")
    assert done.stdout == "1: the file is larger than 32 MB: no class tree\n"


def test_command_line_exits_with_2_and_the_line(tmp_path: Path) -> None:
    file = tmp_path / "tree.yaml"
    file.write_text(LAUGHS)
    done = subprocess.run(
        [sys.executable, "-m", "hrzs", "build-tree", "--check", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}:1: `hrzs-tree: 1` is missing" in done.stderr
    assert f"{file}:12: anchors and aliases (a10) are not allowed here" in done.stderr


# -- reading ---------------------------------------------------------------------------------------------------


def no_fault(line: int, message: str) -> None:
    raise AssertionError(f"{line}: {message}")


def plain(node: Yaml | None) -> object:
    if isinstance(node, Map):
        return [(plain(key), plain(value)) for key, value in node.pairs]
    if isinstance(node, List):
        return [plain(item) for item in node.items]
    return node and node.value


def test_everything_is_text_with_its_line() -> None:
    root = parse(b"\xef\xbb\xbfa: [1, no, null]\n'1':\n- ~\n- {b: 2001-01-01}\na: |\n  c\n  d\n", 3, no_fault)
    assert plain(root) == [("a", ["1", "no", "null"]), ("1", ["~", [("b", "2001-01-01")]]), ("a", "c\nd\n")]
    assert isinstance(root, Map)
    assert [(key.line, isinstance(key, Scalar) and key.plain) for key, _ in root.pairs] == [
        (1, True),
        (2, False),
        (5, True),
    ]


def test_empty_text_has_no_document() -> None:
    assert parse(b"# nothing\n", 3, no_fault) is None


def test_anchors_aliases_and_tags_are_reported_and_reading_goes_on() -> None:
    found: list[tuple[int, str]] = []
    root = parse(
        b"- &x a\n- *x\n- !t b\n- !!set {c, d}\n- ! e\n", 3, lambda line, message: found.append((line, message))
    )
    assert plain(root) == ["a", "*x", "b", [("c", ""), ("d", "")], "e"]
    assert [line for line, _ in found] == [1, 2, 3, 4, 5]
    assert [message.split()[0] for _, message in found] == ["anchors", "anchors", "tags", "tags", "tags"]


@pytest.mark.parametrize(
    ("text", "line"),
    [("%YAML 1.1\n--- a", 1), ("\ufeff%YAML 1.1\n--- a", 1), ("a\r\n...\r\n%TAG ! x\r\n--- b", 3), ("a\x85%", 1), ("a\u2028%", 1)],
)  # fmt: skip
def test_directive_is_found_at_any_line_break(text: str, line: int) -> None:
    with pytest.raises(BadYamlError, match="begins with %") as caught:
        parse(text.encode(), 3, no_fault)
    assert caught.value.line == line


def test_percent_within_a_line_is_text() -> None:
    assert plain(parse(b"- a%b\n- '%x'\n", 3, no_fault)) == ["a%b", "%x"]


def test_depth_is_bounded_exactly() -> None:
    assert plain(parse(b"[[[a]]]", 3, no_fault)) == [[["a"]]]
    with pytest.raises(BadYamlError, match="nested too deep"):
        parse(b"[[[[a]]]]", 3, no_fault)


def test_standard_input_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"a: b", b" " * (MAX_BYTES + 1)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        if len(data) <= MAX_BYTES:
            assert read_source("-") == data
        else:
            with pytest.raises(BadYamlError, match="larger than 32 MB"):
                read_source("-")


@pytest.mark.parametrize("path", [".", "no/such/file", "nul\0.yaml"])
def test_what_cannot_be_opened_is_named(path: str) -> None:
    with pytest.raises(UsageError, match=r"cannot read the tree file .*build-tree -o"):
        read_source(path)
