"""The evaluation itself: every unit (data × ε × attack × level × scoring) over every image, streamed and resumable."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hrzs.attacks import SUITE, AttackSpec, Budget, attack_spec, sample_seeds
from hrzs.attacks.budget import default_step_size, format_eps
from hrzs.data import loader
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation import metrics
from hrzs.evaluation.metrics import Predictions
from hrzs.models.classifier import SCORINGS, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.templates import template_for
from hrzs.tasks import Task

#: Called after each batch with (images done, images in all, what is being done).
Progress = Callable[[int, int, str], None]

DEFAULT_EPS = Fraction(1, 255)

#: What is counted of the per-image gradients of a unit: all, those exactly zero, those not finite.
GRADIENTS = ("gradients", "zero_gradients", "bad_gradients")


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation; names are those of the command line.

    ``eps`` None means the data's own default, ``step_size`` None the larger of 1/255 and ε/4. With ``matrix`` every
    attack is scored at every level, and images are attacked for all steps; without it at its own level only, and
    fooled images leave the batch.
    """

    attacks: tuple[str, ...] = SUITE
    level: str | None = None
    eps: tuple[Fraction, ...] | None = None
    step_size: Fraction | None = None
    steps: int | None = None  # each attack its own number
    norm: str = "linf"
    template: str = "photo"
    scorings: tuple[str, ...] = SCORINGS
    matrix: bool = True
    head: str | None = None
    # Leave out superclass attacks where a tree has no superclass, instead of refusing.
    lenient: bool = False
    seed: int = 0
    batch_size: int = 128
    workers: int = 0


@dataclass(frozen=True)
class Unit:
    """One pass over the images: an attack at a level through a scoring; ``attack`` "none" is the clean pass."""

    attack: str
    level: int | str | None = None
    scoring: str = "prompt"
    eps: Fraction | None = None

    @property
    def key(self) -> str:
        return f"{self.attack}|{self.level}|{self.scoring}|{self.eps}"

    @property
    def title(self) -> str:
        if self.eps is None:
            return "clean"
        scoring = "" if self.scoring == "prompt" else f" through {self.scoring}"
        return f"{self.attack} at level {self.level}{scoring}, ε {format_eps(self.eps)}"


def plan(task: Task, options: EvalOptions) -> list[Unit]:
    """The units of one dataset, the clean pass first.

    Raises:
        UsageError: an unknown attack or norm, a level that no attack of the list concerns, or superclass attacks on a
            tree that has no superclass.
    """
    units = [Unit("none")]
    eps = options.eps or (task.data.default_eps or DEFAULT_EPS,)
    missing = not_applicable(task, options)
    if missing and not options.lenient:
        raise UsageError(
            f"--attack {missing[0]}: the tree of {task.data.name} has no level between leaves and root, so no "
            "superclass to attack; give a deeper one with --tree"
        )
    attacks = [attack_spec(name) for name in options.attacks if name not in ("none", *missing)]
    levels = {spec.name: spec.levels(task.tree, options.level) for spec in attacks}
    for spec in attacks:
        if not levels[spec.name] and len(attacks) == 1:
            raise UsageError(f"--level {options.level}: {spec.name} does not attack that level")
    for radius in eps:
        for spec in attacks:
            budget_of(options, radius, spec)  # refused here, not after the clean pass
            for level in levels[spec.name]:
                # At the leaves both scorings are one; aiming at all levels is done by prompt.
                own = options.scorings if isinstance(level, int) and level > 0 else ("prompt",)
                units += [Unit(spec.name, level, scoring, radius) for scoring in own]
    return units


def not_applicable(task: Task, options: EvalOptions) -> list[str]:
    """The attacks of the list that this tree has no level for."""
    if task.tree.top > 1:
        return []
    return [name for name in options.attacks if name != "none" and attack_spec(name).aim == "superclass"]


