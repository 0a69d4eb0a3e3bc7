"""The evidence of docs/results.md: `make results` runs what is missing, then prints the tables (show_results.py).

    python docs/make_results.py --images tiny-imagenet --config clip-rn-64.json --weights clip-rn-64.safetensors

A run or evaluation whose JSON lies in docs/results/ already is not made again, so it goes on where it was stopped, on
any machine; `--plan` says what is left and what it costs.
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
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH = 80, 128
#: Tried for every method, and for as long as the best of them is an end of what was tried, one more beyond it.
RATES = ("2e-4", "4e-4", "8e-4")
BEYOND = ("5e-5", "1e-4", *RATES, "16e-4", "32e-4")
SEEDS = (0, 1, 2)
#: The first 5 images of each of the 200 classes in the validation split tune, the others report.
SKIP = {"seen": 5 * 150, "unseen": 5 * 50}
TUNING, SEEN, UNSEEN, MATRIX, CURVE, AUTOATTACK, AA2 = 5 * 150, 4 * 150, 8 * 50, 150, 2 * 150, 150, 150

#: Row of the main table: options of `hrzs finetune`. tga-zsr has no row: this model's image encoder is a ResNet.
METHODS: dict[str, tuple[str, ...]] = {
    "tecoa": ("--method", "tecoa"),
    "hierarchical": ("--method", "hierarchical"),
    "tecoa-every-level": ("--method", "tecoa", "--every-level"),
    "pmg-aft": ("--method", "pmg-aft"),
    "fare": ("--method", "fare"),
    "clean": ("--method", "clean"),
    "hierarchical-anchor": ("--method", "hierarchical", "--lambda-anchor", "100"),
    "tecoa-every-level-anchor": ("--method", "tecoa", "--every-level", "--lambda-anchor", "100"),
    "tecoa-every-level-anchor-30": ("--method", "tecoa", "--every-level", "--lambda-anchor", "30"),
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
    "leaf-perturbation": ("--perturbation", "leaf"),
    "per-level-perturbation": ("--perturbation", "per-level"),
    "euclidean": ("--geometry", "euclidean"),
    "leaf-weights": ("--level-weights", "1,0.3,0.2,0.1"),
}
#: Trained once more for three times the steps, at the rate found for the short run: does more training change places?
LONGER = {f"{method}-longer": method for method in ("tecoa", "pmg-aft", "fare", "hierarchical", "hierarchical-anchor")}
#: Measured once more with attack gradients in fp32, and by aa-2 at every level.
HEADLINE = ("untouched", "tecoa-s0", "hierarchical-s0")
#: Measured at larger ε, and with canaries.
CURVES = (*HEADLINE, "tecoa-every-level-s0")
#: About what each evaluation takes, in seconds of one core.
SECONDS = {"seen": 120, "unseen": 80, "seen-margin": 60, "unseen-margin": 40, "fp32": 80, "curve": 60, "matrix": 70,
           "autoattack": 540, "aa-2": 720}  # fmt: skip
#: What takes longest, and so a stage of its own.
SLOW = ("autoattack", "aa-2")


@dataclass(frozen=True)
class Job:
    """One command, and the file of docs/results/ that says it is done."""

    name: str
    done: Path
    seconds: int  # a guess, for the plan: of one core with fast bf16, the other as busy


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


def steps_of(name: str) -> int:
    return 3 * STEPS if name in LONGER else STEPS


def train(place: Place, name: str, options: Sequence[str], rate: str, seed: int) -> None:
    """One run; to find a rate it is looked at, once, at its end, on the images for tuning."""
    steps = steps_of(name)
    look = ("--validate-every", str(steps), "--val-limit", str(TUNING), "--val-steps", "10")
    folder = place.work / name
    filled = [o.format(tree2=place.tree(2), tree3=place.tree(3)) for o in options]
    place.hrzs(
        "finetune", *place.untouched, "--data", str(place.images), "--split", "train",
        "--classes", str(place.classes("seen")), "--tree", str(place.tree(1)), *filled,
        "--epochs", "10", "--max-steps", str(steps), "--batch-size", str(BATCH), "--lr", rate, "--seed", str(seed),
        "--eps", "1/255", "--steps", "3", "--precision", "bf16", "--save-every", "40",
        *(look if name.startswith("tune-") else ()), "--threads", str(place.threads), "--resume", "-o", str(folder),
    )  # fmt: skip
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    took = [b["seconds"] - a["seconds"] for a, b in pairwise(log) if b["seconds"] > a["seconds"]]
    summary = {"name": name, "options": list(options), "lr": rate, "seed": seed, "steps": steps, "batch": BATCH,
               "step_seconds": round(median(took), 3), "last": log[-1]}  # fmt: skip
    training(name).write_text(json.dumps(summary, indent=1) + "\n")


def looked(method: str, rate: str, folder: Path = RESULTS) -> dict[str, Any]:
    """What the images for tuning say of a run: `hrzs.training.validation.Validation`, and its ``criterion``."""
    found: dict[str, Any] = read(folder / training(f"tune-{method}-{rate}").name)["last"]["validation"]
    return found


def best_rate(method: str) -> tuple[str, str | None]:
    """The rate of the best balanced accuracy (clean and robust, over levels), and one to try before that is believed.

    Of the rates that were tried; before any was, the middle one, with the first that is to be.
    """
    tried = [rate for rate in BEYOND if training(f"tune-{method}-{rate}").exists()]
    left = [rate for rate in RATES if rate not in tried]
    if not tried:
        return RATES[1], left[0]
    best = max(tried, key=lambda rate: looked(method, rate)["criterion"])
    if not left:
        place = BEYOND.index(best)
        left = [rate for rate in (*BEYOND[max(place - 1, 0) : place], *BEYOND[place + 1 : place + 2])
                if rate not in tried]  # fmt: skip
    return best, left[0] if left else None


# -- evaluation ------------------------------------------------------------------------------------------------------


def units(name: str) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """What is measured of a run: file, classes, images, options of `hrzs eval`."""
    bare = ("--no-canaries", "--no-matrix")
    pgd = ("--attack", "leaf-pgd,superclass-pgd", "--level", "all", "--steps", "20")
    suite = ("--attack", "leaf-pgd,superclass-pgd,hierarchical-pgd", *pgd[2:], *bare, "--precision", "bf16")
    if name in ABLATIONS or name in LONGER:
        yield "seen", "seen", SEEN, suite
        return
    first = name == "untouched" or name.endswith("-s0")
    if first:  # the margin loss in the same run; it was added to the other seeds later
        suite = ("--attack", "leaf-pgd,superclass-pgd,hierarchical-pgd,cw", *suite[2:])
    for part, images in (("seen", SEEN), ("unseen", UNSEEN)):
        yield part, part, images, suite
        if not first:
            yield f"{part}-margin", part, images, ("--attack", "cw", *suite[2:])
    if name in HEADLINE:
        yield "fp32", "seen", SEEN, (*pgd, *bare)
    if name in CURVES:
        yield "curve", "seen", CURVE, (*pgd, *bare, "--precision", "bf16", "--eps", "2/255,4/255")
    if first:
        checked = () if name in CURVES else ("--no-canaries",)
        yield "matrix", "seen", MATRIX, (*pgd, *checked, "--precision", "bf16")
        yield "autoattack", "seen", AUTOATTACK, ("--attack", "autoattack", "--level", "0", *bare)
    if name in HEADLINE:
        yield "aa-2", "seen", AA2, ("--attack", "aa-2", "--level", "all", *bare, "--precision", "bf16")


def missing(name: str, slow: bool = False) -> list[str]:
    """The evaluations of this run that are left to make: those by AutoAttack (``slow``), or the others."""
    parts = [part for part, *_ in units(name) if (part in SLOW) == slow]
    return [part for part in parts if not evaluation(name, part).exists()]


def evaluate(place: Place, name: str, folder: Path | None, todo: Sequence[str]) -> None:
    model = place.untouched if folder is None else ("--model", str(folder))
    for part, classes, limit, options in units(name):
        if part not in todo:
            continue
        file = evaluation(name, part)
        aside = place.work / file.name
        place.hrzs(
            "eval", *model, "--data", str(place.images), "--split", "val", "--classes", str(place.classes(classes)),
            "--tree", str(place.tree(1)), "--skip", str(SKIP[classes]), "--limit", str(limit), "--scoring", "prompt",
            *options, "--threads", str(place.threads), "--json", str(aside), "--resume",
        )  # fmt: skip
        file.write_text(json.dumps(without_folders(read(aside))) + "\n")


def without_folders(value: Any) -> Any:
    """Files by their names alone: where they lay on a machine is no result."""
    if isinstance(value, dict):
        return {key: without_folders(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_folders(v) for v in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


# -- the plan --------------------------------------------------------------------------------------------------------


def work(place: Place | None, stages: Sequence[str], rows: Sequence[str]) -> list[Job]:
    """Do what is missing, or (without a place) list it."""
    left: list[Job] = []

    def run(
        name: str, options: Sequence[str], rate: str, seed: int, todo: Sequence[str], kept: str | None = None
    ) -> None:
        """Train where no record or, with evaluations ``todo``, no model is there; ``kept``: under another name."""
        trained = kept or name
        if place is None:
            if not training(trained).exists():
                left.append(
                    Job(trained, training(trained), steps_of(trained) * (7 if "per-level" in options else 2) + 20)
                )
        elif not training(trained).exists() or (todo and not (place.work / trained / "model.safetensors").exists()):
            train(place, trained, options, rate, seed)
        look(name, None if place is None else place.work / trained, todo)

    def look(name: str, folder: Path | None, todo: Sequence[str]) -> None:
        if place is not None and todo:
            evaluate(place, name, folder, todo)
        left.extend(Job(f"{name} {part}", evaluation(name, part), SECONDS[part]) for part in todo if place is None)

    methods = {method: options for method, options in METHODS.items() if method in rows}
    for method, options in methods.items() if "tune" in stages else ():
        _, further = best_rate(method)
        if place is None:
            for rate in RATES if further else ():
                run(f"tune-{method}-{rate}", options, rate, 0, ())
        while place is not None and further:
            run(f"tune-{method}-{further}", options, further, 0, ())
            _, further = best_rate(method)
    for slow in [stage == "autoattack" for stage in stages if stage in ("main", "autoattack")]:
        look("untouched", None, missing("untouched", slow) if "untouched" in rows else ())
        for seed in SEEDS:
            for method, options in methods.items():
                name, (rate, _) = f"{method}-s{seed}", best_rate(method)
                run(name, options, rate, seed, missing(name, slow), f"tune-{method}-{rate}" if seed == 0 else None)
    for ablation, changes in ABLATIONS.items() if "ablations" in stages else ():
        if ablation in rows:
            options = ("--method", "hierarchical", *changes)
            run(ablation, options, best_rate("hierarchical")[0], 0, missing(ablation))
    for longer, method in LONGER.items() if "longer" in stages else ():
        if longer in rows:
            run(longer, METHODS[method], best_rate(method)[0], 0, missing(longer))
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder with train/ and val/, one folder a WordNet id in each")
    parser.add_argument("--config", type=Path, help="the model's open_clip config")
    parser.add_argument("--weights", type=Path, help="its weights")
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="where runs are written")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--stages", default="tune,main,ablations,longer,autoattack", help="any of these, in their order"
    )
    everything = ",".join(("untouched", *METHODS, *ABLATIONS, *LONGER))
    parser.add_argument("--rows", default=everything, help="these rows only, so that several can share the work")
    parser.add_argument("--plan", action="store_true", help="say what is left to do, and stop")
    options = parser.parse_args()
    stages, rows = options.stages.split(","), options.rows.split(",")
    if options.plan:
        left = work(None, stages, rows)
        for job in left:
            print(f"{job.seconds / 60:5.0f} min  {job.name}")
        print(f"{sum(job.seconds for job in left) / 3600:.1f} h left, {len(left)} jobs")
        return
    if None in (options.images, options.config, options.weights):
        parser.error("--images, --config and --weights are needed")
    place = Place(options.images, options.config, options.weights, options.work, options.threads)
    place.prepare()
    work(place, stages, rows)


if __name__ == "__main__":
    main()
