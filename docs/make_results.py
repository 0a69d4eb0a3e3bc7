"""The evidence of docs/results.md: `make results` runs what is missing, then prints the tables (show_results.py).

    python docs/make_results.py --images tiny-imagenet --config clip-rn-64.json --weights clip-rn-64.safetensors

What is run stands in evidence.py. A run or evaluation whose JSON lies in docs/results/ already is not made again, so it
goes on where it was stopped, on any machine; `--plan` says what is left and what it costs. `--jobs N` works with N
processes side by side; what fails is named at the end, its log lies in WORK/logs, and the rest goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any

from evidence import (
    ABLATIONS,
    BEYOND,
    CHOSEN_BY,
    CORRUPTIONS,
    MINIATURE,
    NEW,
    NEW_EACH,
    NEW_OPTIONS,
    RATES,
    RESULTS,
    ROWS,
    SAME,
    SEEDS,
    TUNE_EACH,
    Sizes,
    Unit,
    best_rate,
    chosen,
    evaluation,
    options_of,
    plain,
    read,
    training,
    units,
)

STAGES = ("tune", "main", "new", "ablations", "canaries", "autoattack", "certificates", "defences")
#: For the plan, of one core with fast bf16: seconds of a training step, and of an image in each kind of evaluation.
STEP = 1.2
PER_IMAGE = {
    "suite": 0.25,
    "none": 0.02,
    "matrix": 1.2,
    "curve": 0.2,
    "autoattack": 3.6,
    "certified": 12.0,
    "behind-none": 1.0,
    "behind-ttc": 11.0,
    "behind-et3": 12.0,
    "behind-r-tpt": 30.0,
    "harder-ttc-known": 0.3,
    "harder-ttc-long": 2.0,
    "harder-et3-held": 0.5,
    "harder-et3-held-long": 2.0,
    "harder-r-tpt-known": 12.0,
}


@dataclass(frozen=True)
class Place:
    """Where things lie, how much is done, and how."""

    work: Path
    results: Path = RESULTS
    images: Path | None = None
    config: Path | None = None
    weights: str = ""
    device: str = "auto"
    threads: int = 1
    precision: str = "bf16"
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def untouched(self) -> tuple[str, ...]:
        return ("--model", str(self.config), "--pretrained", self.weights)

    def tree(self, number: int) -> Path:
        return self.work / f"tree{number}.yaml"

    def classes(self, part: str) -> Path:
        return self.work / f"{part}.txt"

    def count(self, part: str) -> int:
        """How many classes are seen or unseen; before it is known, as in Tiny-ImageNet."""
        file = self.classes(part)
        return len(file.read_text().split()) if file.is_file() else {"seen": 150, "unseen": 50}[part]

    def model(self, run: str) -> Path:
        return self.work / plain(run)

    def has_model(self, run: str) -> bool:
        return run == "untouched" or (self.model(run) / "model.safetensors").is_file()

    def best_rate(self, row: str, failed: Sequence[str]) -> tuple[str | None, list[str]]:
        """`evidence.best_rate`; ``failed`` are names of runs."""
        prefix = f"tune-{row}-"
        return best_rate(row, self.results, [name.removeprefix(prefix) for name in failed if name.startswith(prefix)])

    def missing(self, run: str, stages: Sequence[str]) -> list[Unit]:
        """The evaluations of this run that are left to make."""
        return [u for u in units(run, self.sizes)
                if u.stage in stages and not evaluation(run, u.part, self.results).exists()]  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One piece of work: a training run (``unit`` None) or one evaluation of one."""

    name: str
    seconds: float  # a guess, for the plan
    ready: bool  # what it needs is there
    run: str  # the run that it trains, or whose numbers it takes
    model: str  # the run whose model that is: seed 0 is the tuning run of the best rate
    options: tuple[str, ...] = ()
    rate: str = ""
    seed: int = 0
    unit: Unit | None = None


