"""The table that `hrzs eval` prints: a block per dataset and ε, attacks down, scoring levels across."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from hrzs.results.export import radii_of_table, sources_of
from hrzs.results.masking import Canary, Masking
from hrzs.results.report import (
    PUBLISHED_SAMPLES,
    Certificate,
    Compared,
    Comparison,
    Defending,
    Interval,
    Mean,
    Overall,
    Report,
    Row,
    nodes_with_images,
)


def render(report: Report, width: int = 80) -> str:
    """A report for a terminal of ``width`` characters.

    Percentages with the half-width of their 95% interval; ``*`` marks what was attacked directly. Where a level's nodes
    have unequally many images, the accuracy balanced over the nodes stands below the one per image. The first row is
    what the best constant answer scores. Levels that do not fit beside each other come below.
    """
    summary, blocks = report.summary, []
    for dataset in dict.fromkeys(row.dataset for row in report.results):
        rows = [row for row in report.results if row.dataset == dataset]
        block = _block(rows, [s for s in summary.levels if s.dataset == dataset], width)
        blocks.append("\n".join([block, *(f"  note: {note}" for note in summary.stand_ins.get(dataset, ()))]))
    lines = ["\n\n".join(blocks)]
    lines += ["\n" + _certificates([c for c in report.certificates if c.dataset == dataset], width)
              for dataset in dict.fromkeys(c.dataset for c in report.certificates)]  # fmt: skip
    lines += [_defending(summary.defending)] if summary.defending else []
    lines += [f"\nmissing: {reason}" for reason in summary.missing.values()]
    lines += [_mean(summary.mean)] if summary.mean else []
    lines += [_against(summary.against)] if summary.against else []
    if summary.canaries and not isinstance(summary.canaries, str):
        lines += ["\ncanaries (at most 64 images each)", *map(_canary, summary.canaries)]
    if isinstance(summary.masking, str):
        lines.append(f"\ngradient masking: {summary.masking}")
    else:
        lines += map(_masking, summary.masking)
    return fitted("\n".join(lines), width) + "\n"


def grid(header: Sequence[str], body: Sequence[Sequence[str]], *, words: int, width: int) -> list[str]:
    """The lines of a table within ``width`` characters: ``words`` columns to the left, then numbers.

    What does not fit beside comes below: the next numbers in a table of their own, after the same words.
    """
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    room = width - sum(widths[:words]) - 2 * words
    parts: list[list[int]] = [[]]
    for i in range(words, len(header)):
        if parts[-1] and sum(widths[k] + 2 for k in [*parts[-1], i]) - 2 > room:
            parts.append([])
        parts[-1].append(i)
    lines: list[str] = []
    for part in parts:
        columns = [*range(words), *part]
        shown = [
            "  ".join(f"{line[i]:<{widths[i]}}" if i < words else f"{line[i]:>{widths[i]}}" for i in columns).rstrip()
            for line in [header, *body]
        ]
        ruler = "-" * (sum(widths[i] + 2 for i in columns) - 2)
        lines += [*([""] if lines else []), shown[0], ruler, *shown[1:]]
    return lines


def fitted(text: str, width: int) -> str:
    """``text`` with its long lines broken between words, the rest below the first word and indented further."""
    return "\n".join(line if len(line) <= width else _broken(line, width) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
                         replace_whitespace=False)  # fmt: skip


def _canary(canary: Canary) -> str:
    verdict = {True: "ok", False: "UNEXPECTED", None: "not run" if canary.applicable else "n/a"}[canary.ok]
    value = "" if canary.value is None else f" {canary.value:.3f};"
    line = f"  {verdict:<10} {canary.dataset}, {canary.name}:{value} expected {canary.expected}. {canary.note}"
    return line.rstrip(". ") + "."


def _masking(found: Masking) -> str:
    lines = [f"\ngradient masking on {found.title}: {found.verdict}", *(f"  - {reason}" for reason in found.reasons)]
    return "\n".join([*lines, f"  {found.advice}"])


def _defending(found: Defending) -> str:
    lines = ["\ndefences, in the order in which an image meets them"]
    for one in found.stack:
        lines.append(f"  {one.defence}: {one.passes:g} forward passes to judge an image. {one.adversary}")
    lines.append(
        f"  a gradient of an adaptive attack costs {found.attack_passes:.1f} of the model alone, over {found.eot} draws"
        + ("; the adversary knows the draw that judges" if found.draw == "known" else "")
    )
    if found.gaps:
        lines.append(
            "  what they owe to the adversary's ignorance: adaptive against static figures at the level attacked, "
            "paired; an adaptive figure counts an image only if it holds under both"
        )
    for gap in found.gaps:
        attack = replace(gap, adversary=None)
        lines += [f"  {line}" for line in _difference(attack)]
    return "\n".join(lines)


def _block(rows: Sequence[Row], summary: Sequence[Overall], width: int) -> str:
    """One dataset: a table for each scoring, of which the first has the leaves."""
    first, radii = rows[0], list(dict.fromkeys(row.eps for row in rows if row.eps is not None))
    at = f", ε {radii[0]}" if len(radii) == 1 else ""
    lines = [
        f"{first.dataset} ({first.split}), {first.n} images, accuracy in % ± half of the 95% interval, "
        f"{first.precision}{at}; * attacked at this level through this scoring, else transfer",
        *([_BOTH] if lopsided_levels(rows) else []),
        *(f"saved images, made against {source}" for source in sources_of(rows)),
        *([f"behind {first.defence}; static: made against the model without"] if first.defence else []),
    ]
    scorings = list(dict.fromkeys(row.scoring for row in rows))
    for scoring in scorings:
        scored = [row for row in rows if row.scoring == scoring]
        lines += ["", *([_SCORED.get(scoring, scoring)] if scorings != ["prompt"] else []),
                  *_table(scored, width, with_eps=len(radii) > 1)]  # fmt: skip
    for s in summary:
        lines += ["", *_any_level(s), *_mistakes(s)]
    return "\n".join(lines)


_SCORED = {"prompt": "scored by the nodes' own prompts", "leaves": "scored by the sum of their leaves"}


def _table(rows: Sequence[Row], width: int, *, with_eps: bool) -> list[str]:
    """What was scored in one way: attacks down, levels across."""
    heads = {row.level: f"level {row.level} ({nodes_with_images(row)})" for row in rows}
    levels, lopsided = sorted(heads), lopsided_levels(rows)
    body = _constant(rows, levels)
    for group in _groups(rows):
        body.append(_line(group, levels))
        if below := [row for row in group if row.level in lopsided]:
            body.append(_line(below, levels, balanced=True))
    table = [["attack", "ε", *(heads[k] for k in levels)], *body]
    header, *body = table if with_eps else [[line[0], *line[2:]] for line in table]
    lines = grid(header, body, words=len(header) - len(levels), width=width)
    if any(_is_through_another(row) for row in rows):
        lines.append("° attacked through the nodes' own prompts")
    return lines


def _is_through_another(row: Row) -> bool:
    return row.attacked_through not in (None, row.scoring)


def _certificates(found: Sequence[Certificate], width: int) -> str:
    """The certificates of one dataset, level by level; below a lopsided level the figures balanced over its nodes."""
    first, radii = found[0], radii_of_table(found[0])
    header = ["", "constant", "abstained", "clean", "mean r", *(f"r {point.radius:g}" for point in radii)]
    body = []
    for one in found:
        points = radii_of_table(one)
        body.append([
            f"level {one.level} ({nodes_with_images(one)})", percent(one.constant), percent(one.abstained),
            percent(one.clean) + _half(one.clean_ci95), f"{one.average_radius:.3f}",
            *(percent(point.value) + _half(point.ci95) for point in points),
        ])  # fmt: skip
        if one.constant != one.constant_balanced:
            body.append([
                _BALANCED, percent(one.constant_balanced), percent(one.abstained_balanced),
                percent(one.clean_balanced) + _half(one.clean_balanced_ci95), f"{one.average_radius_balanced:.3f}",
                *(percent(point.balanced) + _half(point.balanced_ci95) for point in points),
            ])  # fmt: skip
    return "\n".join([
        f"{first.dataset} ({first.split}), {first.n} images, certified accuracy in % within an ℓ2 radius r, by "
        f"randomised smoothing at σ {first.sigma:g}",
        said_of(first), *grid(header, body, words=1, width=width),
    ])  # fmt: skip


def said_of(one: Certificate) -> str:
    """What certificates claim, and from how many samples, in a line."""
    preview = f" (PREVIEW: papers take {PUBLISHED_SAMPLES:,})" if one.preview else ""
    joint = "for all levels jointly" if one.confidence == "joint" else "for each level"
    return (
        f"{one.samples:,} samples{preview}, {one.selection:,} more choose the node; a certificate is wrong with "
        f"probability {one.alpha:g} at most, {joint}; an abstention counts as wrong; largest radius "
        f"{one.largest_radius:.3f}"
    )


def _half(ci95: Interval) -> str:
    return f" ±{50 * (ci95[1] - ci95[0]):.1f}"


def _any_level(s: Overall) -> list[str]:
    """Any-level robust accuracy per image and balanced, with its interval and what a constant answer scores."""
    lines, adversary = [], "" if s.adversary is None else f", {s.adversary}"
    for before, after, robust, interval, clean, constant in (
        (f"any-level robust accuracy at ε {s.eps}{adversary}", "right at every level, clean", s.any_level_robust,
         s.any_level_robust_ci95, s.any_level_clean, s.any_level_constant),
        ("  balanced", "clean", s.any_level_robust_balanced, s.any_level_robust_balanced_ci95,
         s.any_level_clean_balanced, s.any_level_constant_balanced),
    ):  # fmt: skip
        if robust is not None:
            answer = "unknown" if constant is None else f"{percent(constant)}%"
            lines.append(f"{before}: {percent(robust)}% {_interval(interval)}  ({after}: {percent(clean)}%; "
                         f"a constant answer: {answer})")  # fmt: skip
    return lines


def _mistakes(s: Overall) -> list[str]:
    lines = []
    for title, severity in s.severity.items():
        shown = {name: "-" if value is None else f"{value:.2f}" for name, value in severity.items()}
        agreement = " / ".join("-" if c is None else f"{100 * c:.0f}" for c in s.consistency[title])
        lines.append(
            f"  {title}: mean LCA height {shown['lca_height_mistakes']} over mistakes, {shown['lca_height_all']} over "
            f"all; {', '.join(f'{k.upper()} {v}' for k, v in shown.items() if k.startswith('hd@'))}"
            + (f"; leaf and superclass predictions agree on {agreement}%" if agreement else "")
        )
    return lines


def lopsided_levels(rows: Iterable[Row]) -> set[int]:
    """The levels of one dataset whose nodes have unequally many images, so that per image and balanced differ.

    There the largest node has more than 1/K of the images. Rows from an older hrzs do not tell.
    """
    return {row.level for row in rows if row.constant != row.constant_balanced}


def percent(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(ci95: Interval | None, sign: str = "") -> str:
    return "" if ci95 is None else f"[{100 * ci95[0]:{sign}.1f}, {100 * ci95[1]:{sign}.1f}]"


def _constant(rows: Sequence[Row], levels: Sequence[int]) -> list[list[str]]:
    """What naming one node for every image scores at each level, per image and, where that differs, balanced."""
    lopsided, by_level = lopsided_levels(rows), {row.level: row for row in rows}
    if any(row.constant is None for row in rows):
        return []
    lines = [["constant answer", "", *(percent(by_level[level].constant) for level in levels)]]
    if lopsided:
        balanced = (percent(by_level[level].constant_balanced) if level in lopsided else "" for level in levels)
        lines.append([_BALANCED, "", *balanced])
    return lines


def _mean(mean: Mean) -> str:
    missing = f" ({', '.join(mean.missing)} missing)" if mean.missing else ""
    lines = [f"\nmean over {len(mean.over)} datasets{missing}: {', '.join(mean.over)}"]
    for row in mean.rows:
        value, balanced = ((row.clean, row.clean_balanced) if row.robust is None
                           else (row.robust, row.robust_balanced))  # fmt: skip
        lines.append(
            f"  {row.title}: {percent(value)}"
            + ("" if balanced is None else f", balanced {percent(balanced)}")
            + ("" if row.constant is None else f"; a constant answer: {percent(row.constant)}")
        )
    return "\n".join(lines)


def _against(against: Comparison) -> str:
    """The lines of a comparison: differences significant by Holm's correction or a balanced interval, and headlines."""
    rows = against.rows
    surely = [row for row in rows if row.p_holm < 0.05]
    balanced_only = [row for row in rows if row not in surely and _is_apart(row.difference_balanced_ci95)]
    lines = [
        f"\nagainst {against.model}, paired on the same images: {len(surely)} of {len(rows)} differences are "
        "significant (exact McNemar test, Holm's correction, 5%)",
        *(f"  not compared: {reason}" for reason in against.left_out),
    ]
    if any(row.difference_balanced is not None for row in rows):
        apart = sum(_is_apart(row.difference_balanced_ci95) for row in rows)
        lines.append(f"  balanced over nodes: {apart} of {len(rows)} intervals (95%, each by itself) hold no 0")
    headline = [row for row in rows if row.is_headline and row not in surely + balanced_only]
    for row in surely + balanced_only + headline:
        lines += _difference(row)
    return "\n".join(lines)


