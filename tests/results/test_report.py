"""The typed report: what is written is read back, old forms are read, wrong ones are refused, the schema is true."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pandas
import pytest
from msgspec.structs import replace

import hrzs
from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel
from hrzs.results.masking import Canary, Masking
from hrzs.results.report import SCHEMA, Model, Overall, Report, Row, Summary, model_name

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def report(make_model: Callable[[], ClipModel]) -> Report:
    """Everything that a report can hold, but for saved images."""
    suite = "leaf-pgd,superclass-pgd,hierarchical-pgd,cw"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hrzs.evaluation.canaries.QUERIES", 1)
        found = hrzs.evaluate(make_model(), limit=12, attack=suite, level="all", steps=1)
    return replace(found, summary=replace(found.summary, against=found.against(found)))


def test_json_is_read_back_the_same(report: Report, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(report.to_json(), encoding="utf-8")
    for source in (report.to_json(), report.to_json().encode(), file):
        assert Report.from_json(source) == report
    assert json.loads(report.to_json())["schema"] == SCHEMA


def test_the_schema_in_the_docs_is_that_of_what_is_written(report: Report) -> None:
    """jsonschema judges, which knows nothing of the library that writes."""
    schema = json.loads((DOCS / "report.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    written = json.loads(report.to_json())
    jsonschema.validate(written, schema)
    written["results"][0]["clean"] = "much"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, schema)


@pytest.mark.parametrize("file", sorted((DOCS / "results").glob("*-matrix.json")), ids=lambda file: file.stem)
def test_reports_of_the_project_still_read(file: Path) -> None:
    """They are of the first form, and shortened."""
    found, written = Report.from_json(file), json.loads(file.read_text())
    assert "schema" not in written
    assert [row.clean for row in found.results] == [row["clean"] for row in written["results"]]
    assert found.tasks[0].image_ids == written["config"]["tasks"][0]["image_ids"]
    assert "tasks" not in found.config
    assert [row.correct for row in found.results] == [row["right"] for row in written["results"]]
    assert found.prompts_digest == written["config"]["prompts_digest"]
    assert Report.from_json(found.to_json()) == found
    assert found.results[0].dataset in str(found)


def test_a_report_of_before_balanced_figures_reads() -> None:
    row = {"dataset": "d", "n": 2, "eps": None, "attack": "none", "attack_level": None, "level": 0, "scoring": "prompt",
           "clean": 0.5, "robust": None}  # fmt: skip
    text = json.dumps(
        {"hrzs": "0", "model": {"source": "m"}, "config": {}, "results": [row], "summary": {"levels": []}}
    )
    (found,) = Report.from_json(text).results
    assert (found.clean, found.clean_balanced, found.constant) == (0.5, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable report"),
        ("[]", "no report of"),
        ('{"results": []}', "no report of"),
        (
            '{"hrzs": "0", "model": {"source": "m"}, "config": {}, "results": [{"n": 1}], "summary": {}}',
            r"`\w+`.*results",
        ),
        (
            '{"schema": 99, "hrzs": "9", "model": {}, "config": {}, "results": [], "summary": {}}',
            "of a newer hrzs.*update",
        ),
    ],
)
def test_what_is_no_report_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    with pytest.raises(UsageError, match=r"other\.json: not a readable report"):
        Report.from_json(file)
    file.write_text(text)
    with pytest.raises(UsageError, match=rf"(?s)other\.json: .*{message}"):
        Report.from_json(file)


def test_rows_as_a_table_of_pandas(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    table = report.to_pandas()
    assert len(table) == len(report.results)
    assert table["clean"].tolist() == [row.clean for row in report.results]
    assert table["clean_low"].tolist() == [row.clean_ci95[0] for row in report.results if row.clean_ci95]
    assert "correct" not in table
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="needs pandas"):
        report.to_pandas()


def test_a_report_is_shown_and_exported(report: Report) -> None:
    assert f"any-level robust accuracy at ε {report.summary.levels[0].eps}" in str(report)
    assert report.to_csv().count("\n") == 1 + len(report.results)
    assert r"\begin{tabular}" in report.to_latex()
    assert "<!doctype html>" in report.to_html().lower()
    assert {row.difference for row in report.against(report).rows} == {0.0}


def test_the_figure_of_a_row_is_robust_where_something_was_attacked() -> None:
    row = Row(dataset="d", eps=None, attack="none", attack_level=None, level=0, scoring="prompt", clean=0.5, robust=None,
              clean_balanced=0.25)  # fmt: skip
    assert row.figure == row.clean_figure == (0.5, None, 0.25, None)
    attacked = replace(row, eps="1/255", attack="leaf-pgd", robust=0.125, robust_ci95=(0.0, 0.5))
    assert attacked.figure == (0.125, (0.0, 0.5), None, None)
    assert attacked.clean_figure == row.figure


def test_nothing_in_a_report_changes(report: Report) -> None:
    for part, name in ((report, "hrzs"), (report.results[0], "clean"), (report.summary, "levels")):
        with pytest.raises(AttributeError):
            setattr(part, name, None)
    assert isinstance(report.summary.canaries[0], Canary)
    assert isinstance(report.summary.masking[0], Masking)


@pytest.mark.parametrize("kind", [Row, Overall, Summary, Model, Report])
def test_every_form_is_explained(kind: type[msgspec.Struct]) -> None:
    assert kind.__doc__


def test_the_page_has_pictures_only_where_they_are_given(report: Report, evaluate: Callable[..., Any]) -> None:
    from hrzs.evaluation.outcome import pictures_of

    evaluation = evaluate()
    evaluation.run()
    pictures = {report.tasks[0].dataset: pictures_of(evaluation)}
    assert "The tree" not in report.to_html()
    assert "The tree" in report.to_html(pictures)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("tiny", "tiny"),
        ("ViT-B-32:openai", "ViT-B-32 (openai)"),
        ("hf-hub:laion/CLIP-ViT-B-32", "laion/CLIP-ViT-B-32"),
        ("runs/mine", "mine"),
        ("/data/runs/mine/model.safetensors", "mine"),
        ("runs/mine/best", "mine/best"),
        ("clip-rn-64.safetensors", "clip-rn-64"),
        ("/models/clip-rn-64.json:/weights/robust.pt", "robust"),
        ("/models/clip-rn-64.json:none", "clip-rn-64 (none)"),
        ("ViT-B-32:/weights/my.v2.pt", "ViT-B-32 (my.v2)"),
        ("ViT-L-14:openai + /weights/fare_eps_2.pt", "ViT-L-14 (openai) + fare_eps_2"),
        ("ViT-B-32 in memory", "ViT-B-32 in memory"),
        (".", "."),
    ],
)
def test_the_name_of_a_model_has_no_folders(source: str, name: str) -> None:
    assert model_name(source) == name


def test_a_notebook_shows_a_report_without_a_style_or_a_script_for_the_rest_of_it(report: Report) -> None:
    shown = report._repr_html_()
    assert "<table>" in shown
    assert not any(part in shown for part in ("<style", "<script", "<link", "style=", "<html"))


def test_one_line_of_pandas_reads_the_rows(report: Report) -> None:
    """As docs/evaluation.md says."""
    rows = pandas.DataFrame(json.loads(report.to_json())["results"])
    assert len(rows) == len(report.results)
    for name in ("n", "level", "clean", "robust", "clean_balanced", "robust_balanced", "constant", "steps"):
        assert pandas.api.types.is_numeric_dtype(rows[name]), name
    assert rows[rows.attack == "none"].robust.isna().all()
    assert rows[rows.eps.notna()].robust.between(0, 1).all()


def test_the_rows_of_one_attack_took_their_time_together() -> None:
    shared = {
        "dataset": "d",
        "eps": None,
        "attack": "none",
        "attack_level": None,
        "scoring": "prompt",
        "clean": 0.5,
        "robust": None,
    }
    rows = [Row(**shared, level=level, seconds=61.0) for level in (0, 1)]
    rows += [replace(row, attack="cw", attack_level=0, eps="1/255", seconds=4.0) for row in rows]
    found = Report(hrzs="0", model=Model(source="m"), config={}, results=tuple(rows))
    assert found.seconds == 65.0
    assert replace(found, results=(Row(**shared, level=0),)).seconds == 0
