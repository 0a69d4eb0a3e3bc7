from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from hrzs.results.export import escape_latex, headlines, to_csv, to_latex
from hrzs.results.report import Report

CONTRACT = (
    "dataset", "split", "n", "eps", "attack", "attack_level", "level", "classes", "scoring", "clean", "robust",
    "clean_low", "clean_high", "robust_low", "robust_high", "nodes", "clean_balanced", "robust_balanced",
    "clean_balanced_low", "clean_balanced_high", "robust_balanced_low", "robust_balanced_high", "constant",
    "constant_balanced", "precision", "seconds",
)  # fmt: skip


def row(dataset: str, attack: str, aim: int | str | None, level: int, value: float, **other: Any) -> dict[str, Any]:
    eps = None if attack == "none" else "1/255"
    robust = None if eps is None else value
    return {
        "dataset": dataset, "split": "val", "n": 30, "eps": eps, "attack": attack, "attack_level": aim, "level": level,
        "classes": 9 - level, "scoring": "prompt", "clean": 0.9 - level / 30 if eps else value, "robust": robust,
        "clean_ci95": [0.1, 1 / 3], "robust_ci95": None if eps is None else (0.125, 2 / 3), "nodes": 9 - level,
        "clean_balanced": 0.5, "robust_balanced": None if eps is None else value / 2, "clean_balanced_ci95": [0.1, 0.75],
        "robust_balanced_ci95": None if eps is None else (0.0625, 2 / 3), "constant": 0.25 + level / 2,
        "constant_balanced": 0.125, "precision": "fp32",
        "seconds": 1.5, "transfer": None if eps is None else aim not in (level, "all"), "attacked_through": eps and "prompt",
        **other,
    }  # fmt: skip


def report(*rows: dict[str, Any], summary: list[dict[str, Any]] | None = None, source: str = "m") -> Report:
    found = {
        "hrzs": "0",
        "model": {"source": source},
        "config": {},
        "results": rows,
        "summary": {"levels": summary or []},
    }
    return Report.from_json(json.dumps(found))


SUITE = (
    row("d", "none", None, 0, 0.75), row("d", "none", None, 1, 0.875),
    row("d", "leaf-pgd", 0, 0, 0.25), row("d", "leaf-pgd", 0, 1, 0.5),
    row("d", "superclass-pgd", 1, 0, 0.3), row("d", "superclass-pgd", 1, 1, 0.4),
    row("d", "hierarchical-pgd", "all", 0, 0.1), row("d", "hierarchical-pgd", "all", 1, 0.2),
)  # fmt: skip


def test_csv_reads_back_the_same() -> None:
    sources = (*SUITE, row('a,"b"\nc', "none", None, 0, 1 / 3))
    whole = report(*sources)
    lines = list(csv.DictReader(io.StringIO(to_csv(whole), newline="")))
    assert tuple(name for name in lines[0] if name in CONTRACT) == CONTRACT
    assert len(lines) == len(sources)
    for line, source in zip(lines, sources, strict=True):
        for name, value in source.items():
            if name.endswith("_ci95"):
                stem = name.removesuffix("_ci95")
                shown = (line[f"{stem}_low"], line[f"{stem}_high"])
                assert shown == ("", "") if value is None else tuple(map(float, shown)) == tuple(value)
            elif value is None:
                assert line[name] == ""
            else:
                assert type(value)(line[name]) == value or str(value) == line[name]


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)"])
def test_csv_holds_no_formula(name: str) -> None:
    (first,) = csv.DictReader(io.StringIO(to_csv(report(row(name, "none", None, 0, 0.5)))))
    assert first["dataset"] == f"'{name}"


def test_csv_leaves_out_what_became_of_each_image() -> None:
    assert "ffff" not in to_csv(report({**SUITE[0], "right": "ffff"}))


def test_headline_takes_the_attack_on_the_level_itself() -> None:
    (found,) = headlines(report(*SUITE))
    assert {level: r.robust for level, r in found.robust.items()} == {0: 0.25, 1: 0.4}
    assert {level: r.robust for level, r in found.leaf.items()} == {0: 0.25, 1: 0.5}
    assert {level: r.clean for level, r in found.clean.items()} == {0: 0.75, 1: 0.875}


def test_headline_takes_the_strongest_attack() -> None:
    stronger = (row("d", "aa-2", 0, 0, 0.125), row("d", "aa-2", 0, 1, 0.625))
    (found,) = headlines(report(*SUITE, *stronger))
    assert found.robust[0].attack == "aa-2"
    assert found.leaf[1].robust == 0.625
    assert found.robust[1].attack == "superclass-pgd"


def test_headline_without_an_attack_on_the_level() -> None:
    (found,) = headlines(report(*SUITE[:2], *SUITE[6:]))
    assert {level: r.robust for level, r in found.robust.items()} == {0: 0.1, 1: 0.2}
    assert not found.leaf
    (transferred,) = headlines(report(*SUITE[:4]))
    assert list(transferred.robust) == [0]


def test_latex_rows() -> None:
    other = row("flat & 50%", "none", None, 0, 0.5)
    summary = [{"dataset": "d", "eps": "1/255", "any_level_robust": 0.0625, "any_level_robust_balanced": 0.03125}]
    text = to_latex(report(*SUITE, other, summary=summary))
    per_image = "25.0 / 75.0 & 75.0 / 87.5 & 25.0 / 40.0 & 25.0 / 50.0 & 6.2"
    assert rf"d & $1/255$ & {per_image} & 12.5 / 12.5 & 50.0 / 50.0 & 12.5 / 20.0 & 3.1 \\" in text
    assert r"flat \& 50\% & -- & 25.0 & 50.0 & -- & -- & -- & 12.5 & 50.0 & -- & -- \\" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert all(len(re.findall(r"(?<!\\)&", line)) == 10 for line in body)
    former = [{k: v for k, v in r.items() if "balanced" not in k and k != "constant"} for r in SUITE]
    text = to_latex(report(*former))
    assert r"d & $1/255$ & -- / -- & 75.0 / 87.5 & 25.0 / 40.0 & 25.0 / 50.0 & -- & -- / -- & -- / --" in text


@pytest.mark.parametrize("name", ["a_b", "$x^2$", "{", "\\end{tabular}", "100% #1 & ~<>", "two\nlines"])
def test_latex_names_are_text(name: str) -> None:
    text = to_latex(report(row(name, "none", None, 0, 0.5), source=name))
    comment, rest = text.split("\n", 1)
    assert comment.startswith("% ")
    assert rest.startswith(r"\begin{tabular}")
    bare = re.sub(r"\\[&%$#_{}]", "", rest)
    depth = 0
    for c in bare:
        depth += {"{": 1, "}": -1}.get(c, 0)
        assert depth >= 0
    assert depth == 0
    assert bare.count("$") % 2 == 0
    assert not set("#_~^%") & set(bare)
    assert rest.count(r"\end{tabular}") == 1


def test_escape_latex() -> None:
    assert escape_latex("a_b\\{") == r"a\_b\textbackslash{}\{"
