"""Does a bigger model or a bigger batch change the answer? For a GPU that is at hand for some minutes.

    python docs/bigger_model.py --images tiny-imagenet --config clip-rn-64.json --weights clip-rn-64.safetensors \\
        --output bigger.json --seconds 480

(a) The small CLIP, fine-tuned with batches of 512; (b) a ViT of about 20 M parameters, pretrained here for some minutes
with prompts of the leaves and of their ancestors, then fine-tuned alike. Images may be a folder with train/ and val/,
or the .tar.gz files of one, and stay on the device as bytes. What is finished lies in WORK, a file each, and is not
made again; rows that the time did not reach are listed. `--miniature` runs the same code in a minute on a CPU.

The question: is `hierarchical` less `tecoa`, on the leaves of unseen classes, at least +3 points clean and +2 under
margin-loss PGD? Confirmed: both, with intervals above 0; refuted: the upper bounds lie below these; else undecided.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from decoded import Decoded, Pixels, decode, load_from_device, on_device
from evidence import options_of, read
from make_results import gpu_is_here, work_off, write
from make_results import hrzs as hrzs_command
from paired import Difference, paired
from torch import Tensor

import hrzs.training.trainer
from hrzs.data import open_dataset, subset
from hrzs.data.folder import decode as decode_image
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.rows import rows_of
from hrzs.evaluation.runner import Evaluation
from hrzs.hierarchy.tree import Tree
from hrzs.hierarchy.yaml_form import load_tree
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.models.saving import save_model
from hrzs.models.text import NodeIndex, Prompts, resolve_template
from hrzs.results.metrics import from_bits, node_weights
from hrzs.tasks import Task
from hrzs.training.options import TrainOptions
from hrzs.training.trainer import Trainer

#: The options are those of the main table and of its ablation.
BIGGER = ("untouched", "hierarchical", "tecoa", "tecoa-every-level-node", "hierarchical-before", "no-depth")
SEEDS = (0, 1)
OURS, THEIRS = "hierarchical", "tecoa"
#: Points that the difference must reach, clean and under the margin loss.
WANTED = {"clean": 3.0, "margin": 2.0}
SMALL, VIT = "small", "vit"


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the second set is for trying the script."""

    steps: int = 190
    batch: int = 512
    at_once: int = 1000  # in evaluation
    pgd: int = 20
    tune_each: int = 5  # validation images of each class that are left out
    limit: int | None = None  # of reported images, of seen and of unseen classes each
    read: int | None = None  # of images a class
    pretrain_batch: int = 1024
    width: int = 384
    layers: int = 9
    text_width: int = 128
    text_layers: int = 3
    seeds: tuple[int, ...] = SEEDS


MINIATURE = Sizes(steps=1, batch=8, at_once=8, pgd=1, tune_each=1, limit=8, read=3, pretrain_batch=8, width=64,
                  layers=1, text_width=64, text_layers=1, seeds=(0,))  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every row works with."""

    work: Path
    threads: int
    device: str
    config: str
    weights: str
    rates: dict[str, float]
    pretrain_seconds: float
    sizes: Sizes
    data: dict[str, Decoded]
    tree: Tree
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def vit(self) -> Path:
        return self.work / VIT

    def file(self, name: str) -> Path:
        return self.work / f"{name}.json"


@dataclass(frozen=True)
class Row:
    """One run and its figures; ``row`` "pretrain" makes the ViT."""

    part: str
    row: str
    seed: int
    ready: bool

    @property
    def name(self) -> str:
        return f"{self.part}-{self.row}-s{self.seed}"


def rows(bench: Bench, parts: Sequence[str], wanted: Sequence[str]) -> Iterator[Row]:
    """What is left, in the order of its worth: the ViT is made while the small model's rows run."""
    made = (bench.vit / "model.safetensors").exists()
    if VIT in parts and not made:
        yield Row(VIT, "pretrain", 0, True)
    for seed in bench.sizes.seeds:
        for part in parts:
            for row in wanted:
                one = Row(part, row, seed, part == SMALL or made)
                if not bench.file(one.name).exists() and not (row == "untouched" and seed):
                    yield one


# -- images ---------------------------------------------------------------------------------------------------------


