from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hrzs.results.board import Board, boards, entries_of, render
from hrzs.results.metrics import balanced, from_bits, node_weights
from hrzs.results.report import Report
from hrzs.results.significance import compare

LABELS = [0, 0, 0, 0, 1, 1, 2, 2]
ANCESTORS = [[0, 1, 2], [0, 0, 1]]
#: Which images are right: clean, and under each attack.
BITS = {"none": "ff", "leaf-pgd": "f8", "cw": "f0", "superclass-pgd": "fc"}


def report(name: str = "m", **bits: str) -> dict[str, Any]:
    """A model on eight images of three classes in two superclasses; ``bits`` as `to_bits` has them."""
    nodes = torch.tensor(ANCESTORS)[:, LABELS]
    rows = []
    for attack, aim, level in (("none", None, 0), ("none", None, 1), ("leaf-pgd", 0, 0), ("superclass-pgd", 1, 1),
                               ("cw", 0, 0), ("cw", 1, 1)):  # fmt: skip
        held = (BITS | bits)[attack]
        right = from_bits(held, 8)
        share, weighed = right.double().mean().item(), balanced(right, node_weights(nodes[level]))
        row = {"dataset": "d", "split": "val", "n": 8, "attack": attack, "attack_level": aim, "level": level,
               "scoring": "prompt", "precision": "fp32", "clean": 1.0, "robust": None, "correct": held, "eps": None,
               "constant": 0.5, "constant_balanced": 1 / (3 - level)}  # fmt: skip
        figures = {"": share, "_balanced": weighed, "_ci95": [0, 1], "_balanced_ci95": [0, 1]}
        row |= {f"{'clean' if aim is None else 'robust'}{key}": value for key, value in figures.items()}
        if aim is not None:
            row |= {"eps": "1/255", "attacked_through": "prompt", "norm": "linf", "steps": 5, "step_size": "1/255"}
        rows.append(row)
    any_level = {"dataset": "d", "eps": "1/255", "any_level_robust": 0.5, "any_level_robust_ci95": [0.25, 0.75],
                 "any_level_correct": "f0", "any_level_constant": 0.5, "any_level_suite": ["cw"]}  # fmt: skip
    truth = {"labels": " ".join(map(str, LABELS)), "ancestors": [" ".join(map(str, level)) for level in ANCESTORS]}
    return {
        "schema": 2, "hrzs": "0.1", "model": {"source": name, "run": {"method": "tecoa"}}, "config": {"restarts": 1},
        "tasks": [{"dataset": "d", "split": "val", "n": 8, "image_ids": "i", "classes": 3, "resize": "in-graph",
                   "tree_digest": "t", "levels": [3, 2, 1]}],
        "results": rows,
        "summary": {"levels": [any_level], "truth": {"d": truth},
                    "masking": [{"dataset": "d", "verdict": "suspected", "reasons": []}]},
    }  # fmt: skip


def ranked(*reports: dict[str, Any]) -> list[Board]:
    found = []
    for i, one in enumerate(reports):
        found += entries_of(Report.from_json(json.dumps(one)), Path(f"{i}.json"))
    return boards(found)