# -- what is left ---------------------------------------------------------------------------------------------------


def jobs(place: Place, stages: Sequence[str], rows: Sequence[str], failed: Sequence[str] = ()) -> Iterator[Job]:
    """Everything that is left, in the order of its worth; of two models that need the same run, once."""
    given: set[str] = set()
    for job in _jobs(place, stages, rows, failed):
        if job.name not in given:
            given.add(job.name)
            yield job


def _jobs(place: Place, stages: Sequence[str], rows: Sequence[str], failed: Sequence[str]) -> Iterator[Job]:
    own = {row: options_of(row) for row in ROWS if row in rows and row not in SAME}
    for stage in stages:
        if stage == "tune":
            for row, options in own.items():
                for rate in place.best_rate(row, failed)[1]:
                    run = f"tune-{row}-{rate}"
                    yield Job(run, _training_seconds(place, options), True, run, run, options, rate)
        elif stage == "main":
            if "untouched" in rows:
                yield from _evaluations(place, "untouched", "untouched", ("main",), ready=True)
            for seed in SEEDS:
                for row, options in own.items():
                    yield from _run(place, row, f"{row}-s{seed}", options, seed, ("main",), failed)
        elif stage == "new":
            if "untouched" in rows:
                yield from _evaluations(place, "untouched-new", "untouched", ("new",), ready=True)
            for seed in SEEDS:
                for row in NEW:
                    if row in own:
                        options = (*own[row], *NEW_OPTIONS)
                        yield from _run(place, row, f"{row}-new-s{seed}", options, seed, ("new",), failed)
        elif stage == "ablations":
            for name in ABLATIONS:
                if name in rows:
                    options = options_of(name)
                    yield from _run(place, "hierarchical", name, options, 0, ("ablations",), failed)
        elif stage == "certificates":
            if "untouched" in rows:
                yield from _evaluations(place, "untouched", "untouched", (stage,), ready=True)
            if "noise" in rows:
                yield from _run(place, "clean", "noise", options_of("noise"), 0, (stage,), failed)
        else:  # of seed 0 alone
            if "untouched" in rows:
                yield from _evaluations(place, "untouched", "untouched", (stage,), ready=True)
            for row, options in own.items():
                yield from _run(place, row, f"{row}-s0", options, 0, (stage,), failed)


def _run(
    place: Place, row: str, run: str, options: tuple[str, ...], seed: int, stages: tuple[str, ...],
    failed: Sequence[str],
) -> Iterator[Job]:  # fmt: skip
    """Training at the rate of ``row`` where record or model is missing, and then what is measured."""
    best, left = place.best_rate(row, failed)
    settled, rate = best is not None and not left, best or RATES[1]
    model = f"tune-{row}-{rate}" if run == f"{row}-s0" else run
    todo = place.missing(run, stages)
    if not training(model, place.results).exists() or (todo and not place.has_model(model)):
        yield Job(model, _training_seconds(place, options), settled, model, model, options, rate, seed)
    yield from _evaluations(place, run, model, stages, ready=settled and place.has_model(model))


def _evaluations(place: Place, run: str, model: str, stages: tuple[str, ...], *, ready: bool) -> Iterator[Job]:
    for unit in place.missing(run, stages):
        _, limit, _ = chosen(unit.images.removesuffix("-corrupted"), place.sizes, place.count("seen"))
        one_by_one = unit.stage in ("canaries", "autoattack", "certificates", "defences")
        kind = unit.part if unit.stage == "defences" else unit.part.split("-")[0] if one_by_one else "suite"
        cost = PER_IMAGE["none"] * len(CORRUPTIONS) if "corrupted" in unit.part else PER_IMAGE[kind]
        yield Job(f"{run} {unit.part}", cost * limit, ready, run, model, unit=unit)


def _training_seconds(place: Place, options: Sequence[str]) -> float:
    return 20 + STEP * place.sizes.steps * (3.5 if "per-level" in options else 1)


