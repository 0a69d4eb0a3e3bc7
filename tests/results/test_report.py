"""The typed report: what is written is read back, old forms are read, wrong ones are refused, the schema is true."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from msgspec.structs import replace

import hrzs
from hrzs.errors import UsageError
from hrzs.models.clip import ClipModel
from hrzs.results.masking import Canary, Masking
from hrzs.results.report import SCHEMA, Model, Overall, Report, Row, Summary

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


def test_the_schema_in_the_docs_is_that_of_the_code_and_of_what_is_written(report: Report) -> None:
    """jsonschema judges, which knows nothing of the library that writes."""
    schema = json.loads((DOCS / "report.schema.json").read_text())
    assert schema == json.loads(json.dumps(msgspec.json.schema(Report))), (
        "`python docs/make_reference.py` writes it anew"
    )
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
