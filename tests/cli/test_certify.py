"""`hrzs eval --certify`: from the command to table, JSON, page, CSV and LaTeX; more samples; shards; refusals."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

Hrzs = Callable[..., Any]
Options = tuple[str, ...]

CERTIFY = ("--certify", "0.05", "--selection", "10")


def figures(path: Path) -> list[dict[str, Any]]:
    return [one | {"seconds": 0} for one in json.loads(path.read_text())["certificates"]]


@pytest.fixture
def few(small: Options) -> Options:
    return (*small, "--limit", "8", "--quiet")


def test_every_form_of_the_report_has_them(hrzs: Hrzs, few: Options, tmp_path: Path) -> None:
    from hrzs.results.report import Report

    files = {name: tmp_path / f"r.{name}" for name in ("json", "html", "csv", "tex")}
    ended = hrzs("eval", *few, *CERTIFY, "--samples", "60", "--json", files["json"], "--report", files["html"],
                 "--csv", files["csv"], "--latex", files["tex"])  # fmt: skip
    assert ended.status == 0, ended.err
    report = Report.from_json(files["json"])
    assert [one.level for one in report.certificates] == [0, 1, 2, 3]
    first = report.certificates[0]
    assert (first.sigma, first.samples, first.selection, first.alpha, first.preview) == (0.05, 60, 10, 0.001, True)
    assert len(first.chosen.split()) == len(first.votes.split()) == first.n == 8
    assert report.summary.canaries == report.summary.masking == "not applicable (a certificate rests on no attack)"
    assert {row.attack for row in report.results} == {"none"}
    for text in (
        "within an ℓ2 radius r",
        "60 samples (PREVIEW: papers take 100,000)",
        "level 3 (3 of 5)",
        "for each level",
    ):
        assert text in ended.out
    page = files["html"].read_text()
    assert "Certified accuracy" in page
    assert "level 3" in page
    assert "preview" in page
    lines = [line for line in csv.DictReader(io.StringIO(files["csv"].read_text())) if line["attack"] == "certified"]
    points = [(one.level, point.radius, point.value) for one in report.certificates for point in one.certified]
    assert [(int(line["level"]), float(line["eps"]), float(line["robust"])) for line in lines] == points
    assert {(line["norm"], line["sigma"], line["preview"]) for line in lines} == {("l2", "0.05", "True")}
    latex = files["tex"].read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2
    tabular = latex[latex.rindex(r"\begin{tabular}") :].splitlines()
    widths = {line.count("&") for line in tabular if line.endswith(r"\\")}
    assert len(widths) == 1
    assert sum(line.startswith("shapes &") for line in tabular) == 8


def test_more_samples_go_on_from_those_kept(hrzs: Hrzs, few: Options, tmp_path: Path) -> None:
    from hrzs.evaluation.certify import Certification

    target, at_once, drawn = tmp_path / "r.json", tmp_path / "once.json", [0]
    run = Certification._run

    def counted(self: Certification, image: Any, image_id: str, stream: str, samples: range) -> Any:
        drawn[0] += len(samples)
        return run(self, image, image_id, stream, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Certification, "_run", counted)
        for samples, new in (("30", 40), ("70", 40), ("70", 0), ("30", 0)):
            drawn[0] = 0
            ended = hrzs("eval", *few, *CERTIFY, "--samples", samples, "--json", target, "--resume")
            assert ended.status == 0, ended.err
            assert drawn[0] == 8 * new
            assert figures(target)[0]["samples"] == int(samples)
    ended = hrzs("eval", *few, *CERTIFY, "--samples", "30", "--json", at_once, "--against", target)
    assert figures(target) == figures(at_once)
    assert "certified at level 3, ℓ2 radius 0.0: " in ended.out
    assert "not compared" not in ended.out
    other = hrzs("eval", *few, *CERTIFY[2:], "--certify", "0.1", "--samples", "30", "--json", target, "--resume")
    assert other.status == 2
    assert "another call, which differs in certify" in other.err


def test_shards_are_merged(hrzs: Hrzs, few: Options, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole.json", tmp_path / "r.json"
    call = ("eval", *few, *CERTIFY, "--samples", "30", "--json")
    assert hrzs(*call, whole).status == 0
    for k in (1, 2):
        assert hrzs(*call, target, "--shard", f"{k}/2").status == 0
    ended = hrzs(*call, target, "--merge")
    assert ended.status == 0, ended.err
    assert figures(target) == figures(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "r.json", "r.json.votes", "whole.json", "whole.json.votes",
    ]  # fmt: skip
    # More samples by shards go on from the votes of the merge.
    more = ("eval", *few, *CERTIFY, "--samples", "50", "--json")
    shutil.copy(whole, tmp_path / "copy.json")
    assert hrzs(*more, whole, "--resume").status == 0
    for k in (1, 2):
        assert hrzs(*more, target, "--shard", f"{k}/2").status == 0
    assert hrzs(*more, target, "--merge").status == 0
    assert figures(target) == figures(whole) != figures(tmp_path / "copy.json")


def test_python_gives_what_the_command_gives(hrzs: Hrzs, few: Options, config_file: Path, tmp_path: Path) -> None:
    import hrzs as package

    target = tmp_path / "r.json"
    assert hrzs("eval", *few, *CERTIFY, "--samples", "30", "--confidence", "joint", "--json", target).status == 0
    model = package.load(str(config_file), "none")
    report = package.evaluate(
        model, limit=8, certify=0.05, selection=10, samples=30, confidence="joint", votes=tmp_path / "votes"
    )
    found = [msgspec.to_builtins(one) | {"seconds": 0} for one in report.certificates]
    assert json.loads(json.dumps(found)) == figures(target)
    assert report.certificates[0].level_alpha == pytest.approx(0.001 / 4)
    assert (tmp_path / "votes").read_text().count("\n") == 16


def test_dry_run_counts_the_passes(hrzs: Hrzs, few: Options, tmp_path: Path) -> None:
    ended = hrzs("eval", *few, "--certify", "0.25", "--dry-run", "--json", tmp_path / "r.json")
    assert ended.status == 0, ended.err
    found = yaml.safe_load(ended.out)
    assert found["units"] == ["clean", "certify at σ 0.25, 10,000 samples"]
    assert found["estimated_minutes"] > 0
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--certify", "0"), "--certify 0.0: must be more than 0"),
        (("--certify", "0.25", "--samples", "10"), "--samples 10: fewer than the 100 of --selection"),
        (("--certify", "0.25", "--alpha", "1"), "--alpha 1.0: more than 0 and less than 1"),
        (("--certify", "0.25", "--attack", "cw"), "--attack cw with --certify: a certificate needs no attack"),
        (("--certify", "0.25", "--preset", "tecoa"), "a --preset brings attacks too"),
        (("--alpha", "0.1"), "--alpha 0.1: it is about certificates; give --certify SIGMA"),
    ],
)
def test_refused(hrzs: Hrzs, few: Options, options: Options, message: str) -> None:
    ended = hrzs("eval", *few, *options)
    assert ended.status == 2
    assert message in ended.err


def test_given_images_are_not_certified(hrzs: Hrzs, small: Options, config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adversarial"
    assert hrzs("attack", *small, "--limit", "2", "--steps", "1", "-o", folder, "--quiet").status == 0
    ended = hrzs("eval", "--model", config_file, "--pretrained", "none", "--adversarial", folder, "--certify", "0.25")
    assert ended.status == 2
    assert "--certify 0.25 with --adversarial: a certificate is about clean images" in ended.err
