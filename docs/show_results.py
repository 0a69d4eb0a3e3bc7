"""The tables of docs/results.md and its figures, from the JSON in docs/results/: `python docs/show_results.py`.

Balanced figures weigh the nodes of a level alike: an image counts 1 / (K · n), with K nodes in the sample and n images
of its own node. Differences are those of paired.py: their intervals hold images and seeds. Bold: below 0.05 after
Holm's correction over all cells of the table. ≈: the interval lies within ±1.5 points: equivalent to that margin.
Between runs of one seed each, as in the ablations, the interval holds images alone: it is of these two runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

import matplotlib
import torch
from evidence import (
    ABLATIONS,
    CERTIFIED,
    CORRUPTIONS,
    CURVES,
    DEFENCES,
    DEFENDED,
    HARDER,
    NEW,
    RESULTS,
    ROWS,
    SAME,
    SQUARE,
    best_rate,
    evaluation,
    looked,
    read,
    runs,
    training,
    tried,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paired import Difference, holm, paired
from torch import Tensor

from hrzs.results.certificates import certified_images
from hrzs.results.metrics import constant_answer, from_bits, node_weights, weights_over_levels
from hrzs.results.report import Report, Row

Some: TypeAlias = dict[str, list[Report]]

IMAGES = Path(__file__).parent / "images"
OURS = "hierarchical"
SQUARED = [row for line in SQUARE for row in line]
MAIN = ["untouched", *(row for row in ROWS if row not in SQUARED)]


class Store:
    """Where the JSON lies, and which node each image belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "nodes.json"
        self.nodes: dict[str, Any] = read(file) if file.exists() else {}

    def reports(self, names: Iterable[str], part: str) -> list[Report]:
        """What there is of these runs, as `hrzs eval --json` wrote it."""
        return [Report.from_json(file) for name in names if (file := evaluation(name, part, self.folder)).exists()]

    def found(self, rows: Iterable[str], part: str) -> Some:
        """Row: the reports of its seeds; rows without any are left out."""
        return {row: seeds for row in rows if (seeds := self.reports(runs(row), part))}

    def first(self, rows: Iterable[str], part: str) -> dict[str, Report]:
        """Row: the report of its seed 0."""
        return {row: seeds[0] for row in rows if (seeds := self.reports(runs(row)[:1], part))}

    def certified(self) -> dict[str, Report]:
        """The reports with certificates, by model."""
        return {name: report for name in CERTIFIED for report in self.reports([name], "certified")}

    def weights(self, report: Report, level: int) -> Tensor:
        """What each image counts in a balanced figure, in the order of their ids; together 1."""
        return node_weights(self.every_node(report)[level])

    def of_images(self, report: Report) -> dict[str, Any]:
        digest = report.tasks[0].image_ids
        if digest not in self.nodes:
            raise SystemExit(f"{self.folder}/nodes.json does not know the images {digest}; make_results.py writes it")
        found: dict[str, Any] = self.nodes[digest]
        return found

    def every_node(self, report: Report) -> Tensor:
        """The node of each image at each level: (levels, n)."""
        return torch.tensor(self.of_images(report)["nodes"])

    def levels(self, report: Report) -> range:
        return range(len(self.of_images(report)["sizes"]))


# -- figures of one report ------------------------------------------------------------------------------------------


def rows_of(report: Report, attack: str, attack_level: object, eps: str | None = None) -> list[Row]:
    """One attack's rows, scored through prompts, leaves first."""
    aim = (attack, attack_level, "prompt")
    rows = [r for r in report.results if (r.attack, r.attack_level, r.scoring) == aim]
    return sorted((r for r in rows if eps in (None, r.eps)), key=lambda row: row.level)


def right(report: Report, what: str, level: int, eps: str | None = None) -> Tensor | None:
    """Which images are right at ``level``: clean, or under ``pgd`` or ``margin`` PGD aimed at it. None: not run."""
    attack = {"clean": "none", "margin": "cw", "pgd": "superclass-pgd" if level else "leaf-pgd"}.get(what, what)
    aim = None if what == "clean" else level
    rows = [r for r in rows_of(report, attack, aim, eps) if r.level == level]
    return from_bits(rows[0].correct, rows[0].n) if rows else None