def test_the_most_robust_under_the_margin_comes_first() -> None:
    """Not the one that a cross-entropy makes look better."""
    (board,) = ranked(
        report("weak", **{"leaf-pgd": "ff", "cw": "80"}), report("strong", **{"leaf-pgd": "c0", "cw": "e0"})
    )
    assert [entry.name for entry in board.entries] == ["strong", "weak"]
    heads = [(column.attack, column.level) for column in board.columns]
    assert heads == [("none", 0), ("cw", 0), ("cw", 1), ("any-level", None), ("none", 1), ("leaf-pgd", 0)]
    assert board.ranked_by == board.columns[1]
    assert [cell.value for cell in board.cells[0] if cell][:2] == [1.0, 0.375]
    assert board.constant == [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert board.entries[0].masking == "suspected"
    assert board.entries[0].method == "tecoa"


def test_autoattack_goes_before_the_margin() -> None:
    one = report()
    one["results"] += [{**row, "attack": "autoattack"} for row in one["results"] if row["attack"] == "cw"]
    (board,) = ranked(one)
    assert [column.attack for column in board.robust] == ["autoattack", "autoattack"]


def test_superclasses_are_balanced() -> None:
    (board,) = ranked(report(cw="fc"))
    cells = dict(zip(board.columns, board.cells[0], strict=True))
    leaves, superclasses = (cells[column] for column in board.robust)
    assert leaves is not None
    assert superclasses is not None
    assert leaves.value == 6 / 8
    assert superclasses.value == pytest.approx((1 + 0) / 2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda r: r["tasks"][0].update(image_ids="j"), "images"),
        (lambda r: r["tasks"][0].update(tree_digest="u"), "tree"),
        (lambda r: r["tasks"][0].update(split="test"), "split"),
        (lambda r: r["config"].update(restarts=2), "cw @ 0, scored at level 0 by prompt"),
        (lambda r: [row.update(steps=100) for row in r["results"] if row["eps"]], "cw @ 0, scored at level 0 by prompt"),
        (lambda r: [row.update(norm="l2") for row in r["results"] if row["eps"]], "cw @ 0, scored at level 0 by prompt"),
        (lambda r: r["results"].pop(2), "leaf-pgd @ 0, scored at level 0 by prompt"),
        (lambda r: r["summary"]["levels"][0].update(any_level_suite=None), "any level"),
    ],
)  # fmt: skip
def test_another_protocol_is_another_board(change: Any, name: str) -> None:
    from hrzs.results.protocol import first_difference

    other = report("other")
    change(other)
    first, second = ranked(report(), other)
    said = first_difference(first.protocol, second.protocol)
    assert said is not None
    assert said.startswith(f"{name}: ")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["config"].update(template="openai"),
        lambda r: [row.update(precision="bf16") for row in r["results"]],
        lambda r: r["model"].update(source="x"),
        lambda r: [row.update(defence="quantise", adversary="adaptive") for row in r["results"] if row["eps"]],
    ],
)
def test_what_belongs_to_the_model_is_no_other_protocol(change: Any) -> None:
    other = report("other")
    change(other)
    (board,) = ranked(report(), other)
    assert len(board.entries) == 2


def test_a_defence_is_judged_by_the_adversary_that_knows_it() -> None:
    one = report()
    attacked = [row for row in one["results"] if row["eps"]]
    static = [{**row, "defence": "quantise", "adversary": "static", "robust": 0.99} for row in attacked]
    for row in attacked:
        row.update(defence="quantise", adversary="adaptive")
    one["results"] += static
    (board,) = ranked(one)
    cell = board.cells[0][1]
    assert cell is not None
    assert cell.value == 0.5
    assert board.entries[0].method == "tecoa, behind quantise (adaptive)"


def test_differences_are_those_of_against() -> None:
    one, other = report("a", cw="f1"), report("b", **{"none": "fe", "cw": "8f", "leaf-pgd": "01"})
    (board,) = ranked(one, other)
    assert [entry.name for entry in board.entries] == ["a", "b"] or board.entries[0].name == "b"
    first, second = (entry.report for entry in board.entries)
    compared = {(row.attack, row.level): row for row in compare(first, second).rows}
    for column, found in zip(board.columns, board.differences[0, 1], strict=True):
        row = compared[column.attack, column.level]
        value, ends = (
            (row.difference_balanced, row.difference_balanced_ci95)
            if column.level
            else (row.difference, row.difference_ci95)
        )
        assert value is not None
        assert ends is not None
        assert found == tuple(round(1000 * one) for one in (value, *ends))
    assert any(found and found[0] for found in board.differences[0, 1])
    turned = board.difference(1, 0)
    assert [one and (-one[0], -one[2], -one[1]) for one in turned] == list(board.difference(0, 1))


def test_a_report_without_the_outcome_of_each_image_has_no_differences() -> None:
    other = report("other")
    for row in other["results"]:
        del row["correct"]
    (board,) = ranked(report(), other)
    assert [
        found for column, found in zip(board.columns, board.differences[0, 1], strict=True) if column.level is not None
    ] == [None] * 5


def test_a_board_for_each_epsilon_and_one_for_clean_figures() -> None:
    one = report()
    one["results"] += [{**row, "eps": "2/255"} for row in one["results"] if row["eps"]]
    clean = report("clean")
    clean["results"], clean["summary"]["levels"] = clean["results"][:2], []
    found = ranked(one, clean)
    assert [board.title.rpartition(", ")[2] for board in found] == ["ε 1/255", "ε 2/255", "clean"]
    assert [column.attack for column in found[2].columns] == ["none", "none"]


def test_a_report_that_names_no_images_has_no_entry() -> None:
    one = report()
    one["tasks"] = []
    assert ranked(one) == []


def test_tables_fit_the_terminal() -> None:
    text = render(ranked(report("a-model-with-a-long-name"), report("b")), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "robust@1" in text
    assert "robust: cw" in text
    assert "suspected: a-model-with-a-long-name, b" in text
