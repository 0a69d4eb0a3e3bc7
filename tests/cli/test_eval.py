"""`hrzs eval`: resuming, comparing, several datasets, saved images."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Hrzs = Callable[..., Any]
Options = tuple[str, ...]


QUICK = ("--attack", "leaf-pgd", "--steps", "1", "--no-canaries")


def test_resuming_a_finished_eval_does_nothing(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    first = hrzs("eval", *small, *QUICK, "--json", target)
    before = target.read_text()
    again = hrzs("eval", *small, *QUICK, "--json", target, "--resume", "--batch-size", "3", "--csv", tmp_path / "r.csv")
    assert (again.status, again.out) == (0, first.out)
    assert "finished already" in again.err
    assert target.read_text() == before
    assert (tmp_path / "r.csv").read_text().count("leaf-pgd") > 0
    other = hrzs("eval", *small, *QUICK, "--seed", "1", "--json", target, "--resume")
    assert other.status == 2
    assert "another call, which differs in seed" in other.err
    assert target.read_text() == before


def test_what_an_interrupted_eval_has_done_is_not_thrown_away(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    target, partial = tmp_path / "report.json", tmp_path / "report.json.partial"
    partial.write_text("{}\n")
    ended = hrzs("eval", *small, *QUICK, "--json", target)
    assert ended.status == 2
    assert "go on with --resume, or delete it" in ended.err
    assert partial.read_text() == "{}\n"


@pytest.fixture
def two_folders(tmp_path: Path) -> str:
    """The same dozen images as two datasets with a tree for both."""
    from PIL import Image

    for name in ("one", "two"):
        for k, label in enumerate(("cat", "dog", "car")):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (60 * k, 30 * i, 90)).save(folder / f"{i}.png")
    return f"{tmp_path / 'one'},{tmp_path / 'two'}"


def test_several_datasets(hrzs: Hrzs, small: Options, two_folders: str, tmp_path: Path) -> None:
    """A dataset that is not here is listed, and the mean says that it does not cover it; a name unknown is an error."""
    tree = tmp_path / "tree.yaml"
    assert hrzs("build-tree", "--classes", "cat,dog,car", "-o", tree, "--quiet").status == 0
    data = ("--data", f"{two_folders},cifar10", "--data-root", tmp_path / "nowhere", "--tree", tree)
    target = tmp_path / "report.json"
    ended = hrzs("eval", *small, *QUICK, *data, "--json", target)
    assert ended.status == 0, ended.err
    summary = json.loads(target.read_text())["summary"]
    assert list(summary["missing"]) == ["cifar10"]
    assert "cifar-10-python.tar.gz" in summary["missing"]["cifar10"]
    assert (summary["mean"]["over"], summary["mean"]["missing"]) == (["one", "two"], ["cifar10"])
    assert "mean over 2 datasets (cifar10 missing): one, two" in ended.out
    assert "cifar10 is left out" in ended.err
    ended = hrzs("eval", *small, *QUICK, "--data", "cifar10,stl10")
    assert ended.status == 2
    assert "cifar10" in ended.err
    assert "stl10" in ended.err
    ended = hrzs("eval", *small, *QUICK, "--data", f"{two_folders},cifar11", "--tree", tree)
    assert ended.status == 2
    assert "no dataset of this name" in ended.err


@pytest.mark.parametrize(
    "options",
    [
        ("--defence", "quantise"),
        ("--certify", "0.25", "--samples", "8", "--selection", "4"),
        ("--eps", "1/255,2/255", "--level", "all"),
    ],
    ids=lambda options: options[0],
)
def test_every_table_fits_80_columns(hrzs: Hrzs, small: Options, options: Options) -> None:
    attack = ("--no-canaries",) if "--certify" in options else QUICK
    ended = hrzs("eval", *small, *attack, *options)
    assert ended.status == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out


def test_one_bar_for_the_whole_job(hrzs: Hrzs, small: Options, two_folders: str, tmp_path: Path) -> None:
    from hrzs.evaluation.job import Job

    tree = tmp_path / "tree.yaml"
    assert hrzs("build-tree", "--classes", "cat,dog,car", "-o", tree, "--quiet").status == 0
    seen: list[tuple[int, int]] = []
    run = Job._run
    with pytest.MonkeyPatch.context() as patch:

        def watched(job: Job, _: Any, *shard: Any) -> None:
            run(job, lambda done, total, _note: seen.append((done, total)), *shard)

        patch.setattr(Job, "_run", watched)
        assert hrzs("eval", *small, *QUICK, "--data", two_folders, "--tree", tree, "--batch-size", "2").status == 0
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1]
    assert done[len(done) // 2 - 1] < totals[0] * 0.75  # the first dataset is not the whole


# -- resuming, comparing ------------------------------------------------------------------------------------------


def test_killed_eval_goes_on(hrzs: Hrzs, tmp_path: Path) -> None:
    """RobustBench #186: hours, then "Killed". After kill -9 between any two batches, the same report as without."""
    quick = ("--limit", "16", "--attack", "aa-2", "--steps", "3", "--no-matrix", "--no-canaries", "--batch-size", "2")
    whole, target = tmp_path / "whole.json", tmp_path / "report.json"
    assert hrzs("eval", *quick, "--json", whole).status == 0
    partial = tmp_path / "report.json.partial"
    command = [sys.executable, "-m", "hrzs", "eval", *quick, "--json", target]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        # What it is about, eight batches of clean images, then those under attack.
        while not (partial.is_file() and len(partial.read_text().splitlines()) >= 11):
            assert running.poll() is None, "it finished before it could be killed"
            time.sleep(0.01)
        running.kill()
    assert partial.read_text().count('"aa-2|') >= 2
    assert not target.exists()
    assert hrzs("eval", *quick, "--json", target, "--resume").status == 0
    a, b = (json.loads(file.read_text()) for file in (whole, target))
    assert [row | {"seconds": 0} for row in a["results"]] == [row | {"seconds": 0} for row in b["results"]]
    assert not partial.exists()


