"""The table that `hrzs eval` prints: a block per dataset and ε, attacks down, scoring levels across."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hrzs.evaluation.export import sources_of
from hrzs.evaluation.masking import ADVICE


def render(report: Mapping[str, Any]) -> str:
    """A report, as ``--json`` writes it, for a terminal.

    Percentages with the half-width of their 95% interval; ``*`` marks what was attacked directly.
    """
    results, summary, blocks = report["results"], report["summary"], []
    for dataset in dict.fromkeys(row["dataset"] for row in results):
        rows = [row for row in results if row["dataset"] == dataset]
        block = _block(rows, [s for s in summary["levels"] if s["dataset"] == dataset])
        notes = summary.get("stand_ins", {}).get(dataset, [])
        blocks.append("\n".join([block, *(f"  note: {note}" for note in notes)]))
    lines = ["\n\n".join(blocks)]
    lines += [f"\nmissing: {reason}" for reason in summary.get("missing", {}).values()]
    if "mean" in summary:
        lines.append(_mean(summary["mean"]))
    if "against" in summary:
        lines.append(_against(summary["against"]))
    canaries, masking = summary["canaries"], summary.get("masking", ())
    if canaries and not isinstance(canaries, str):
        lines.append("\ncanaries (at most 64 images each)")
        for c in canaries:
            verdict = {True: "ok", False: "UNEXPECTED", None: "not run" if c.get("applicable", True) else "n/a"}[
                c["ok"]
            ]
            value = "" if c["value"] is None else f" {c['value']:.3f};"
            line = f"  {verdict:<10} {c['dataset']}, {c['name']}:{value} expected {c['expected']}. {c['note']}"
            lines.append(line.rstrip(". ") + ".")
    lines += [f"\ngradient masking: {masking}"] if isinstance(masking, str) else map(_masking, masking)
    return "\n".join(lines) + "\n"


def _masking(found: dict[str, Any]) -> str:
    lines = [f"\ngradient masking on {found['dataset']}: {found['verdict']}"]
    lines += [f"  - {reason}" for reason in found["reasons"]]
    return "\n".join([*lines, f"  {ADVICE[found['verdict']]}"])


def _block(rows: list[dict[str, Any]], summary: list[dict[str, Any]]) -> str:
    classes = {row["level"]: row["classes"] for row in rows}
    header = ["attack", "ε", "through", "scored by"] + [f"level {k} ({n})" for k, n in sorted(classes.items())]
    body = [_line(group, sorted(classes)) for group in _groups(rows)]
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def format_line(cells: list[str]) -> str:
        return "  ".join(
            f"{c:<{w}}" if i < 4 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    first = rows[0]
    lines = [
        f"{first['dataset']} ({first['split']}), {first['n']} images, accuracy in % ± half of the 95% interval, "
        f"{first['precision']}; * attacked at this level through this scoring, else transfer",
        *(f"saved images, made against {source}" for source in sources_of(rows)),
        format_line(header),
        "-" * (sum(widths) + 2 * (len(widths) - 1)),
        *map(format_line, body),
    ]
    for s in summary:
        robust, ci = s["any_level_robust"], s["any_level_robust_ci95"]
        if robust is not None:
            lines.append(
                f"any-level robust accuracy at ε {s['eps']}: {100 * robust:.1f}% [{100 * ci[0]:.1f}, {100 * ci[1]:.1f}]"
                f"  (right at every level, clean: {100 * s['any_level_clean']:.1f}%)"
            )
        for title, severity in s["severity"].items():
            mistakes = severity["lca_height_mistakes"]
            shown = "-" if mistakes is None else f"{mistakes:.2f}"
            agreement = " / ".join("-" if c is None else f"{100 * c:.0f}" for c in s["consistency"][title])
            lines.append(
                f"  {title}: mean LCA height {shown} over mistakes, {severity['lca_height_all']:.2f} over all; "
                f"{', '.join(f'{k.upper()} {v:.2f}' for k, v in severity.items() if k.startswith('hd@'))}; "
                f"leaf and superclass predictions agree on {agreement or '-'}%"
            )
    return "\n".join(lines)


def _mean(mean: Mapping[str, Any]) -> str:
    missing = f" ({', '.join(mean['missing'])} missing)" if mean["missing"] else ""
    lines = [f"\nmean over {len(mean['over'])} datasets{missing}: {', '.join(mean['over'])}"]
    for row in mean["rows"]:
        if row["robust"] is None:
            lines.append(f"  clean, leaves: {100 * row['clean']:.1f}")
        else:
            aim = "" if row["attack_level"] is None else f" @ {row['attack_level']}, leaves"
            lines.append(f"  {row['attack']}{aim}, ε {row['eps']}: {100 * row['robust']:.1f}")
    return "\n".join(lines)


def _against(against: Mapping[str, Any]) -> str:
    """The differences that Holm's correction leaves standing, and how many do not."""
    rows = against["rows"]
    surely = [row for row in rows if row["p_holm"] < 0.05]
    lines = [
        f"\nagainst {against['model']}, paired on the same images: {len(surely)} of {len(rows)} differences are "
        "significant (exact McNemar test, Holm's correction, 5%)"
    ]
    headline = [row for row in rows if row["attack"] == "any-level" and row not in surely]
    for row in surely + headline:
        low, high = row["difference_ci95"]
        lines.append(
            f"  {row['dataset']}, {comparison_title(row)}: {100 * row['this']:.1f} against {100 * row['other']:.1f}, "
            f"difference {100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], "
            f"p {row['p']:.2g}, corrected {row['p_holm']:.2g}"
        )
    return "\n".join(lines)


def comparison_title(row: Mapping[str, Any]) -> str:
    """What one row of a comparison measures, in words."""
    if row["attack"] == "any-level":
        return f"any-level robust accuracy at ε {row['eps']}"
    attack = "clean" if row["attack"] == "none" else f"{row['attack']} @ {row['attack_level']}, ε {row['eps']}"
    return f"{attack}, scored at level {row['level']} by {row['scoring']}"


def _groups(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["attack"], row["attack_level"], row["eps"], row["attacked_through"], row["scoring"])
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _line(group: list[dict[str, Any]], levels: list[int]) -> list[str]:
    first = group[0]
    clean = first["attack"] == "none"
    name = "none (clean)" if clean else f"{first['attack']} @ {first['attack_level']}"
    cells = [name, first["eps"] or "", "" if clean else first["attacked_through"], first["scoring"]]
    by_level = {row["level"]: row for row in group}
    for level in levels:
        row = by_level.get(level)
        if row is None:
            cells.append("")
            continue
        value, ci = (row["clean"], row["clean_ci95"]) if clean else (row["robust"], row["robust_ci95"])
        mark = "*" if row["transfer"] is False else ""
        cells.append(f"{mark}{100 * value:.1f} ±{50 * (ci[1] - ci[0]):.1f}")
    return cells
