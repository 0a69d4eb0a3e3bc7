"""The contract that scripts rely on: stdout, exit statuses, messages, folders, configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import hrzs as package
from hrzs.cli import main
from hrzs.errors import ProcessLostError, UsageError

Hrzs = Callable[..., Any]
Options = tuple[str, ...]
TRAIN = ("finetune", "--steps", "1", "--batch-size", "8", "--max-steps", "2")
FINETUNE = (*TRAIN, "--val-limit", "12", "--val-steps", "1")
EVAL = ("eval", "--attack", "leaf-pgd", "--steps", "1", "--no-canaries")
ATTACK = ("attack", "--steps", "1")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def checkpoint(run: Path) -> Path:
    (path,) = (run / "checkpoint").glob("step-*.pt")
    return path


def assert_same_weights(folder: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run_folder(hrzs: Hrzs, small: Options, finished: Path, tmp_path: Path) -> Path:
    """A finished run: the same one for every test, each of which has a copy."""
    if not finished.exists():
        assert hrzs(*FINETUNE, *small, "-o", finished).status == 0
    return shutil.copytree(finished, tmp_path / "run")


# -- stdout ------------------------------------------------------------------------------------------------------


def test_finetune_prints_the_run_folder_last(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    ended = hrzs(*FINETUNE, *small, "-o", tmp_path / "run")
    assert ended.status == 0
    assert ended.out == f"{tmp_path / 'run'}\n"
    assert "2/2" in ended.err
    assert "\x1b" not in ended.err
    names = sorted(files(tmp_path / "run"))
    assert [name for name in names if not name.startswith(("checkpoint/", "tensorboard/"))] == [
        "best/model.safetensors", "best/open_clip_config.json", "config.yaml", "metrics.jsonl", "model.safetensors",
        "open_clip_config.json", "report.html",
    ]  # fmt: skip
    assert len([name for name in names if name.startswith("checkpoint/step-00000002.")]) == 1


def test_the_best_model_is_one_to_evaluate(hrzs: Hrzs, run_folder: Path) -> None:
    ended = hrzs(*EVAL, "--model", run_folder / "best", "--limit", "24", "--json", "-")
    assert ended.status == 0, ended.err
    last = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["validation"]["n"] == 12
    assert len(last["validation"]["robust_balanced"]) == len(last["validation"]["constant"]) == 4
    assert last["validation"]["best"]


def test_eval_prints_json_and_nothing_else(hrzs: Hrzs, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 1)
    ended = hrzs("eval", "--model", run_folder, "--limit", "24", "--steps", "1", "--json", "-")
    assert ended.status == 0
    report = json.loads(ended.out)
    assert report.keys() == {
        "schema", "hrzs", "model", "config", "tasks", "prompts_digest", "versions", "results", "summary", "certificates",
    }  # fmt: skip
    suite = {"leaf-pgd", "superclass-pgd", "hierarchical-pgd", "cw"}
    assert {row["attack"] for row in report["results"]} == {"none", *suite}
    assert set(report["summary"]["levels"][0]["any_level_suite"]) == suite
    assert report["summary"]["levels"][0]["any_level_robust"] is not None
    assert len(report["summary"]["truth"]["shapes"]["labels"].split()) == 24
    leaves = {c["name"] for c in report["summary"]["canaries"] if c["level"] is None}
    above = {c["name"] for c in report["summary"]["canaries"] if c["level"] is not None}
    assert leaves == {
        "untouched-model", "transfer-vs-white-box", "huge-eps", "eps-monotone", "steps-monotone", "one-step-vs-iterative",
        "noise-vs-white-box", "margin-vs-ce", "square-vs-white-box", "dead-gradients", "cosine-head",
        "gradient-check",
    }  # fmt: skip
    assert {name.partition("@")[0] for name in above} < leaves
    assert [m["dataset"] for m in report["summary"]["masking"]] == ["shapes"]
    assert report["summary"]["masking"][0].keys() == {"dataset", "verdict", "reasons", "adversary"}
    assert report["model"]["geometry"]["curvature"] == 1.0
    assert report["tasks"][0]["n"] == 24


def test_eval_writes_page_csv_and_latex(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    page, csv, latex = tmp_path / "r.html", tmp_path / "r.csv", tmp_path / "r.tex"
    ended = hrzs(*EVAL, *small, "--json", "-", "--report", page, "--csv", csv, "--latex", latex)
    assert ended.status == 0
    rows = json.loads(ended.out)["results"]
    assert len(csv.read_text().splitlines()) == len(rows) + 1
    assert "\\toprule" in latex.read_text()
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "data:image/png" in page.read_text()


def test_eval_prints_a_table_and_writes_json_beside_it(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    ended = hrzs(*EVAL, *small, "--json", target)
    assert ended.status == 0
    assert ended.out.startswith("shapes (test), 24 images")
    assert "leaf-pgd @ 0" in ended.out
    summary = json.loads(target.read_text())["summary"]
    assert summary["canaries"] == summary["masking"] == "switched off (--no-canaries)"
    assert ended.out.endswith("gradient masking: switched off (--no-canaries)\n")
    assert re.search(r"measured in [\d.]+ s, canaries aside\n", ended.err)  # the table is the same at every call
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_quiet_says_nothing(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    ended = hrzs(*FINETUNE, *small, "-o", tmp_path / "run", "--quiet")
    assert ended.err == ""


@pytest.mark.parametrize(("speed", "warned"), [(0.55, True), (2.0, False)])
def test_bf16_warns_where_it_is_slower(
    hrzs: Hrzs, small: Options, monkeypatch: pytest.MonkeyPatch, speed: float, warned: bool
) -> None:
    monkeypatch.setattr("hrzs.models.bf16.bf16_speed", lambda: speed)
    ended = hrzs(*EVAL, *small, "--precision", "bf16", "--dry-run")
    assert ended.status == 0
    assert ("runs at 0.55 × the speed of fp32; --precision fp32 is faster" in ended.err) == warned


def test_attack_prints_its_folder(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    ended = hrzs(*ATTACK, *small, "--png", "-o", tmp_path / "adv")
    assert (ended.status, ended.out) == (0, f"{tmp_path / 'adv'}\n")
    names = files(tmp_path / "adv").keys()
    assert {"adversarial.safetensors", "config.yaml", "gallery.png", "manifest.jsonl", "images/000000.png"} <= names


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("eval", "--attack"), ("none", "leaf-pgd", "superclass-pgd", "hierarchical-pgd")),
        (("attack", "--attack"), ("leaf-pgd", "superclass-pgd", "hierarchical-pgd")),
        (("finetune", "--method"), ("hierarchical", "tecoa", "clean")),
        (("finetune", "--recipe"), ("default", "paper", "tecoa", "fare")),
        (("eval", "--preset"), ("paper", "tecoa")),
        (("eval", "--data"), ("shapes", "imagenet", "cifar10")),
        (("finetune", "--model"), ("tiny", "ViT-B-32")),
    ],
    ids=lambda value: "-".join(value) if "-" in value[-1] else "",
)
def test_lists_have_one_line_each(hrzs: Hrzs, arguments: Options, names: Options) -> None:
    ended = hrzs(*arguments, "list")
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert set(names) <= {line.split()[0] for line in lines}
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


# -- what is wrong is named, with the remedy ----------------------------------------------------------------------

#: command, options, what the message must hold
WRONG: list[tuple[Options, str]] = [
    (("eval", "--model", "vit-b-23"), "--model 'vit-b-23'"),
    (("finetune", "--model", "missing.safetensors"), "missing.safetensors does not exist"),
    (("eval", "--data", "shape"), "Did you mean shapes"),
    (("eval", "--data", "shapes,shape"), "Did you mean shapes"),
    (("eval", "--split", "validation"), "--split validation"),
    (("eval", "--tree", "missing.yaml"), "missing.yaml"),
    ((*EVAL, "--attack", "pgd"), "--attack 'pgd': one of leaf-pgd"),
    ((*ATTACK, "--attack", "pgd"), "--attack 'pgd': one of leaf-pgd"),
    (("finetune", "--method", "trade"), "--method 'trade': one of hierarchical"),
    (("finetune", "--method", "tecoa", "--hnsa", "both"), "--hnsa: --method tecoa does not read it; it belongs to hier"),
    (("finetune", "--recipe", "tecoa", "--geometry", "euclidean"), "--geometry: --method tecoa does not read it"),
    (("finetune", "--method", "tecoa", "--depth", "text"), "--depth: --method tecoa does not read it; it belongs to hier"),
    (("finetune", "--method", "fare", "--level-balance", "image"), "--level-balance: --method fare does not read it"),
    (("finetune", "--depth", "images"), "--depth 'images': one of both, text, none"),
    (("finetune", "--every-level"), "--every-level: --method hierarchical does not read it; it belongs to tecoa"),
    (("finetune", "--no-hnsa", "--hnsa", "both"), "--no-hnsa and --hnsa both contradict each other"),
    (("finetune", "--level-weights", "1,x"), "--level-weights '1,x': paper, equal, or numbers"),
    (("finetune", "--optimizer", "lion"), "--optimizer 'lion': one of adamw, sgd"),
    (("finetune", "--best-by", "luck"), "--best-by 'luck': one of balanced, clean, leaf, levels, any-level"),
    (("finetune", "--interpolate", "1"), "--interpolate 1.0: at least 0 and less than 1"),
    (("finetune", "--freeze", "layer1"), "--freeze 'layer1': the image encoder of cli-small has no such part"),
    (("finetune", "--val-split", "train"), "--val-split train: is what is trained on"),
    (("finetune", "--val-split", "tset"), "--split tset"),
    (("finetune", "--recipe", "books"), "--recipe 'books': one of default, paper"),
    (("eval", "--preset", "papers"), "--preset 'papers': one of paper"),
    (("eval", "--precision", "fp16"), "--precision 'fp16': one of fp32, bf16"),
    (("finetune", "--precision", "fp8"), "--precision 'fp8'"),
    (("eval", "--device", "tpu"), "--device 'tpu': one of auto, cpu, cuda"),
    ((*EVAL, "--norm", "l1"), "--norm 'l1': one of linf, l2"),
    ((*ATTACK, "--norm", "l1"), "--norm 'l1': one of linf, l2"),
    (("eval", "--scoring", "root"), "--scoring 'root': one of prompt, leaves, both"),
    (("eval", "--template", "foto"), "--template 'foto'"),
    (("finetune", "--template", "foto"), "--template 'foto'"),
    (("eval", "--attack", "superclass-pgd", "--level", "9"), "--level 9: this tree has levels 0 … 3"),
    (("eval", "--attack", "leaf-pgd", "--level", "1"), "--level 1: leaf-pgd does not attack that level"),
    (("attack", "--level", "top"), "--level top"),
    *[((command, "--eps", e), f"--eps '{e}'") for command in ("eval", "attack", "finetune") for e in ("0", "2", "abc")],
    (("eval", "--eps", "1/255,x"), "--eps 'x'"),
    (("eval", "--step-size", "-1"), "--step-size '-1'"),
    (("eval", "--limit", "0"), "--limit 0"),
    (("finetune", "--limit", "0"), "--limit 0"),
    (("eval", "--skip", "-3"), "--skip -3"),
    (("eval", "--resize", "never"), "--resize 'never'"),
    (("eval", "--head", "hyperbolic"), "--head hyperbolic"),
    (("eval", "--classes", "circle"), "--classes 'circle'"),
    (("eval", "--classes", "circle,sqare"), "square"),
    (("finetune", "--image-levels", "median"), "--image-levels 'median': one of per-image"),
    (("finetune", "--radius", "1"), "--radius 1.0"),
    (("finetune", "--lr", "0"), "--lr 0.0"),
    (("finetune", "--tune", "text"), "--tune 'text'"),
    (("eval", "--json", "missing/report.json"), "--json missing/report.json: the folder missing does not exist"),
    (("eval", "--json", "."), "--json .: is a folder"),
    (("eval", "--report", "missing/r.html"), "--report missing/r.html: the folder missing does not exist"),
    (("eval", "--latex", "."), "--latex .: is a folder; give a file"),
    (("eval", "--config", "missing.yaml"), "--config missing.yaml"),
    (("eval", "--steps", "0"), "--steps"),
    (("eval", "--batch-size", "0"), "--batch-size"),
    (("eval", "--no-such-option"), "--no-such-option"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(("evall",), "Did you mean 'eval'?"), (("leaderbord",), "Did you mean 'leaderboard'?"),
     (("eval", "--atack", "cw"), "did you mean --attack?"), (("eval", "--modle=tiny"), "did you mean --model?"),
     (("finetune", "--metod", "x"), "did you mean --method?"), (("--versio",), "did you mean --version?")],
)  # fmt: skip
def test_what_is_mistyped_is_recognised(hrzs: Hrzs, typed: Options, meant: str) -> None:
    ended = hrzs(*typed)
    assert (ended.status, ended.out) == (2, "")
    assert meant in ended.err


@pytest.mark.parametrize("command", [(), ("build-tree",), ("finetune",), ("attack",), ("eval",), ("leaderboard",)])
def test_a_short_option_helps_everywhere(hrzs: Hrzs, command: Options) -> None:
    ended = hrzs(*command, "-h")
    assert ended.status == 0
    assert (command or ("leaderboard",))[0] in ended.out
    assert "Usage: " in ended.out
    assert ended.out == hrzs(*command, "--help").out


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_calls_exit_2_and_name_the_culprit(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Options, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = set(arguments)
    untouched = [pair for pair in zip(small[::2], small[1::2], strict=True) if pair[0] not in given]
    if "--model" in given:
        untouched = [pair for pair in untouched if pair[0] != "--pretrained"]
    ended = hrzs(*arguments, *(word for pair in untouched for word in pair))
    assert ended.status == 2, ended.err
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert list(tmp_path.iterdir()) == []


def test_tree_of_other_data(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    tree = tmp_path / "tree.yaml"
    tree.write_text("hrzs-tree: 1\ntree:\n- animal animal:\n  - {class: dog}\n  - {class: cat}\n")
    ended = hrzs(*EVAL, *small, "--tree", tree)
    assert ended.status == 2, ended.err
    assert "does not belong to this data" in ended.err


def test_tree_that_lacks_a_leaf(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "hierarchies" / "shapes.yaml"
    tree = tmp_path / "tree.yaml"
    lines = [line for line in published.read_text().splitlines() if "{class: heart" not in line]
    tree.write_text("\n".join(lines).replace("heart,", ""))
    ended = hrzs(*EVAL, *small, "--tree", tree)
    assert ended.status == 2, ended.err
    assert "'heart'" in ended.err


def test_superclass_attack_on_classes_that_leave_a_flat_tree(hrzs: Hrzs, small: Options) -> None:
    for command in ("eval", "attack"):
        ended = hrzs(command, *small, "--classes", "square,rectangle", "--attack", "superclass-pgd")
        assert ended.status == 2
        assert "no level between leaves and root" in ended.err


@pytest.mark.parametrize("command", [FINETUNE, ATTACK], ids=["finetune", "attack"])
def test_output_that_cannot_be_written(hrzs: Hrzs, small: Options, tmp_path: Path, command: Options) -> None:
    (tmp_path / "file").write_text("mine")
    below = hrzs(*command, *small, "-o", tmp_path / "file" / "run")
    assert below.status == 1
    assert "cannot be written" in below.err
    itself = hrzs(*command, *small, "-o", tmp_path / "file")
    assert itself.status == 2
    assert "is a file; give a folder" in itself.err
    assert files(tmp_path) == {"file": b"mine"}


def test_debug_shows_where() -> None:
    with pytest.raises(UsageError) as raised:
        main(["eval", "--attack", "pgd", "--debug"])
    assert raised.traceback[-1].path.is_relative_to(Path(package.__file__).parent)


# -- folders, resuming, dry runs ----------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(hrzs: Hrzs, small: Options, run_folder: Path) -> None:
    before = files(run_folder)
    for command in (FINETUNE, ATTACK):
        ended = hrzs(*command, *small, "-o", run_folder)
        assert ended.status == 2
        assert "holds a run already; go on with --resume" in ended.err
    assert files(run_folder) == before


def test_resuming_a_finished_run_changes_nothing(hrzs: Hrzs, small: Options, run_folder: Path) -> None:
    before = files(run_folder)
    ended = hrzs(*FINETUNE, *small, "-o", run_folder, "--resume")
    assert (ended.status, ended.out) == (0, f"{run_folder}\n")
    assert files(run_folder) == before


def test_resuming_without_a_checkpoint_starts_anew(hrzs: Hrzs, small: Options, run_folder: Path) -> None:
    before = load_file(run_folder / "model.safetensors")
    (run_folder / "model.safetensors").unlink()
    checkpoint(run_folder).unlink()
    ended = hrzs(*FINETUNE, *small, "-o", run_folder, "--resume")
    assert ended.status == 0
    assert "starting anew" in ended.err
    assert_same_weights(run_folder, before)
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_resuming_a_broken_checkpoint_is_refused(hrzs: Hrzs, small: Options, run_folder: Path) -> None:
    (run_folder / "model.safetensors").unlink()
    checkpoint(run_folder).write_bytes(b"torn")
    ended = hrzs(*FINETUNE, *small, "-o", run_folder, "--resume")
    assert ended.status == 2
    assert "is damaged, and there is no whole one before it; delete it to start anew" in ended.err


def test_attack_at_every_level_has_a_folder_each(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drawing three of them takes longer than the rest.
    monkeypatch.setattr("hrzs.evaluation.adversarial.draw_gallery", lambda path, *_: path.write_bytes(b"drawn"))
    command = (*ATTACK, *small, "--attack", "superclass-pgd", "--level", "all", "--limit", "6", "-o", tmp_path / "adv")
    ended = hrzs(*command)
    assert ended.status == 0, ended.err
    before = files(tmp_path / "adv")
    assert {name.split("/")[0] for name in before} == {"level-1", "level-2", "level-3"}
    assert hrzs(*command).status == 2
    assert files(tmp_path / "adv") == before
    (tmp_path / "adv" / "level-2" / "manifest.jsonl").unlink()
    assert hrzs(*command, "--resume").status == 0
    assert files(tmp_path / "adv").keys() == before.keys()


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_eval_goes_on(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, status: int
) -> None:
    from hrzs.evaluation.images import Search

    target = tmp_path / "report.json"
    attack, calls = Search.__call__, 0

    def stopped(self: Search, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signum)
        return attack(self, *arguments)

    command = (*EVAL, *small, "--batch-size", "8", "--json", target)
    with monkeypatch.context() as patched:
        patched.setattr(Search, "__call__", stopped)
        ended = hrzs(*command)
        assert ended.status == status
        assert f"To go on: hrzs {' '.join(map(str, command))} --resume" in ended.err
        assert not target.exists()
        assert hrzs(*command, "--dry-run").status == 0
        assert hrzs(*command, "--resume").status == 0
    assert calls == 3  # the batch that the signal came in was kept
    assert json.loads(target.read_text())["results"]
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("command", [FINETUNE, ATTACK, EVAL], ids=["finetune", "attack", "eval"])
def test_dry_run_writes_nothing(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Options
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = hrzs(*command, *small, "--dry-run")
    assert ended.status == 0
    plan = yaml.safe_load(ended.out)
    assert plan["estimated_memory_mb"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [FINETUNE, ATTACK, EVAL], ids=["finetune", "attack", "eval"])
def test_nodes_with_the_same_prompt_are_named(hrzs: Hrzs, small: Options, tmp_path: Path, command: Options) -> None:
    """Issue 14: one of two nodes called food can never be right, and nothing said so."""
    file = tmp_path / "t.yaml"
    file.write_text(
        "hrzs-tree: 1\ntree:\n- r thing:\n  - a food:\n    - circle\n    - ring\n  - b food:\n    - star\n    - square\n"
    )
    over = (*command, *small, "--tree", file, "--classes", "circle,ring,star,square", "--template", "a drawn {}")
    ended = hrzs(*over, "--dry-run")
    assert ended.status == 0, ended.err
    assert ended.err.count("food (a) and food (b) have the same prompt, 'a drawn food'") == 1
    plan = yaml.safe_load(ended.out)
    (same,) = (plan["tasks"][0] if "tasks" in plan else plan["data"])["same_prompts"]
    assert (same["level"], [node["node"] for node in same["nodes"]]) == (1, ["a", "b"])


@pytest.mark.parametrize(
    ("world", "fault"),
    [({"WORLD_SIZE": "2"}, "WORLD_SIZE 2 without RANK"), ({"WORLD_SIZE": "two"}, "WORLD_SIZE 'two': a whole number"),
     ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2, WORLD_SIZE 2: ranks go from 0")],
    ids=["no rank", "no number", "no such rank"],
)  # fmt: skip
def test_half_an_environment_of_torchrun_is_refused(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: dict[str, str], fault: str
) -> None:
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    ended = hrzs(*FINETUNE, *small)
    assert ended.status == 2
    assert fault in ended.err


@pytest.mark.parametrize("command", [FINETUNE, ATTACK, EVAL], ids=["finetune", "attack", "eval"])
def test_a_second_process_at_the_same_output_is_refused(
    hrzs: Hrzs, small: Options, tmp_path: Path, command: Options
) -> None:
    from hrzs.files import locked

    place = ("--json", tmp_path / "r.json") if command == EVAL else ("-o", tmp_path)
    with locked(tmp_path / "r.json.partial" if command == EVAL else tmp_path):
        before = sorted(tmp_path.iterdir())
        for resume in ((), ("--resume",)):
            ended = hrzs(*command, *small, *place, *resume)
            assert ended.status == 2
            assert "another hrzs is at work on it" in ended.err
        assert sorted(tmp_path.iterdir()) == before


def test_resumed_with_other_options_nothing_is_touched(hrzs: Hrzs, small: Options, run_folder: Path) -> None:
    run, before = run_folder, files(run_folder)
    other = hrzs(*FINETUNE, *small, "-o", run, "--resume", "--lr", "0.5")
    assert other.status == 2
    assert "belongs to other options: it has lr" in other.err
    assert files(run) == before
    resized = hrzs(*FINETUNE, *small, "-o", run, "--resume", "--resize", "before")
    assert "it has image_size [64, 64] (now [32, 32])" in resized.err
    again = hrzs(*FINETUNE, *small, "-o", run, "--resume")
    assert again.status == 0, again.err
    assert files(run) == before
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert hrzs(*FINETUNE, *small, "-o", run, "--resume").status == 0
    assert files(run) == before
    shutil.rmtree(run / "checkpoint")
    assert hrzs(*FINETUNE, *small, "-o", run, "--resume").status == 0
    other = hrzs(*FINETUNE, *small, "-o", run, "--resume", "--lr", "0.5")
    assert "is finished, with lr" in other.err


def test_names_command_no_terminal(hrzs: Hrzs, tmp_path: Path) -> None:
    ended = hrzs("eval", "--data", tmp_path / "\x1b[31mred[/red]")
    assert ended.status == 2
    assert "\x1b" not in ended.err
    assert "\\x1b[31mred[/red]" in ended.err


# -- another project's image encoder -----------------------------------------------------------------------------


def test_visual(hrzs: Hrzs, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From evaluation through training to evaluation; the untouched model is always the one below the file."""
    from hrzs.models.loading import load_model
    from hrzs.models.saving import file_digest, read_header

    monkeypatch.setattr("hrzs.evaluation.canaries.QUERIES", 1)
    weights, visual, run = tmp_path / "clip.pt", tmp_path / "fare_eps_2.pt", tmp_path / "run"
    base, donor = (load_model(str(config_file), "none", seed=seed) for seed in (1, 2))
    torch.save(base.clip.state_dict(), weights)
    torch.save(donor.clip.visual.state_dict(), visual)
    model: tuple[object, ...] = ("--model", config_file, "--pretrained", weights, "--visual", visual)
    model += ("--limit", "24", "--device", "cpu")
    ended = hrzs("eval", "--attack", "leaf-pgd", "--steps", "1", *model, "--json", "-")
    assert ended.status == 0, ended.err
    report = json.loads(ended.out)
    assert report["config"]["visual"] == report["model"]["visual"] == str(visual)
    assert str(visual) in report["model"]["source"]
    plain = {"model": str(config_file), "pretrained": str(weights), "digest": file_digest(weights)}
    assert report["model"]["run"]["base"] == plain
    untouched = next(c for c in report["summary"]["canaries"] if c["name"] == "untouched-model")
    assert untouched["value"] is not None, untouched["note"]

    ended = hrzs(*FINETUNE, "--method", "tecoa", *model, "-o", run)
    assert ended.status == 0, ended.err
    assert yaml.safe_load((run / "config.yaml").read_text())["visual"] == str(visual)
    header = read_header(run / "model.safetensors")
    assert header["run"]["base"] == plain | {"visual": str(visual)}
    assert header["training_data"].startswith("unknown, then shapes")
    again = hrzs(*FINETUNE, "--config", run / "config.yaml", "-o", tmp_path / "again")
    assert again.status == 0, again.err
    assert_same_weights(tmp_path / "again", load_file(run / "model.safetensors"))
    ended = hrzs("eval", "--attack", "leaf-pgd", "--steps", "1", "--model", run, "--limit", "24", "--json", "-")
    untouched = next(c for c in json.loads(ended.out)["summary"]["canaries"] if c["name"] == "untouched-model")
    assert untouched["value"] is not None, untouched["note"]

    monkeypatch.chdir(tmp_path)
    ended = hrzs(*ATTACK, *model)
    assert ended.out == "runs/leaf-pgd-cli-small-fare_eps_2-shapes\n", ended.err
    manifest = (tmp_path / ended.out.strip() / "config.yaml").read_text()
    assert yaml.safe_load(manifest)["visual"] == str(visual)


