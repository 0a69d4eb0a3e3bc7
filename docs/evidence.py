"""The protocol of docs/results.md: rows, sizes, and the names of the files in docs/results/.

`make_results.py` makes the files, `show_results.py` prints them. Whatever decides a figure stands in the tables here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

#: Learning rates tried for every row. Where the best of them is the lowest or the highest, the next one is tried too.
RATES = ("2e-4", "4e-4", "8e-4")
BEYOND = ("5e-5", "1e-4", *RATES, "16e-4", "32e-4")
SEEDS = (0, 1, 2)

HIERARCHICAL = ("--method", "hierarchical")
EVERY_LEVEL = ("--method", "tecoa", "--every-level")
ANCHOR = ("--lambda-anchor", "30")

#: Row of the main tables: options of `hrzs finetune`. Each has rates of its own and three seeds.
ROWS: dict[str, tuple[str, ...]] = {
    "hierarchical": HIERARCHICAL,
    "tecoa": ("--method", "tecoa"),
    "tecoa-every-level-node": (*EVERY_LEVEL, "--level-balance", "node"),
    "hierarchical-before": (
        *HIERARCHICAL, "--depth", "none", "--beta-levels", "shared", "--head-lr", "1", "--image-levels", "per-image",
        "--level-balance", "image", "--hnsa", "none", "--per-class", "1", "--lambda-vic", "0", "--lambda-gap", "0",
        "--radius", "0.5", "--radius-text", "0.5",
    ),
    "tecoa-every-level": (*EVERY_LEVEL, "--level-balance", "image"),
    "fare": ("--method", "fare"),
    "clean": ("--method", "clean"),
    "pmg-aft": ("--method", "pmg-aft"),
    "euclidean": (*HIERARCHICAL, "--geometry", "euclidean"),
    "hierarchical-anchor": (*HIERARCHICAL, *ANCHOR),
    "euclidean-anchor": (*HIERARCHICAL, "--geometry", "euclidean", *ANCHOR),
    "tecoa-every-level-anchor": (*EVERY_LEVEL, "--level-balance", "node", *ANCHOR),
    "hierarchical-3-trees": (*HIERARCHICAL, "--tree", "{tree2}", "--tree", "{tree3}"),
    "agft": ("--method", "agft"),
    "ucat": ("--method", "ucat"),
    "lore": ("--method", "lore"),
    # What is averaged × what is weighed.
    "per-image, image": (*HIERARCHICAL, "--image-levels", "per-image", "--level-balance", "image"),
    "per-image, node": (*HIERARCHICAL, "--image-levels", "per-image", "--level-balance", "node"),
    "means, image": (*HIERARCHICAL, "--image-levels", "hypavg", "--level-balance", "image"),
    "means, node": (*HIERARCHICAL, "--image-levels", "hypavg", "--level-balance", "node"),
}  # fmt: skip
#: The 2 × 2: rows by what is averaged, columns by what is weighed.
SQUARE = (("per-image, image", "per-image, node"), ("means, image", "means, node"))
#: A row whose options come to those of another: it has no runs of its own (the cell of the 2 × 2 that is the default).
SAME: dict[str, str] = {"means, node": "hierarchical"}
#: By what a row's rate is chosen, where that is not balanced accuracy (counted by node).
CHOSEN_BY = {"clean": "clean"}

#: Each is `hierarchical` at its rate, but for what is named; seed 0.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "no-depth": ("--depth", "none", "--beta-levels", "shared"),
    "text-depth": ("--depth", "text"),
    "one-beta": ("--beta-levels", "shared"),
    "free-betas": ("--beta-levels", "free"),
    "radius-0.5": ("--radius", "0.5", "--radius-text", "0.5"),
    "vic-off": ("--lambda-vic", "0"),
    "gap-off": ("--lambda-gap", "0"),
    "hnsa-off": ("--hnsa", "none"),
    "mixed": ("--image-levels", "mixed"),
    "per-class-4": ("--per-class", "4"),
    "eps-text-0": ("--eps-text", "0"),
    "image-tower-alone": ("--tune", "image"),
    "leaf-perturbation": ("--perturbation", "leaf"),
    "per-level-perturbation": ("--perturbation", "per-level"),
}

#: Fine-tuned once more on validation images, which the model was not pretrained on, at the rate of the main row.
NEW = ("clean", "tecoa", "fare", "tecoa-every-level-node", "hierarchical")
#: What these runs have beside the options of their row: few images, seen many times.
NEW_OPTIONS = ("--augment", "flip")
#: Measured at larger ε as well.
CURVES = ("untouched", "tecoa-s0", "tecoa-every-level-node-s0", "hierarchical-s0")
#: Behind defences at test time, each on the first images of the seen classes, attacked at every level on the margin.
DEFENDED = ("untouched", "tecoa-s0", "hierarchical-s0")
#: How many images, by defence; tuning prompts for every image and step is dear.
DEFENCES = {"none": "defended", "ttc": "defended", "et3": "defended", "r-tpt": "tuned-prompts"}
#: Adversaries who try harder, at the leaves alone: the defence, how many times the steps, and further options.
HARDER: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "ttc-known": ("ttc", 1, ("--draw", "known")),
    "ttc-long": ("ttc", 5, ()),
    "et3-held": ("et3:unroll=0", 1, ()),
    "et3-held-long": ("et3:unroll=0", 5, ()),
    "r-tpt-known": ("r-tpt:attack_views=64", 1, ("--draw", "known")),
}
#: Certified; `noise` is trained on noisy images at the rate of `clean`, to be certified and for nothing else.
SIGMA = "0.25"
CERTIFIED = ("untouched", "noise")
NOISE = ("--method", "clean", "--noise", SIGMA)
CORRUPTIONS = ("gaussian-noise", "gaussian-blur", "contrast", "jpeg")

#: Validation images of each class that tune (the first), and of each seen class that the runs on new images train on.
TUNE_EACH, NEW_EACH = 5, 15


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the second set is for trying the scripts."""

    steps: int = 240
    batch: int = 128
    seen: int = 1000
    unseen: int = 1000
    #: Of new images: 5 of the other 10 of each seen class, 15 of each unseen one.
    new_seen: int = 750
    new_unseen: int = 750
    matrix: int = 150
    curve: int = 300
    defended: int = 150
    tuned_prompts: int = 50
    certified: int = 100
    samples: int = 10_000
    autoattack: int = 100  # of seen and of unseen classes each; a GPU has time for 500 (`--autoattack 500`)
    pgd: int = 20
    look: int = 10  # PGD steps of the look at the images for tuning
    tuning: int | None = None  # how many these are; None: all


