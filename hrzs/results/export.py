"""A report for other programs: CSV, LaTeX, and the headline figures that both pages and tables show."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import asdict

from hrzs.results.report import CERTIFIED, Certificate, Certified, Overall, Report, Row

_INTERVAL = "_ci95"


def to_csv(report: Report) -> str:
    """One line per row under a header, then one per certified accuracy; a null is an empty cell.

    A certified accuracy is called ``certified`` as an attack, with its radius as ``eps``, and has columns of its own.
    An interval ``X_ci95`` becomes ``X_low`` and ``X_high``; the bits of single images are left out. Numbers are written
    in full, so they read back unchanged. A text that a spreadsheet would take for a formula gets an apostrophe.
    """
    rows = lines(report)
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


def lines(report: Report) -> list[dict[str, Any]]:
    """The rows and the certified accuracies of a report, all with the same fields."""
    found = [flat(row) for row in report.results]
    found += [_certified(one, point) for one in report.certificates for point in one.certified]
    names = dict.fromkeys(name for line in found for name in line)
    return [{name: line.get(name) for name in names} for line in found]


#: What a certified accuracy has beyond the fields of a row.
_OF_CERTIFICATE = ("sigma", "samples", "selection", "alpha", "confidence", "level_alpha", "preview", "abstained",
                   "abstained_balanced", "average_radius", "average_radius_balanced")  # fmt: skip


def certified_row(one: Certificate, point: Certified) -> Row:
    """A certified accuracy as if it were that of an attack (`CERTIFIED`)."""
    shared = {name: getattr(one, name) for name in Row.__struct_fields__ if hasattr(one, name)}
    return Row(
        **shared, eps=str(point.radius), norm="l2", attack=CERTIFIED, attack_level=one.level, scoring="votes",
        robust=point.value, robust_ci95=point.ci95, robust_balanced=point.balanced,
        robust_balanced_ci95=point.balanced_ci95, precision="fp32",
    )  # fmt: skip


def _certified(one: Certificate, point: Certified) -> dict[str, Any]:
    return flat(certified_row(one, point)) | {name: getattr(one, name) for name in _OF_CERTIFICATE}


def radii_of_table(one: Certificate) -> list[Certified]:
    """The certified accuracies that a table has room for: at every half of σ."""
    return list(one.certified[:-1:2]) if len(one.certified) > 1 else list(one.certified)


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
    adversary: str | None
    levels: tuple[int, ...]
    clean: Mapping[int, Row]
    robust: Mapping[int, Row]
    leaf: Mapping[int, Row]
    summary: Overall | None


def headlines(report: Report) -> list[Headline]:
    """The headline figures of every dataset and ε, in the report's order."""
    # Behind defences, what an adversary does that knows them; saved images, which know nothing, may be all there is.
    knows = any(row.adversary == "adaptive" for row in report.results)
    return _headlines(report, "adaptive" if knows else report.results[-1].adversary if report.results else None)


def _headlines(report: Report, adversary: str | None) -> list[Headline]:
    found = []
    for dataset in dict.fromkeys(row.dataset for row in report.results):
        rows = [row for row in report.results if row.dataset == dataset]
        radii: list[str | None] = [*dict.fromkeys(row.eps for row in rows if row.eps is not None)]
        found += [_headline(report, rows, eps, adversary) for eps in radii or [None]]
    return found


def _headline(report: Report, rows: Sequence[Row], eps: str | None, adversary: str | None) -> Headline:
    first = rows[0]
    levels = tuple(sorted({row.level for row in rows}))
    attacked = [row for row in rows if eps is not None and (row.eps, row.adversary) == (eps, adversary)]
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
        first.dataset, first.split, first.n, eps, adversary, levels,
        clean={level: row for level in levels
               for row in _own_prompt([row for row in rows if row.attack == "none" and row.level == level])[:1]},
        robust=by_level,
        leaf={level: row for level in levels if strongest is not None
              for row in _own_prompt([row for row in at_leaves
                                      if row.attack == strongest.attack and row.level == level])[:1]},
        summary=next((s for s in report.summary.levels
                      if (s.dataset, s.eps, s.adversary) == (first.dataset, eps, adversary)), None),
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
    whole = headlines(report)
    if (defending := report.summary.defending) is not None:
        about += f"; behind {', '.join(one.defence for one in defending.stack)}"
        whole += [h for h in _headlines(report, "static") if h.adversary not in {one.adversary for one in whole}]
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
    for h in whole:
        cells = [
            escape_latex(h.dataset if h.adversary is None else f"{h.dataset}, {h.adversary}"),
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
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n" + _latex_of_certificates(report)


def _latex_of_certificates(report: Report) -> str:
    """A second ``tabular``: two rows per dataset and level, per image and balanced."""
    if not report.certificates:
        return ""
    first = report.certificates[0]
    radii = radii_of_table(first)
    preview = "; a preview" if first.preview else ""
    about = (
        f"certified accuracy in % within an l2 radius r, sigma {first.sigma:g}, {first.samples} samples{preview}, "
        f"alpha {first.alpha:g} {first.confidence}; abstentions count as wrong"
    )
    lines = [
        f"% {_one_line(about)}",
        rf"\begin{{tabular}}{{lll{'r' * (4 + len(radii))}}}",
        r"\toprule",
        r"Dataset & Level & Weighted by & Constant answer & Abstained & Clean & Mean radius & "
        + " & ".join(f"$r={point.radius:g}$" for point in radii) + r" \\",
        r"\midrule",
    ]  # fmt: skip
    for one in report.certificates:
        for by, end in (("images", ""), ("nodes", "_balanced")):
            shares = [getattr(one, f"{name}{end}") for name in ("constant", "abstained", "clean")]
            values = [point.balanced if end else point.value for point in radii_of_table(one)]
            cells = [
                escape_latex(one.dataset), str(one.level), by, *map(_percent, shares),
                f"{getattr(one, f'average_radius{end}'):.3f}", *map(_percent, values),
            ]  # fmt: skip
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join(["", *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


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