def any_level(report: Report) -> Tensor | None:
    """Right at every level under the suite and under the margin loss at every level."""
    summary = report.summary.levels
    if not summary or summary[0].any_level_correct is None:
        return None
    held = from_bits(summary[0].any_level_correct, report.tasks[0].n)
    for level in range(len(report.tasks[0].levels) - 1):
        margin = right(report, "margin", level)
        if margin is None:
            return None
        held = held & margin
    return held


@dataclass(frozen=True)
class Measure:
    """A figure of a report: which images are right, and by the nodes of which level they are weighed.

    None: images alike. "all": the mean over levels of what balances each, as in `hrzs eval`.
    """

    title: str
    bits: Callable[[Report], Tensor | None]
    level: int | str | None

    def parts(self, store: Store, report: Report) -> Tensor | None:
        """What each image adds to the figure."""
        bits = self.bits(report)
        if bits is None:
            return None
        return bits.double() * self.weigh(store, report)

    def weigh(self, store: Store, report: Report) -> Tensor:
        n = report.tasks[0].n
        if self.level is None:
            return torch.full((n,), 1 / n, dtype=torch.float64)
        if self.level == "all":
            return weights_over_levels(store.every_node(report))
        assert isinstance(self.level, int)
        return store.weights(report, self.level)


def at(what: str, level: int, *, balanced: bool = True) -> Measure:
    names = {"clean": "clean", "margin": "margin PGD-20", "pgd": "PGD-20"}
    title = f"{names[what]}, {'leaves' if level == 0 else f'level {level}'}"
    return Measure(title, lambda report: right(report, what, level), level if balanced else None)


ANY = Measure("any-level robust", any_level, "all")
#: What rows are compared by.
DECIDING = (at("clean", 0), at("margin", 0), *(at("margin", level) for level in (1, 2, 3)), ANY)
LEAVES = (at("clean", 0), at("margin", 0), ANY)


def values(store: Store, seeds: Sequence[Report], measures: Iterable[Measure]) -> list[list[float]]:
    """The figures of each report that has them all."""
    measures = list(measures)
    found = [[m.parts(store, report) for m in measures] for report in seeds]
    return [[p.sum().item() for p in parts if p is not None] for parts in found if all(p is not None for p in parts)]


# -- tables ---------------------------------------------------------------------------------------------------------


def cell(seeds: Sequence[Sequence[float]]) -> str:
    """Percentages; with several seeds their mean ± standard deviation."""
    columns = [[100 * v for v in column] for column in zip(*seeds, strict=True)]
    return " / ".join(f"{mean(c):.1f}" + (f" ± {stdev(c):.1f}" if len(c) > 1 else "") for c in columns) or "–"


