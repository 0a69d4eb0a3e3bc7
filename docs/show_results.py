"""The tables of docs/results.md and its figures, from the JSON in docs/results/: `python docs/show_results.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

import matplotlib
import torch
from make_results import (
    ABLATIONS,
    BEYOND,
    CURVES,
    HEADLINE,
    LONGER,
    METHODS,
    RESULTS,
    SEEDS,
    evaluation,
    looked,
    read,
    training,
)
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hrzs.evaluation.metrics import from_bits

Report: TypeAlias = dict[str, Any]

IMAGES = Path(__file__).parent / "images"
LEVELS = "0 / 1 / 2 / 3"
ROWS = {"untouched": ["untouched"], **{method: [f"{method}-s{seed}" for seed in SEEDS] for method in METHODS}}
#: What the claim is about.
DECIDING = ("clean, leaves", "PGD-20, leaves", "any-level robust")
OURS, ANCHORED = "hierarchical", "hierarchical-anchor"


def reports(names: Iterable[str], part: str) -> list[Report]:
    """What there is of these runs, as `hrzs eval --json` wrote it; the margin loss may have a file of its own."""
    some = []
    for name in names:
        if evaluation(name, part).exists():
            some.append(read(evaluation(name, part)))
            if (margin := evaluation(name, f"{part}-margin")).exists():
                some[-1]["results"] += [row for row in read(margin)["results"] if row["attack"] == "cw"]
    return some


def found(part: str) -> dict[str, list[Report]]:
    """Row of the main table: the reports of its seeds; rows without any are left out."""
    return {row: seeds for row, names in ROWS.items() if (seeds := reports(names, part))}


def rows_of(report: Report, attack: str, attack_level: object, eps: str | None = None) -> list[dict[str, Any]]:
    """One attack's rows, scored through prompts, leaves first."""
    aim = (attack, attack_level, "prompt")
    rows = [r for r in report["results"] if (r["attack"], r["attack_level"], r["scoring"]) == aim]
    return sorted((r for r in rows if eps in (None, r["eps"])), key=lambda row: row["level"])


def clean(report: Report) -> list[float]:
    """Clean accuracy of each level."""
    return [row["clean"] for row in rows_of(report, "none", None)]


def direct_rows(report: Report, attack: str, eps: str | None = None) -> list[dict[str, Any]]:
    """The row of each level under the attack that aims at it; ``pgd`` stands for leaf-pgd and superclass-pgd."""
    names = [attack if attack != "pgd" else "superclass-pgd" if level else "leaf-pgd" for level in range(4)]
    return [r for level, name in enumerate(names) for r in rows_of(report, name, level, eps) if r["level"] == level]


def direct(report: Report, attack: str, eps: str | None = None) -> list[float]:
    """Robust accuracy of each level under the attack that aims at it; empty if that was not run."""
    return [row["robust"] for row in direct_rows(report, attack, eps)]


def any_level(report: Report, key: str) -> list[float]:
    """``any_level_clean`` or ``any_level_robust``; empty if the suite was not run."""
    value = report["summary"]["levels"][0][key]
    return [] if value is None else [value]


# -- tables --------------------------------------------------------------------------------------------------------


def cell(seeds: Sequence[Sequence[float]]) -> str:
    """Percentages; with several seeds their mean ± standard deviation."""
    columns = [[100 * v for v in column] for column in zip(*seeds, strict=True)]
    return " / ".join(f"{mean(c):.1f}" + (f" ± {stdev(c):.1f}" if len(c) > 1 else "") for c in columns) or "–"


