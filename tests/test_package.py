"""The wheel and the source archive: what is in them, that they work outside the checkout, and what they need."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def call(*command: object, cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False,
                           env=kept | environment)  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive, and the wheel that was built from it."""
    folder: Path = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def test_the_archives_are_well_made(built: Path) -> None:
    wheel, source = next(built.glob("*.whl")), next(built.glob("*.tar.gz"))
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=ROOT)
    call(sys.executable, "-m", "check_wheel_contents", wheel, cwd=ROOT)


def test_what_is_in_the_wheel(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        size = sum(entry.compress_size for entry in wheel.infolist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "hrzs").rglob("*")
               if path.is_file() and path.suffix != ".pyc"}  # fmt: skip
    trees = {f"hrzs/hierarchies/{path.name}" for path in (ROOT / "hierarchies").iterdir()}
    assert {name for name in names if not name.startswith("hrzs-")} == package | trees
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert 7.5e6 < size < 8.5e6  # docs/first-steps.md says 8 MB


def test_what_is_in_the_source_archive(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        tops = {name.split("/")[1] for name in source.getnames() if "/" in name}
    assert tops >= {"README.md", "LICENSE", "Makefile", "pyproject.toml", "hrzs", "hierarchies", "tests", "docs"}
    assert tops <= {path.name for path in ROOT.iterdir()} | {"PKG-INFO"}
    assert not {name for name in tops if name.endswith("cache") or name in (".venv", ".git", "runs", "build", "dist")}


#: What a user does first, in one process.
_FIRST = """
import sys
from pathlib import Path
import hrzs
from hrzs.cli import main

assert Path(hrzs.__file__).is_relative_to(sys.prefix), hrzs.__file__
for line in (
    "finetune --max-steps 1 --batch-size 8 --limit 24 --validate-every 0 -o run --export released --quiet",
    "eval --model released --limit 6 --attack superclass-pgd --steps 1 --no-canaries --json report.json --report page.html",
):
    try:
        main(line.split())
    except SystemExit as ended:
        assert not ended.code, line
"""


def test_the_wheel_works_outside_the_checkout(built: Path, tmp_path: Path) -> None:
    """In an environment of its own, which finds the other packages where they are; hrzs itself must be the wheel's."""
    venv.create(tmp_path / "venv", symlinks=True)
    python, home = tmp_path / "venv" / "bin" / "python", tmp_path / "elsewhere"
    home.mkdir()
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
         next(built.glob("*.whl")), cwd=home)  # fmt: skip
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    # Appended to the path as it is: what makes hrzs editable in there is not looked at.
    (site / "others.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    tree = call(tmp_path / "venv" / "bin" / "hrzs", "build-tree", "--source", "wordnet", cwd=home)
    assert tree.startswith("#")
    assert call(python, "-m", "hrzs", "--version", cwd=home).startswith(f"hrzs {PROJECT['version']}\ntorch ")
    said = call(python, "-c", _FIRST, cwd=home, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", HRZS_CACHE="0")
    assert "superclass-pgd @ 1" in said
    assert {"run", "released", "report.json", "page.html"} <= {path.name for path in home.iterdir()}


# -- what it needs ----------------------------------------------------------------------------------------------------


def imported(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"hrzs"}


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(each).name) for each in requirements}


def test_whatever_is_imported_is_declared_and_the_other_way_round() -> None:
    """What comes with open_clip, as timm does, could leave with it: it is declared here too, or known to stay."""
    homes = packages_distributions()
    needed = {
        canonicalize_name(homes[module][0])
        for file in (ROOT / "hrzs").rglob("*.py")
        for module in imported(file)
        if module in homes
    }
    always = declared(PROJECT["dependencies"])
    optional = declared([each for name in ("pcam", "llm", "tensorboard", "pandas", "hub")
                         for each in PROJECT["optional-dependencies"][name]])  # fmt: skip
    assert needed <= always | optional, "import what pyproject.toml names, or name it"
    assert always <= needed, "nothing imports it"


#: Every feature that needs an extra, each where the packages of all other extras cannot be imported.
_ALONE = """
import os, sys
from pathlib import Path

MODULES = {"pcam": "h5py", "llm": "openai", "tensorboard": "tensorboard", "pandas": "pandas", "hub": "transformers"}
sys.modules.update(dict.fromkeys(MODULES.values()))  # None: an import fails as if it were not installed
import hrzs

report = hrzs.evaluate(hrzs.load("tiny"), limit=6, attack="none", canaries=False)
print("core")

def pandas():
    assert len(report.to_pandas()) == len(report.results)

def tensorboard():
    hrzs.finetune(hrzs.load("tiny"), "run", max_steps=1, batch_size=8, limit=24, validate_every=0)
    assert list(Path("run/tensorboard").iterdir())

def pcam():
    import h5py, numpy
    from hrzs.data import open_dataset
    folder = Path("pcam"); folder.mkdir()
    for name, key, value in (("x", "x", numpy.zeros((2, 96, 96, 3), "uint8")), ("y", "y", numpy.zeros((2, 1, 1, 1), "uint8"))):
        with h5py.File(folder / f"camelyonpatch_level_2_split_test_{name}.h5", "w") as file:
            file[key] = value
    assert len(open_dataset("pcam", "test", root=Path.cwd())) == 2

def llm():
    import openai
    from hrzs.sources import llm
    assert openai.OpenAI(api_key="none", base_url="http://localhost:9").base_url

def hub():
    import transformers
    assert transformers.CLIPConfig().projection_dim

for name, module in MODULES.items():
    child = os.fork()
    if not child:
        del sys.modules[module]
        try:
            globals()[name]()
        except BaseException as error:
            print(name, repr(error)); sys.stdout.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
    print(name)
"""


def test_every_extra_works_alone(tmp_path: Path) -> None:
    said = call(sys.executable, "-c", _ALONE, cwd=tmp_path, OMP_NUM_THREADS="1", HRZS_CACHE="0")
    assert said.split() == ["core", "pcam", "llm", "tensorboard", "pandas", "hub"]


def test_floors_are_those_that_make_oldest_installs() -> None:
    """A floor that nobody tests is a guess; an upper bound needs a reason, and there is none yet."""
    for each in PROJECT["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", each), each