MINIATURE = Sizes(steps=2, batch=8, seen=8, unseen=8, new_seen=8, new_unseen=8, matrix=4, curve=4, autoattack=2, pgd=2,
                  look=1, tuning=8, defended=3, tuned_prompts=2, certified=3, samples=200)  # fmt: skip


def options_of(row: str) -> tuple[str, ...]:
    """What `hrzs finetune` is told for a row or an ablation."""
    if row == "noise":
        return NOISE
    return ROWS[row] if row in ROWS else (*HIERARCHICAL, *ABLATIONS[row])


def training(name: str, folder: Path = RESULTS) -> Path:
    return folder / f"training-{plain(name)}.json"


def evaluation(name: str, part: str, folder: Path = RESULTS) -> Path:
    return folder / f"{plain(name)}-{part}.json"


def plain(name: str) -> str:
    """A name as a file has it."""
    return name.replace(", ", "-")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Unit:
    """One call of `hrzs eval` on a run: ``part`` names its file, ``images`` which images it looks at."""

    part: str
    stage: str
    images: str
    options: tuple[str, ...]
    #: In bf16 on machines where that is fast. Everything else is in fp32.
    half: bool = False


#: The runs of the 2 × 2 that are no main row: neither AutoAttack nor a verdict on masked gradients.
_SQUARED = [f"{row}-s0" for line in SQUARE for row in line]