def table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print(f"\n**{title}**\n\n| | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def size(some: dict[str, list[Report]]) -> str:
    task = next(iter(some.values()))[0]["config"]["tasks"][0]
    return f"{task['n']} images, levels of {' / '.join(map(str, task['levels'][:-1]))} nodes"


def tuning(folder: Path = RESULTS) -> None:
    """Each method at each rate that was tried, on the images for tuning."""
    lines = []
    for method in METHODS:
        tried = [rate for rate in BEYOND if (folder / training(f"tune-{method}-{rate}").name).exists()]
        looks = {rate: looked(method, rate, folder) for rate in tried}
        best = max(looks, key=lambda rate: looks[rate]["criterion"], default=None)
        for rate, look in looks.items():
            figures = [cell([look["clean"]]), cell([look["robust"]]), cell([[look["any_level"]]]),
                       cell([[look["criterion"]]])]  # fmt: skip
            lines.append([method, f"**{rate}**" if rate == best else rate, *figures])
    if lines:
        head = ["lr", f"clean {LEVELS}", f"robust {LEVELS}", "any-level robust", "balanced"]
        table(f"Tuning{', in fp32' * (folder != RESULTS)}: 750 images, PGD-10 at the level itself, seed 0", head, lines)


def accuracies(part: str, title: str) -> None:
    """The main table, on seen or unseen classes."""
    if some := found(part):
        head = ["seeds", f"clean {LEVELS}", f"PGD-20 {LEVELS}", f"margin PGD-20 {LEVELS}", "any-level clean",
                "any-level robust"]  # fmt: skip
        table(f"{title}: {size(some)}", head, ([row, str(len(seeds)), *figures(seeds)] for row, seeds in some.items()))


def figures(seeds: Sequence[Report]) -> list[str]:
    return [
        cell([clean(report) for report in seeds]),
        cell([direct(report, "pgd") for report in seeds]),
        cell([margin for report in seeds if (margin := direct(report, "cw"))]),
        cell([any_level(report, "any_level_clean") for report in seeds]),
        cell([any_level(report, "any_level_robust") for report in seeds]),
    ]


def right(seeds: Sequence[Report], what: str) -> torch.Tensor:
    """Which images are right in each report that has this, in the order of their ids: float64, shape (reports, n)."""
    found = []
    for report in seeds:
        n, summary = report["config"]["tasks"][0]["n"], report["summary"]["levels"][0]
        rows = {
            "clean, leaves": rows_of(report, "none", None),
            "PGD-20, leaves": direct_rows(report, "pgd"),
            "margin PGD-20, leaves": direct_rows(report, "cw"),
            "any-level robust": [{"right": summary["any_level_right"]}],
        }
        found += [from_bits(row["right"], n) for row in rows[what][:1]]
    return torch.stack(found).double()


def difference(ours: Sequence[Report], theirs: Sequence[Report], what: str) -> str:
    """Image by image: the mean over seeds, with its 95% interval over images; bold beyond that."""
    points = 100 * (right(ours, what).mean(0) - right(theirs, what).mean(0))
    half, middle = 1.96 * points.std().item() / math.sqrt(len(points)), points.mean().item()
    bold = "**" * (abs(middle) > half)
    return f"{bold}{middle:+.1f} ± {half:.1f}{bold}"


def claim(part: str, title: str, ours: str) -> None:
    """``ours`` less each other row."""
    some = found(part)
    if ours not in some:
        return
    head = ["clean, leaves", "PGD-20, leaves", "margin PGD-20, leaves", "any-level robust"]
    lines = []
    for row, seeds in some.items():
        if row.startswith("hierarchical"):
            continue
        lines.append([row, *(difference(some[ours], seeds, what) for what in head)])
    table(f"{title}: {ours} less each other row, in points", head, lines)


#: Columns of `single`.
SINGLE = [f"clean {LEVELS}", f"PGD-20 {LEVELS}", "any-level clean", "any-level robust"]


def single(seeds: Sequence[Report], ours: Sequence[Report] | None) -> list[str]:
    """A run of one seed, and where ``ours`` is given what it has less that."""
    clean_there, robust_there, _, *any_levels = figures(seeds)
    less = ["" if ours is None else difference(seeds, ours, what) for what in DECIDING]
    return [clean_there, robust_there, *any_levels, *less]


def ablations() -> None:
    """One seed each."""
    names = {OURS: f"{OURS}-s0", **{name: name for name in ABLATIONS}}
    some = {row: seeds for row, name in names.items() if (seeds := reports([name], "seen"))}
    if not some:
        return
    lines = []
    for row, seeds in some.items():
        ours, trained = (some[OURS], row) if row in ABLATIONS else (None, f"{OURS}-s1")
        lines.append([row, *single(seeds, ours), f"{read(training(trained))['step_seconds']:.2f}"])
    head = [*SINGLE, *(f"{what}, less {OURS}" for what in DECIDING), "seconds a step"]
    table(f"Ablations, seed 0: {size(some)}", head, lines)


def longer() -> None:
    """The short run beside the one of three times its steps."""
    names = [name for row, method in LONGER.items() if reports([row], "seen") for name in (f"{method}-s0", row)]
    some = {name: reports([name], "seen") for name in names}
    ours = f"{OURS}-longer"
    if ours not in some:
        return
    head = [*SINGLE, *(f"{what}, less {ours}" for what in DECIDING)]
    lines = [[name, *single(seeds, some[ours] if name in LONGER and name != ours else None)]
             for name, seeds in some.items()]  # fmt: skip
    table(f"Three times the steps, seed 0: {size(some)}", head, lines)


def strongest() -> None:
    """AutoAttack at the leaves, and aa-2 at every level, with the number of images."""
    if some := found("autoattack"):
        lines = []
        for row, (report,) in some.items():
            (leaf,) = rows_of(report, "autoattack", 0)
            low, high = (100 * bound for bound in leaf["robust_ci95"])
            lines.append([row, f"{100 * leaf['clean']:.1f}", f"{100 * leaf['robust']:.1f} ({low:.1f} to {high:.1f})"])
        table(f"AutoAttack at the leaves, fp32, seed 0: {size(some)}", ["clean", "robust"], lines)
    if some := found("aa-2"):
        lines = [[row, cell([clean(report)]), cell([direct(report, "aa-2")])] for row, (report,) in some.items()]
        table(
            f"aa-2 at every level, gradients in bf16, seed 0: {size(some)}",
            [f"clean {LEVELS}", f"robust {LEVELS}"],
            lines,
        )


def precision() -> None:
    """The same runs and images with attack gradients in fp32 and in bf16."""
    lines = []
    for name in HEADLINE:
        for label, part in (("fp32", "fp32"), ("bf16", "seen")):
            lines += [[name, label, cell([direct(report, "pgd")])] for report in reports([name], part)]
    if lines:
        table("PGD-20, gradients in fp32 and in bf16 (verdicts always in fp32)", ["", f"robust {LEVELS}"], lines)


def matrices() -> None:
    """robust[m][l]: attacked at m, scored at l."""
    if some := found("matrix"):
        names = [("leaf-pgd", 0), *(("superclass-pgd", level) for level in range(1, 4))]
        lines = [[row, *(cell([[r["robust"] for r in rows_of(report, *name)]]) for name in names)]
                 for row, (report,) in some.items()]  # fmt: skip
        table(
            f"Attacked at a level, scored at levels {LEVELS}, seed 0: {size(some)}",
            [f"attacked at {level}" for level in range(4)],
            lines,
        )


def curves() -> None:
    """Robust accuracy at the level attacked for each ε."""
    lines = [
        [name, eps, cell([direct(report, "pgd", eps)])]
        for name in CURVES
        for report in reports([name], "curve")
        for eps in ("2/255", "4/255")
    ]
    if lines:
        table("Larger ε, PGD-20, 300 images, seed 0", ["ε", f"robust {LEVELS}"], lines)


# -- figures -------------------------------------------------------------------------------------------------------


def save(figure: Figure, name: str) -> None:
    """Neither date nor random ids: the same figures give the same file."""
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"svg.hashsalt": "hrzs"}):
        figure.savefig(IMAGES / name, format="svg", metadata={"Date": None})


