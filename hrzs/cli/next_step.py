"""The command that is most useful after one that has ended: whole, so that it can be pasted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hrzs.data_options import DataOptions

if TYPE_CHECKING:
    from hrzs.results.report import Report

_MODEL = ("model", "pretrained", "visual", "tokenizer", "mean", "std", "interpolation", "resize_mode")
_DATA = ("data", "data_root", "classes", "tree")
_MACHINE = ("device", "precision", "threads")
# What says where results go, or what comes from a file that has said it already.
_ONCE = ("config", "preset", "json_out", "report_out", "csv_out", "latex_out", "against", "shard", "merge", "resume")


def after_eval(context: typer.Context, report: Report, saved: Path | None) -> str | None:
    """What to do with a report that was written to ``saved``; None where nothing is plainly the next.

    Keep it, if it is not kept. Then fine-tune the model; or, if it was, measure what it was made from, for comparison.
    """
    given = context.params
    if saved is None:
        stem = re.sub(r"\W+", "-", report.model.name).strip("-")
        page = [] if given["report_out"] else ["--report", f"{stem}.html"]
        words = [word for word in context.obj or () if word not in ("--json", "-", "--json=-")]
        return shlex.join(["hrzs", *words, "--json", f"{stem}.json", *page])
    if given["adversarial"] or given["against"] or len(report.tasks) != 1:
        others = [file for file in saved.parent.glob("*.json") if file != saved]
        board = shlex.join(["hrzs", "leaderboard", str(saved.parent), "-o", str(saved.parent / "board.html")])
        return board if others else None
    run = report.model.run or {}
    base = run.get("base") or {}
    if given["model"] == "tiny" or not run.get("method"):
        return shlex.join(["hrzs", "finetune", *_given(context, (*_MODEL, *_DATA, *_MACHINE), ("model", "data"))])
    if not base.get("model"):
        return None
    model = [word for name in ("model", "pretrained", "visual") if base.get(name) for word in (f"--{name}", base[name])]
    same = _given(context, [name for name in given if name not in (*_MODEL, *_ONCE)])
    return shlex.join(["hrzs", "eval", *map(str, model), *same, "--against", str(saved)])


def after_finetune(context: typer.Context, folder: Path) -> str:
    """Measure the model of a run on the data that it was trained for."""
    words = _given(context, ("tokenizer", *_DATA, *_MACHINE))
    return shlex.join(["hrzs", "eval", "--model", str(folder), *words, "--json", str(folder / "eval.json")])


def _given(context: typer.Context, names: Collection[str], always: Collection[str] = ()) -> list[str]:
    """The options among ``names`` that this call has, typed or from a file; the first of several trees.

    Args:
        always: those that are there by default, too.
    """
    defaults = DataOptions().as_config()
    words: list[str] = []
    for parameter in context.command.params:
        name = parameter.name or ""
        source, value = context.get_parameter_source(name), context.params.get(name)
        value = defaults.get(name) if value is None else value
        is_given = source is not None and source.name != "DEFAULT"
        if name not in names or value is None or not (is_given or name in always):
            continue
        flag = max(parameter.opts, key=len)
        if isinstance(value, bool):
            words += [flag] if value else parameter.secondary_opts[:1]
        else:
            words += [flag, str(value[0] if isinstance(value, list) else value)]
    return words
