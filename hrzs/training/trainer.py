"""The trainer: data order, schedule, validation, log. Everything random is a function of (seed, step, image id), so a
resumed run needs no random state, and ends with the weights of an uninterrupted one. Nor does it matter how many
processes share the batches."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hrzs.attacks.base import sample_seeds
from hrzs.attacks.counter import standard_normal
from hrzs.data import Batch, Dataset, ImageError, digest, read
from hrzs.distributed import ALONE, Group
from hrzs.errors import HrzsError, ProcessLostError, UsageError
from hrzs.files import whole_lines
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.models.heads import HyperbolicHead
from hrzs.models.recompute import recompute_activations
from hrzs.models.saving import WEIGHTS_FILE, save_model
from hrzs.results.pages.training import FILE as REPORT_FILE
from hrzs.results.pages.training import write_report
from hrzs.stopping import Stopped, unbroken
from hrzs.training.checkpoints import has_checkpoint, load_checkpoint, save_checkpoint
from hrzs.training.methods import Method, method_class
from hrzs.training.options import DEFAULTS, TrainOptions
from hrzs.training.tensorboard import open_writer
from hrzs.training.validation import validate

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
#: The folder, inside the run's, of the best model by validation; ``--model`` takes it.
BEST = "best"

#: Called after each step with (step done, steps in all, what was logged).
Progress = Callable[[int, int, dict[str, float]], None]


class Trainer:
    """Fine-tunes ``model`` in place and writes a run folder.

    Args:
        model: what to start from.
        data: training images, all of one size.
        tree: over the classes of ``data``, in their order.
        options: those of the run.
        folder: where the run is written; it exists already.
        workers: processes that read images ahead (None: `hrzs.data.reading.workers_for`).
        save_every: steps between checkpoints.
        origin: the ``--model`` and ``--pretrained`` that ``model`` came from, by default as its ``info`` has them; kept
            so that an evaluation can load the untouched model beside the tuned one.
        licence: of the weights that come out; by default that of the weights that went in.
        half: store the result as float16.
        more_trees: further trees over the same classes (a forest).
        validation: held-out images of the same classes, looked at every ``options.validate_every`` steps.
        group: the processes that share the batches; ``options.batch_size`` counts the images of all of them. The first
            writes, and the others do not touch the folder.

    Raises:
        UsageError: the tree has other classes than the data, the batches cannot be divided, or the processes do not see
            the same data, tree, model and options.
    """

    def __init__(
        self,
        model: ClipModel,
        data: Dataset,
        tree: Tree,
        options: TrainOptions,
        folder: Path,
        *,
        workers: int | None = 0,
        save_every: int = 100,
        origin: tuple[str, str | None] | None = None,
        licence: str | None = None,
        half: bool = False,
        more_trees: Sequence[Tree] = (),
        validation: Dataset | None = None,
        group: Group = ALONE,
    ) -> None:
        if any(t.classes != data.classes for t in (tree, *more_trees)):
            raise UsageError("the tree's classes are not the data's; `tree.restrict(data.classes)` first")
        self.model, self.data, self.tree, self.options = model, data, tree, options
        self.folder, self.workers, self.save_every = folder, workers, save_every
        self.licence, self.half, self.group = licence, half, group
        self.validation = validation if options.validate_every else None
        self.batch_size = min(options.batch_size, len(data))
        self.steps = total_steps(options, len(data))
        started = model.info.origin if origin is None else origin
        self.base = {"model": started[0], "pretrained": started[1], "digest": model.info.digest}
        if model.info.visual is not None:
            # A foreign image encoder is mostly robust already: the untouched model is the one without it.
            self.base = {**model.info.run["base"], "visual": model.info.visual}
        # Everything that the weights depend on: a checkpoint of another plan is refused.
        self.plan: dict[str, Any] = {
            **options_as_config(options), "total_steps": self.steps, "images": digest(data), "tree": tree.digest,
            "more_trees": [t.digest for t in more_trees], "start": model.info.digest, "precision": model.precision,
            "validation": None if self.validation is None else digest(self.validation),
            "image_size": list(data[0].image.shape[1:]),
        }  # fmt: skip
        self._forest = {"more_trees": self.plan["more_trees"]} if more_trees else {}
        self._check_division()
        self.method: Method = method_class(options.method)(model, tree, options, more_trees)
        self.method.group = group
        if options.checkpoint_activations:
            recompute_activations(model.clip.visual)
        if options.compile:
            if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
                raise UsageError("--compile: torch.compile needs a C++ compiler, such as g++, and finds none here")
            cast(Any, model.clip).visual.compile()
        tuned = [p for p in model.clip.parameters() if p.requires_grad]
        self._original = [p.detach().clone() for p in tuned] if options.interpolate else []
        self._mean = [p.detach().clone() for p in tuned] if options.ema else []
        self._tuned = tuned
        self.best: dict[str, float] | None = None
        self.step = 0
        self._optimizer_state: dict[str, Any] | None = None
        self._mid_step = False
        #: The log of the last step, until it was looked at the validation images and written.
        self._unlogged: dict[str, float] | None = None

    # -- the run --------------------------------------------------------------------------------------------------

    @exact_fp32()
    @unbroken()
    def run(self, progress: Progress | None = None) -> None:
        """Train from the present step to the end; if interrupted, or if an image cannot be read, leave a checkpoint.

        Raises:
            ImageError: an image cannot be read; the message names it.
            HrzsError: the loss or its gradient is not finite; the state before the step is saved, and the message
                names step and images.
        """
        order, ahead = itertools.tee(self._order())
        own = (rows[self.group.part(len(rows))] for rows in ahead)
        batches = read(self.data, own, workers=self.workers, device=self.model.device)
        first = self.group.is_first
        metrics_path = self.folder / METRICS_FILE
        if first:
            _keep_lines(metrics_path, self.step if self._unlogged is None else self.step - 1)
        is_begun = self.step < self.steps or self._unlogged is not None
        board = open_writer(self.folder, self.step) if first and is_begun else None
        optimizer: torch.optim.Optimizer | None = None
        started = time.monotonic()

        def finish_step(log: dict[str, Any]) -> None:
            if self._is_time_to_validate():
                log["validation"] = self._validate()
            log["seconds"] = time.monotonic() - started
            if metrics is not None:
                metrics.write(json.dumps({"step": self.step, **log}) + "\n")
                metrics.flush()
            if board is not None:
                board.write(self.step, log)
            self._unlogged = None
            if optimizer is not None and self.step % self.save_every == 0:
                self.save_checkpoint(optimizer)
            if progress is not None and first:
                progress(self.step, self.steps, log)

        try:
            with metrics_path.open("a") if first else nullcontext() as metrics:
                if self._unlogged is not None:
                    optimizer = self._optimizer()
                    finish_step(dict(self._unlogged))
                for rows in order:
                    batch = self._next(batches)
                    images = batch.images
                    labels = torch.tensor([self.data.labels[i] for i in rows]).to(self.model.device)
                    if self.options.augment != "none":
                        seeds = sample_seeds(batch.ids, self.options.seed, f"a{self.step}")
                        images = augment(images, seeds, self.options.augment)
                    if optimizer is None:
                        if self.step == 0:
                            self.method.begin(images)
                        optimizer = self._optimizer()
                    self._unlogged = self._step(optimizer, images, labels, batch.ids)
                    self._mid_step = False
                    finish_step(dict(self._unlogged))
        except (KeyboardInterrupt, Stopped, ImageError, ProcessLostError):
            # A half-done update is no state to go on from; then the checkpoint before it is the last.
            if optimizer is not None and not self._mid_step:
                self.save_checkpoint(optimizer)
            raise
        finally:
            if board is not None:
                board.close()
        if optimizer is not None and self.step % self.save_every:
            self.save_checkpoint(optimizer)
        self._save(self.folder)
        if not first:
            return
        try:
            write_report(self.folder, self.model, self.tree, template=self.options.template, defaults=DEFAULTS)
        except HrzsError as error:  # the run itself is whole
            logger.warning("no report.html: %s", error)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """This process's part of the next batch; here all processes go on, or all of them stop."""
        batch, fault = None, None
        try:
            batch = next(batches)
        except HrzsError as error:
            fault = error
        self.group.agree(fault)
        assert batch is not None
        return batch

    def _check_division(self) -> None:
        """Can a batch be divided as asked, and is this the run of the other processes?"""
        size, count = self.group.size, self.options.accumulate
        if self.batch_size % size:
            raise UsageError(
                f"--batch-size {self.batch_size}: {size} processes cannot share a batch alike; "
                f"take {max(self.batch_size // size, 1) * size} or another multiple of {size}"
            )
        if count > self.batch_size // size:
            each = f", {self.batch_size // size} for each process" if size > 1 else ""
            raise UsageError(f"--accumulate {count}: a batch has only {self.batch_size} images{each}")
        others = self.group.share(self.plan)
        if differing := [f"{k} {v} (here {self.plan[k]})" for k, v in others.items() if self.plan[k] != v]:
            raise UsageError(
                f"process {self.group.rank} is not at the work of the first one, which has {', '.join(differing)}; "
                "give all machines the same model, data and options"
            )

    def _save(self, folder: Path) -> None:
        """Write the model that would be released now to ``folder``."""
        seen, trained_on = self.model.info.training_data, f"{self.data.name}/{self.data.split}"
        from_scratch = self.base["pretrained"] == "none" and self.model.info.visual is None
        info = self.model.info
        self.model.info = replace(
            info,
            licence=self.licence or info.licence,
            training_data=trained_on if from_scratch else f"{seen}, then {trained_on}",
        )
        try:
            if not self.group.is_first:
                return
            folder.mkdir(exist_ok=True)
            with self._released():
                save_model(self.model, folder, half=self.half, method=self.options.method,
                           tree_digest=self.tree.digest, base=self.base, steps=self.step, **self._forest)  # fmt: skip
        finally:
            if folder != self.folder:
                self.model.info = info

    def _is_time_to_validate(self) -> bool:
        return self.validation is not None and (self.step % self.options.validate_every == 0 or self.step == self.steps)

    def _validate(self) -> dict[str, Any]:
        """Accuracies on the validation images; the model is saved if no earlier one was as good."""
        assert self.validation is not None
        with self._released():
            found = validate(self.model, self.validation, self.tree, self.options, self.group)
        row = found.as_row(self.options.best_by)
        row["best"] = self.best is None or row["criterion"] > self.best["criterion"]
        if row["best"]:
            self._save(self.folder / BEST)
            self.best = {"step": self.step, "criterion": row["criterion"]}
        return row

    @contextmanager
    def _released(self) -> Iterator[None]:
        """A context in which the model has the weights to release: the mean, moved towards the original weights."""
        o = self.options
        if not (self._mean or self._original):
            yield
            return
        kept = [p.detach().clone() for p in self._tuned]
        with torch.no_grad():
            for i, p in enumerate(self._tuned):
                if self._mean:
                    p.copy_(self._mean[i])
                if self._original:
                    p.lerp_(self._original[i], o.interpolate)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self._tuned, kept, strict=True):
                    p.copy_(value)

    def _step(
        self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, ids: tuple[str, ...]
    ) -> dict[str, float]:
        factor = lr_factor(self.step, self.steps, self.options.warmup, self.options.schedule)
        for group in optimizer.param_groups:
            group["lr"] = self.options.lr * factor * group["rate"]
        seeds = sample_seeds(ids, self.options.seed, f"step{self.step}")
        if self.options.noise:
            drawn = standard_normal(
                sample_seeds(ids, self.options.seed, f"noise{self.step}"), images.shape[1:], images.device
            )
            self.method.noise = self.options.noise * drawn
        optimizer.zero_grad(set_to_none=True)
        loss = self.method.loss(images, labels, seeds)
        loss.total.backward()  # type: ignore[no-untyped-call]
        tuned = [p for g in optimizer.param_groups for p in g["params"]]
        self.group.average([p.grad for p in tuned if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(tuned, self.options.clip_grad or math.inf)
        # All numbers of the step are fetched at once, since each fetch waits for the device to finish its work.
        value, *parts, norm_value = torch.stack([loss.total.detach(), *loss.log.values(), norm]).tolist()
        if not math.isfinite(value):
            raise self._nonfinite(optimizer, f"the loss is {value}", ids)
        if not math.isfinite(norm_value):
            raise self._nonfinite(optimizer, f"the norm of the gradient is {norm_value}", ids)
        self._mid_step = True
        optimizer.step()
        self.step += 1
        if self._mean:
            # At first the mean follows faster, or else the first weights would stay in it for long.
            decay = min(self.options.ema, self.step / (self.step + 9))
            torch._foreach_lerp_(self._mean, [p.detach() for p in self._tuned], 1 - decay)
        log = {"loss": value, "lr": self.options.lr * factor, "grad_norm": norm_value}
        # NaN marks figures for which this batch has no images.
        log |= {key: number for key, number in zip(loss.log, parts, strict=True) if not math.isnan(number)}
        log |= self.method.after_step()
        if log.get("cap_share", 0.0) > 0.01:
            logger.warning("%.1f%% of the image embeddings are at the ball's boundary, where gradients vanish: "
                           "robustness may be masked; lower --radius", 100 * log["cap_share"])  # fmt: skip
        return log

    def _nonfinite(self, optimizer: torch.optim.Optimizer, what: str, ids: Sequence[str]) -> HrzsError:
        error = f"{what} at step {self.step + 1} (images {', '.join(ids[:4])}, …)"
        if self.group.is_first:
            path = save_checkpoint(self.folder, self._state(optimizer), name="nonfinite")
            error += f"; the state before it is in {path}"
        return HrzsError(f"{error}. A smaller --lr or --precision fp32 may help")

    def _optimizer(self) -> torch.optim.Optimizer:
        o = self.options
        head = [p for p in self.model.geometry.parameters() if p.requires_grad] if self.model.geometry else []
        # Weight decay is for matrices: gains, biases and the head's scalars have nothing to shrink towards.
        groups = [
            {"params": [p for p in self._tuned if p.ndim >= 2], "weight_decay": o.weight_decay, "rate": 1.0},
            {"params": [p for p in self._tuned if p.ndim < 2], "weight_decay": 0.0, "rate": 1.0},
            {"params": head, "weight_decay": 0.0, "rate": o.head_lr},
        ]
        groups = [g for g in groups if g["params"]]
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum)
            if o.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=o.lr)
        )
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        return optimizer

    def _order(self) -> Iterator[list[int]]:
        """Image indices of each batch to come: a permutation for each epoch, less the remainder that fills no batch."""
        per_epoch = len(self.data) // self.batch_size
        epoch, order = -1, list[int]()
        for step in range(self.step, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
                order = torch.randperm(len(self.data), generator=generator).tolist()
                if self.options.per_class > 1:
                    order = by_class(order, self.data.labels, self.options.per_class, generator)
            start = step % per_epoch * self.batch_size
            yield order[start : start + self.batch_size]

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, optimizer: torch.optim.Optimizer) -> None:
        """Write everything that the rest of the run depends on."""
        if self.group.is_first:
            save_checkpoint(self.folder, self._state(optimizer))

    def _state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        geometry = self.model.geometry
        return {
            "step": self.step,
            "plan": self.plan,
            "model": self.model.clip.state_dict(),
            "geometry": None if geometry is None else geometry.values(),
            "geometry_state": None if geometry is None else geometry.state_dict(),
            "optimizer": optimizer.state_dict(),
            "method": self.method.state_dict(),
            "mean": self._mean,
            "best": self.best,
            "unlogged": self._unlogged,
        }

    def resume(self) -> bool:
        """Go on from the last whole checkpoint; False if there is none.

        Raises:
            UsageError: no checkpoint is whole, or the last whole one belongs to other options.
        """
        # On the CPU, where the optimiser needs its count of steps; the other tensors are moved to the device below.
        state = load_checkpoint(self.folder, torch.device("cpu")) if self.group.is_first else None
        state = self.group.share(state)
        if state is None:
            return False
        plan: dict[str, Any] = state["plan"]
        # An older hrzs did not note these.
        plan.setdefault("image_size", self.plan["image_size"])
        plan.setdefault("noise", 0.0)
        other = [f"{k} {plan.get(k)} (now {v})" for k, v in self.plan.items() if plan.get(k) != v]
        if other:
            raise UsageError(
                f"--resume: {self.folder} belongs to other options: it has {', '.join(other)}; resume with its own"
            )
        self.model.clip.load_state_dict(state["model"])
        if state["geometry"] is not None:
            head = HyperbolicHead(**state["geometry"]).to(state["geometry_state"]["log_beta"].dtype)
            head.load_state_dict(state["geometry_state"])
            self.method.adopt(head)
        self.method.load_state_dict(state.get("method", {}))  # an older hrzs did not write it
        self.step, self.best = state["step"], state["best"]
        self._mean = [mean.to(self.model.device) for mean in state["mean"]]
        self._optimizer_state = state["optimizer"]
        self._unlogged = state.get("unlogged")
        return True