# -- doing it -------------------------------------------------------------------------------------------------------


def hrzs(*arguments: str) -> None:
    """`hrzs` on the command line, but in this process, where torch is loaded and images are decoded."""
    from hrzs.cli import app

    print("$ hrzs", *arguments, file=sys.stderr, flush=True)
    app(args=list(arguments), standalone_mode=False)


def prepare(place: Place) -> None:
    """Lists of classes and trees: WordNet depths, because the model knows the words of depths 8, 6 and 4."""
    assert place.images is not None
    place.work.mkdir(parents=True, exist_ok=True)
    place.results.mkdir(parents=True, exist_ok=True)
    ids = sorted(folder.name for folder in (place.images / "val").iterdir() if folder.is_dir())
    for part, some in (("unseen", ids[3::4]), ("seen", [c for i, c in enumerate(ids) if i % 4 != 3])):
        place.classes(part).write_text("".join(f"{c}\n" for c in some))
    for number, depths in ((1, "8,6,4"), (2, "7,5"), (3, "9,6,3")):
        if not place.tree(number).exists():
            hrzs("build-tree", "--classes", str(place.images / "val"), "--depths", depths, "--quiet",
                 "-o", str(place.tree(number)))  # fmt: skip


def keep_decoded(place: Place, *, corrupted: bool) -> None:
    """From here on the images are read from memory, by this process and those forked from it."""
    from decoded import Opener

    import hrzs.tasks

    assert place.images is not None
    opener = Opener(hrzs.tasks.open_dataset, place.images, 2 * (os.cpu_count() or 1), place.work)
    for split in ("train", "val"):
        opener(str(place.images), split)
    for name in CORRUPTIONS if corrupted else ():
        opener(f"{place.images}+{name}", "val")
    hrzs.tasks.open_dataset = opener


