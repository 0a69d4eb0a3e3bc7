"""The trainer: data order, schedule, checkpoints, log. Whatever is random is a function of (seed, step, image id),
so a resumed run needs no random state and ends with the weights it would have had."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrzs.attacks.base import sample_seeds
from hrzs.data import Dataset, digest, loader
from hrzs.errors import HrzsError, UsageError
from hrzs.hierarchy.tree import Tree
from hrzs.models.clip import ClipModel
from hrzs.models.heads import HyperbolicHead
from hrzs.models.loading import WEIGHTS_FILE, save_model
from hrzs.training.methods import Method, method_class
from hrzs.training.options import TrainOptions

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CHECKPOINT = Path("checkpoint") / "last.pt"

#: Called after each step with (step done, steps in all, what was logged).
Progress = Callable[[int, int, dict[str, float]], None]


class Trainer:
    """Fine-tunes ``model`` in place and writes a run folder.

    Args:
        model: what to start from.
        data: training images, all of one size.
        tree: over the classes of ``data``, in their order.
        options: the run's.
        folder: where the run is written; it exists already.
        workers: processes that read images ahead.
        save_every: steps between checkpoints.
        origin: the ``--model`` and ``--pretrained`` that ``model`` came from, kept so that an evaluation can load the
            untouched model beside the tuned one.
        licence: of the weights that come out; by default that of the weights that went in.
        half: store the result as float16.
    """

    def __init__(
        self,
        model: ClipModel,
        data: Dataset,
        tree: Tree,
        options: TrainOptions,
        folder: Path,
        *,
        workers: int = 0,
        save_every: int = 100,
        origin: tuple[str, str | None] = ("", None),
        licence: str | None = None,
        half: bool = False,
    ) -> None:
        if tree.classes != data.classes:
            raise UsageError("the tree's classes are not the data's; `tree.restrict(data.classes)` first")
        self.model, self.data, self.tree, self.options = model, data, tree, options
        self.folder, self.workers, self.save_every = folder, workers, save_every
        self.licence, self.half = licence, half
        self.batch_size = min(options.batch_size, len(data))
        self.steps = total_steps(options, len(data))
        self.base = {"model": origin[0], "pretrained": origin[1], "digest": model.info.digest}
        if model.info.visual is not None:
            # A foreign image encoder is robust as a rule: untouched is the model below it, which loading has noted.
            self.base = {**model.info.run["base"], "visual": model.info.visual}
        # What the weights depend on: a checkpoint made under another plan is not gone on from.
        self.plan: dict[str, Any] = {
            **options_as_config(options), "total_steps": self.steps, "images": digest(data), "tree": tree.digest,
            "start": model.info.digest, "precision": model.precision,
        }  # fmt: skip
        self.method: Method = method_class(options.method)(model, tree, options)
        self.step = 0
        self._optimizer_state: dict[str, Any] | None = None
        self._mid_step = False

    # -- the run --------------------------------------------------------------------------------------------------

    def run(self, progress: Progress | None = None) -> None:
        """Train to the end from wherever the trainer stands; interrupted, it leaves a checkpoint.

        Raises:
            HrzsError: the loss is not finite; the state is saved and the message names step and images.
        """
        (self.folder / CHECKPOINT).parent.mkdir(exist_ok=True)
        order = self._order()[self.step * self.batch_size :]
        metrics_path = self.folder / METRICS_FILE
        _keep_lines(metrics_path, self.step)
        optimizer: torch.optim.Optimizer | None = None
        started = time.monotonic()
        try:
            with metrics_path.open("a") as metrics:
                for batch in loader(self.data, self.batch_size, self.workers, order):
                    images, labels = batch.images.to(self.model.device), batch.labels.to(self.model.device)
                    images = augment(
                        images, sample_seeds(batch.ids, self.options.seed, f"a{self.step}"), self.options.augment
                    )
                    if optimizer is None:
                        if self.step == 0:
                            self.method.begin(images)
                        optimizer = self._optimizer()
                    log = self._step(optimizer, images, labels, batch.ids)
                    log["seconds"] = time.monotonic() - started
                    metrics.write(json.dumps({"step": self.step, **log}) + "\n")
                    metrics.flush()
                    self._mid_step = False
                    if self.step % self.save_every == 0:
                        self.save_checkpoint(optimizer)
                    if progress is not None:
                        progress(self.step, self.steps, log)
        except KeyboardInterrupt:
            # Half of an update is no state to go on from: then the checkpoint before it stands.
            if optimizer is not None and not self._mid_step:
                self.save_checkpoint(optimizer)
            raise
        if optimizer is not None:
            self.save_checkpoint(optimizer)
        seen, trained_on = self.model.info.training_data, f"{self.data.name}/{self.data.split}"
        from_scratch = self.base["pretrained"] == "none" and self.model.info.visual is None
        self.model.info = replace(
            self.model.info,
            licence=self.licence or self.model.info.licence,
            training_data=trained_on if from_scratch else f"{seen}, then {trained_on}",
        )
        save_model(self.model, self.folder, half=self.half, method=self.options.method,
                   tree_digest=self.tree.digest, base=self.base, steps=self.step)  # fmt: skip

    def _step(
        self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, ids: tuple[str, ...]
    ) -> dict[str, float]:
        factor = lr_factor(self.step, self.steps, self.options.warmup)
        for group in optimizer.param_groups:
            group["lr"] = self.options.lr * factor
        seeds = sample_seeds(ids, self.options.seed, f"step{self.step}")
        loss = self.method.loss(images, labels, seeds)
        value = loss.total.item()
        if not math.isfinite(value):
            self.save_checkpoint(optimizer, self.folder / "checkpoint" / "nonfinite.pt")
            raise HrzsError(
                f"the loss is {value} at step {self.step + 1} (images {', '.join(ids[:4])}, …); the state before it is "
                f"in {self.folder / 'checkpoint' / 'nonfinite.pt'}. A smaller --lr or --precision fp32 may help"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 10.0)
        self._mid_step = True
        optimizer.step()
        self.step += 1
        log = {"loss": value, "lr": self.options.lr * factor, "grad_norm": norm.item()}
        log |= {key: number.item() for key, number in loss.log.items()} | self.method.after_step()
        if log.get("cap_share", 0.0) > 0.01:
            logger.warning("%.1f%% of the image embeddings are at the ball's boundary, where gradients vanish: "
                           "robustness may be masked; lower --radius", 100 * log["cap_share"])  # fmt: skip
        return log

    def _optimizer(self) -> torch.optim.Optimizer:
        tuned = [p for p in self.model.parameters() if p.requires_grad]
        # Weight decay is for matrices: gains, biases and the head's scalars have nothing to shrink towards.
        groups = [
            {"params": [p for p in tuned if p.ndim >= 2], "weight_decay": self.options.weight_decay},
            {"params": [p for p in tuned if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.options.lr)
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
        return optimizer

    def _order(self) -> list[int]:
        """Indices of every image of the whole run: each epoch a permutation of its own, its remainder dropped."""
        per_epoch = len(self.data) // self.batch_size
        order: list[int] = []
        for epoch in range(math.ceil(self.steps / per_epoch)):
            generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + epoch)
            order += torch.randperm(len(self.data), generator=generator)[: per_epoch * self.batch_size].tolist()
        return order[: self.steps * self.batch_size]

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(self, optimizer: torch.optim.Optimizer, path: Path | None = None) -> None:
        """Model, geometry, optimiser and step, written aside and renamed."""
        path = path or self.folder / CHECKPOINT
        geometry = self.model.geometry
        state = {
            "step": self.step,
            "plan": self.plan,
            "model": self.model.clip.state_dict(),
            "geometry": None if geometry is None else geometry.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        aside = path.with_suffix(".aside")
        try:
            torch.save(state, aside)
            aside.replace(path)
        except (OSError, RuntimeError) as error:
            aside.unlink(missing_ok=True)
            raise HrzsError(f"{path} could not be written ({error}); the checkpoint before it is untouched") from error

    def resume(self) -> bool:
        """Go on from the last checkpoint; False if there is none.

        Raises:
            UsageError: the checkpoint is unreadable or belongs to other options.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            state = torch.load(path, map_location=self.model.device, weights_only=True)
            self.model.clip.load_state_dict(state["model"])
            plan: dict[str, Any] = state["plan"]
        except Exception as error:  # torch.load and load_state_dict raise many kinds
            raise UsageError(
                f"--resume: {path} is no checkpoint of this run ({error}); delete it to start anew"
            ) from error
        other = [f"{k} {plan.get(k)} (now {v})" for k, v in self.plan.items() if plan.get(k) != v]
        if other:
            raise UsageError(
                f"--resume: {path} belongs to other options: it has {', '.join(other)}; resume with its own"
            )
        if state["geometry"] is not None:
            geometry = HyperbolicHead(1.0, 1.0, 1.0)
            geometry.load_state_dict(state["geometry"])
            self.model.geometry = geometry
            self.method = method_class(self.options.method)(self.model, self.tree, self.options)
        self.step = state["step"]
        self._optimizer_state = state["optimizer"]
        return True