@pytest.mark.parametrize("command", [FINETUNE, ATTACK, EVAL], ids=["finetune", "attack", "eval"])
def test_visual_that_cannot_be_read(hrzs: Hrzs, small: Options, tmp_path: Path, command: Options) -> None:
    ended = hrzs(*command, *small, "--visual", tmp_path / "nowhere.pt", "--dry-run")
    assert ended.status == 2
    assert f"--visual {tmp_path / 'nowhere.pt'}: no such file" in ended.err
    assert ended.out == ""


# -- configuration ------------------------------------------------------------------------------------------------


def test_saved_configuration_reproduces_the_run_bit_for_bit(hrzs: Hrzs, run_folder: Path, tmp_path: Path) -> None:
    ended = hrzs("finetune", "--config", run_folder / "config.yaml", "-o", tmp_path / "again")
    assert ended.status == 0, ended.err
    assert_same_weights(tmp_path / "again", load_file(run_folder / "model.safetensors"))
    assert (tmp_path / "again" / "config.yaml").read_bytes() == (run_folder / "config.yaml").read_bytes()


def test_configuration_in_a_report_can_be_fed_back(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    first = json.loads(hrzs(*EVAL, *small, "--eps", "2/255", "--json", "-").out)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first["config"]))
    again = json.loads(hrzs("eval", "--config", tmp_path / "config.yaml", "--json", "-").out)
    assert again["config"] == first["config"]
    for row in (*first["results"], *again["results"]):
        del row["seconds"]
    assert again["results"] == first["results"]


