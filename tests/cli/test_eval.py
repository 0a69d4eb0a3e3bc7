"""`hrzs eval --adversarial`: saved images on this model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Hrzs = Callable[..., Any]
Options = tuple[str, ...]


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

    read, calls = SavedSet.read, 0

    def interrupted(self: SavedSet, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return read(self, *arguments)

    command = ("eval", *model, "--adversarial", adversarial, "--batch-size", "8", "--json", tmp_path / "r.json")
    monkeypatch.setattr(SavedSet, "read", interrupted)
    assert hrzs(*command).status == 1
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