def total_steps(options: TrainOptions, images: int) -> int:
    """Optimiser steps of a run over ``images`` images."""
    per_epoch = images // min(options.batch_size, images)
    steps = max(1, math.ceil(options.epochs * per_epoch))
    return steps if options.max_steps is None else min(steps, options.max_steps)


def is_finished(folder: Path) -> bool:
    """The model is written last."""
    return (folder / WEIGHTS_FILE).is_file()


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the share ``warmup`` of all steps, then a cosine to zero."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def augment(images: Tensor, seeds: list[int], kind: str) -> Tensor:
    """``flip``: mirror half of the images; ``dihedral``: one of the square's eight symmetries."""
    if kind == "none":
        return images
    out = images.clone()
    for i, seed in enumerate(seeds):
        if seed & 1:
            out[i] = out[i].flip(-1)
        if kind == "dihedral":
            out[i] = out[i].rot90(seed >> 1 & 3, (-2, -1))
    return out


def _keep_lines(path: Path, steps: int) -> None:
    """Forget what was logged after the checkpoint that the run goes on from."""
    if path.is_file():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines[:steps] if line.endswith("\n")))


def options_as_config(options: TrainOptions) -> dict[str, Any]:
    """Plain values, ε as fractions: what ``config.yaml`` keeps and ``--config`` reads back."""
    return {k: str(v) if k in ("eps", "step_size") else v for k, v in asdict(options).items()}