def test_the_command_line_wins_over_the_configuration(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("batch-size: 4\nlr: 0.5\nmax_steps: 3\neps: 0.01\n")
    ended = hrzs("finetune", *small, "--config", file, "--lr", "0.25", "--dry-run")
    assert ended.status == 0, ended.err
    plan = yaml.safe_load(ended.out)
    assert (plan["batch_size"], plan["lr"], plan["max_steps"], plan["eps"]) == (4, 0.25, 3, "1/100")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4", "'batchsize' is no option of `hrzs finetune`; did you mean batch_size?"),
        ("attack: leaf-pgd", "'attack' is no option of `hrzs finetune`"),
        ("config: other.yaml", "'config' is no option"),
        ("- lr", "a mapping of option names to values is needed"),
        ("lr: [", "not valid YAML"),
        ("batch-size: many", "batch-size"),
        ("limit: true", "limit: true is no value of --limit"),
        ("lr: .inf", "--lr inf: must be a finite number"),
        ("warmup: 9", "--warmup 9.0: at least 0 and less than 1"),
        ("lr: 0.1\nseed: 1\nlr: 0.2", "'lr' is there 2 times; write it once"),
        ("data: ''", "--data '': a name is missing"),
        ("threads: 1000000", "--threads"),
        ("template: caf\xe9".encode("latin-1"), "the text is not UTF-8"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\ndata: *c", ":1: not valid YAML: anchors and aliases"),
        ("data: " + "[" * 1000 + "]" * 1000, "nested too deep"),
        ("seed: 2001-99-99", "not valid YAML"),
    ],
)
def test_faulty_configuration(hrzs: Hrzs, tmp_path: Path, text: str | bytes, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    ended = hrzs("finetune", "--config", file, "--dry-run")
    assert ended.status == 2
    assert message in ended.err


def test_epsilon_of_the_data_unless_given_or_of_a_recipe(hrzs: Hrzs, small: Options) -> None:
    def eps(*arguments: str) -> tuple[str, str]:
        plan = yaml.safe_load(hrzs("finetune", *small, *arguments, "--dry-run").out)
        return plan["eps"], plan["step_size"]

    assert eps() == ("2/255", "1/255")
    assert eps("--eps", "8/255") == ("8/255", "2/255")
    assert eps("--recipe", "paper") == ("1/255", "1/255")


def test_recipe_brings_its_method_unless_one_is_given(hrzs: Hrzs, small: Options) -> None:
    def plan(*arguments: str) -> Any:
        return yaml.safe_load(hrzs("finetune", *small, *arguments, "--dry-run").out)

    recipe = plan("--recipe", "tecoa")
    assert {k: recipe[k] for k in ("method", "optimizer", "lr", "steps", "weight_decay", "batch_size")} == {
        "method": "tecoa", "optimizer": "sgd", "lr": 5e-5, "steps": 2, "weight_decay": 0.0, "batch_size": 256,
    }  # fmt: skip
    assert recipe["output"].startswith("runs/tecoa-")
    assert plan("--recipe", "tecoa", "--method", "clean")["method"] == "clean"
    assert plan()["method"] == "hierarchical"
    assert plan("--no-hnsa", "--recipe", "paper")["hnsa"] == "none"


def test_a_forest_is_trees_given_one_by_one_or_in_a_file(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "hierarchies" / "shapes.yaml"
    forest = tmp_path / "forest.yaml"
    assert hrzs("build-tree", "--trees", "2", "-o", forest).status == 0
    trees: list[tuple[tuple[str, ...], int]] = [
        ((), 1), (("--tree", str(published), "--tree", str(published)), 2), (("--tree", str(forest)), 2),
        (("--tree", f"{forest}#2"), 1), (("--tree", str(forest), "--tree", str(published)), 3),
    ]  # fmt: skip
    for arguments, count in trees:
        ended = hrzs("finetune", *small, *arguments, "--dry-run")
        assert ended.status == 0, ended.err
        assert yaml.safe_load(ended.out)["trees"] == count


def test_a_forest_trains_and_goes_on(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    published = Path(__file__).parents[2] / "hierarchies" / "shapes.yaml"
    command = (*FINETUNE, *small, "--tree", published, "--tree", published, "-o", tmp_path / "run")
    assert hrzs(*command).status == 0
    from hrzs.models.saving import read_header

    header = read_header(tmp_path / "run" / "model.safetensors")
    assert header["run"]["more_trees"] == [header["run"]["tree_digest"]]
    again = hrzs("finetune", "--config", tmp_path / "run" / "config.yaml", "-o", tmp_path / "again")
    assert again.status == 0, again.err
    assert_same_weights(tmp_path / "again", load_file(tmp_path / "run" / "model.safetensors"))


def test_without_held_out_images_training_goes_on(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    ended = hrzs(*TRAIN, *small, "--split", "val", "-o", tmp_path / "run")
    assert ended.status == 0
    assert "no validation while training (--val-split val: is what is trained on" in ended.err
    assert not (tmp_path / "run" / "best").exists()


def test_preset_gives_way_to_the_command_line(hrzs: Hrzs, small: Options) -> None:
    ended = hrzs("eval", *small, "--preset", "tecoa", "--steps", "2", "--no-canaries", "--json", "-")
    assert ended.status == 0, ended.err
    report = json.loads(ended.out)
    assert {k: report["config"][k] for k in ("steps", "eps", "template")} == {
        "steps": 2, "eps": "1/255", "template": "tecoa",
    }  # fmt: skip


# -- as a process -------------------------------------------------------------------------------------------------


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from hrzs.cli import main\n"
        "try:\n    main(['finetune', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'torchvision', 'open_clip', 'nltk', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "--method" in ended.stdout


@pytest.mark.parametrize("ended", [True, False])
def test_a_lost_process_is_for_torchrun_to_name(
    ended: bool, hrzs: Hrzs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A survivor notices the loss first. It tells torchrun only if torchrun does not end it meanwhile."""

    def lost(*_: object, **__: object) -> None:
        raise ProcessLostError("another process of this job has ended")

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr("hrzs.cli.is_ended", lambda _: ended)
    monkeypatch.setattr("hrzs.cli.console.set_up", lost)
    found = hrzs("leaderboard", tmp_path)
    assert (found.status, found.err) == (1, "Error: another process of this job has ended\n")
    assert (tmp_path / "error.json").exists() is not ended


def test_module_runs_as_a_command() -> None:
    ended = subprocess.run([sys.executable, "-m", "hrzs", "--version"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("hrzs ")


def test_killed_at_any_moment_training_ends_with_the_same_weights(hrzs: Hrzs, small: Options, tmp_path: Path) -> None:
    """SIGKILL, as a user would suffer it, before the first checkpoint and after another."""
    command = (
        *FINETUNE, *small, "--max-steps", "8", "--save-every", "2", "--threads", "1", "--validate-every", "4",
        "--ema", "0.9", "--resume", "-o",
    )  # fmt: skip
    assert hrzs(*command, tmp_path / "whole").status == 0
    killed = tmp_path / "killed"
    log = killed / "metrics.jsonl"
    kills = 0
    for wanted in (1, 4):  # lines of the log
        process = subprocess.Popen(
            [sys.executable, "-m", "hrzs", *command, killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (log.is_file() and log.read_bytes().count(b"\n") >= wanted):
            time.sleep(0.002)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills
    assert hrzs(*command, killed).status == 0
    assert_same_weights(killed, load_file(tmp_path / "whole" / "model.safetensors"))
    logs = ([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (tmp_path / "whole", killed))  # fmt: skip
    a, b = ([{k: v for k, v in row.items() if k != "seconds"} for row in rows] for rows in logs)
    assert a == b


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_learns_the_same(
    hrzs: Hrzs, small: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, not made into C++, which takes half a minute: `make bench` does that."""
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    losses = {}
    for flags in ((), ("--compile",)):
        folder = tmp_path / ("-".join(flags) or "plain")
        ended = hrzs(*FINETUNE, *small, *flags, "--validate-every", "0", "-o", folder)
        assert ended.status == 0, ended.err
        assert bool(graphs) == bool(flags)
        losses[flags] = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[()] == pytest.approx(losses[("--compile",)], rel=1e-3)