def write_nodes(place: Place) -> None:
    """Which node each reported image belongs to, at every level, in the order of the ids: what is balanced by."""
    import hrzs.tasks
    from hrzs.data import digest, subset
    from hrzs.hierarchy.yaml_form import load_tree

    found: dict[str, Any] = {}
    whole = load_tree(place.tree(1))
    val = hrzs.tasks.open_dataset(str(place.images), "val")
    for images in ("seen", "unseen", "new-seen", "new-unseen", "matrix", "curve", "autoattack-seen",
                   "autoattack-unseen", "defended", "tuned-prompts", "certified"):  # fmt: skip
        part, limit, skip = chosen(images, place.sizes, place.count(_part(images)))
        data = subset(val, limit=limit, skip=skip, classes=place.classes(part).read_text().split())
        tree = whole.restrict(data.classes)
        labels = [label for _, label in sorted(zip(data.ids, data.labels, strict=True))]
        nodes = [tree.ancestors[level][labels].tolist() for level in range(tree.height)]
        found[digest(data)] = {"images": images, "sizes": [len(level) for level in tree.levels[: tree.height]],
                               "nodes": nodes}  # fmt: skip
    (place.results / "nodes.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


def _part(images: str) -> str:
    return "unseen" if "unseen" in images else "seen"


def train(place: Place, job: Job) -> None:
    """One run; to find a rate it is looked at, once, at its end, on the images for tuning."""
    sizes, folder, seen = place.sizes, place.model(job.run), place.count("seen")
    if (folder / "model.safetensors").exists():  # of other options, perhaps; what was interrupted goes on
        shutil.rmtree(folder)
    filled = [o.format(tree2=place.tree(2), tree3=place.tree(3)) for o in job.options]
    row = re.sub(r"^tune-|-[^-]*e-\d+$", "", job.run)
    look = ("--validate-every", str(sizes.steps), "--val-limit", str(sizes.tuning or TUNE_EACH * seen),
            "--val-steps", str(sizes.look), "--best-by", CHOSEN_BY.get(row, "balanced"))  # fmt: skip
    new = "-new-" in job.run
    source = ("--split", "val", "--limit", str(NEW_EACH * seen)) if new else ("--split", "train")
    hrzs(
        "finetune", *place.untouched, "--data", str(place.images), *source,
        "--classes", str(place.classes("seen")), "--tree", str(place.tree(1)), *filled,
        "--epochs", "1000", "--max-steps", str(sizes.steps), "--batch-size", str(sizes.batch), "--lr", job.rate,
        "--seed", str(job.seed), "--eps", "1/255", "--steps", "3", "--precision", place.precision,
        "--save-every", str(max(1, sizes.steps // (1 if on_gpu(place) else 3))), "--device", place.device,
        *(look if job.run.startswith("tune-") or job.run in ABLATIONS else ("--validate-every", "0")),
        "--threads", str(place.threads), "--quiet", "--resume", "-o", str(folder),
    )  # fmt: skip
    for waste in ("checkpoint", "best"):
        shutil.rmtree(folder / waste, ignore_errors=True)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    took = [b["seconds"] - a["seconds"] for a, b in pairwise(log) if b["seconds"] > a["seconds"]]
    summary = {"name": job.run, "options": list(job.options), "lr": job.rate, "seed": job.seed, "steps": sizes.steps,
               "batch": sizes.batch, "step_seconds": round(median(took), 3) if took else None,
               "precision": place.precision, "device": device_name(), "first": log[0], "last": log[-1]}  # fmt: skip
    # A run made again for its model, on another machine, leaves the record that its rate was chosen by.
    if not training(job.run, place.results).exists():
        write(training(job.run, place.results), summary)


def evaluate(place: Place, job: Job) -> None:
    assert job.unit is not None
    unit = job.unit
    model = place.untouched if job.model == "untouched" else ("--model", str(place.model(job.model)))
    images = unit.images.removesuffix("-corrupted")
    part, limit, skip = chosen(images, place.sizes, place.count(_part(images)))
    corrupt = "corrupted" in unit.part
    data = ",".join(f"{place.images}+{name}" for name in CORRUPTIONS) if corrupt else str(place.images)
    aside = place.work / f"{plain(job.run)}-{unit.part}.json"
    hrzs(
        "eval", *model, "--data", data, "--split", "val", "--classes", str(place.classes(part)),
        "--tree", str(place.tree(1)), "--skip", str(skip), "--limit", str(limit), "--scoring", "prompt",
        *unit.options, *(("--precision", place.precision) if unit.half else ()),
        "--batch-size", "512" if on_gpu(place) else "128", "--device", place.device,
        "--threads", str(place.threads), "--quiet", "--json", str(aside), "--resume",
    )  # fmt: skip
    write(evaluation(job.run, unit.part, place.results), slim(without_folders(read(aside))))
    aside.unlink()


def on_gpu(place: Place) -> bool:
    import torch

    return place.device == "cuda" or (place.device == "auto" and torch.cuda.is_available())


def gpu_is_here() -> bool:
    """Asked of a process of its own: whoever has once looked for a GPU cannot fork workers that use it."""
    import torch

    with multiprocessing.get_context("fork").Pool(1) as pool:
        return bool(pool.apply(torch.cuda.is_available))


def write(file: Path, value: Any) -> None:
    aside = file.with_name(f".{file.name}")
    aside.write_text(json.dumps(value, separators=(",", ":")) + "\n")
    aside.replace(file)


#: What no table needs of a row; and of which attacks severity and consistency are shown.
_DROPPED = ("clean_ci95", "seconds", "transfer", "attacked_through", "norm")
_SHOWN = ("clean", "cw at level 0", "autoattack")


def slim(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what the tables have no use for, and with the device that it was made on."""
    report["results"] = [{k: v for k, v in row.items() if k not in _DROPPED} for row in report["results"]]
    for level in report["summary"]["levels"]:
        for key in ("severity", "consistency"):
            level[key] = {title: v for title, v in level[key].items() if title.startswith(_SHOWN)}
    report["config"] = {k: v for k, v in report["config"].items() if v is not None}
    return {**report, "device": device_name()}


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu"


def without_folders(value: Any) -> Any:
    """Files by their names alone: where they lay on a machine is no result."""
    if isinstance(value, dict):
        return {key: without_folders(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_folders(v) for v in value]
    return re.sub(r"/\S*/", "", value) if isinstance(value, str) and value.startswith("/") else value


def tidy(place: Place, rows: Sequence[str]) -> None:
    """Models that nothing will be asked of any more: losers of tuning, and runs that are measured."""
    for row in rows:
        best, left = place.best_rate(row, ())
        for rate in BEYOND if best and not left else ():
            if rate != best:
                (place.model(f"tune-{row}-{rate}") / "model.safetensors").unlink(missing_ok=True)
        for seed in SEEDS[1:]:
            if not place.missing(f"{row}-s{seed}", STAGES):
                (place.model(f"{row}-s{seed}") / "model.safetensors").unlink(missing_ok=True)


# -- workers --------------------------------------------------------------------------------------------------------


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Both streams of this process, below Python too, go to the end of ``file`` inside."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for old, stream in zip(kept, (1, 2), strict=True):
            os.dup2(old, stream)
            os.close(old)
        os.close(log)


def serve(place: Any, work: Callable[[Any, Any], None], orders: Connection) -> None:
    """A worker: job after job, in one process, until there are no more."""
    import torch

    torch.set_num_threads(place.threads)
    sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))  # noqa: SIM115
    while (job := orders.recv()) is not None:
        began, fault = time.monotonic(), ""
        with logged(log_of(place, job)):
            try:
                work(place, job)
            except KeyboardInterrupt:
                return
            except BaseException as error:
                traceback.print_exc()
                fault = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        orders.send((fault, time.monotonic() - began))


def log_of(place: Any, job: Any) -> Path:
    return place.work / "logs" / f"{plain(job.name).replace(' ', '-')}.log"


def do(place: Place, job: Job) -> None:
    """One job of a worker."""
    if on_gpu(place):
        from decoded import load_from_device

        load_from_device("cuda")
    train(place, job) if job.unit is None else evaluate(place, job)


class Worker:
    """A forked process and what it is doing."""

    def __init__(self, place: Any, work: Callable[[Any, Any], None]) -> None:
        fork = multiprocessing.get_context("fork")
        self.orders, theirs = fork.Pipe()
        self.process = fork.Process(target=serve, args=(place, work, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Any = None

    def give(self, job: Any) -> None:
        self.job = job
        self.orders.send(job)

    def answer(self) -> tuple[str, float]:
        """What came of the job; a process that died says that."""
        try:
            fault, seconds = self.orders.recv()
        except EOFError:
            self.process.join()
            return f"the process ended with {self.process.exitcode}", 0.0
        return fault, seconds


def work_off(
    place: Any,
    left: Callable[[Sequence[str]], Iterator[Any]],
    count: int,
    deadline: float,
    work: Callable[[Any, Any], None] = do,
    after: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Do what is left with ``count`` processes until the deadline; what failed, with the reason.

    ``left`` is asked anew before every job: what is ready depends on what has been done. ``place`` has ``work`` (a
    folder) and ``threads``; a job has a ``name`` and is ``ready`` or not.
    """
    (place.work / "logs").mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    workers = [Worker(place, work) for _ in range(count)]
    done = 0
    while True:
        busy = [w for w in workers if w.job is not None]
        taken = {w.job.name for w in busy if w.job is not None}
        late = time.monotonic() >= deadline
        able = [] if late else [j for j in left(tuple(failed)) if j.ready and j.name not in {*taken, *failed}]
        for worker in [w for w in workers if w.job is None][: len(able)]:
            worker.give(able.pop(0))
            busy.append(worker)
        if not busy:
            break
        for orders in wait([w.orders for w in busy]):
            worker = next(w for w in workers if w.orders is orders)
            fault, seconds = worker.answer()
            assert worker.job is not None
            done += 1
            print(f"{time.strftime('%H:%M:%S')} {seconds:6.1f} s  {worker.job.name}{'  FAILED: ' * bool(fault)}{fault}",
                  flush=True)  # fmt: skip
            if fault:
                failed[worker.job.name] = fault
            worker.job = None
            if not worker.process.is_alive():
                workers[workers.index(worker)] = Worker(place, work)
            after()
    for worker in workers:
        worker.give(None)
        worker.process.join()
    return failed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder with train/ and val/, one folder a WordNet id in each")
    parser.add_argument("--config", type=Path, help="the model's open_clip config")
    parser.add_argument("--weights", help="its weights: a file, or none")
    parser.add_argument("--work", type=Path, default=Path("runs/results"), help="where runs are written")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, help="processes that work side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="otherwise bf16 where that is faster than fp32")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no job is begun")
    parser.add_argument("--stages", default=",".join(STAGES), help="any of these, in their order")
    everything = ("untouched", *ROWS, *ABLATIONS, "noise")
    parser.add_argument("--rows", help="these rows only, separated by semicolons")
    parser.add_argument("--plan", action="store_true", help="say what is left to do, and stop")
    parser.add_argument("--steps", type=int, help="optimiser steps of a run, for trying")
    parser.add_argument("--autoattack", type=int, help="images of seen and of unseen classes that AutoAttack gets")
    parser.add_argument("--miniature", action="store_true", help="next to no steps and images, for trying")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    stages = options.stages.split(",")
    rows = options.rows.split(";") if options.rows else everything
    if unknown := [*{*stages} - {*STAGES}, *{*rows} - {*everything}]:
        parser.error(f"no such stage or row: {', '.join(unknown)}; there are {', '.join((*STAGES, *everything))}")
    sizes = MINIATURE if options.miniature else Sizes()
    given = {"steps": options.steps, "autoattack": options.autoattack}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value})
    place = Place(options.work, options.results, options.images, options.config, options.weights or "", options.device,
                  options.threads, options.precision or "bf16", sizes)  # fmt: skip
    if options.plan:
        todo = list(jobs(place, stages, rows))
        for job in todo:
            print(f"{job.seconds / 60:5.0f} min  {job.name}")
        steps = sum(place.sizes.steps for job in todo if job.unit is None)
        print(f"{sum(job.seconds for job in todo) / 3600:.1f} h of one core left: {len(todo)} jobs, {steps} steps "
              "(without rates beyond the ends)")  # fmt: skip
        return
    if None in (options.images, options.config, options.weights):
        parser.error("--images, --config and --weights are needed")
    import torch

    torch.set_num_threads(1)  # threads of the parent would not survive the fork
    from hrzs.models.bf16 import bf16_speed

    on_cpu = options.device == "cpu" or (options.device == "auto" and not gpu_is_here())
    if options.precision is None and on_cpu and bf16_speed() < 1:
        place = replace(place, precision="fp32")
    prepare(place)
    keep_decoded(place, corrupted="new" in stages)
    write_nodes(place)
    print(f"{time.monotonic() - began:.0f} s to read the images", flush=True)
    failed = work_off(place, lambda failed: jobs(place, stages, rows, failed), options.jobs, began + options.seconds,
                      after=lambda: tidy(place, [r for r in ROWS if r in rows and r not in SAME]))  # fmt: skip
    left = list(jobs(place, stages, rows, tuple(failed)))
    print(f"{len(failed)} failed, {len([j for j in left if j.name not in failed])} left to do")
    for name, fault in failed.items():
        print(f"failed: {name}: {fault}")


if __name__ == "__main__":
    main()