def table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print(f"\n**{title}**\n\n| | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def size(store: Store, some: Some) -> str:
    report = next(iter(some.values()))[0]
    n, sizes = report.tasks[0].n, store.of_images(report)["sizes"]
    return f"{n} images, levels of {' / '.join(map(str, sizes))} nodes"


def constant(store: Store, report: Report, *, balanced: bool) -> list[float]:
    """What always naming a level's most frequent node scores, clean or attacked."""
    found = []
    for nodes in store.of_images(report)["nodes"]:
        _, count = torch.tensor(nodes).unique(return_counts=True)
        found.append(1 / len(count) if balanced else count.max().item() / len(nodes))
    return found


def headline(store: Store, part: str, title: str, rows: Iterable[str] = MAIN) -> None:
    """Under attacks that do not flatter, balanced; then the rest."""
    some = store.found(rows, part)
    if not some:
        return
    report = next(iter(some.values()))[0]
    above = [level for level in store.levels(report) if level]
    autoattack, verdicts = store.found(rows, f"autoattack-{part}"), store.first(rows, "matrix")
    strong = Measure("AutoAttack", lambda r: right(r, "autoattack", 0), 0)
    shown = "/".join(map(str, above))
    attacked = "".join({f" ({r['config']['tasks'][0]['n']} images)" for seeds in autoattack.values() for r in seeds})
    lines = []
    for row, seeds in some.items():
        lines.append([
            row, str(len(seeds)), cell(values(store, seeds, [at("clean", 0)])),
            cell(values(store, seeds, [at("margin", 0)])), cell(values(store, autoattack.get(row, ()), [strong])),
            cell(values(store, seeds, [at("clean", level) for level in above])),
            cell(values(store, seeds, [at("margin", level) for level in above])),
            cell(values(store, seeds, [ANY])), *mistakes(seeds),
            verdict(verdicts[row]) if row in verdicts else "–",
        ])  # fmt: skip
    same = [[v] for v in constant(store, report, balanced=True)]
    nodes = store.every_node(report)
    # Right at every level is who names the leaf, and with it what lies above.
    path = cell([[constant_answer(nodes[0], weights_over_levels(nodes))]])
    upper = cell([[same[level][0] for level in above]])
    lines.append(
        ["a constant answer", "", cell(same[:1]), cell(same[:1]), cell(same[:1]), upper, upper, path, "–", "–", "–"]
    )
    head = ["seeds", "clean, leaves", "margin PGD-20, leaves", f"AutoAttack, leaves{attacked}",
            f"clean {shown}, balanced", f"margin PGD-20 {shown}, balanced", f"{ANY.title}, balanced", "severity",
            f"consistency {shown}", "masking"]  # fmt: skip
    table(f"{title}: {size(store, some)}", head, lines)
    lines = []
    every = list(store.levels(report))
    for row, seeds in some.items():
        alike = [[at(what, level, balanced=False) for level in every] for what in ("clean", "pgd", "margin")]
        lines.append([row, cell(values(store, seeds, [at("pgd", level) for level in every])),
                      *(cell(values(store, seeds, measures)) for measures in alike)])  # fmt: skip
    by_image = cell([constant(store, report, balanced=False)])
    lines.append(["a constant answer", cell([constant(store, report, balanced=True)]), by_image, by_image, by_image])
    levels = " / ".join(map(str, every))
    head = [f"PGD-20 {levels}, balanced", *(f"{w} {levels}, by image" for w in ("clean", "PGD-20", "margin PGD-20"))]
    table(f"{title}: cross-entropy, and images counted alike", head, lines)


def mistakes(seeds: Sequence[Report]) -> list[str]:
    """Severity (mean height of the common ancestor over all images, margin loss at the leaves) and consistency."""
    summaries = [report.summary.levels[0] for report in seeds if report.summary.levels]
    heights, agree = [], []
    for summary in summaries:
        for title, found in summary.severity.items():
            if title.startswith("cw at level 0"):
                heights.append(found["lca_height_all"])
                agree.append([share for share in summary.consistency[title] if share is not None])
    if not heights:
        return ["–", "–"]
    spread = f" ± {stdev(heights):.2f}" if len(heights) > 1 else ""
    return [f"{mean(heights):.2f}{spread}", cell(agree)]


def verdict(report: Report) -> str:
    found = report.summary.masking
    return "not run" if isinstance(found, str) else ", ".join(m.verdict for m in found)


def masking(store: Store) -> None:
    """The verdicts with their reasons."""
    lines = []
    for row, report in store.first([*MAIN, *SQUARED], "matrix").items():
        found = report.summary.masking
        for m in () if isinstance(found, str) else found:
            lines.append([row, m.verdict, "; ".join(m.reasons)])
    if lines:
        table("Are gradients masked? Seed 0", ["verdict", "reasons"], lines)


def defended(store: Store) -> None:
    """Behind defences at test time: clean, then static and adaptive on the margin, and what the defence adds."""
    lines: list[list[str]] = []
    for name in DEFENDED:
        bare = store.reports([name], "behind-none")
        for report in bare:
            clean, figures = (
                cell([[right_share(store, report, what, k) for k in store.levels(report)]])
                for what in ("clean", "margin")
            )
            lines.append([name, "none", str(report.tasks[0].n), clean, "–", figures, "–", "–", "–"])
        for defence in DEFENCES:
            for report in store.reports([name], f"behind-{defence}") if defence != "none" else ():
                found = report.summary.masking
                said = "–" if isinstance(found, str) else "; ".join(f"{m.adversary}: {m.verdict}" for m in found)
                lines.append([name, defence, *behind(store, report, bare), said])
    head = ["defence", "images", "clean", "static", "adaptive", "adaptive less static", "adaptive less none"]
    if lines:
        title = "Behind defences at test time, margin PGD-20, leaves and every level above, balanced"
        table(title, [*head, "masking"], lines)
    lines = [
        [name, harder, *behind(store, report, store.reports([name], "behind-none"))]
        for name in DEFENDED
        for harder in HARDER
        for report in store.reports([name], f"harder-{harder}")
    ]
    if lines:
        table("The same under adversaries who try harder, at the leaves", head, lines)


def behind(store: Store, report: Report, bare: Sequence[Report]) -> list[str]:
    """Images, and balanced figures of the levels attacked: clean, static, adaptive, and adaptive less static and bare.

    The images are the first of those of ``bare``, the model without a defence.
    """
    assert report.summary.defending is not None
    gaps = [gap for gap in report.summary.defending.gaps if gap.attack == "cw"]
    clean = cell([[right_share(store, report, "clean", gap.level) for gap in gaps]])
    static, adaptive = (cell([[getattr(gap, f"{which}_balanced") for gap in gaps]]) for which in ("other", "this"))
    apart = " / ".join(points(gap.difference_balanced, gap.difference_balanced_ci95) for gap in gaps)
    n, added = report.tasks[0].n, []
    for other in bare:
        assert torch.equal(store.every_node(other)[:, :n], store.every_node(report))
        for gap in gaps:
            rows = [row for row in rows_of(report, "cw", gap.level) if row.level == gap.level]
            held = next(from_bits(row.correct, n) for row in rows if row.adversary == "adaptive")
            without = right(other, "margin", gap.level)
            assert without is not None
            added.append(str(paired([held], [without[:n]], store.weights(report, gap.level))))
    return [str(n), clean, static, adaptive, apart, " / ".join(added) or "–"]


def right_share(store: Store, report: Report, what: str, level: int) -> float:
    """A balanced figure."""
    bits = right(report, what, level)
    assert bits is not None
    return float((bits * store.weights(report, level)).sum())


def points(value: float | None, interval: tuple[float, float] | None) -> str:
    """A difference in points, with its interval."""
    if value is None or interval is None:
        return "–"
    return f"{100 * value:+.1f} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"


def certified(store: Store) -> None:
    """Certified accuracy, level by level, at the radii 0, σ, 2σ, …; and the difference of the two models."""
    found = store.certified()
    lines: list[list[str]] = []
    radii: list[float] = []
    for name, report in found.items():
        for one in report.certificates:
            radii = [point.radius for point in one.every_sigma]
            lines.append([
                name, str(one.level), cell([[one.constant_balanced]]), cell([[one.abstained_balanced]]),
                cell([[one.clean_balanced]]), *(cell([[point.balanced]]) for point in one.every_sigma),
                f"{one.average_radius_balanced:.3f}",
            ])  # fmt: skip
    if not lines:
        return
    radius_of = [f"r {radius:g}" for radius in radii]
    head = ["level", "a constant answer", "abstained", "smoothed, clean", *radius_of, "average radius"]
    table("Certified accuracy within an ℓ2 radius r, balanced", head, lines)
    if len(found) < 2:
        return
    (first, one), (second, other) = found.items()

    def less(level: int, radius: float) -> Difference:
        truth = store.every_node(one)[level]
        ours, theirs = ([certified_images(r.certificates[level], truth, radius)] for r in (other, one))
        return paired(ours, theirs, store.weights(one, level))

    compared = [(f"level {level}", [less(level, radius) for radius in radii]) for level in store.levels(one)]
    differences(f"Certified accuracy, {second} less {first}; intervals hold images alone", radius_of, compared)


# -- differences ----------------------------------------------------------------------------------------------------


def difference(store: Store, ours: Sequence[Report], theirs: Sequence[Report], measure: Measure) -> Difference | None:
    """None where a figure is missing, or where other images were looked at."""
    if len({r.tasks[0].image_ids for r in (*ours, *theirs)}) > 1:
        return None
    a, b = ([bits for r in seeds if (bits := measure.bits(r)) is not None] for seeds in (ours, theirs))
    if not a or not b:
        return None
    return paired(a, b, measure.weigh(store, ours[0]))


def differences(title: str, head: Sequence[str], lines: Sequence[tuple[str, Sequence[Difference | None]]]) -> None:
    """A table of them, corrected for how many it holds."""
    cells = [d for _, line in lines for d in line if d is not None]
    if not cells:
        return
    corrected = dict(zip(map(id, cells), holm([d.p for d in cells]), strict=True))

    def show(d: Difference | None) -> str:
        if d is None:
            return "–"
        bold = "**" * (corrected[id(d)] < 0.05)
        return f"{bold}{d}{bold}{' ≈' * d.is_equivalence}"

    table(f"{title}, in points ({len(cells)} comparisons)", head, ([row, *map(show, line)] for row, line in lines))


def is_whole(some: Some, *rows: str) -> bool:
    """Are all seeds there? A row that lacks some could pass for one without any spread; the untouched model has one."""
    return all(len(some.get(row, ())) == len(runs(row)) for row in rows)


def claim(store: Store, part: str, title: str, rows: Iterable[str] = MAIN, suffix: str = "") -> None:
    """`hierarchical` less each other row."""
    some = store.found(rows, part)
    ours = OURS + suffix
    if ours not in some:
        return
    lines = [(row, [difference(store, some[ours], seeds, m) for m in DECIDING])
             for row, seeds in some.items() if row != ours and is_whole(some, row, ours)]  # fmt: skip
    differences(f"{title}: {ours} less each other row", [m.title for m in DECIDING], lines)


def square(store: Store, part: str, title: str) -> None:
    """What is averaged × what is weighed, and the effect of each."""
    some = store.found(SQUARED, part)
    if not some:
        return
    headline(store, part, f"What is averaged × what is weighed. {title}", SQUARED)
    (a, b), (c, d) = SQUARE
    pairs = {"means less per-image, by image": (c, a), "means less per-image, by node": (d, b),
             "node less image weights, per image": (b, a), "node less image weights, means": (d, c)}  # fmt: skip
    lines = [(name, [difference(store, some[x], some[y], m) for m in DECIDING])
             for name, (x, y) in pairs.items() if is_whole(some, x, y)]  # fmt: skip
    differences(f"The 2 × 2. {title}", [m.title for m in DECIDING], lines)


def ablations(store: Store, part: str, title: str) -> None:
    """One seed each: its figures, and what it has less than `hierarchical`."""
    names = {OURS: runs(OURS)[0], **{name: name for name in ABLATIONS}}
    some = {row: seeds for row, name in names.items() if (seeds := store.reports([name], part))}
    if OURS not in some or len(some) < 2:
        return
    above = (1, 2, 3)
    lines = []
    for row, seeds in some.items():
        name = row if row in ABLATIONS else f"tune-{OURS}-{best_rate(OURS, store.folder)[0]}"
        record = training(name, store.folder)
        step = read(record)["step_seconds"] if record.exists() else None
        lines.append([
            row, *(cell(values(store, seeds, [m])) for m in LEAVES),
            cell(values(store, seeds, [at("clean", level) for level in above])),
            cell(values(store, seeds, [at("margin", level) for level in above])), f"{step:.2f}" if step else "–",
        ])  # fmt: skip
    head = [*(m.title for m in LEAVES), "clean 1/2/3, balanced", "margin PGD-20 1/2/3, balanced", "seconds a step"]
    table(f"Ablations, seed 0. {title}: {size(store, some)}", head, lines)
    lessened = [(row, [difference(store, seeds, some[OURS], m) for m in DECIDING])
                for row, seeds in some.items() if row != OURS]  # fmt: skip
    title = f"Ablations, seed 0. {title}: each less {OURS}; intervals hold images alone"
    differences(title, [m.title for m in DECIDING], lessened)


def corruptions(store: Store, part: str, title: str) -> None:
    """Clean accuracy of the leaves on corrupted images."""
    names = ["untouched-new", *(f"{row}-new" for row in NEW)]
    lines = []
    for row in names:
        seeds = store.reports(runs(row), f"{part}-corrupted")
        found = [{r.dataset: r.clean for r in report.results if r.level == 0} for report in seeds]
        if found:
            means = [[mean(one[name] for name in CORRUPTIONS)] for one in found]
            lines.append([row, str(len(found)), *(cell([[one[name]] for one in found]) for name in CORRUPTIONS),
                          cell(means)])  # fmt: skip
    if lines:
        table(f"Corrupted images, clean accuracy of the leaves. {title}", ["seeds", *CORRUPTIONS, "mean"], lines)


def tuning(store: Store) -> None:
    """Each row at each rate that was tried, on the images for tuning."""
    lines = []
    for row in ROWS:
        best = best_rate(row, store.folder)[0]
        for rate in tried(row, store.folder):
            look = looked(row, rate, store.folder)
            shown = [look.get("clean_balanced", look["clean"]), look.get("robust_balanced", look["robust"])]
            lines.append([row, f"**{rate}**" if rate == best else rate, *(cell([v]) for v in shown),
                          cell([[look["criterion"]]])])  # fmt: skip
    if lines:
        head = ["lr", "clean by level", "robust by level", "criterion"]
        table("Tuning: the first 5 images of each seen class, PGD-10 at the level itself, seed 0", head, lines)


def depth(store: Store) -> None:
    """Where the embeddings of each level lie at the end, in the order of levels; what the log of a run has of it."""
    lines = []
    for row in ROWS:
        record = training(f"tune-{row}-{best_rate(row, store.folder)[0]}", store.folder)
        if not record.exists():
            continue
        found = read(record)
        logs = [found["first"], found["last"]]
        cells = []
        for prefix in ("radius_text_", "radius_image_", "margin_"):
            keys = sorted(k for k in logs[1] if k.startswith(prefix) and k.removeprefix(prefix).isdecimal())
            shown = [" / ".join(f"{log[k]:.2f}" for k in keys if k in log) for log in logs]
            cells.append(" → ".join(shown) if keys else "–")
        ordered = [logs[1][k] for k in logs[1] if k.startswith("edges_ordered")]
        cells.append(" / ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in ordered) or "–")
        if any(c != "–" for c in cells):
            lines.append([row, *cells])
    if lines:
        head = ["radius of texts by level, start → end", "of images", "largest realised margin", "edges ordered"]
        table("Depth, seed 0", head, lines)


def matrices(store: Store) -> None:
    """robust[m][l]: attacked at m, scored at l."""
    some = store.first([*MAIN, *SQUARED], "matrix")
    if not some:
        return
    levels = list(store.levels(next(iter(some.values()))))
    names = [("leaf-pgd", 0), *(("superclass-pgd", level) for level in levels[1:])]
    lines = [[row, *(cell([[r.robust for r in rows_of(report, *name)]]) for name in names)]
             for row, report in some.items()]  # fmt: skip
    shown = " / ".join(map(str, levels))
    table(
        f"Attacked at a level, scored at levels {shown}, by image, seed 0", [f"attacked at {m}" for m in levels], lines
    )


def curves(store: Store) -> None:
    """Balanced robust accuracy at the level attacked for each ε."""
    lines = []
    for name in CURVES:
        for report in store.reports([name], "curve"):
            for eps in ("2/255", "4/255"):
                levels = store.levels(report)
                measures = [Measure("", lambda r, m=m, e=eps: right(r, "pgd", m, e), m) for m in levels]
                lines.append([name, eps, cell(values(store, [report], measures))])
    if lines:
        table("Larger ε, PGD-20, balanced, seed 0", ["ε", "robust by level"], lines)


# -- figures --------------------------------------------------------------------------------------------------------


def save(figure: Figure, file: Path) -> None:
    """Neither date nor random ids: the same figures give the same file."""
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"svg.hashsalt": "hrzs"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def draw_collapse(store: Store, images: Path) -> None:
    """The paper's Figure 1: accuracy of each level when clean, under attack at the leaves, and at the level itself."""
    some = store.first(MAIN, "matrix")
    if not some:
        return
    lines = math.ceil(len(some) / 4)
    figure = Figure(figsize=(10, 2.6 * lines + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[len(some) :]:
        axes.remove()
    for axes in panels[: len(some)][-4:]:
        axes.tick_params(labelbottom=True)
    for axes, (row, report) in zip(panels, some.items(), strict=False):
        levels = store.levels(report)
        transfer = [
            100 * (from_bits(r.correct, r.n).double() * store.weights(report, r.level)).sum().item()
            for r in rows_of(report, "leaf-pgd", 0)
        ]
        for what, style, color, label in (
            ("clean", "o-", "tab:grey", "clean"),
            ("pgd", "v:", "tab:red", "this level attacked"),
        ):
            (points,) = values(store, [report], [at(what, level) for level in levels]) or [[]]
            axes.plot([100 * v for v in points], style, color=color, label=label)
        axes.plot(transfer, "s--", color="tab:blue", label="leaves attacked")
        axes.plot(
            [100 * v for v in constant(store, report, balanced=True)],
            "-",
            color="black",
            lw=0.5,
            label="a constant answer",
        )
        axes.set_title(row, fontsize="medium")
        axes.set(ylim=(0, 100), xticks=list(levels))
        axes.grid(alpha=0.3)
    figure.supxlabel("level scored (0: leaves)")
    figure.supylabel("balanced accuracy in %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    save(figure, images / "collapse.svg")


def draw_tradeoff(store: Store, images: Path) -> None:
    """Clean accuracy at the leaves against robust accuracy, there, at level 2 and at any, with the spread of seeds."""
    parts = {part: some for part in ("seen", "unseen") if (some := store.found(MAIN, part))}
    if not parts:
        return
    shown = at("margin", 0), at("margin", 2), ANY
    pairs = matplotlib.colormaps["tab20"].colors
    colors = (*pairs[::2], *pairs[1::2])  # the dark ones first
    figure = Figure(figsize=(12, 3.6 * len(parts) + 0.6), layout="constrained")
    panels = figure.subplots(len(parts), len(shown), squeeze=False)
    for line, (part, some) in zip(panels, parts.items(), strict=True):
        for axes, measure in zip(line, shown, strict=True):
            for i, (row, seeds) in enumerate(some.items()):
                points = values(store, seeds, [at("clean", 0), measure])
                if not points:
                    continue
                x, y = ([100 * v for v in column] for column in zip(*points, strict=True))
                spread = [stdev(v) if len(v) > 1 else 0.0 for v in (x, y)]
                marker, color = "osvD^P*X"[i % 8], colors[i % len(colors)]
                axes.errorbar(mean(x), mean(y), spread[1], spread[0], marker, color=color, label=row, capsize=2)
            axes.set(xlabel=f"clean accuracy at the leaves in %, {part}", ylabel=f"{measure.title}, balanced, in %")
            axes.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small")
    save(figure, images / "tradeoff.svg")


def draw_certified(store: Store, images: Path) -> None:
    """Certified accuracy over the radius, a panel for each level."""
    found = store.certified()
    if not found:
        return
    levels = store.levels(next(iter(found.values())))
    figure = Figure(figsize=(2.6 * len(levels), 2.9), layout="constrained")
    panels = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    for level, axes in zip(levels, panels, strict=True):
        for name, report in found.items():
            one = report.certificates[level]
            radii = [point.radius for point in one.certified]
            held = [100 * point.balanced for point in one.certified]
            axes.plot([*radii, radii[-1]], [*held, 0], label=name)  # beyond it nothing can be certified
        axes.axhline(100 * one.constant_balanced, color="black", lw=0.5, label="a constant answer")
        axes.set_title("leaves" if level == 0 else f"level {level}", fontsize="medium")
        axes.set(ylim=(0, 100))
        axes.grid(alpha=0.3)
    figure.supxlabel("radius in ℓ2, of pixels in [0, 1]")
    figure.supylabel("certified, balanced, in %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    save(figure, images / "certified.svg")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON lies")
    parser.add_argument("--figures", type=Path, default=IMAGES, help="where the figures go")
    options = parser.parse_args(arguments)
    store = Store(options.results)
    parts = (("seen", "Seen classes"), ("unseen", "Unseen classes, zero-shot"))
    for part, title in parts:
        headline(store, part, title)
        claim(store, part, title)
    for part, title in parts:
        square(store, part, title)
    for part, title in parts:
        ablations(store, part, title)
    fresh = ["untouched-new", *(f"{row}-new" for row in NEW)]
    for part, title in parts:
        headline(store, f"new-{part}", f"Fine-tuned on new images. {title}", fresh)
        claim(store, f"new-{part}", f"Fine-tuned on new images. {title}", fresh, "-new")
        corruptions(store, f"new-{part}", title)
    masking(store)
    depth(store)
    matrices(store)
    curves(store)
    defended(store)
    certified(store)
    tuning(store)
    if SAME:
        print("\nThe same runs: " + ", ".join(f"{row} is {other}" for row, other in SAME.items()) + ".")
    options.figures.mkdir(exist_ok=True)
    draw_collapse(store, options.figures)
    draw_tradeoff(store, options.figures)
    draw_certified(store, options.figures)


if __name__ == "__main__":
    main()