def test_against_another_report(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    quick = (*small, "--attack", "leaf-pgd", "--steps", "1", "--no-canaries")
    assert hrzs("eval", *quick, "--json", one).status == 0
    ended = hrzs("eval", *quick, "--seed", "1", "--against", one, "--json", two)
    assert ended.status == 0, ended.err
    assert "paired on the same images" in " ".join(ended.out.split())
    against = json.loads(two.read_text())["summary"]["against"]
    assert {row["attack"] for row in against["rows"]} == {"none", "leaf-pgd"}
    assert against["digest"] == "random:0"
    assert all(row["difference_balanced"] is not None for row in against["rows"])
    ended = hrzs("eval", *quick, "--skip", "3", "--against", one)
    assert ended.status == 2
    assert "--against" in ended.err
    ended = hrzs("eval", *quick, "--against", tmp_path / "none.json")
    assert ended.status == 2
    assert "not a readable report" in ended.err


def test_restarts_and_no_random_start(hrzs: Hrzs, small: Options) -> None:
    quick = (*small, "--attack", "leaf-pgd", "--steps", "1", "--no-canaries", "--json", "-")
    config = json.loads(hrzs("eval", *quick, "--restarts", "2").out)["config"]
    assert (config["restarts"], config["random-start"]) == (2, True)
    ended = hrzs("eval", *quick, "--restarts", "2", "--no-random-start")
    assert ended.status == 2
    assert "every run is the same" in ended.err


def test_preset_of_the_paper_runs_the_whole_suite(hrzs: Hrzs, small: Options) -> None:
    """So that it says any-level robust accuracy; its attacks are those of eval by itself."""
    paper, default = (
        yaml.safe_load(hrzs("eval", *small, *preset, "--dry-run").out) for preset in (("--preset", "paper"), ())
    )
    assert [unit.split(", ε")[0] for unit in paper["units"]] == [unit.split(", ε")[0] for unit in default["units"]]
    assert "cw at level 3 through leaves, ε 1/255" in paper["units"]


def test_preset_of_robustvlm(hrzs: Hrzs, small: Options) -> None:
    ended = hrzs("eval", *small, "--preset", "robustvlm", "--dry-run")
    assert ended.status == 0, ended.err
    plan = yaml.safe_load(ended.out)
    assert plan["tasks"][0]["resize"] == "before"
    assert plan["units"] == ["clean", "aa-2 at level 0, ε 2/255", "aa-2 at level 0, ε 4/255"]
    assert "robustvlm" in hrzs("eval", "--preset", "list").out


# -- --adversarial ------------------------------------------------------------------------------------------------


@pytest.fixture
def adversarial(hrzs: Hrzs, small: Options, tmp_path: Path) -> Path:
    """Images of the validation split: not what eval would take by itself."""
    folder = tmp_path / "adv"
    ended = hrzs("attack", *small, "--steps", "2", "--split", "val", "--quiet", "-o", folder)
    assert ended.status == 0, ended.err
    return folder


@pytest.fixture
def model(config_file: Path) -> Options:
    return ("--model", str(config_file), "--pretrained", "none", "--device", "cpu", "--quiet")


def test_same_model_same_figures(hrzs: Hrzs, model: Options, adversarial: Path, tmp_path: Path) -> None:
    page, csv, latex = tmp_path / "r.html", tmp_path / "r.csv", tmp_path / "r.tex"
    ended = hrzs(
        "eval", *model, "--adversarial", adversarial, "--json", "-", "--report", page, "--csv", csv, "--latex", latex
    )
    assert ended.status == 0, ended.err
    report = json.loads(ended.out)
    rows = [row for row in report["results"] if row["attack"] == "leaf-pgd" and row["scoring"] == "prompt"]
    summary = json.loads((adversarial / "summary.json").read_text())
    for figure in ("clean", "robust"):
        assert [row[figure] for row in rows] == summary[figure]
    assert [row["transfer"] for row in rows] == [False, True, True, True]
    assert {(row["split"], row["eps"], row["source_model_digest"]) for row in rows} == {("val", "2/255", "random:0")}
    for check in ("canaries", "masking"):
        assert report["summary"][check].startswith("not applicable")
    assert report["summary"]["adversarial"]["leaf-pgd at level 0, ε 2/255"]["steps"] == 2
    assert (report["config"]["attack"], report["config"]["split"]) == ("none", "val")
    source = rows[0]["source_model"]
    assert f"made against {source}" in page.read_text()
    assert f"made against {source}" in latex.read_text()
    assert source in csv.read_text()
    assert all(row["robust_balanced"] is not None and row["constant"] is not None for row in rows)
    assert "balanced over nodes" in latex.read_text()
    assert "constant_balanced" in csv.read_text()
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(report["config"]))
    again = hrzs("eval", "--config", tmp_path / "again.yaml", "--quiet", "--json", "-")
    assert again.status == 0, again.err
    timeless = [
        [row | {"seconds": None} for row in rows] for rows in (report["results"], json.loads(again.out)["results"])
    ]
    assert timeless[0] == timeless[1]


