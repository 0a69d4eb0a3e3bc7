"""Every block of the docs that can run is run, as a reader would: in order, in one folder for each page.

``sh`` and ``python`` run; a ``diff`` changes a copy of hrzs, which the blocks below it use. The comment
``<!-- not run: WHY -->`` above a block leaves it out; its ``hrzs`` commands must still have the options they name.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S
)
#: What a shell does with a line beyond starting a program.
_SHELL = re.compile(r"[|<>&;$`*]")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``why`` it is not run, if the page says so."""

    language: str
    code: str
    line: int
    why: str | None

    def commands(self) -> Iterator[list[str]]:
        """The words of each ``hrzs`` command in a block of shell."""
        for line in re.split(r"\n|&&|[|;]", self.code.replace("\\\n", " ")):
            command = re.match(r"\s*(?:torchrun .*-m )?hrzs ([a-z][^#]*)", line)
            if command:
                yield command[1].split()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(found["language"], found["code"], text[: found.start("code")].count("\n") + 1, found["why"])
        for found in _BLOCK.finditer(text)
    ]


def name(page: Path) -> str:
    """What a test of the page is called."""
    return page.relative_to(ROOT).as_posix()


@dataclass
class Reader:
    """Somebody who does what a page says, block by block, in an empty folder.

    Until the page changes hrzs, commands and Python run in this process, which has loaded everything. From the first
    ``diff`` on they run in processes of their own, at the top of a copy of the repository to which the diff is applied.
    """

    folder: Path
    checkout: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    changed: bool = False

    def do(self, block: Block) -> None:
        {"sh": self._shell, "python": self._python, "diff": self._apply}.get(block.language, lambda _: None)(block.code)

    def _shell(self, code: str) -> None:
        lines = [re.split(r"(?:^|\s)#\s", line)[0] for line in code.replace("\\\n", " ").splitlines()]
        lines = [line for line in lines if line.strip()]
        simple = all(line.startswith("hrzs ") and not _SHELL.search(line) for line in lines)
        if self.changed or not simple:
            return self._process("bash", "-euo", "pipefail", "-c", code)
        for line in lines:
            self._in_this_process(shlex.split(line)[1:])
        return None

    def _in_this_process(self, words: list[str]) -> None:
        from hrzs.cli import main

        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code, f"hrzs {shlex.join(words)}: exit status {ended.value.code}"

    def _python(self, code: str) -> None:
        if self.changed:
            self._process(sys.executable, "-c", code)
        else:
            exec(compile(code, "page", "exec", dont_inherit=True), self.names)

    def _apply(self, diff: str) -> None:
        if not self.changed:
            for part in ("hrzs", "tests"):
                shutil.copytree(ROOT / part, self.checkout / part)
            for part in ("hierarchies", "pyproject.toml"):
                (self.checkout / part).symlink_to(ROOT / part)
        self.changed = True
        # A folder that is no repository: a diff is applied to the files as they are.
        applied = subprocess.run(["git", "apply", "--verbose", "-"], input=diff, text=True, cwd=self.checkout,
                                 env={**os.environ, "GIT_CEILING_DIRECTORIES": str(self.checkout.parent)},
                                 capture_output=True, check=False)  # fmt: skip
        assert applied.returncode == 0, applied.stderr

    def _process(self, *command: str) -> None:
        """With ``hrzs`` and ``python`` those of the tests, and the checkout's code once it has been changed."""
        place = self.checkout / "bin"
        if not place.exists():
            place.mkdir(parents=True)
            (place / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            (place / "hrzs").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hrzs "$@"\n')
            for file in place.iterdir():
                file.chmod(0o755)
        code = self.checkout if self.changed else ROOT
        path = os.pathsep.join([str(place), str(Path(sys.executable).parent), os.environ["PATH"]])
        outer = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        env = {
            **outer,
            "PATH": path,
            "PYTHONPATH": os.pathsep.join([str(code), os.environ["PYTHONPATH"]]),
            "OMP_NUM_THREADS": "1",
            "HRZS_CACHE": "0",
        }
        ended = subprocess.run(
            command,
            cwd=self.checkout if self.changed else self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert ended.returncode == 0, f"{command[-1]}\n{ended.stdout}\n{ended.stderr}"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Reader(folder, tmp_path / "checkout")


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.why is None for b in blocks(page))], ids=name)
def test_what_a_page_says_can_be_done(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        if block.why is None:
            reader.do(block)


def test_a_defence_of_ones_own_is_short() -> None:
    (block,) = (block for block in blocks(ROOT / "docs" / "adaptive.md") if block.language == "python")
    shown = block.code[block.code.index("@dataclass") : block.code.index("report =")].strip().splitlines()
    assert len(shown) <= 20


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_overlooked(page: Path) -> None:
    fences = [line for line in page.read_text().splitlines() if line.lstrip().startswith("```")]
    assert len(fences) == 2 * len(blocks(page)), "a fence begins in the first column, and names its language"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_command_that_is_not_run_has_options_that_exist(page: Path) -> None:
    from hrzs.cli import app

    commands: Any = typer.main.get_command(app)
    for block in blocks(page):
        for command, *words in block.commands() if block.why else ():
            assert command in commands.commands, f"{page.name}:{block.line}: hrzs {command}"
            flags = {flag for p in commands.commands[command].params for flag in (*p.opts, *p.secondary_opts)}
            unknown = [word for word in words if re.match("--?[a-z]", word) and word not in {*flags, "--help"}]
            assert not unknown, f"{page.name}:{block.line}: hrzs {command} has no {', '.join(unknown)}"


def test_a_page_that_is_wrong_is_found(tmp_path: Path, reader: Reader) -> None:
    page = tmp_path / "page.md"
    page.write_text("""
```sh
hrzs build-tree --classes cat,dog -o tree.yaml --quiet
```

```python
from pathlib import Path
assert "carnivore" in Path("tree.yaml").read_text()
```

<!-- not run: it would fail -->
```sh
exit 1
```

```sh
hrzs build-tree --check nothing.yaml
```

```sh
false | true
```

```diff
--- a/hrzs/errors.py
+++ b/hrzs/errors.py
@@ -1,1 +1,1 @@
-no such line
+another
```
""")
    shell, python, left_out, *wrong = blocks(page)
    assert left_out.why == "it would fail"
    reader.do(shell)
    reader.do(python)
    for block in wrong:
        with pytest.raises(AssertionError):
            reader.do(block)
