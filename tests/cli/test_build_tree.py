from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from hrzs.cli.build_tree import build_tree
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.yaml_form import load_tree, load_trees

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(build_tree)

Run = Callable[..., Result]
Hrzs = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs `build-tree` in an empty folder; what it raises is raised."""
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hrzs.cli.console.set_up", lambda **_: None)
        logging.getLogger("hrzs").setLevel(logging.INFO)
        yield lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_stdout_is_the_tree(run: Run, tmp_path: Path) -> None:
    result = run("--classes", "cat,dog,truck")
    assert result.exit_code == 0
    (tmp_path / "piped.yaml").write_text(result.stdout)
    assert load_tree("piped.yaml").classes == ("cat", "dog", "truck")


def test_default_is_the_published_tree(run: Run) -> None:
    published = find_tree("shapes")
    assert published is not None
    assert run("--source", "wordnet").stdout == published.read_text("utf-8")


def test_output_is_a_path_and_may_be_written_again(run: Run, tmp_path: Path) -> None:
    for _ in range(2):
        assert run("--classes", "cat,dog", "-o", "new/tree.yaml").stdout == "new/tree.yaml\n"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["tree.yaml"]
    assert load_tree("new/tree.yaml").header["classes"] == "2 names"


def test_failed_write_leaves_what_was_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree.yaml").write_text("precious")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hrzs.files.fsync", full)
    with pytest.raises(HrzsError, match=r"\(No space left on device\); what was there is untouched"):
        run("--classes", "cat,dog", "-o", "tree.yaml")
    assert [file.name for file in tmp_path.iterdir()] == ["tree.yaml"]
    assert (tmp_path / "tree.yaml").read_text() == "precious"


def test_output_beneath_a_file_or_onto_a_folder(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HrzsError, match=r"-o file/tree\.yaml: cannot make the folder: "):
        run("--classes", "cat,dog", "-o", "file/tree.yaml")
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        run("--classes", "cat,dog", "-o", ".")


def test_show_draws_on_stderr(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = StringIO()
    monkeypatch.setattr("hrzs.cli.console.stderr", Console(file=drawn))
    result = run("--classes", "cat,dog,truck", "--show", "-o", "tree.yaml")
    assert result.stdout == "tree.yaml\n"
    assert "carnivore  level 1, 2 classes" in drawn.getvalue()


def test_statistics_are_json(run: Run) -> None:
    figures = json.loads(run("--classes", "cat,dog,truck", "--stats").stdout)
    assert [level["nodes"] for level in figures["levels"]] == [3, 2, 1]


def test_plot(run: Run) -> None:
    run("--classes", "cat,dog", "--plot", "tree.svg")
    assert Path("tree.svg").read_text().startswith("<?xml")
    with pytest.raises(HrzsError, match=r"--plot no/tree\.svg: cannot write"):
        run("--classes", "cat,dog", "--plot", "no/tree.svg")


def test_levels_and_senses_are_recorded(run: Run) -> None:
    run("--classes", "star,moon", "--sense", "star=star.n.01", "--levels", "1", "-o", "t.yaml")
    assert load_tree("t.yaml").header["sense"] == ["star=star.n.01"]
    assert load_tree("t.yaml").header["levels"] == 1


def test_notes_name_the_flag(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run("--classes", "star,square,circle")
    assert "--sense star=star.n.01" in caplog.text


def test_file_source_levels_anew(run: Run) -> None:
    run("--source", "file", "--levels", "2", "-o", "two.yaml")
    assert load_tree("two.yaml").height == 2
    run("--source", "file", "--tree", "two.yaml", "--classes", "circle,ellipse,star,heart", "-o", "part.yaml")
    assert load_tree("part.yaml").classes == ("circle", "ellipse", "star", "heart")


def test_forest_in_one_file(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run("--classes", "dog,wolf,domestic cat,lion", "--trees", "2", "-o", "forest.yaml")
    first, second = load_trees("forest.yaml")
    assert first.classes == second.classes
    assert first.digest != second.digest
    figures = json.loads(run("--check", "forest.yaml", "--stats").stdout)
    assert len(figures["trees"]) == 2
    assert 0 < figures["agreement"]["mean"]["same_lca_height"] <= 1
    run("--check", "forest.yaml", "--plot", "forest.svg")
    assert Path("forest-1.svg").is_file()
    assert Path("forest-2.svg").is_file()
    # Trees of several files make a forest, and what is taken over as it is keeps its header.
    run("--source", "file", "--tree", "forest.yaml#2", "--tree", "forest.yaml#1", "-o", "turned.yaml")
    assert load_trees("turned.yaml") == [second, first]
    assert json.loads(run("--check", "forest.yaml#2", "--stats").stdout)["digest"] == second.digest


def test_other_peoples_trees(run: Run) -> None:
    Path("paths.csv").write_text("animal,pet,cat\nanimal,pet,dog\nanimal,bear\nvehicle,truck\nvehicle,car\n")
    run("--source", "file", "--tree", "paths.csv", "-o", "tree.yaml")
    tree = load_tree("tree.yaml")
    assert tree.classes == ("cat", "dog", "bear", "truck", "car")
    assert [len(nodes) for nodes in tree.levels] == [5, 3, 2, 1]


def test_what_a_model_makes_of_a_tree(run: Run) -> None:
    published = str(find_tree("shapes"))
    figures = json.loads(
        run("--check", published, "--stats", "--model", "tiny", "--data", "shapes", "--limit", "24",
            "--plot", "tree.png").stdout
    )  # fmt: skip
    assert [level["nodes"] for level in figures["zero_shot"]["levels"]] == [24, 14, 10, 5]
    assert all(0 <= level["prompt"]["accuracy"] <= 1 for level in figures["zero_shot"]["levels"])
    assert Path("tree-disk.png").stat().st_size > 10_000


def test_clusters_of_a_models_texts(run: Run) -> None:
    run("--source", "cluster", "--model", "tiny", "-o", "clusters.yaml")
    tree = load_tree("clusters.yaml")
    assert tree.header["model"] == "tiny"
    assert len(tree.classes) == 24
    assert tree.height >= 2


def test_check(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("hrzs-tree: 1\ntree:\n- r:\n  - a\n  - b\n")
    assert run("--check", "good.yaml").stdout == ""
    assert json.loads(run("--check", "good.yaml", "--stats").stdout)["classes"] == 2
    (tmp_path / "bad.yaml").write_text("hrzs-tree: 1\ntree:\n- r:\n  - a\n  - a\n  - s thing:\n")
    with pytest.raises(UsageError, match=r"(?s)2 fault.*bad\.yaml:5: class 'a'.*bad\.yaml:6: superclass"):
        run("--check", "bad.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "cat,elefant"), "elefant.*near:.*elephant"),
        (("--classes", "nowhere"), "--classes nowhere: .*one class per line"),
        (("--classes", "cat,,dog"), "empty name"),
        (("--classes", "cat,cat"), "'cat' more than once"),
        (("--levels", "0"), "--levels 0"),
        (("--source", "oracle"), "--source oracle: .*wordnet, llm, cluster, file"),
        (("--sense", "star"), "write NAME=SYNSET"),
        (("--wordnet", "nowhere"), "--wordnet nowhere: cannot read"),
        (("--tree", "x.yaml"), "--source file"),
        (("--source", "file", "--classes", "cifar10000"), "no tree is published for cifar10000"),
        (("--source", "llm"), "--endpoint URL"),
        (("--source", "cluster", "--distance", "manhattan"), "--distance 'manhattan'"),
        (("--source", "cluster", "--model", "none-such"), "--model 'none-such'"),
        (("--check", "none.yaml"), "none.yaml: No such file"),
        (("--plot", "x.txt"), r"--plot x\.txt: .*\.svg"),
    ],
)
def test_wrong_call_names_the_option_and_the_remedy(run: Run, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        run(*arguments)


def test_list_of_sources(run: Run) -> None:
    assert [line.split()[0] for line in run("--source", "list").stdout.splitlines()] == [
        "wordnet",
        "llm",
        "cluster",
        "file",
    ]


def test_needs_no_torch(tmp_path: Path) -> None:
    """Which takes longer to import than a tree of a thousand classes to build (the time is in `make bench`)."""
    code = (
        "import sys; from hrzs.cli import app\n"
        "app(['build-tree', '--classes', 'cat,dog,n02084071', '-o', 'tree.yaml'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    assert len(load_tree(tmp_path / "tree.yaml").classes) == 3


# -- nodes with the same prompt -----------------------------------------------------------------------------------

TWICE = """\
hrzs-tree: 1
tree:
- root thing:
  - a food:
    - apple
    - pear
  - b food:
    - pizza
    - soup