class Evaluation:
    """One dataset under one model.

    Args:
        model: its ``precision`` governs the attack's gradients only; every verdict is an fp32 forward.
        store: where finished batches are kept, so that an interrupted evaluation goes on; None keeps nothing.
    """

    def __init__(self, model: ClipModel, task: Task, options: EvalOptions, store: Path | None = None) -> None:
        options = replace(options, template=template_for(options.template, task.data.name))
        self.model, self.task, self.options = model, task, options
        self.classifier = ZeroShotClassifier(model, task.tree, options.template, options.head)
        self.units = plan(task, options)
        self.labels = torch.tensor(list(task.data.labels))
        self.store = _Store(store, self.identity())
        self.predictions: dict[str, Predictions] = {}
        self.seconds: dict[str, float] = {}
        self.gradients = {unit.key: dict.fromkeys(GRADIENTS, 0) for unit in self.units}

    def identity(self) -> str:
        """Digest of everything the predictions depend on: what was kept under another one is not reused."""
        options = {k: str(v) for k, v in asdict(replace(self.options, batch_size=1, workers=0)).items()}
        about = [
            self.model.info.digest,
            self.model.info.config,
            self.model.precision,
            self.task.describe(),
            options,
            self.classifier.prompts.digest,
        ]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def run(self, progress: Progress | None = None) -> None:
        """Every unit, batch by batch; finished batches are read back from the store."""
        done, total = 0, len(self.units) * len(self.labels)
        for unit in self.units:
            nodes, won, seconds = [], [], 0.0
            for record in self._batches(unit):
                nodes.append(torch.tensor(record["nodes"]))
                won.append(torch.tensor(record["won"]))
                seconds += record["seconds"]
                for name in GRADIENTS:
                    self.gradients[unit.key][name] += record[name]
                done += len(record["won"])
                if progress is not None:
                    progress(done, total, unit.title)
            self.predictions[unit.key] = Predictions(torch.cat(nodes, dim=2), torch.cat(won))
            self.seconds[unit.key] = seconds

    def _batches(self, unit: Unit) -> Iterator[dict[str, Any]]:
        kept = self.store.read(unit.key)
        yield from kept
        start = sum(len(record["won"]) for record in kept)
        order = range(start, len(self.labels))
        for batch in loader(self.task.data, self.options.batch_size, self.options.workers, order):
            began = time.monotonic()
            images, labels = batch.images.to(self.model.device), batch.labels.to(self.model.device)
            if unit.eps is None:
                record = self._record(self._predict(images), torch.zeros(len(labels), dtype=torch.bool))
            else:
                clean = self.predictions[self.units[0].key].nodes[:, :, start : start + len(labels)]
                record = self._attack(unit, images, labels, batch.ids, clean)
            start += len(labels)
            record["seconds"] = time.monotonic() - began
            self.store.write(unit.key, record)
            yield record

    @torch.no_grad()
    def _predict(self, images: Tensor) -> Int[Tensor, "scorings levels B"]:
        return self.classifier.predict(self.model.encode_image(images, "fp32")).cpu()

    def _record(self, nodes: Tensor, won: Tensor, gradients: Sequence[int] = (0, 0, 0)) -> dict[str, Any]:
        return {"nodes": nodes.tolist(), "won": won.tolist(), **dict(zip(GRADIENTS, gradients, strict=True))}

    def _attack(
        self, unit: Unit, images: Tensor, labels: Tensor, ids: tuple[str, ...], clean: Int[Tensor, "s l B"]
    ) -> dict[str, Any]:
        """Attack the images that can still be lost: wrong at every scored place already, an image is left alone."""
        assert unit.eps is not None
        assert unit.level is not None
        spec, options = attack_spec(unit.attack), self.options
        correct = metrics.right(self.task.tree, labels.cpu(), clean)
        if options.matrix or isinstance(unit.level, str):
            worth = correct.flatten(0, 1).any(0)
        else:
            worth = correct[SCORINGS.index(unit.scoring), unit.level]
        rows = worth.nonzero().squeeze(1)
        nodes, won = clean.clone(), ~worth
        gradients = (0, 0, 0)
        if len(rows):
            objective = spec.objective(self.classifier, unit.level, unit.scoring)
            budget = budget_of(options, unit.eps, spec)
            # What is scored away from its own aim is attacked for all steps, or transfer would be overstated.
            attack = spec.optimiser(budget, early_stop=not (options.matrix or isinstance(unit.level, str)))
            seeds = sample_seeds([ids[i] for i in rows.tolist()], options.seed)
            where = rows.to(images.device)
            result = attack(self.model, objective, images[where], labels[where], seeds)
            nodes[:, :, rows] = self._predict(result.images)
            won[rows] = result.won.cpu()
            gradients = (result.gradients, result.zero_gradients, result.bad_gradients)
        return self._record(nodes, won, gradients)

    # -- what comes of it -----------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """One row for each (ε, attack, attack level, level, scoring), in the form of cli.md."""
        return [row for unit in self.units for row in self._rows(unit)]

    def _rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        tree, n = self.task.tree, len(self.labels)
        clean = metrics.right(tree, self.labels, self.predictions[self.units[0].key].nodes)
        here = self.predictions[unit.key]
        adversarial = metrics.right(tree, self.labels, here.nodes)
        for level in range(tree.top):
            for scoring in SCORINGS:
                attacked_here = unit.level == level and unit.scoring == scoring
                if not self._is_scored(unit, level, scoring, attacked_here):
                    continue
                s = SCORINGS.index(scoring)
                correct = int(clean[s, level].sum())
                robust = None
                if unit.eps is not None:
                    held = clean[s, level] & adversarial[s, level]
                    robust = int((held & ~here.won if attacked_here else held).sum())
                yield {
                    "dataset": self.task.data.name,
                    "split": self.task.data.split,
                    "n": n,
                    "eps": None if unit.eps is None else format_eps(unit.eps),
                    "attack": unit.attack,
                    "attack_level": unit.level,
                    "level": level,
                    "classes": len(tree.levels[level]),
                    "scoring": scoring,
                    "clean": correct / n,
                    "robust": None if robust is None else robust / n,
                    "clean_ci95": metrics.wilson(correct, n),
                    "robust_ci95": None if robust is None else metrics.wilson(robust, n),
                    "precision": self.model.precision,
                    "seconds": round(self.seconds[unit.key], 3),
                    # A row is white-box where the attack aimed at this very level through this very scoring.
                    "transfer": None
                    if unit.eps is None
                    else not (attacked_here or (unit.level == "all" and scoring == "prompt")),
                    "attacked_through": None if unit.eps is None else unit.scoring,
                }

    def _is_scored(self, unit: Unit, level: int, scoring: str, attacked_here: bool) -> bool:
        if scoring not in self.options.scorings and not (level == 0 and scoring == "prompt"):
            return False
        if not self.options.matrix and unit.eps is not None and unit.level != "all":
            return attacked_here
        if unit.scoring == "leaves" or (unit.level not in (None, 0, "all") and len(self.options.scorings) > 1):
            # Two attacks aim at a superclass, one through each scoring: each is scored through its own.
            return scoring == unit.scoring
        return level > 0 or scoring == "prompt"

    def summary(self) -> list[dict[str, Any]]:
        """Per ε: any-level robust accuracy (only for the whole suite), severity and consistency per attack."""
        tree, n = self.task.tree, len(self.labels)
        clean = self.predictions[self.units[0].key]
        clean_right = metrics.right(tree, self.labels, clean.nodes)[0]
        every = int(clean_right.all(0).sum())
        summary: list[dict[str, Any]] = []
        for eps in dict.fromkeys(u.eps for u in self.units if u.eps is not None):
            units = [u for u in self.units if u.eps == eps and u.scoring == "prompt"]
            robust = self._any_level(clean_right, units)
            summary.append(
                {
                    "dataset": self.task.data.name,
                    "eps": format_eps(eps),
                    "any_level_clean": every / n,
                    "any_level_robust": None if robust is None else robust / n,
                    "any_level_robust_ci95": None if robust is None else metrics.wilson(robust, n),
                    "severity": {u.title: metrics.severity(tree, self.labels, self.predictions[u.key].nodes[0, 0])
                                 for u in (self.units[0], *units)},
                    "consistency": {u.title: metrics.consistency(tree, self.predictions[u.key].nodes[0])
                                    for u in (self.units[0], *units)},
                }
            )  # fmt: skip
        return summary

    def _any_level(self, clean: Bool[Tensor, "levels n"], units: list[Unit]) -> int | None:
        """The number of images that hold everywhere; None unless the whole suite was run in full."""
        wanted = {("leaf-pgd", 0), ("hierarchical-pgd", "all")}
        wanted |= {("superclass-pgd", level) for level in range(1, self.task.tree.top)}
        suite = [u for u in units if (u.attack, u.level) in wanted]
        if not self.options.matrix or len(suite) < len(wanted):
            return None
        attacked = [
            (metrics.right(self.task.tree, self.labels, self.predictions[u.key].nodes)[0], self.predictions[u.key].won)
            for u in suite
        ]
        return int(metrics.any_level(clean, attacked).sum())


def budget_of(options: EvalOptions, eps: Fraction, spec: AttackSpec) -> Budget:
    """The adversary's budget at this ε."""
    steps = spec.steps if options.steps is None else options.steps
    return Budget(eps, options.step_size or default_step_size(eps), steps, options.norm)


class _Store:
    """Finished batches, a JSON line each, under the digest of what they depend on."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity
        self.kept: dict[str, list[dict[str, Any]]] = {}
        if path is None or not path.is_file():
            return
        whole = []
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break  # the line that was being written when the power went
            whole.append(line)
            if record["identity"] == identity:
                self.kept.setdefault(record["unit"], []).append(record)
        aside = path.with_name(f".{path.name}")
        aside.write_text("".join(f"{line}\n" for line in whole))
        aside.replace(path)

    def read(self, unit: str) -> list[dict[str, Any]]:
        return self.kept.get(unit, [])

    def write(self, unit: str, record: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"identity": self.identity, "unit": unit, **record}) + "\n")
        except OSError as error:
            raise HrzsError(f"{self.path} could not be written ({error}); what it held is untouched") from error