def draw_collapse() -> None:
    """The paper's Figure 1: accuracy of each level when clean, under attack at the leaves, and at the level itself."""
    if not (some := found("matrix")):
        return
    lines = math.ceil(len(some) / 4)
    figure = Figure(figsize=(10, 2.6 * lines + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[len(some) :]:
        axes.remove()
    for axes in panels[: len(some)][-4:]:
        axes.tick_params(labelbottom=True)
    for axes, (row, (report,)) in zip(panels, some.items(), strict=False):
        axes.plot([100 * v for v in clean(report)], "o-", color="tab:grey", label="clean")
        transfer = [100 * r["robust"] for r in rows_of(report, "leaf-pgd", 0)]
        axes.plot(transfer, "s--", color="tab:blue", label="leaves attacked")
        axes.plot([100 * v for v in direct(report, "pgd")], "v:", color="tab:red", label="this level attacked")
        axes.set_title(row, fontsize="medium")
        axes.set(ylim=(0, 100), xticks=range(4))
        axes.grid(alpha=0.3)
    figure.supxlabel("level scored (0: leaves)")
    figure.supylabel("accuracy in %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    save(figure, "collapse.svg")


def draw_tradeoff() -> None:
    """Clean accuracy at the leaves against robust accuracy, there and at any level, with the spread of seeds."""
    parts = {part: some for part in ("seen", "unseen") if (some := found(part))}
    if not parts:
        return
    shown = DECIDING[1], "margin PGD-20, leaves", DECIDING[2]
    pairs = matplotlib.colormaps["tab20"].colors
    colors = (*pairs[::2], *pairs[1::2])  # the dark ones first
    figure = Figure(figsize=(12, 3.6 * len(parts) + 0.6), layout="constrained")
    panels = figure.subplots(len(parts), len(shown), squeeze=False)
    for line, (part, some) in zip(panels, parts.items(), strict=True):
        for axes, what in zip(line, shown, strict=True):
            for i, (row, seeds) in enumerate(some.items()):
                x, y = ((100 * right(seeds, kind).mean(1)).tolist() for kind in ("clean, leaves", what))
                spread = [stdev(v) if len(v) > 1 else 0.0 for v in (x, y)]
                marker, color = "osvD^P*X"[i % 8], colors[i % len(colors)]
                axes.errorbar(mean(x), mean(y), spread[1], spread[0], marker, color=color, label=row, capsize=2)
            axes.set(xlabel=f"clean accuracy at the leaves in %, {part}", ylabel=f"{what}, in %")
            axes.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize="small")
    save(figure, "tradeoff.svg")


def draw_curves() -> None:
    """Leaf-robust accuracy over ε."""
    some = {name: (reports([name], "seen"), reports([name], "curve")) for name in CURVES}
    some = {name: pair for name, pair in some.items() if all(pair)}
    if not some:
        return
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, level in zip(figure.subplots(1, 2), (0, 1), strict=True):
        for name, ((small,), (large,)) in some.items():
            robust = [clean(small)[level], direct(small, "pgd")[level]]
            robust += [direct(large, "pgd", eps)[level] for eps in ("2/255", "4/255")]
            axes.plot([0, 1, 2, 4], [100 * v for v in robust], "o-", label=name)
        axes.set(xlabel="ε × 255", ylabel=f"accuracy at level {level} in %", xticks=[0, 1, 2, 4], ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    save(figure, "curves.svg")


if __name__ == "__main__":
    accuracies("seen", "Seen classes")
    for ours in (OURS, ANCHORED):
        claim("seen", "Seen classes", ours)
    accuracies("unseen", "Unseen classes, zero-shot")
    for ours in (OURS, ANCHORED):
        claim("unseen", "Unseen classes, zero-shot", ours)
    strongest()
    matrices()
    curves()
    ablations()
    longer()
    precision()
    tuning()
    tuning(RESULTS / "fp32")
    draw_collapse()
    draw_tradeoff()
    draw_curves()
