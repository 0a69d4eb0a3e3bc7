"""What hrzs does on a GPU, measured in at most eight minutes: `make gpu`.

    python tests/benchmarks/gpu.py --output runs/gpu [--seconds 480] [--device cuda] [--parts tests,training,…]

The machine needs what hrzs itself needs, and pytest; where hrzs is not installed, PYTHONPATH names its checkout. Nothing
is downloaded: ViT-B-32 has random weights, `tiny` and `shapes` are part of hrzs. Each part is a process of its own with
a limit of its own. When it ends, its findings are in OUTPUT/gpu.json and OUTPUT/gpu.txt; a part that is cut off leaves
what it had found, one that fails its traceback too, and the others go on. ``--small --device cpu`` runs all of it in
half a minute.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import multiprocessing
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import torch
from measures import operations
from safetensors.torch import load_file
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hrzs.attacks import ATTACKS, AttackResult, Budget, counter, sample_seeds
from hrzs.attacks.base import features_of
from hrzs.cli import main as hrzs
from hrzs.data import loader, open_dataset, subset
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.runner import Evaluation
from hrzs.hierarchy.published import find_tree
from hrzs.hierarchy.tree import Tree
from hrzs.hierarchy.yaml_form import load_tree, load_trees
from hrzs.models.classifier import ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.models.loading import load_model
from hrzs.tasks import Task
from hrzs.training.methods import method_class
from hrzs.training.options import TrainOptions

ROOT = Path(__file__).resolve().parents[2]
#: What a part measures: a name and its value, as soon as it is known.
Found = Iterator[tuple[str, Any]]
EPS = Fraction(1, 255)


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `SMALL` is for trying the script."""

    arch: str = "ViT-B-32"
    shrunk: dict[str, Any] | None = None  # another architecture under that name
    trees: str = "imagenet"
    precisions: tuple[str, ...] = ("bf16", "fp32")
    batches: tuple[int, ...] = (256, 512, 1024)
    repeats: int = 5
    matmul: int = 8192  # rows and columns of the products that tell the machine's rate
    attacked: int = 256  # images of the large model under PGD
    pgd: int = 20
    compared: int = 100  # images whose verdicts are compared with the CPU's
    under_autoattack: int = 20
    autoattack: int = 10  # its steps, of 100
    finetune: int = 40  # steps of the run that is killed halfway
    chosen: str = ""  # of the tests, as pytest's -k has it