def units(name: str, sizes: Sizes) -> Iterator[Unit]:
    """What is measured of a run."""
    quick = ("--no-canaries", "--no-matrix")
    pgd = ("--level", "all", "--steps", str(sizes.pgd))
    suite = ("--attack", "leaf-pgd,superclass-pgd,hierarchical-pgd,cw", *pgd, *quick)
    if name in CERTIFIED:
        certify = ("--certify", SIGMA, "--samples", str(sizes.samples))
        yield Unit("certified", "certificates", "certified", certify)
    if name == "noise":
        return
    if "-new" in name:
        for images in ("new-seen", "new-unseen"):
            yield Unit(images, "new", images, suite, half=True)
            yield Unit(f"{images}-corrupted", "new", images, ("--attack", "none", *quick))
        return
    stage = "ablations" if name in ABLATIONS else "main"
    for images in ("seen", "unseen"):
        yield Unit(images, stage, images, suite, half=True)
    if name == "untouched" or (name.endswith("-s0") and name not in _SQUARED):
        both = ("--attack", "leaf-pgd,superclass-pgd", *pgd)
        yield Unit("matrix", "canaries", "matrix", both, half=True)
        if name in CURVES:
            yield Unit("curve", "canaries", "curve", (*both, *quick, "--eps", "2/255,4/255"), half=True)
        if name in DEFENDED:
            yield from _defended(sizes)
        for images in ("seen", "unseen"):
            aa = ("--attack", "autoattack", "--level", "0", *quick)
            yield Unit(f"autoattack-{images}", "autoattack", f"autoattack-{images}", aa)


def _defended(sizes: Sizes) -> Iterator[Unit]:
    """The margin attack behind each defence at every level, and harder ones at the leaves."""
    steps = max(sizes.pgd, 5)  # no defence takes more gradients
    margin = ("--attack", "cw", "--no-matrix", "--level")
    canaries = ("--no-canaries",) if sizes.pgd < 5 else ()  # the miniature has no time for them
    for defence, images in DEFENCES.items():
        behind = () if defence == "none" else ("--defence", defence)
        options = (*margin, "all", "--steps", str(steps), *canaries, *behind)
        yield Unit(f"behind-{defence}", "defences", images, options)
    for harder, (defence, times, more) in HARDER.items():
        options = (*margin, "0", "--steps", str(times * steps), "--no-canaries", "--defence", defence, *more)
        yield Unit(f"harder-{harder}", "defences", DEFENCES[defence.split(":")[0]], options)


def chosen(images: str, sizes: Sizes, classes: int) -> tuple[str, int, int]:
    """Of which classes (seen or unseen), how many of how many to skip, in the class-balanced order of val."""
    part = "unseen" if "unseen" in images else "seen"
    if images.startswith("new"):
        return part, (sizes.new_unseen, sizes.new_seen)[part == "seen"], NEW_EACH * classes * (part == "seen")
    limit = {"seen": sizes.seen, "unseen": sizes.unseen, "matrix": sizes.matrix, "curve": sizes.curve,
             "defended": sizes.defended, "tuned-prompts": sizes.tuned_prompts,
             "certified": sizes.certified}.get(images)  # fmt: skip
    return part, sizes.autoattack if limit is None else limit, TUNE_EACH * classes


def runs(row: str) -> list[str]:
    """The names of a row's runs, by seed."""
    return [row] if row.startswith("untouched") else [f"{SAME.get(row, row)}-s{seed}" for seed in SEEDS]


def looked(row: str, rate: str, folder: Path) -> dict[str, Any]:
    """What the images for tuning say of a run, as ``metrics.jsonl`` has it."""
    found: dict[str, Any] = read(training(f"tune-{row}-{rate}", folder))["last"]["validation"]
    return found


def tried(row: str, folder: Path) -> list[str]:
    """The rates at which a row was tuned, in rising order."""
    return [rate for rate in BEYOND if training(f"tune-{row}-{rate}", folder).exists()]


def best_rate(row: str, folder: Path, failed: Sequence[str] = ()) -> tuple[str | None, list[str]]:
    """The best of the rates that were tried (None before any), and those to be tried before that is believed.

    ``failed``: rates that gave no run; nothing is expected of them.
    """
    done = tried(row, folder)
    left = [rate for rate in RATES if rate not in (*done, *failed)]
    if not done:
        return None, left
    best = max(done, key=lambda rate: looked(row, rate, folder)["criterion"])
    if not left:
        place = BEYOND.index(best)
        beside = (*BEYOND[max(place - 1, 0) : place], *BEYOND[place + 1 : place + 2])
        left = [rate for rate in beside if rate not in (*done, *failed)]
    return best, left
