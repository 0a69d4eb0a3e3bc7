"""How something was measured: figures of two models may be compared only where this is alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from hrzs.results.report import Data, Overall, Report, Row

#: What was agreed, by what it is called; two protocols are alike if they are equal.
Protocol: TypeAlias = Mapping[str, str]

#: What of a row says how its attack was run; where an older hrzs did not write it down, None.
_EFFORT = ("norm", "steps", "step_size", "source_model_digest")


def of_images(task: Data) -> Protocol:
    """The images, the tree over their classes and their resizing: alike, the outcomes of two models are paired."""
    return {"images": task.image_ids, "tree": task.tree_digest, "resizing": task.resize}


def of_row(row: Row) -> Protocol:
    """How the attack of a row was run, as far as the row says."""
    said = {name: getattr(row, name) for name in _EFFORT}
    return {name.replace("_", " "): str(value) for name, value in said.items() if value is not None}


def aims_here(row: Row) -> bool:
    """Was the level of this row attacked, through the scoring that it has?"""
    aimed = row.attack_level == row.level or (row.attack_level == "all" and row.scoring == "prompt")
    return aimed and row.attacked_through in (None, row.scoring)


def suite_of(overall: Overall) -> tuple[str, ...]:
    """The attacks under which any-level accuracy counts an image; older reports do not name theirs."""
    return overall.any_level_suite or ("leaf-pgd", "superclass-pgd", "hierarchical-pgd")


def protocol(report: Report, task: Data, eps: str | None) -> Protocol:
    """How the figures of one dataset at one ε (None: clean only) were measured.

    Not part of it is what belongs to the model that was measured: its prompts, its defences and its precision, which
    only rounds the gradients of attacks.
    """
    config = report.config
    shared = {"norm": str(config.get("norm", "linf")), "restarts": str(config.get("restarts", 1)),
              "random start": str(config.get("random-start", True))}  # fmt: skip
    found = {"data": task.dataset, "split": task.split, **of_images(task), "ε": eps or "none"}
    rows = [row for row in report.results if row.dataset == task.dataset and row.eps == eps and row.eps is not None]
    for row in sorted(rows, key=lambda row: (str(row.attack_level), row.attack, row.scoring)):
        if aims_here(row):
            effort = ", ".join(f"{name} {value}" for name, value in {**shared, **of_row(row)}.items())
            found[f"{row.attack} @ {row.attack_level}, scored at level {row.level} by {row.scoring}"] = effort
    for one in report.summary.levels:
        if (one.dataset, one.eps) == (task.dataset, eps) and one.any_level_robust is not None:
            found["any level"] = f"under {', '.join(suite_of(one))}"
    return found


def first_difference(wanted: Protocol, found: Protocol) -> str | None:
    """The first of ``wanted`` that ``found`` lacks or has otherwise, then of what ``found`` has beyond it, in words."""
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            return f"{name}: {found.get(name, 'not measured')}, not {wanted.get(name, 'measured')}"
    return None


def other_effort(row: Row, like: Row) -> str | None:
    """How the attack of ``like`` was run otherwise than that of ``row``, as far as both say."""
    mine, theirs = of_row(row), of_row(like)
    return first_difference({k: v for k, v in mine.items() if k in theirs}, {k: theirs[k] for k in mine if k in theirs})