SMALL = Sizes(
    arch="a-small-ViT",
    shrunk={
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    trees="shapes", precisions=("fp32",), batches=(4,), repeats=1, matmul=64, attacked=4, pgd=2, compared=4,
    under_autoattack=2, autoattack=1, finetune=4, chosen="uniform",
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Where and how large; ``ends`` is the time, by `time.monotonic`, at which this part is cut off."""

    work: Path
    device: str
    sizes: Sizes
    ends: float = 0.0

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object]) -> float:
        """Median of wall clock seconds, the device's work included, after two calls that warm up."""
        times = []
        for _ in range(2 + self.sizes.repeats):
            self.wait()
            began = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - began)
        return statistics.median(times[2:])

    def config(self) -> Path:
        """Of the large model. Its text encoder has one layer: it runs once per run, in no step."""
        config = copy.deepcopy(self.sizes.shrunk or open_clip.get_model_config(self.sizes.arch))
        config["text_cfg"]["layers"] = 1
        file = self.work / f"{self.sizes.arch.lower()}-short-text.json"
        file.write_text(json.dumps(config))
        return file

    def large_model(self) -> ClipModel:
        """With random weights."""
        return load_model(str(self.config()), "none", device=self.device, seed=0)

    def large_trees(self) -> list[Tree]:
        """Five trees over the same classes; of ImageNet's three, two come twice."""
        path = find_tree(self.sizes.trees)
        assert path is not None
        return list(itertools.islice(itertools.cycle(load_trees(path)), 5))


# -- the parts --------------------------------------------------------------------------------------------------------


def about(bench: Bench) -> Found:
    """The machine, and the rate of its matrix products: the share of it that a step reaches says how good the step is."""
    if bench.on_gpu:
        card = torch.cuda.get_device_properties(0)
        yield "card", card.name
        yield "memory", f"{card.total_memory / 2**30:.1f} GiB"
    yield "torch", torch.__version__
    yield "CUDA", torch.version.cuda
    yield "Python", platform.python_version()
    yield "CPU cores", os.cpu_count()
    yield "rate", {precision: {"TFLOP/s": rate(bench, precision)} for precision in bench.sizes.precisions}


@exact_fp32()
def rate(bench: Bench, precision: str) -> float:
    """TFLOP/s of large square products; in fp32 without TF32, as all of hrzs computes."""
    n, dtype = bench.sizes.matmul, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / bench.seconds(lambda: a @ b) / 1e12


def tests(bench: Bench) -> Found:
    """The tests whose code touches a device, on this one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
               "-o", "filterwarnings=", "-k", bench.sizes.chosen, str(ROOT / "tests/test_on_device.py")]  # fmt: skip
    log = bench.work / "pytest.txt"
    with log.open("w") as file:
        try:
            status: int | str = subprocess.run(
                command, cwd=ROOT, env=os.environ | {"HRZS_TEST_DEVICE": bench.device, "PYTHONPATH": paths()},
                stdout=file, stderr=subprocess.STDOUT, timeout=bench.left - 1, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = "cut off"
    lines = log.read_text().splitlines()
    for outcome in ("passed", "failed", "error"):
        counts = re.findall(rf"(\d+) {outcome}", lines[-1]) if lines else []
        yield outcome, int(counts[0]) if counts else 0
    yield "last lines", "\n".join(lines[-60:])
    if status != 0:
        raise RuntimeError(f"pytest ended with {status}")


def training(bench: Bench) -> Found:
    """Whole steps of a batch in memory: attack, loss, gradients, optimiser, log."""
    sizes, model, trees = bench.sizes, bench.large_model(), bench.large_trees()
    rates = {precision: rate(bench, precision) for precision in sizes.precisions}
    runs = [
        Run(bench, model, trees[:count], method)
        for method, count in (("tecoa", 1), ("hierarchical", 1), ("hierarchical", 5))
    ]
    for precision, batch, run in itertools.product(sizes.precisions, sizes.batches, runs):
        name = f"{precision}, {batch} images, {run.name}"
        try:
            yield name, measure(bench, run.step_of(batch, precision), batch, batch * run.flops(), rates[precision])
        except torch.OutOfMemoryError:
            yield name, {"ms": "out of memory"}
        if bench.on_gpu:
            torch.cuda.empty_cache()


class Run:
    """A method that trains a copy of ``model``, step by step."""

    def __init__(self, bench: Bench, model: ClipModel, trees: Sequence[Tree], method: str) -> None:
        self.bench, self.model, self.classes = bench, copy.deepcopy(model), len(trees[0].classes)
        self.name = f"{method}, {len(trees)} tree{'s' * (len(trees) > 1)}"
        self.method = method_class(method)(self.model, trees[0], TrainOptions(method=method), trees[1:])
        self.method.begin(torch.rand(16, 3, model.image_size, model.image_size).to(bench.device))
        self.tuned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.tuned, lr=1e-6)

    def step_of(self, batch: int, precision: str) -> Callable[[], list[float]]:
        """A step on random images, bytes on the device; it returns the numbers of its log."""
        generator, side = torch.Generator().manual_seed(0), self.model.image_size
        images = torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
        labels = torch.randint(self.classes, (batch,), generator=generator).to(self.bench.device)
        images, seeds = images.to(self.bench.device), sample_seeds([str(i) for i in range(batch)], 0)

        @exact_fp32()
        def step() -> list[float]:
            self.model.precision = precision
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.method.loss(images / 255, labels, seeds)
            loss.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.tuned, 10.0)
            self.optimizer.step()
            return torch.stack([loss.total.detach(), norm, *loss.log.values()]).tolist()

        return step

    @functools.cache  # noqa: B019 -- one for each of a few runs
    def flops(self) -> float:
        """Floating point operations of a step, of one image."""
        batch = self.bench.sizes.batches[0]
        with FlopCounterMode(display=False) as counted:
            self.step_of(batch, "fp32")()
        return float(counted.get_total_flops()) / batch


def measure(bench: Bench, step: Callable[[], object], batch: int, flops: float, rate: float) -> dict[str, Any]:
    """Time, memory and launches of a step, and the shares of the time that count."""
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.seconds(step)
    found = {
        "ms": 1e3 * seconds, "images/s": batch / seconds, "GFLOP/image": flops / batch / 1e9,
        "share of rate": flops / seconds / 1e12 / rate, "operations": operations(step),
    }  # fmt: skip
    if bench.on_gpu:
        kernels, busy = on_the_gpu(bench, step)
        found |= {"kernels": kernels, "idle": max(0.0, 1 - busy / seconds),
                  "peak GiB": torch.cuda.max_memory_allocated() / 2**30}  # fmt: skip
    return found


def on_the_gpu(bench: Bench, step: Callable[[], object]) -> tuple[int, float]:
    """Kernels and copies of a step, and the seconds in which one of them ran (they run one after the other)."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        bench.wait()
    ran = [e for e in found.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return len(ran), sum(e.time_range.elapsed_us() for e in ran) / 1e6


def evaluation(bench: Bench) -> Found:
    """Verdicts beside the CPU's from the same random starts; images per second of PGD and AutoAttack."""
    sizes = bench.sizes
    path = find_tree("shapes")
    assert path is not None
    tree, few = load_tree(path), {"autoattack": sizes.under_autoattack}
    batch = next(iter(loader(subset(open_dataset("shapes", "test"), limit=sizes.compared), sizes.compared)))
    seeds = sample_seeds(batch.ids, 0)
    models = {device: load_model("tiny", device=device) for device in ("cpu", bench.device)}
    for name in ("fgsm", "leaf-pgd", "hierarchical-pgd", "apgd-ce", "autoattack"):
        some, found = few.get(name, sizes.compared), dict[str, AttackResult]()
        spec = ATTACKS[name]
        attack = spec.optimiser(
            Budget(2 * EPS, EPS, sizes.autoattack if name == "autoattack" else sizes.pgd), early_stop=False
        )
        took = {}
        for device, model in models.items():
            objective = spec.objective(ZeroShotClassifier(model, tree), spec.levels(tree, None)[0])
            images, labels = batch.images[:some].to(device), batch.labels[:some].to(device)
            with mock.patch.object(counter, "is_used_on", return_value=True):  # a CPU draws otherwise
                began = time.perf_counter()
                result = attack(model, objective, images, labels, seeds[:some])
                found[device] = replace(result, images=result.images.cpu(), success=result.success.cpu())
                took[device] = time.perf_counter() - began
        ours, theirs = found[bench.device], found["cpu"]
        apart = (ours.images - theirs.images).abs().flatten(1).amax(1)
        yield f"tiny, {name}", {
            "images": some, "fooled": int(ours.success.sum()), "fooled on the CPU": int(theirs.success.sum()),
            "other verdicts": int((ours.success != theirs.success).sum()), "other images": int((apart > 0).sum()),
            "farthest apart": apart.max().item(), "images/s": some / took[bench.device],
            "on the CPU": some / took["cpu"],
        }  # fmt: skip
    options = EvalOptions(attack=("leaf-pgd",), steps=sizes.pgd, batch_size=sizes.compared)
    task = Task(subset(open_dataset("shapes", "test"), limit=sizes.compared), tree, "shapes", "in-graph")
    whole = Evaluation(models[bench.device], task, options)
    whole.run()
    yield "tiny, an evaluation by leaf-pgd", {"images/s": sizes.compared / whole.seconds[whole.units[1].key]}
    yield from large_attacks(bench)


def large_attacks(bench: Bench) -> Found:
    """Images per second of the large model under attack, where fooled images stay; of AutoAttack, where they leave."""
    sizes, model, tree = bench.sizes, bench.large_model(), bench.large_trees()[0]
    n = sizes.attacked
    images = torch.rand(n, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    images, seeds = images.to(bench.device), sample_seeds([str(i) for i in range(n)], 0)
    classifier = ZeroShotClassifier(model, tree)
    labels = classifier.predict(features_of(model, images))[0, 0]
    spec = ATTACKS["leaf-pgd"]
    objective = spec.objective(classifier, 0)
    for precision in sizes.precisions:
        model.precision = precision
        attack = spec.optimiser(Budget(EPS, EPS, sizes.pgd), early_stop=False)
        once = replace(bench, sizes=replace(sizes, repeats=1))
        seconds = once.seconds(functools.partial(attack, model, objective, images, labels, seeds))
        yield f"{sizes.arch}, PGD-{sizes.pgd}, {precision}", {"images": n, "images/s": n / seconds}
    model.precision, some = sizes.precisions[0], sizes.under_autoattack
    attack = ATTACKS["autoattack"].optimiser(Budget(EPS, EPS, sizes.autoattack))
    began = time.perf_counter()
    result = attack(model, ATTACKS["autoattack"].objective(classifier, 0), images[:some], labels[:some], seeds[:some])
    fooled = int(result.success.sum())
    seconds = time.perf_counter() - began
    yield f"{sizes.arch}, AutoAttack of {sizes.autoattack} steps, {model.precision}", {
        "images": min(some, n), "fooled": fooled, "images/s": min(some, n) / seconds,
    }  # fmt: skip


def resume(bench: Bench) -> Found:
    """A run killed by SIGKILL and resumed ends with the bits of an uninterrupted one, with deterministic kernels."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    whole, killed, steps = bench.work / "whole", bench.work / "killed", bench.sizes.finetune
    began = time.monotonic()
    process = finetune(bench, whole)
    process.join()
    yield "seconds of the whole run", time.monotonic() - began
    check_ended(process, whole)
    process = finetune(bench, killed)
    metrics = killed / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= steps // 2):
        time.sleep(0.001)
    process.kill()
    process.join()
    done = metrics.read_bytes().count(b"\n")
    yield "killed after steps", f"{done} of {steps}"
    if process.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the run had ended before it was killed, with {process.exitcode}")
    process = finetune(bench, killed, "--resume")
    process.join()
    check_ended(process, killed)
    said = "".join(sorted({line for log in bench.work.glob("*.log") for line in log.read_text().splitlines(True)
                           if "deterministic" in line}))  # fmt: skip
    yield "operations without a deterministic form", said
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    other = [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    yield "tensors", len(theirs)
    yield "other tensors", len(other)
    if other:
        raise RuntimeError(f"other bits than those of the uninterrupted run: {', '.join(other[:5])}, …")


def run_arguments(bench: Bench, folder: Path) -> list[str]:
    """Of a run on the embedded data, with the embedded model or a smaller one."""
    steps = str(bench.sizes.finetune)
    smaller = ["--model", str(bench.config()), "--pretrained", "none"] if bench.sizes.shrunk else []
    return ["finetune", *smaller, "--max-steps", steps, "--batch-size", "24", "--save-every", "2",
            "--validate-every", "0", "--device", bench.device, "--quiet", "-o", str(folder)]  # fmt: skip


def finetune(bench: Bench, folder: Path, *more: str) -> multiprocessing.Process:
    """`hrzs finetune` in a process that no CUDA library has been used in, forked: that saves the imports."""

    def work() -> None:
        with folder.with_suffix(".log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            torch.use_deterministic_algorithms(True, warn_only=True)
            hrzs([*run_arguments(bench, folder), *more])

    process = FORK.Process(target=work)
    process.start()
    return process


def check_ended(process: multiprocessing.Process, folder: Path) -> None:
    if process.exitcode:
        raise RuntimeError(f"exit status {process.exitcode}\n{folder.with_suffix('.log').read_text()[-3000:]}")


def profiles(bench: Bench) -> Found:
    """Where a step's time goes, by kernel and by what the host does."""
    model, trees, batch = bench.large_model(), bench.large_trees(), bench.sizes.batches[0]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.on_gpu
    for method in ("hierarchical", "tecoa"):
        step = Run(bench, model, trees[:1], method).step_of(batch, bench.sizes.precisions[0])
        for _ in range(2):
            step()
        with profile(activities=activities) as found:
            step()
            bench.wait()
        averages = found.key_averages()
        kinds = {"host": "self_cpu_time_total"} | ({"kernel": "self_device_time_total"} if bench.on_gpu else {})
        for kind, order in kinds.items():
            yield f"{method} by {kind}", averages.table(sort_by=order, row_limit=25, max_name_column_width=60)


def distributed(bench: Bench) -> Found:
    """One process under torchrun."""
    run = run_arguments(bench, bench.work / "torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "hrzs"]
    done = subprocess.run(
        [*command, *run], cwd=bench.work, env=os.environ | {"PYTHONPATH": paths()}, capture_output=True, text=True,
        timeout=bench.left - 1, check=False,
    )  # fmt: skip
    yield "exit status", done.returncode
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def paths() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


#: In the order of their worth, each with the largest share of the time that it may take.
PARTS: dict[str, tuple[Callable[[Bench], Found], float]] = {
    "about": (about, 0.15),
    "tests": (tests, 0.3),
    "training": (training, 0.4),
    "evaluation": (evaluation, 0.2),
    "resume": (resume, 0.2),
    "profile": (profiles, 0.15),
    "torchrun": (distributed, 0.15),
}


# -- running them -----------------------------------------------------------------------------------------------------

#: Children have all imports, and a CUDA of their own: the parent never touches the device.
FORK: Any = multiprocessing.get_context("fork")


def work(part: str, bench: Bench, file: Path) -> None:
    """In a process of its own: one part, whose findings go to ``file`` one by one."""
    os.setsid()  # with its own children it is a group that can be ended
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    state: dict[str, Any] = {"found": {}}
    try:
        for key, value in PARTS[part][0](bench):
            state["found"][key] = value
            replace_text(file, json.dumps(state))
    except Exception:
        state["failed"] = traceback.format_exc()
    state["ended"] = True
    replace_text(file, json.dumps(state))


def replace_text(file: Path, text: str) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def run(part: str, bench: Bench) -> dict[str, Any]:
    """One part, until it ends or its time is up."""
    if bench.left < 1:
        return {"seconds": 0.0, "failed": "no time left", "found": {}}
    file, began = bench.work / f"{part}.part", time.monotonic()
    process = FORK.Process(target=work, args=(part, bench, file))
    process.start()
    try:
        process.join(bench.left)
    finally:  # also where this process is interrupted
        cut_off = process.is_alive()
        if cut_off:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"found": {}}
    failed = state.get("failed")
    if cut_off:
        failed = f"cut off after {time.monotonic() - began:.0f} s"
    elif not state.get("ended"):
        failed = f"its process ended with {process.exitcode}"
    return {"seconds": round(time.monotonic() - began, 1), "failed": failed, "found": state["found"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="the folder of gpu.json and gpu.txt")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="next to nothing of everything, for trying")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args(arguments)
    chosen = options.parts.split(",")
    if unknown := {*chosen} - {*PARTS}:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    began, sizes = time.monotonic(), SMALL if options.small else Sizes()
    os.environ["HRZS_CACHE"] = "0"
    torch.set_num_threads(1)  # threads of the parent would not survive the fork
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": options.device, "sizes": asdict(sizes), "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for part in chosen:
            # The slack is for writing and for ending processes.
            share = 1.0 if options.small else PARTS[part][1]
            ends = min(began + options.seconds - 2, time.monotonic() + share * options.seconds)
            found["parts"][part] = run(part, Bench(Path(folder), options.device, sizes, ends))
            replace_text(options.output / "gpu.json", json.dumps(found, indent=1) + "\n")
            replace_text(options.output / "gpu.txt", as_text(found))
            state = found["parts"][part]
            print(f"{part}: {state['seconds']} s, {state['failed'] or 'whole'}", flush=True)
    print(f"{time.monotonic() - began:.0f} s: {options.output / 'gpu.json'} {options.output / 'gpu.txt'}")


# -- for people -------------------------------------------------------------------------------------------------------


def as_text(found: dict[str, Any]) -> str:
    """All findings, tables where several have the same form."""
    blocks = []
    for part, state in found["parts"].items():
        said = f" -- {state['failed'].strip()}" if state["failed"] else ""
        blocks.append(f"== {part}: {state['seconds']} s{said}")
        rows: dict[str, dict[str, Any]] = {}
        for key, value in state["found"].items():
            if isinstance(value, dict) and not any(isinstance(v, dict) for v in value.values()):
                rows[key] = value
            elif isinstance(value, dict):
                blocks.append(f"{key}\n{table(value)}")
            else:
                blocks.append(f"{key}:{chr(10) if chr(10) in str(value) else ' '}{shown(value)}")
        if rows:
            blocks.append(table(rows))
    return "\n\n".join(blocks) + "\n"


def table(rows: dict[str, dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns], *([name, *(shown(row.get(c, "")) for c in columns)] for name, row in rows.items())]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