def by_class(order: list[int], labels: Sequence[int], per_class: int, generator: torch.Generator) -> list[int]:
    """``order`` rearranged into runs of ``per_class`` images of one class each, with the runs in random order.

    So a batch has ``per_class`` images of each of its classes, and HypAvg has several to average. Each image comes
    once; the images that fill no run come last.
    """
    of_class: dict[int, list[int]] = {}
    for i in order:
        of_class.setdefault(labels[i], []).append(i)
    runs = [images[k : k + per_class] for images in of_class.values() for k in range(0, len(images), per_class)]
    whole = [run for run in runs if len(run) == per_class]
    shuffled = [whole[k] for k in torch.randperm(len(whole), generator=generator).tolist()]
    return [i for run in (*shuffled, *(r for r in runs if len(r) < per_class)) for i in run]


def total_steps(options: TrainOptions, images: int) -> int:
    """Optimiser steps of a run over ``images`` images."""
    per_epoch = images // min(options.batch_size, images)
    steps = max(1, math.ceil(options.epochs * per_epoch))
    return steps if options.max_steps is None else min(steps, options.max_steps)


def is_finished(folder: Path) -> bool:
    """Is the model written, and its page too? A missing page matters only if a checkpoint is left to resume from."""
    return (folder / WEIGHTS_FILE).is_file() and ((folder / REPORT_FILE).is_file() or not has_checkpoint(folder))


