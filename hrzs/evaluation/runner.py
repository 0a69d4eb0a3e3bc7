"""The evaluation itself: every unit of the plan over every image, streamed and resumable.

A unit goes over the images part by part, each part in full batches of the images that are left of a block
(`hrzs.evaluation.shards`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hrzs.attacks.base import features_of, sample_seeds
from hrzs.data import Batch, read
from hrzs.defences import Defended, defences
from hrzs.errors import HrzsError
from hrzs.evaluation.images import VERDICT, AttackedImages, Made, Part
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import Unit
from hrzs.evaluation.saved import SavedImages, SavedSet
from hrzs.evaluation.shards import WHOLE, Shard, blocks
from hrzs.evaluation.store import Store
from hrzs.models.classifier import SCORINGS, Classifier, ZeroShotClassifier
from hrzs.models.clip import ClipModel, frozen
from hrzs.models.encoder import ImageEncoder
from hrzs.models.exact import exact_fp32
from hrzs.models.templates import template_for
from hrzs.results import metrics
from hrzs.results.metrics import Predictions
from hrzs.stopping import stop_here, unbroken
from hrzs.tasks import Task

#: Called after each batch with (work done, work in all, what is being done).
Progress = Callable[[int, int, str], None]
# The same inside, in passes: those done now, those left of the unit, what is being done.
Tick = Callable[[float, float, str], None]

#: What is counted of the per-image gradients of a unit: all, those exactly zero, those not finite.
GRADIENTS = ("gradients", "zero_gradients", "bad_gradients")

#: Where fooled images leave, so many batches are under attack together: as they shrink, they close ranks.
TOGETHER = 4
#: What a forward pass costs, in forward and backward passes.
FORWARD = 1 / 3


class Evaluation:
    """One dataset under one model.

    Args:
        model: its ``precision`` governs the attack's gradients only; every verdict is an fp32 forward.
        store: where finished batches are kept, so that an interrupted evaluation goes on; None keeps nothing.
        lenient: leave out superclass attacks where the tree has no superclass, instead of refusing.
        saved: sets of the task's images, in its order, that ``hrzs attack`` made; then nothing is attacked here.
    """

    def __init__(
        self,
        model: ClipModel,
        task: Task,
        options: EvalOptions,
        store: Store | None = None,
        saved: Sequence[SavedSet] = (),
        *,
        lenient: bool = False,
    ) -> None:
        options = replace(options, template=template_for(options.template, task.data.name))
        options = replace(options, attack=("none",)) if saved else options
        self.model, self.task, self.options = model, task, options
        self.classifier = ZeroShotClassifier(model, task.tree, options.template, options.head)
        #: The model behind the defences that were asked for, which then gives every verdict.
        self.defended: Defended | None = None
        if options.defence:
            self.defended = Defended(
                model, self.classifier, defences(options.defence), eot=options.eot if options.draw == "unknown" else 1
            )
        self.images: AttackedImages | SavedImages
        if saved:
            self.images = SavedImages(model, task, self.classifier, saved, is_defended=self.defended is not None)
        else:
            self.images = AttackedImages(model, task, options, self.classifier, self.defended, lenient=lenient)
        self.units = [Unit("none"), *self.images.units]
        self.labels = torch.tensor(list(task.data.labels))
        #: Places of the images in the order of their ids: in that order reports speak of single images.
        self.by_id = torch.tensor(sorted(range(len(task.data)), key=lambda i: task.data.ids[i]), dtype=torch.long)
        self.store, self._identity = store or Store(None), self.identity()
        self.store.batch_size = self.store.batch_size or options.batch_size
        self.predictions: dict[str, Predictions] = {}
        self.seconds: dict[str, float] = {}
        self.gradients: dict[str, dict[str, int]] = {}

    @property
    def clean(self) -> Predictions:
        """What came of the clean pass."""
        return self.predictions[self.units[0].key]

    def cost(self, unit: Unit) -> float:
        """Forward and backward passes of an image that nothing fools; in the end its predictions take a forward."""
        judging = FORWARD * (1 if self.defended is None else 1 + self.defended.passes)
        return (0.0 if unit.eps is None else sum(part.cost for part in self.images.parts(unit))) + judging

    def judge(self, ids: Sequence[str]) -> tuple[ImageEncoder, Classifier]:
        """What gives the verdicts on these images: the model, or the model behind its defences under their own draw."""
        if self.defended is None:
            return self.model, self.classifier
        return self.defended.of(sample_seeds(ids, self.options.seed, VERDICT)), self.defended.classifier

    def blocks(self, shard: Shard = WHOLE, first: int = 0) -> Sequence[Int[Tensor, "_"]]:
        """The places of the images of a shard, block by block; ``first`` blocks of other data were dealt out before."""
        shrink = any(unit.eps is not None and self.images.stops_early(unit) for unit in self.units)
        whole = blocks(len(self.labels), self.store.batch_size or self.options.batch_size, shrink=shrink)
        return shard.share([torch.arange(block.start, block.stop) for block in whole], first)

    def passes(self, shard: Shard = WHOLE, first: int = 0) -> int:
        """Forward and backward passes of the whole shard, if nothing were fooled."""
        return round(sum(map(len, self.blocks(shard, first))) * sum(self.cost(unit) for unit in self.units))

    def identity(self) -> str:
        """Digest of everything the predictions depend on: what was kept under another one is not reused."""
        options = {k: str(v) for k, v in asdict(replace(self.options, batch_size=1, workers=0)).items()}
        about = [
            self.model.info.digest,
            self.model.info.config,
            self.model.precision,
            # The ids tell which images these are, whatever else lies beside them.
            {name: value for name, value in self.task.describe().items() if name not in ("left_out", "unreadable")},
            options,
            self.classifier.prompts.digest,
            *self.images.identity(),
        ]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @exact_fp32()
    @unbroken()
    def run(self, progress: Progress | None = None, shard: Shard = WHOLE, first: int = 0) -> None:
        """Every unit, part by part and batch by batch; finished batches are read back from the store.

        ``progress`` counts forward and backward passes; the total is what it would take if nothing more were fooled.
        Of a ``shard`` the predictions of its `blocks` are known afterwards, and no others.
        """
        done, later = 0.0, 0.0

        def tick(passes: float, left: float, title: str) -> None:
            nonlocal done
            done += passes
            if progress is not None:
                progress(round(done), round(done + left + later), title)

        before = self.model.at_once
        self.model.at_once = self.options.batch_size
        try:
            with self.store.opened():
                mine = self.blocks(shard, first)
                n = sum(map(len, mine))
                later = sum(n * self.cost(unit) for unit in self.units)
                for unit in self.units:
                    later -= n * self.cost(unit)
                    self.seconds[unit.key] = 0.0
                    self.gradients[unit.key] = dict.fromkeys(GRADIENTS, 0)
                    self._run(unit, mine, tick)
        finally:
            self.model.at_once = before

    def _run(self, unit: Unit, mine: Sequence[Int[Tensor, "_"]], tick: Tick) -> None:
        if unit.eps is None:
            found, stops, parts = Predictions.empty(self.task.tree, len(self.labels)), False, _JUST_LOOK
        else:
            worth = self.images.worth(unit, metrics.correct(self.task.tree, self.labels, self.clean.nodes))
            found = Predictions(self.clean.nodes.clone(), ~worth, self.clean.distances.clone())
            stops, parts = self.images.stops_early(unit), self.images.parts(unit)
        self.predictions[unit.key] = found
        costs = [part.cost or FORWARD for part in parts]
        size = self.options.batch_size * (TOGETHER if stops else 1)
        for i, part in enumerate(parts):
            left = [rows[~found.success[rows]] for rows in mine]
            after, undone = sum(costs[i + 1 :]), sum(map(len, left))
            for rows, predictions in self._batches(unit, i, mine, left, size, partial(self._attack, unit, part)):
                found.put(rows, predictions)
                undone -= len(rows)
                still = sum(int((~found.success[rows]).sum()) for rows in mine) if after else 0
                tick(costs[i] * len(rows), costs[i] * undone + after * still, unit.title)

    def _batches(
        self,
        unit: Unit,
        part: int,
        mine: Sequence[Int[Tensor, "_"]],
        left: Sequence[Int[Tensor, "_"]],
        size: int,
        work: Callable[[Batch], tuple[Predictions, Sequence[int]]],
    ) -> Iterator[tuple[Int[Tensor, "b"], Predictions]]:
        """What ``work`` makes of the images ``left`` of each block, batch by batch, or what the store kept of it."""
        ahead: list[tuple[str, Int[Tensor, "_"]]] = []
        for block, rows in zip(mine, left, strict=True):
            name, start = f"{unit.key}|{part}|{int(block[0])}", 0
            for record in self.store.read(self._identity, name):
                here = rows[start : start + len(record["success"])]
                if record["rows"] != here.tolist():
                    raise HrzsError(
                        f"{self.store.path}: batch {start} of {unit.title} is of other images than those that come "
                        "next; two evaluations may have written it. Delete it, and evaluate anew"
                    )
                yield self._take(unit, record, here)
                start += len(here)
            ahead += [(name, batch) for batch in torch.split(rows[start:], size) if len(batch)]
        if ahead and self.store.shards:
            raise HrzsError(
                f"{', '.join(path.name for path in self.store.shards)}: {ahead[0][0]} is in none of them, so they are "
                "not what these shards have written. Delete them, and run the shards anew"
            )
        order = [rows.tolist() for _, rows in ahead]
        batches = read(self.task.data, order, workers=self.options.workers, device=self.model.device)
        for (name, rows), batch in zip(ahead, batches, strict=True):
            began = time.monotonic()
            found, gradients = work(batch)
            record = {
                "rows": rows.tolist(),
                "nodes": found.nodes.tolist(), "success": found.success.tolist(), "distances": found.distances.tolist(),
                "gradients": list(gradients), "seconds": time.monotonic() - began,
            }  # fmt: skip
            self.store.write(self._identity, name, record)
            yield self._take(unit, record, rows)
            stop_here()

    def _take(self, unit: Unit, record: dict[str, Any], rows: Int[Tensor, "b"]) -> tuple[Tensor, Predictions]:
        self.seconds[unit.key] += record["seconds"]
        for name, count in zip(GRADIENTS, record["gradients"], strict=True):
            self.gradients[unit.key][name] += count
        distances = torch.tensor(record["distances"], dtype=torch.float64)
        return rows, Predictions(torch.tensor(record["nodes"]), torch.tensor(record["success"]), distances)

    def _attack(self, unit: Unit, part: Part, batch: Batch) -> tuple[Predictions, Sequence[int]]:
        """What one part makes of one batch, and what is predicted for it."""
        made = part(batch)
        model, classifier = self.judge(batch.ids)
        with frozen(model):
            features = features_of(model, made.images.to(self.model.device))
        nodes = classifier.predict(features).cpu()
        likeliest = classifier.likeliest(features, max(metrics.TOP)).cpu()
        success = self._success(unit, batch.labels, nodes) if made.success is None else made.success
        distances = metrics.hierarchical_distances(self.task.tree, batch.labels, likeliest)
        return Predictions(nodes, success, distances), made.gradients

    def _success(self, unit: Unit, labels: Int[Tensor, "n"], nodes: Int[Tensor, "s levels n"]) -> Bool[Tensor, "n"]:
        """Is an image mistaken where it was meant to be: at its attack's level, or at every one? Never when clean."""
        if unit.eps is None:
            return torch.zeros(len(labels), dtype=torch.bool)
        wrong = ~metrics.correct(self.task.tree, labels, nodes)[SCORINGS.index(unit.scoring)]
        return wrong[unit.level] if isinstance(unit.level, int) and unit.level < len(wrong) else wrong.all(0)


class _Look:
    """A `Part` that leaves the images as they are."""

    cost = 0.0

    def __call__(self, batch: Batch) -> Made:
        return Made(batch.images)


_JUST_LOOK: Sequence[Part] = [_Look()]
