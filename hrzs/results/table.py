"""The table that `hrzs eval` prints: a block per dataset and ε, attacks down, scoring levels across."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hrzs.results.export import sources_of
from hrzs.results.masking import ADVICE


def render(report: Mapping[str, Any]) -> str:
    """A report, as ``--json`` writes it, for a terminal.

    Percentages with the half-width of their 95% interval; ``*`` marks what was attacked directly. Where a level's nodes
    have unequally many images, the accuracy balanced over the nodes stands below the one per image. The first row is
    what the best constant answer scores.
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
    lopsided = lopsided_levels(rows)
    body = _constant(rows, sorted(classes))
    for group in _groups(rows):
        body.append(_line(group, sorted(classes)))
        if below := [row for row in group if row["level"] in lopsided]:
            body.append(_line(below, sorted(classes), "_balanced"))
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

    def format_line(cells: list[str]) -> str:
        return "  ".join(
            f"{c:<{w}}" if i < 4 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    first = rows[0]
    lines = [
        f"{first['dataset']} ({first['split']}), {first['n']} images, accuracy in % ± half of the 95% interval, "
        f"{first['precision']}; * attacked at this level through this scoring, else transfer",
        *([_BOTH] if lopsided else []),
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
                f"  (right at every level, clean: {100 * s['any_level_clean']:.1f}%; {_constant_of(s, '')})"
            )
            if s.get("any_level_robust_balanced") is not None:
                low, high = s["any_level_robust_balanced_ci95"]
                lines.append(
                    f"  balanced: {100 * s['any_level_robust_balanced']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
                    f"  (clean: {100 * s['any_level_clean_balanced']:.1f}%; {_constant_of(s, '_balanced')})"
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


def lopsided_levels(rows: Iterable[Mapping[str, Any]]) -> set[int]:
    """The levels of one dataset whose nodes have unequally many images, so that per image and balanced differ.

    There the largest node has more than its K-th part. Rows that an older hrzs wrote do not say.
    """
    return {row["level"] for row in rows if row.get("constant") != row.get("constant_balanced")}


def _constant_of(summary: Mapping[str, Any], figure: str) -> str:
    constant = summary.get(f"any_level_constant{figure}")
    return "a constant answer: unknown" if constant is None else f"a constant answer: {100 * constant:.1f}%"


def _constant(rows: Sequence[Mapping[str, Any]], levels: Sequence[int]) -> list[list[str]]:
    """What naming one node for every image scores at each level, per image and, where that differs, balanced."""
    lopsided, by_level = lopsided_levels(rows), {row["level"]: row for row in rows}
    if any(row.get("constant") is None for row in rows):
        return []
    lines = [["constant answer", "", "", "", *(f"{100 * by_level[level]['constant']:.1f}" for level in levels)]]
    if lopsided:
        balanced = {level: f"{100 * by_level[level]['constant_balanced']:.1f}" for level in lopsided}
        lines.append([_BALANCED, "", "", "", *(balanced.get(level, "") for level in levels)])
    return lines


def _mean(mean: Mapping[str, Any]) -> str:
    missing = f" ({', '.join(mean['missing'])} missing)" if mean["missing"] else ""
    lines = [f"\nmean over {len(mean['over'])} datasets{missing}: {', '.join(mean['over'])}"]
    for row in mean["rows"]:
        figure = "clean" if row["robust"] is None else "robust"
        aim = "" if row["attack_level"] is None else f" @ {row['attack_level']}, leaves"
        name = "clean, leaves" if figure == "clean" else f"{row['attack']}{aim}, ε {row['eps']}"
        balanced, constant = row.get(f"{figure}_balanced"), row.get("constant")
        lines.append(
            f"  {name}: {100 * row[figure]:.1f}"
            + ("" if balanced is None else f", balanced {100 * balanced:.1f}")
            + ("" if constant is None else f"; a constant answer: {100 * constant:.1f}")
        )
    return "\n".join(lines)


def _against(against: Mapping[str, Any]) -> str:
    """How many differences are beyond chance: Holm's correction leaves them, or the balanced interval has no 0."""
    rows = against["rows"]
    surely = [row for row in rows if row["p_holm"] < 0.05]
    balanced_only = [row for row in rows if row not in surely and _is_apart(row.get("difference_balanced_ci95"))]
    lines = [
        f"\nagainst {against['model']}, paired on the same images: {len(surely)} of {len(rows)} differences are "
        "significant (exact McNemar test, Holm's correction, 5%)",
        *(f"  not compared: {reason}" for reason in against.get("left_out", ())),
    ]
    if any(row.get("difference_balanced") is not None for row in rows):
        apart = sum(_is_apart(row.get("difference_balanced_ci95")) for row in rows)
        lines.append(f"  balanced over nodes: {apart} of {len(rows)} intervals (95%, each by itself) hold no 0")
    headline = [row for row in rows if row["attack"] == "any-level" and row not in surely + balanced_only]
    for row in surely + balanced_only + headline:
        low, high = row["difference_ci95"]
        lines.append(
            f"  {row['dataset']}, {comparison_title(row)}: {100 * row['this']:.1f} against {100 * row['other']:.1f}, "
            f"difference {100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], "
            f"p {row['p']:.2g}, corrected {row['p_holm']:.2g}"
        )
        if (balanced := row.get("difference_balanced")) is not None:
            low, high = row["difference_balanced_ci95"]
            lines.append(
                f"    balanced: {100 * row['this_balanced']:.1f} against {100 * row['other_balanced']:.1f}, "
                f"difference {100 * balanced:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            )
    return "\n".join(lines)


def _is_apart(interval: Sequence[float] | None) -> bool:
    return interval is not None and not interval[0] <= 0 <= interval[1]


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


_BALANCED = "  balanced"
_BOTH = "per image, and below it balanced: every node of the level counts alike, however few images it has"


def _line(group: list[dict[str, Any]], levels: list[int], figure: str = "") -> list[str]:
    """The cells of one attack; with ``figure`` "_balanced" those of the line below it."""
    first = group[0]
    clean = first["attack"] == "none"
    name = "none (clean)" if clean else f"{first['attack']} @ {first['attack_level']}"
    cells = [name, first["eps"] or "", "" if clean else first["attacked_through"], first["scoring"]]
    cells = [_BALANCED, "", "", ""] if figure else cells
    by_level = {row["level"]: row for row in group}
    for level in levels:
        row = by_level.get(level)
        if row is None:
            cells.append("")
            continue
        kind = ("clean" if clean else "robust") + figure
        value, ci = row[kind], row[f"{kind}_ci95"]
        mark = "*" if row["transfer"] is False else ""
        cells.append(f"{mark}{100 * value:.1f} ±{50 * (ci[1] - ci[0]):.1f}")
    return cells