def _difference(row: Compared) -> list[str]:
    lines = [
        f"  {row.dataset}, {row.title}: {percent(row.this)} against {percent(row.other)}, "
        f"difference {100 * row.difference:+.1f} {_interval(row.difference_ci95, '+')}, "
        f"p {row.p:.2g}, corrected {row.p_holm:.2g}"
    ]
    if row.difference_balanced is not None:
        lines.append(
            f"    balanced: {percent(row.this_balanced)} against {percent(row.other_balanced)}, "
            f"difference {100 * row.difference_balanced:+.1f} {_interval(row.difference_balanced_ci95, '+')}"
        )
    return lines


def _is_apart(interval: Interval | None) -> bool:
    return interval is not None and not interval[0] <= 0 <= interval[1]


def _groups(rows: Iterable[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (row.attack, row.attack_level, row.eps, row.adversary, row.attacked_through, row.scoring)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


_BALANCED = "  balanced"
_BOTH = "per image, and below it balanced: every node of the level counts alike, however few images it has"


def _line(group: Sequence[Row], levels: Sequence[int], *, balanced: bool = False) -> list[str]:
    """The cells of one attack; ``balanced``: those of the line below it."""
    first = group[0]
    clean = first.attack == "none"
    name = "none (clean)" if clean else f"{first.attack} @ {first.attack_level}"
    name += "" if first.adversary is None else f", {first.adversary}"
    name += " °" if _is_through_another(first) else ""
    cells = [_BALANCED, ""] if balanced else [name, first.eps or ""]
    by_level = {row.level: row for row in group}
    for level in levels:
        row = by_level.get(level)
        if row is None:
            cells.append("")
            continue
        value, ci95 = row.figure[2:] if balanced else row.figure[:2]
        half = "" if ci95 is None else f" ±{50 * (ci95[1] - ci95[0]):.1f}"
        cells.append(f"{'*' if row.transfer is False else ''}{percent(value)}{half}")
    return cells
