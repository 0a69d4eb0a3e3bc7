"""The evidence of docs/results.md: `make results` runs what is missing, then prints the tables.

    python docs/make_results.py --images tiny-imagenet --config clip-rn-64.json --weights clip-rn-64.safetensors

A run or evaluation whose JSON lies in docs/results/ already is not made again, so it goes on where it was stopped, on
any machine; `--plan` says what is left and what it costs, `--tables` prints what there is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH = 80, 128
RATES = ("2e-4", "4e-4", "8e-4")
SEEDS = (0, 1, 2)
#: Images of each class: the first 5 of the validation split tune, the others report.
TUNING, SEEN, UNSEEN, CURVE, AUTOATTACK = 5 * 150, 5 * 150, 10 * 50, 2 * 150, 2 * 150

#: Row of the main table: options of `hrzs finetune`. tga-zsr has no row: this model's image encoder is a ResNet.
METHODS: dict[str, tuple[str, ...]] = {
    "tecoa": ("--method", "tecoa"),
    "hierarchical": ("--method", "hierarchical"),
    "tecoa-every-level": ("--method", "tecoa", "--every-level"),
    "pmg-aft": ("--method", "pmg-aft"),
    "fare": ("--method", "fare"),
    "clean": ("--method", "clean"),
    "trades": ("--method", "trades"),
    "hierarchical-3-trees": ("--method", "hierarchical", "--tree", "{tree2}", "--tree", "{tree3}"),
}
#: Each differs from `hierarchical` (alignment alone: no vicinity, no gap, no HNSA) in what is named; one seed.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "vic": ("--lambda-vic", "0.1"),
    "gap": ("--lambda-gap", "0.1"),
    "hnsa-lower": ("--hnsa", "lower"),
    "hnsa-upper": ("--hnsa", "upper"),
    "hnsa-both": ("--hnsa", "both"),
    "full": ("--hnsa", "both", "--lambda-vic", "0.1", "--lambda-gap", "0.1"),
    "hypavg": ("--image-levels", "hypavg"),
    "paper": ("--image-levels", "hypavg", "--hnsa", "both", "--lambda-vic", "1", "--lambda-gap", "1"),
    "neighbours": ("--per-class", "4"),
    "hypavg-neighbours": ("--image-levels", "hypavg", "--per-class", "4"),
    "mixed-neighbours": ("--image-levels", "mixed", "--per-class", "4"),
    "leaf-perturbation": ("--perturbation", "leaf"),
    "per-level-perturbation": ("--perturbation", "per-level"),
    "euclidean": ("--geometry", "euclidean"),
    "equal-weights": ("--level-weights", "equal"),
}


#: Rows of an earlier, smaller measurement, whose JSON lies in docs/results/pilot/ (docs/results.md): file names.
PILOT = {
    "untouched": ["untouched"],
    "TeCoA, lr 2e-4": ["tecoa-2e-4"],
    "TeCoA, lr 4e-4": ["tecoa", "tecoa-s1"],
    "TeCoA at every level, lr 3e-4": ["tecoa-every"],
    "hierarchical, lr 3e-4, β 12": ["hierarchical", "hierarchical-s1"],
}


@dataclass(frozen=True)
class Job:
    """One command, and the file of docs/results/ that says it is done."""

    name: str
    done: Path
    seconds: int  # a guess, for the plan: measured on two cores


@dataclass(frozen=True)
class Place:
    """Where things lie, and how they are run."""

    images: Path
    config: Path
    weights: Path
    work: Path
    threads: int

    @property
    def untouched(self) -> tuple[str, ...]:
        return ("--model", str(self.config), "--pretrained", str(self.weights))

    def tree(self, number: int) -> Path:
        return self.work / f"tree{number}.yaml"

    def classes(self, part: str) -> Path:
        return self.work / f"{part}.txt"

    def hrzs(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "hrzs", *arguments]
        print("$ hrzs", *arguments, file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def prepare(self) -> None:
        """Lists of classes and trees: WordNet depths, because the model knows the words of depths 8, 6 and 4."""
        self.work.mkdir(parents=True, exist_ok=True)
        RESULTS.mkdir(exist_ok=True)
        ids = sorted(folder.name for folder in (self.images / "val").iterdir())
        for part, chosen in (("unseen", ids[3::4]), ("seen", [c for i, c in enumerate(ids) if i % 4 != 3])):
            self.classes(part).write_text("".join(f"{c}\n" for c in chosen))
        for number, depths in ((1, "8,6,4"), (2, "7,5"), (3, "9,6,3")):
            if not self.tree(number).exists():
                self.hrzs("build-tree", "--classes", str(self.images / "val"), "--depths", depths, "--quiet",
                          "-o", str(self.tree(number)))  # fmt: skip


def training(name: str) -> Path:
    return RESULTS / f"training-{name}.json"


def evaluation(name: str, part: str, folder: Path = RESULTS) -> Path:
    return folder / f"{name}-{part}.json"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


# -- training --------------------------------------------------------------------------------------------------------


def train(place: Place, name: str, options: Sequence[str], rate: str, seed: int) -> None:
    """One run, looked at once, at its end, on the images for tuning."""
    folder = place.work / name
    filled = [o.format(tree2=place.tree(2), tree3=place.tree(3)) for o in options]
    place.hrzs(
        "finetune", *place.untouched, "--data", str(place.images), "--split", "train",
        "--classes", str(place.classes("seen")), "--tree", str(place.tree(1)), *filled,
        "--epochs", "10", "--max-steps", str(STEPS), "--batch-size", str(BATCH), "--lr", rate, "--seed", str(seed),
        "--eps", "1/255", "--steps", "3", "--save-every", "20", "--validate-every", str(STEPS),
        "--val-limit", str(TUNING), "--val-steps", "10", "--threads", str(place.threads), "--resume", "-o", str(folder),
    )  # fmt: skip
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    took = [b["seconds"] - a["seconds"] for a, b in pairwise(log[:-1]) if b["seconds"] > a["seconds"]]
    summary = {"name": name, "options": list(options), "lr": rate, "seed": seed, "steps": STEPS, "batch": BATCH,
               "step_seconds": round(median(took), 3), "last": log[-1], "validation": log[-1]["validation"]}  # fmt: skip
    training(name).write_text(json.dumps(summary, indent=1) + "\n")


def best_rate(method: str) -> str:
    """The learning rate of the best balanced accuracy (clean and robust, over levels) on the images for tuning."""
    return max(RATES, key=lambda rate: read(training(f"tune-{method}-{rate}"))["validation"]["criterion"])


# -- evaluation ------------------------------------------------------------------------------------------------------


def units(name: str) -> Iterator[tuple[str, str, int, int, tuple[str, ...]]]:
    """What is measured of a run: file, classes, images left out, images, options of `hrzs eval`."""
    pgd = ("--attack", "leaf-pgd,superclass-pgd,cw", "--level", "all", "--steps", "20", "--eps", "1/255")
    plain = (*pgd, "--no-canaries")
    first = name == "untouched" or name in {f"{method}-s0" for method in METHODS}
    checked = pgd if first else plain
    yield "seen", "seen", TUNING, SEEN, checked
    yield "unseen", "unseen", 5 * 50, UNSEEN, plain
    if name in {"untouched", "tecoa-s0", "tecoa-every-level-s0", "hierarchical-s0"}:
        curve = ("--attack", "leaf-pgd,superclass-pgd", "--level", "all", "--steps", "20", "--eps", "2/255,4/255")
        yield "curve", "seen", TUNING, CURVE, (*curve, "--no-canaries", "--no-matrix")
    if first:
        yield "autoattack", "seen", TUNING, AUTOATTACK, (
            "--attack", "autoattack", "--level", "0", "--eps", "1/255", "--no-canaries", "--no-matrix")  # fmt: skip
    if name in {"untouched", "tecoa-s0", "hierarchical-s0"}:
        yield "aa-2", "seen", TUNING, AUTOATTACK, (
            "--attack", "aa-2", "--level", "all", "--eps", "1/255", "--no-canaries", "--no-matrix")  # fmt: skip


def missing(name: str) -> list[str]:
    """The evaluations of this run that are left to make."""
    return [part for part, *_ in units(name) if not evaluation(name, part).exists()]


def evaluate(place: Place, name: str, folder: Path | None) -> None:
    model = place.untouched if folder is None else ("--model", str(folder))
    for part, classes, skip, limit, options in units(name):
        file = evaluation(name, part)
        if file.exists():
            continue
        aside = place.work / file.name
        place.hrzs(
            "eval", *model, "--data", str(place.images), "--split", "val", "--classes", str(place.classes(classes)),
            "--tree", str(place.tree(1)), "--skip", str(skip), "--limit", str(limit), "--scoring", "prompt", *options,
            "--threads", str(place.threads), "--json", str(aside), "--resume",
        )  # fmt: skip
        report = read(aside)
        report["config"] = {
            k: v for k, v in report["config"].items() if k not in ("model", "pretrained", "data", "tree")
        }
        file.write_text(json.dumps(report) + "\n")


# -- the plan --------------------------------------------------------------------------------------------------------


def work(place: Place | None, stages: Sequence[str]) -> list[Job]:
    """Do what is missing, or (without a place) list it."""
    left: list[Job] = []

    def run(name: str, options: Sequence[str], rate: str, seed: int, *, kept: str | None = None) -> None:
        """Train where no record or, with evaluations left, no model is there; ``kept``: the run is one of another name."""
        trained, todo = kept or name, [] if name.startswith("tune-") else missing(name)
        if place is None:
            if not training(trained).exists():
                left.append(Job(trained, training(trained), STEPS * (13 if "per-level" in options else 4) // 2 + 60))
        elif not training(trained).exists() or (todo and not (place.work / trained / "model.safetensors").exists()):
            train(place, trained, options, rate, seed)
        look(name, None if place is None else place.work / trained, todo)

    def look(name: str, folder: Path | None, todo: Sequence[str]) -> None:
        if place is not None and todo:
            evaluate(place, name, folder)
        left.extend(Job(f"{name} {part}", evaluation(name, part), 240) for part in todo if place is None)

    tuned = {method: all(training(f"tune-{method}-{rate}").exists() for rate in RATES) for method in METHODS}
    if "tune" in stages:
        for method, options in METHODS.items():
            for rate in RATES:
                run(f"tune-{method}-{rate}", options, rate, 0)
            tuned[method] = place is not None or tuned[method]
    if "main" in stages:
        look("untouched", None, missing("untouched"))
        for seed in SEEDS:
            for method, options in METHODS.items():
                rate = best_rate(method) if tuned[method] else RATES[-1]
                run(f"{method}-s{seed}", options, rate, seed, kept=f"tune-{method}-{rate}" if seed == 0 else None)
    if "ablations" in stages and "hierarchical" in METHODS:
        for ablation, changes in ABLATIONS.items():
            rate = best_rate("hierarchical") if tuned["hierarchical"] else RATES[-1]
            run(ablation, ("--method", "hierarchical", *changes), rate, 0)
    return left


# -- tables ----------------------------------------------------------------------------------------------------------


def rows_of(report: dict[str, Any], attack: str, attack_level: object) -> list[dict[str, Any]]:
    found = [
        r
        for r in report["results"]
        if (r["attack"], r["attack_level"], r["scoring"]) == (attack, attack_level, "prompt")
    ]
    return sorted(found, key=lambda row: row["level"])


def direct(report: dict[str, Any], attack: str) -> list[float]:
    """Robust accuracy of each level under the attack that aims at it; empty if that was not run."""
    levels = range(len(rows_of(report, "none", None)))
    names = [
        ("superclass-pgd" if attack == "pgd" and level else "leaf-pgd" if attack == "pgd" else attack)
        for level in levels
    ]
    found = [
        [r["robust"] for r in rows_of(report, name, level) if r["level"] == level]
        for level, name in zip(levels, names, strict=True)
    ]
    return [robust for level in found for robust in level]


def cell(seeds: list[list[float]]) -> str:
    """Percentages of each level; with several seeds their mean ± standard deviation."""
    columns = [[100 * v for v in column] for column in zip(*seeds, strict=True)]
    return " / ".join(f"{mean(c):.1f}" + (f" ± {stdev(c):.1f}" if len(c) > 1 else "") for c in columns) or "–"


def table(rows: dict[str, list[str]], part: str, folder: Path = RESULTS) -> None:
    """One row for each name with results; several files are its seeds."""
    found = {
        row: [read(evaluation(name, part, folder)) for name in names if evaluation(name, part, folder).exists()]
        for row, names in rows.items()
    }
    found = {row: reports for row, reports in found.items() if reports}
    if not found:
        return
    task = next(iter(found.values()))[0]["config"]["tasks"][0]
    print(f"\n**{part}**: {task['n']} images, levels of {' / '.join(map(str, task['levels'][:-1]))} nodes\n")
    print("| | seeds | clean, level 0 / 1 / 2 / 3 | PGD-20 at the level attacked | margin PGD-20 at the level attacked "
          "| leaf attack, scored at 0 / 1 / 2 / 3 | any-level clean | any-level robust |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for row, reports in found.items():
        cells = [
            cell([[r["clean"] for r in rows_of(report, "none", None)] for report in reports]),
            cell([direct(report, "pgd") for report in reports]),
            cell([direct(report, "cw") for report in reports]),
            cell([[r["robust"] for r in rows_of(report, "leaf-pgd", 0)] for report in reports]),
            cell([[report["summary"]["levels"][0]["any_level_clean"]] for report in reports]),
            cell([[report["summary"]["levels"][0]["any_level_robust"]] for report in reports]),
        ]
        print(f"| {row} | {len(reports)} | {' | '.join(cells)} |")


def tables() -> None:
    rates = [(m, r, training(f"tune-{m}-{r}")) for m in METHODS for r in RATES]
    if any(path.exists() for *_, path in rates):
        print("\n**tuning**: 750 images of the seen classes, PGD-10 at the level itself, seed 0\n")
        print("| | lr | clean 0 / 1 / 2 / 3 | robust 0 / 1 / 2 / 3 | any-level robust | balanced | seconds a step |")
        print("|---|---|---|---|---|---|---|")
        for method, rate, path in rates:
            if path.exists():
                run = read(path)
                look = run["validation"]
                print(f"| {method} | {rate} | {cell([look['clean']])} | {cell([look['robust']])} "
                      f"| {100 * look['any_level']:.1f} | {100 * look['criterion']:.1f} "
                      f"| {run['step_seconds']:.2f} |")  # fmt: skip
    main_rows = {"untouched": ["untouched"]} | {m: [f"{m}-s{seed}" for seed in SEEDS] for m in METHODS}
    ablation_rows = {"hierarchical": ["hierarchical-s0"]} | {name: [name] for name in ABLATIONS}
    for part in ("seen", "unseen"):
        table(main_rows, part)
    for part in ("seen", "unseen"):
        if any(evaluation(name, part).exists() for name in ABLATIONS):
            table(ablation_rows, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder with train/ and val/, one folder a WordNet id in each")
    parser.add_argument("--config", type=Path, help="the model's open_clip config")
    parser.add_argument("--weights", type=Path, help="its weights")
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="where runs are written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stages", default="tune,main,ablations", help="any of these, in their order")
    parser.add_argument("--methods", default=",".join(METHODS), help="these rows only, so that two can share the work")
    parser.add_argument("--plan", action="store_true", help="say what is left to do, and stop")
    parser.add_argument("--tables", action="store_true", help="print what there is, and stop")
    parser.add_argument("--pilot", action="store_true", help="print the tables of the earlier measurement, and stop")
    options = parser.parse_args()
    stages = options.stages.split(",")
    for method in set(METHODS) - set(options.methods.split(",")):
        del METHODS[method]
    if options.pilot:
        for part in ("seen", "unseen"):
            table(PILOT, part, RESULTS / "pilot")
        return
    if not (options.plan or options.tables):
        if None in (options.images, options.config, options.weights):
            parser.error("--images, --config and --weights are needed")
        place = Place(options.images, options.config, options.weights, options.work, options.threads)
        place.prepare()
        work(place, stages)
    if options.plan:
        left = work(None, stages)
        for job in left:
            print(f"{job.seconds / 60:5.0f} min  {job.name}")
        print(f"{sum(job.seconds for job in left) / 3600:.1f} h left, {len(left)} jobs")
        return
    tables()


if __name__ == "__main__":
    main()