def test_another_model_is_transfer(hrzs: Hrzs, adversarial: Path) -> None:
    ended = hrzs("eval", "--model", "tiny", "--adversarial", adversarial, "--quiet")
    assert ended.status == 0, ended.err
    assert "24 images" in ended.out
    assert "saved images, made against" in ended.out
    assert "*" not in ended.out.split("---")[-1]  # nothing was attacked directly


def test_every_level_and_none(hrzs: Hrzs, model: Options, small: Options, tmp_path: Path) -> None:
    folder = tmp_path / "adv"
    attack = ("attack", *small, "--limit", "6", "--steps", "1", "--attack", "superclass-pgd", "--level", "all")
    assert hrzs(*attack, "-o", folder).status == 0
    ended = hrzs("eval", *model, "--adversarial", folder, "--attack", "none", "--json", "-")
    assert ended.status == 0, ended.err
    assert {row["attack_level"] for row in json.loads(ended.out)["results"]} == {None, 1, 2, 3}


def test_dry_run(hrzs: Hrzs, model: Options, adversarial: Path) -> None:
    ended = hrzs("eval", *model, "--adversarial", adversarial, "--dry-run")
    plan = yaml.safe_load(ended.out)
    assert plan["units"] == ["clean", "leaf-pgd at level 0, ε 2/255"]
    assert plan["tasks"][0]["split"] == "val"


def test_kept_batches_are_used(hrzs: Hrzs, model: Options, adversarial: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from hrzs.evaluation.saved import SavedSet
    from hrzs.stopping import Stopped

    read, calls = SavedSet.read, 0

    def interrupted(self: SavedSet, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stopped(signal.SIGINT)
        return read(self, *arguments)

    command = ("eval", *model, "--adversarial", adversarial, "--batch-size", "8", "--json", tmp_path / "r.json")
    monkeypatch.setattr(SavedSet, "read", interrupted)
    assert hrzs(*command).status == 130
    assert hrzs(*command, "--resume").status == 0
    assert calls == 4  # two batches before, the third twice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--attack", "leaf-pgd"), "--attack leaf-pgd with --adversarial"),
        (("--preset", "paper"), "with --adversarial"),
        (("--eps", "1/255"), "--eps 1/255 with --adversarial"),
        (("--step-size", "1/255"), "--step-size 1/255 with --adversarial"),
        (("--limit", "5"), "--limit 5 with --adversarial"),
        (("--data", "shapes"), "--data shapes (test): it has no image 'shapes/val/"),
        (("--split", "train"), "--data shapes (train): it has no image"),
        (("--classes", "circle,star"), "it has no image"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_refused(hrzs: Hrzs, model: Options, adversarial: Path, options: Options, message: str) -> None:
    ended = hrzs("eval", *model, "--adversarial", adversarial, *options)
    assert ended.status == 2
    assert message in ended.err


def test_a_violation_is_a_failure_and_no_wrong_call(hrzs: Hrzs, model: Options, adversarial: Path) -> None:
    file = adversarial / "adversarial.safetensors"
    content = bytearray(file.read_bytes())
    content[-4:] = b"\x00\x00\x80\x3f"  # the last pixel is 1.0 now
    file.write_bytes(content)
    ended = hrzs("eval", *model, "--adversarial", adversarial)
    assert ended.status == 1
    assert "image 23, 'shapes/val/" in ended.err
    assert ended.out == ""


def test_not_a_folder_of_attack(hrzs: Hrzs, model: Options, tmp_path: Path) -> None:
    ended = hrzs("eval", *model, "--adversarial", tmp_path / "missing")
    assert ended.status == 2
    assert "not a folder that `hrzs attack -o` wrote" in ended.err