def read_images(sources: Sequence[Path], each: int | None, kept: Path) -> dict[str, Decoded]:
    """The train and val images of a folder, or of one or more .tar.gz of it; ``each``: at most so many a class.

    What was decoded of a folder is kept in ``kept``.
    """
    if len(sources) == 1 and sources[0].is_dir():
        found = {}
        for split in ("train", "val"):
            data = open_dataset(str(sources[0]), split)
            limit = None if each is None else each * len(data.classes)
            some = data if limit is None else subset(data, limit=limit)
            found[split] = decode(some, 2 * (os.cpu_count() or 1), kept)
        return found
    images: dict[str, dict[str, Future[Pixels]]] = {"train": {}, "val": {}}
    counts: dict[tuple[str, str], int] = {}
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        for source in sources:
            with tarfile.open(source, "r:*") as tar:
                for member in tar:
                    parts = member.name.split("/")
                    split = next((p for p in parts if p in images), None)
                    if not member.isfile() or split is None or parts[-1].startswith("."):
                        continue
                    counts[split, parts[-2]] = counts.get((split, parts[-2]), 0) + 1
                    if each is not None and counts[split, parts[-2]] > each:
                        continue
                    file = tar.extractfile(member)
                    assert file is not None
                    job = pool.submit(_pixels, file.read(), member.name)
                    images[split]["/".join(parts[-2:])] = job
    return {split: Photos(split, {i: job.result() for i, job in some.items()}) for split, some in images.items()}


def _pixels(data: bytes, name: str) -> Pixels:
    return np.asarray(decode_image(data, name))


class Photos(Decoded):
    """Images by their ids, ``class/file``, as a folder of them would be."""

    def __init__(self, split: str, images: dict[str, Pixels]) -> None:
        self.name, self.split = "photographs", split
        self.ids = sorted(images)
        self.classes = tuple(sorted({i.split("/")[0] for i in self.ids}))
        self.class_names = self.classes
        place = {c: k for k, c in enumerate(self.classes)}
        self.labels = [place[i.split("/")[0]] for i in self.ids]
        self.pixels = np.stack([images[i] for i in self.ids])
        self.native_size = self.pixels.shape[1]
        self.like = None


# -- the ViT --------------------------------------------------------------------------------------------------------