"""


def test_check_warns_of_the_same_prompt_twice(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path("t.yaml").write_text(TWICE)
    result = run("--check", "t.yaml")
    assert (result.exit_code, result.stdout) == (0, "")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning == (
        "level 1: food (a) and food (b) have the same prompt, 'food': a model can predict one of them at most; "
        "`prompts: [ANOTHER NAME]` in the tree file tells one from the other; so does, for a class, a NAME of its own "
        "in the file of `hrzs build-tree --classes` (ID<TAB>NAME)"
    )


def test_check_with_a_model_compares_what_it_reads(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    long = "very " * 80
    Path("t.yaml").write_text(TWICE.replace("a food", f"a {long}good food").replace("b food", f"b {long}bad food"))
    run("--check", "t.yaml")
    assert "the same prompt" not in caplog.text
    run("--check", "t.yaml", "--model", "tiny", "--pretrained", "none")
    assert "have the same prompt, 'a photo of a very very" in caplog.text


def test_a_built_tree_has_prompts_that_tell_apart(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path("list.tsv").write_text("a\tcrane\tn02012849\nb\tcrane\tn03126707\nc\theron\n")
    run("--classes", "list.tsv", "-o", "t.yaml")
    assert [leaf.prompts for leaf in load_tree("t.yaml").levels[0]] == [
        ("crane, a type of wading bird",),
        ("crane, a type of lifting device",),
        (),
    ]
    assert "crane (a) is called 'crane, a type of wading bird' in prompts" in caplog.text
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_built_tree_that_nothing_tells_apart_is_warned_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path("list.tsv").write_text("a\tcrane\tn02012849\nb\tcrane\tn02012849\nc\theron\n")
    run("--classes", "list.tsv", "-o", "t.yaml")
    assert "level 0: crane (a) and crane (b) have the same prompt, 'crane'" in caplog.text


def test_a_converted_tree_is_told_apart_too(run: Run) -> None:
    Path("t.yaml").write_text(TWICE)
    run("--source", "file", "--tree", "t.yaml", "-o", "told.yaml")
    assert [node.prompt_names for node in load_tree("told.yaml").levels[1]] == [
        ("food",),
        ("food such as pizza and soup",),
    ]


def test_classes_of_one_name_are_named(hrzs: Hrzs, tmp_path: Path) -> None:
    for name in ("cat", "Cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    done = hrzs("build-tree", "--classes", tmp_path, "--quiet")
    assert done.status == 0
    assert "the classes 'Cat' and 'cat' have the same name" in " ".join(done.err.split())
    assert "--sense CLASS=SYNSET" in done.err
    assert hrzs("build-tree", "--classes", "cat,dog", "--quiet").err == ""


# -- where the result goes -----------------------------------------------------------------------------------------


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hrzs", *map(str, arguments)], stderr=subprocess.PIPE, check=False, **options
    )


def test_a_result_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("kind,class\nThé,café\nThé,crème\nfruit,狐\n", "utf-8")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = command(
        "build-tree",
        "--source",
        "file",
        "--tree",
        tmp_path / "t.csv",
        "--show",
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert done.returncode == 0
    assert {"café", "crème", "狐"} <= set(done.stdout.decode().replace("-", " ").split())
    assert b"caf\\xe9" in done.stderr
    shown = command("build-tree", "--help", stdout=subprocess.PIPE, env=environment)
    assert shown.returncode == 0
    assert command("eval", "--help", stdout=subprocess.PIPE, env=environment).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has /dev/full")
def test_a_full_disk_is_named() -> None:
    with Path("/dev/full").open("wb") as full:
        done = command("build-tree", "--source", "file", stdout=full)
        version = command("--version", stdout=full)
    assert done.returncode == version.returncode == 1
    assert b"Error: the result cannot be written to standard output: No space left on device\n" in done.stderr
    assert version.stderr == b"Error: No space left on device\n"


def test_a_closed_pipe_is_named() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = command("build-tree", "--source", "file", stdout=write)
    finally:
        os.close(write)
    assert done.returncode == 1
    assert b"Error: the result cannot be written to standard output: Broken pipe\n" in done.stderr
    assert b"fault of hrzs" not in done.stderr
