"""A report for other programs: CSV, LaTeX, and the headline figures that both pages and tables show."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import asdict

from hrzs.results.report import Overall, Report, Row

_INTERVAL = "_ci95"


def to_csv(report: Report) -> str:
    """One line per row under a header; a null is an empty cell.

    An interval ``X_ci95`` becomes ``X_low`` and ``X_high``; the bits of single images are left out. Numbers are written
    in full, so they read back unchanged. A text that a spreadsheet would take for a formula gets an apostrophe.
    """
    rows = [flat(row) for row in report.results]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def flat(row: Row) -> dict[str, Any]:
    """The fields of a row, an interval as two of them; without ``correct``, the bits of single images."""
    found: dict[str, Any] = {}
    for name, value in asdict(row).items():
        if name.endswith(_INTERVAL):
            stem = name.removesuffix(_INTERVAL)
            found[f"{stem}_low"], found[f"{stem}_high"] = value or (None, None)
        elif name != "correct":
            found[name] = value
    return found


@dataclass(frozen=True)
class Headline:
    """The figures that stand for one dataset at one ε (None: clean only), as rows of the report by level.

    Superclasses are scored by their own prompt, or by the sum of their leaves if only that was. ``robust`` holds,
    for each level that an attack aimed at, the lowest row among these attacks; an attack on all levels at once counts
    only where none aimed at that level alone. ``leaf`` is the strongest attack on the leaves, scored at every level.
    ``summary`` is the report's, if it has one.
    """

    dataset: str
    split: str
    n: int
    eps: str | None
    levels: tuple[int, ...]
    clean: Mapping[int, Row]
    robust: Mapping[int, Row]
    leaf: Mapping[int, Row]
    summary: Overall | None


def headlines(report: Report) -> list[Headline]:
    """The headline figures of every dataset and ε, in the report's order."""
    found = []
    for dataset in dict.fromkeys(row.dataset for row in report.results):
        rows = [row for row in report.results if row.dataset == dataset]
        radii: list[str | None] = [*dict.fromkeys(row.eps for row in rows if row.eps is not None)]
        found += [_headline(report, rows, eps) for eps in radii or [None]]
    return found


def _headline(report: Report, rows: Sequence[Row], eps: str | None) -> Headline:
    first = rows[0]
    levels = tuple(sorted({row.level for row in rows}))
    attacked = [row for row in rows if eps is not None and row.eps == eps]
    at_leaves = [row for row in attacked if row.attack_level == 0]
    strongest = _lowest([row for row in at_leaves if row.level == 0])
    by_level: dict[int, Row] = {}
    for level in levels:
        here = _own_prompt([row for row in attacked if row.level == level])
        aimed = [row for row in here if row.attack_level == level] or [
            row for row in here if row.attack_level == "all" and row.transfer is False
        ]
        if lowest := _lowest(aimed):
            by_level[level] = lowest
    return Headline(
        first.dataset, first.split, first.n, eps, levels,
        clean={level: row for level in levels
               for row in _own_prompt([row for row in rows if row.attack == "none" and row.level == level])[:1]},
        robust=by_level,
        leaf={level: row for level in levels if strongest is not None
              for row in _own_prompt([row for row in at_leaves
                                      if row.attack == strongest.attack and row.level == level])[:1]},
        summary=next((s for s in report.summary.levels if s.dataset == first.dataset and s.eps == eps), None),
    )  # fmt: skip


def sources_of(rows: Sequence[Row]) -> list[str]:
    """The models that saved adversarial images were made against; empty where the evaluation attacked itself."""
    return list(dict.fromkeys(row.source_model for row in rows if row.source_model))


def _own_prompt(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.scoring == "prompt"] or list(rows)


def _lowest(rows: Sequence[Row]) -> Row | None:
    return min((row for row in rows if row.robust is not None), key=lambda row: row.robust or 0.0, default=None)


def to_latex(report: Report) -> str:
    r"""A booktabs ``tabular`` with a row per dataset and ε, in percent, levels from the leaves upwards between slashes.

    Columns: what a constant answer scores; clean; robust at the level attacked; the attack on the leaves scored
    upwards; any-level robust; then constant, clean, robust and any-level once more, balanced over each level's nodes.
    ``--`` stands where nothing was measured. Needs ``\usepackage{booktabs}``.
    """
    about = f"{report.model.source}, hrzs {report.hrzs}; accuracy in %, levels 0 / 1 / ..."
    if sources := sources_of(report.results):
        about += f"; adversarial images made against {', '.join(sources)}"
    lines = [
        f"% {_one_line(about)}",
        r"\begin{tabular}{llllllrlllr}",
        r"\toprule",
        r" & & \multicolumn{5}{c}{per image} & \multicolumn{4}{c}{balanced over nodes} \\",
        r"\cmidrule(lr){3-7} \cmidrule(lr){8-11}",
        r"Dataset & $\varepsilon$ & Constant answer & Clean & Robust at the level attacked "
        r"& Leaf attack, scored upwards & Any-level "
        r"& Constant answer & Clean & Robust at the level attacked & Any-level \\",
        r"\midrule",
    ]
    for h in headlines(report):
        cells = [
            escape_latex(h.dataset),
            "--" if h.eps is None else f"${h.eps}$",
            _percents(h.clean, h.levels, "constant"),
            _percents(h.clean, h.levels, "clean"),
            _percents(h.robust, h.levels, "robust"),
            _percents(h.leaf, h.levels, "robust"),
            _percent(h.summary.any_level_robust if h.summary else None),
            _percents(h.clean, h.levels, "constant_balanced"),
            _percents(h.clean, h.levels, "clean_balanced"),
            _percents(h.robust, h.levels, "robust_balanced"),
            _percent(h.summary.any_level_robust_balanced if h.summary else None),
        ]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _percents(rows: Mapping[int, Row], levels: Sequence[int], figure: str) -> str:
    if not rows:
        return "--"
    return " / ".join(_percent(getattr(rows.get(level), figure, None)) for level in levels)


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{100 * value:.1f}"


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def escape_latex(text: str) -> str:
    """``text`` as LaTeX sets it, on one line."""
    return "".join(_LATEX.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    """``text`` without control characters: a line break would end a comment, or a row."""
    return "".join(c if c.isprintable() else " " for c in text)