def lr_factor(step: int, steps: int, warmup: float, schedule: str = "cosine") -> float:
    """Factor of the learning rate: linear warm-up over the share ``warmup`` of steps, then a cosine to zero, or 1."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def augment(images: Tensor, seeds: list[int], kind: str) -> Tensor:
    """Images mirrored at random (``flip``), or moved by one of the square's eight symmetries (``dihedral``)."""
    if kind == "none":
        return images
    out = images.clone()

    def among(chosen: Callable[[int], bool]) -> Tensor:
        rows = [i for i, seed in enumerate(seeds) if chosen(seed)]
        return torch.tensor(rows, dtype=torch.long).to(images.device)

    mirrored = among(lambda seed: seed & 1 == 1)
    out[mirrored] = out[mirrored].flip(-1)
    for turns in (1, 2, 3) if kind == "dihedral" else ():
        turned = among(lambda seed, turns=turns: seed >> 1 & 3 == turns)  # type: ignore[misc]
        out[turned] = out[turned].rot90(turns, (-2, -1))
    return out


def _keep_lines(path: Path, steps: int) -> None:
    """Keep the log up to the checkpoint at ``steps``, from which the run goes on."""
    if path.is_file():
        # Cut off, not written anew: a kill in between must lose no line.
        os.truncate(path, max((end for _, end in itertools.islice(whole_lines(path), steps)), default=0))


def options_as_config(options: TrainOptions) -> dict[str, Any]:
    """The options as plain values, ε as fractions, which ``config.yaml`` keeps and ``--config`` reads back."""
    return {k: str(v) if k in ("eps", "step_size") else v for k, v in asdict(options).items()}