def vit_config(sizes: Sizes, side: int) -> dict[str, Any]:
    return {
        "embed_dim": sizes.width,
        "vision_cfg": {"image_size": side, "layers": sizes.layers, "width": sizes.width, "head_width": 64,
                       "patch_size": 8 if side > 16 else 4},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": sizes.text_width,
                     "heads": max(1, sizes.text_width // 32), "layers": sizes.text_layers},
    }  # fmt: skip


def pretrain(bench: Bench) -> None:
    """Cross-entropy over the prompts of every level, all classes; rate by the clock."""
    data, sizes = bench.data["train"], bench.sizes
    side = data.pixels.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vit-64.json"
        config.write_text(json.dumps(vit_config(sizes, side)))
        model = load_model(str(config), "none", device=bench.device, precision="bf16")
    tree = bench.tree.restrict(data.classes)
    pixels, labels = on_device(data, bench.device), torch.tensor(list(data.labels)).to(bench.device)
    index = NodeIndex.of(tree).to(model.device)
    prompts = Prompts.of(index.nodes, resolve_template("photo"))
    tokens = model.tokenize(prompts.texts)
    ancestors = tree.ancestors.to(bench.device)
    clip: Any = model.clip
    tuned = [p for p in clip.parameters() if p.requires_grad]
    groups = [{"params": [p for p in tuned if p.ndim >= 2], "weight_decay": 0.05},
              {"params": [p for p in tuned if p.ndim < 2], "weight_decay": 0.0}]  # fmt: skip
    peak = 1e-3
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=bench.device != "cpu")
    generator = torch.Generator(device=bench.device).manual_seed(0)
    began, step, said = time.monotonic(), 0, 0.0
    recent: deque[Tensor] = deque(maxlen=20)
    while (spent := (time.monotonic() - began) / bench.pretrain_seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, spent / 0.05) * 0.5 * (1 + math.cos(math.pi * spent))
        some = torch.randint(len(labels), (sizes.pretrain_batch,), generator=generator, device=bench.device)
        images = augment(pixels[some].float().div_(255), generator)
        with model.autocast():
            text = prompts.gather(clip.encode_text(tokens), normalise=False)
        image = F.normalize(model.encode_image(images), dim=-1)
        text = F.normalize(text.float(), dim=-1)[index.owner]
        logits = clip.logit_scale.exp().clamp(max=100) * image @ text.T
        terms = [F.cross_entropy(logits[:, c], ancestors[level][labels[some]]) for level, c in enumerate(index.columns)]
        loss = torch.stack(terms).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        recent.append(loss.detach())
        step += 1
        # Kernels are queued ahead of time: now and then the clock has to wait for them.
        if step % 10 == 0 and bench.device != "cpu":
            torch.cuda.synchronize()
        if time.monotonic() - said > 5:
            said = time.monotonic()
            print(f"step {step}, loss {torch.stack(list(recent)).mean().item():.3f}", flush=True)
    size = sum(p.numel() for p in clip.parameters())
    epochs = step * sizes.pretrain_batch / len(labels)
    print(f"{size / 1e6:.1f} M parameters, {step} steps, {epochs:.1f} epochs", flush=True)
    bench.vit.mkdir(exist_ok=True)
    save_model(model, bench.vit)
    write(bench.file("vit-pretrain-s0"), {"part": VIT, "row": "pretrain", "seed": 0, "parameters": size, "steps": step,
                                          "epochs": epochs, "batch": sizes.pretrain_batch})  # fmt: skip


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of them mirrored, each cut out at random of what mirrored borders of an eighth make larger."""
    n, _, side, _ = images.shape
    device, border = images.device, side // 8
    flip = torch.rand(n, 1, 1, 1, generator=generator, device=device) < 0.5
    images = torch.where(flip, images.flip(-1), images)
    large = F.pad(images, (border,) * 4, mode="reflect")
    top, left = (torch.randint(2 * border + 1, (n, 1), generator=generator, device=device) for _ in range(2))
    line = torch.arange(side, device=device)
    at = torch.arange(n, device=device)[:, None, None]
    return large[at, :, (top + line)[:, :, None], (left + line)[:, None, :]].permute(0, 3, 1, 2).contiguous()


# -- rows -----------------------------------------------------------------------------------------------------------


class InMemory(Trainer):
    """A trainer that leaves nothing but its log."""

    def save_checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        """Nobody goes on from it."""

    def _save(self, folder: Path) -> None:
        """Nobody loads it."""


def train_options(arguments: Sequence[str], **fixed: Any) -> TrainOptions:
    """Options of `hrzs finetune` as the trainer takes them.

    Raises:
        TypeError: an option that there is not.
    """
    defaults = {f.name: f.default for f in fields(TrainOptions)}
    given: dict[str, Any] = {}
    rest = deque(arguments)
    while rest:
        name = rest.popleft().removeprefix("--").replace("-", "_")
        if rest and not rest[0].startswith("--"):
            text = rest.popleft()
            is_number = isinstance(defaults.get(name), int | float)
            given[name] = type(defaults[name])(float(text)) if is_number else text
        else:
            given[name] = True
    return TrainOptions(**{**given, **fixed})


def do(bench: Bench, job: Row) -> None:
    """One job of a worker."""
    from hrzs.cli.options import prepare_torch

    prepare_torch(bench.device, "bf16", bench.threads)
    load_from_device(bench.device)
    hrzs.training.trainer.write_report = lambda *_, **__: None
    if job.row == "pretrain":
        pretrain(bench)
        return
    began = time.monotonic()
    source = (bench.config, bench.weights) if job.part == SMALL else (str(bench.vit), None)
    model = load_model(*source, device=bench.device, precision="bf16")
    sizes = bench.sizes
    last: dict[str, Any] = {}
    if job.row != "untouched":
        options = train_options(
            options_of(job.row), lr=bench.rates[job.part], batch_size=sizes.batch,
            max_steps=sizes.steps, epochs=1000.0, seed=job.seed, validate_every=0,
        )  # fmt: skip
        data = subset(bench.data["train"], limit=None, classes=bench.seen)
        with tempfile.TemporaryDirectory() as folder:
            trainer = InMemory(model, data, bench.tree.restrict(data.classes), options, Path(folder), origin=source)
            trainer.run(lambda done, total, log: print(f"{done}/{total} {log['loss']:.3f}", flush=True))
            last = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])
    trained = time.monotonic()
    found = {"part": job.part, "row": job.row, "seed": job.seed, "lr": bench.rates[job.part], "last": last}
    for name, classes in (("seen", bench.seen), ("unseen", bench.unseen)):
        found[name] = measure(bench, model, classes)
    found["seconds"] = [round(trained - began, 1), round(time.monotonic() - trained, 1)]
    write(bench.file(job.name), found)


def measure(bench: Bench, model: ClipModel, classes: Sequence[str]) -> dict[str, Any]:
    """Which images are right at each level, clean and under the margin loss aimed at it, in the order of their ids."""
    sizes = bench.sizes
    data = subset(bench.data["val"], limit=sizes.limit, skip=sizes.tune_each * len(classes), classes=classes)
    tree = bench.tree.restrict(data.classes)
    options = EvalOptions(attack=("cw",), level="all", steps=sizes.pgd, scoring="prompt", matrix=False,
                          batch_size=sizes.at_once)  # fmt: skip
    evaluation = Evaluation(model, Task(data, tree, "tree", "in-graph"), options)
    evaluation.run()
    levels: dict[str, list[str]] = {"clean": [], "margin": []}
    for row in rows_of(evaluation):
        levels["clean" if row.attack == "none" else "margin"].append(row.correct or "")
    labels = [label for _, label in sorted(zip(data.ids, data.labels, strict=True))]
    nodes = [tree.ancestors[level][labels].tolist() for level in range(tree.height)]
    return {"n": len(data), "nodes": nodes, **levels}


# -- what comes of it -----------------------------------------------------------------------------------------------


def balanced(figures: dict[str, Any], what: str) -> list[float]:
    """Balanced accuracy of each level."""
    return [
        (from_bits(bits, figures["n"]).double() * node_weights(torch.tensor(nodes))).sum().item()
        for bits, nodes in zip(figures[what], figures["nodes"], strict=True)
    ]


def compare(found: Sequence[dict[str, Any]], ours: str, theirs: str, split: str, what: str) -> Difference | None:
    """``ours`` less ``theirs`` at the leaves, over all seeds of each."""
    both = [[one[split] for one in found if one["row"] == row] for row in (ours, theirs)]
    if not all(both):
        return None
    bits = [[from_bits(figures[what][0], figures["n"]) for figures in seeds] for seeds in both]
    return paired(*bits, node_weights(torch.tensor(both[0][0]["nodes"][0])))


def verdict(clean: Difference, margin: Difference) -> str:
    """The rule at the top of this file."""
    both = [(clean, WANTED["clean"]), (margin, WANTED["margin"])]
    if all(d.middle >= wanted and d.low > 0 for d, wanted in both):
        return "confirmed"
    return "refuted" if all(d.high < wanted for d, wanted in both) else "undecided"


def summary(bench: Bench, parts: Sequence[str], wanted: Sequence[str], failed: dict[str, str]) -> dict[str, Any]:
    """Everything in one value, printed on the way."""
    found = [read(file) for file in sorted(bench.work.glob("*-s[0-9].json"))]
    measured = [one for one in found if "seen" in one]
    for one in measured:
        one["balanced"] = {split: {what: balanced(one[split], what) for what in ("clean", "margin")}
                           for split in ("seen", "unseen")}  # fmt: skip
        shown = {split: " | ".join(" / ".join(f"{100 * v:.1f}" for v in figures[what]) for what in ("clean", "margin"))
                 for split, figures in one["balanced"].items()}  # fmt: skip
        print(f"{one['part']:6} {one['row']:24} s{one['seed']}  seen {shown['seen']}  unseen {shown['unseen']}")
    verdicts: dict[str, Any] = {}
    for part in parts:
        mine = [one for one in measured if one["part"] == part]
        for theirs in [row for row in BIGGER if row != OURS]:
            found_here = {
                (split, what): compare(mine, OURS, theirs, split, what)
                for split in ("unseen", "seen")
                for what in ("clean", "margin")
            }
            lines = {f"{split} {what}": str(d) for (split, what), d in found_here.items() if d is not None}
            if not lines:
                continue
            counts = [sum(one["row"] == row for one in mine) for row in (OURS, theirs)]
            entry: dict[str, Any] = {"less": theirs, "seeds": counts, **lines}
            if min(counts) == 1 and theirs != "untouched":
                entry["note"] = "a side of one seed: the intervals do not hold how seeds differ"
            clean, margin = found_here["unseen", "clean"], found_here["unseen", "margin"]
            if theirs == THEIRS and clean is not None and margin is not None:
                entry["verdict"] = verdict(clean, margin)
            verdicts.setdefault(part, []).append(entry)
            print(f"{part}: {OURS} less {theirs}: {entry}")
    left = [row.name for row in rows(bench, parts, wanted) if row.name not in failed]
    return {
        "steps": bench.sizes.steps, "batch": bench.sizes.batch, "pgd": bench.sizes.pgd, "eps": "1/255",
        "device": torch.cuda.get_device_name() if bench.device != "cpu" else "cpu",
        "differences": verdicts, "failed": failed, "skipped": left, "rows": found,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="a folder, or .tar.gz files")
    parser.add_argument("--config", required=True, help="the small model's open_clip config")
    parser.add_argument("--weights", required=True, help="its weights: a file, or none")
    parser.add_argument("--work", type=Path, default=Path("runs/bigger"), help="what is finished lies here")
    parser.add_argument("--output", type=Path, default=Path("bigger.json"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=480, help="after which nothing more is begun")
    parser.add_argument("--pretrain-seconds", type=float, default=150)
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side on the one device")
    parser.add_argument("--threads", type=int, default=2, help="of each")
    parser.add_argument("--parts", default="small,vit", help="either, or both")
    parser.add_argument("--rows", default=",".join(BIGGER))
    parser.add_argument("--lr-small", type=float, default=8e-4)
    parser.add_argument("--lr-vit", type=float, default=3e-4)
    parser.add_argument("--steps", type=int, help="of a fine-tuning run")
    parser.add_argument("--miniature", action="store_true", help="next to no steps and images, for trying")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    torch.set_num_threads(1)  # threads of the parent would not survive the fork
    sizes = MINIATURE if options.miniature else Sizes()
    if options.steps:
        sizes = replace(sizes, steps=options.steps)
    device = options.device
    if device == "auto":
        device = "cuda" if gpu_is_here() else "cpu"
    options.work.mkdir(parents=True, exist_ok=True)
    data = read_images(options.images, sizes.read, options.work)
    ids = data["val"].classes
    classes, tree = options.work / "classes.txt", options.work / "tree.yaml"
    classes.write_text("".join(f"{c}\n" for c in ids))
    if not tree.exists():
        hrzs_command("build-tree", "--classes", str(classes), "--depths", "8,6,4", "--quiet", "-o", str(tree))
    print(f"{time.monotonic() - began:.0f} s to read {sum(map(len, data.values()))} images", flush=True)
    bench = Bench(
        options.work, options.threads, device, options.config, options.weights,
        {SMALL: options.lr_small, VIT: options.lr_vit}, 1.0 if options.miniature else options.pretrain_seconds, sizes,
        data, load_tree(tree), tuple(c for i, c in enumerate(ids) if i % 4 != 3), ids[3::4],
    )  # fmt: skip
    parts, wanted = options.parts.split(","), options.rows.split(",")
    if unknown := [*{*parts} - {SMALL, VIT}, *{*wanted} - {*BIGGER}]:
        parser.error(f"no such part or row: {', '.join(unknown)}; there are {', '.join((SMALL, VIT, *BIGGER))}")
    failed = work_off(bench, lambda _: rows(bench, parts, wanted), options.jobs, began + options.seconds, do)
    found = summary(bench, parts, wanted, failed)
    write(options.output, found)
    print(f"{len(failed)} failed, {len(found['skipped'])} skipped, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
