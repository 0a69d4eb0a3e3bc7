"""The evaluation itself: every unit (data × ε × attack × level × scoring) over every image, streamed and resumable.

An attack goes over the images part by part (`Attack.parts`), each part in full batches of the images that are left.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks import SUITE, Attack, AttackSpec, Budget, attack_spec, sample_seeds
from hrzs.attacks.base import features_of, further_seeds
from hrzs.attacks.budget import default_step_size, format_eps
from hrzs.attacks.objectives import Objective
from hrzs.data import Batch, loader
from hrzs.errors import HrzsError, UsageError
from hrzs.files import write_text
from hrzs.models.classifier import SCORINGS, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.exact import exact_fp32
from hrzs.models.templates import template_for
from hrzs.results import metrics
from hrzs.results.metrics import Predictions
from hrzs.tasks import Task

#: Called after each batch with (work done, work in all, what is being done).
Progress = Callable[[int, int, str], None]
# The same inside, in passes: those done now, those left of the unit, what is being done.
Tick = Callable[[float, float, str], None]
# What a batch comes to: predictions, and the counts of `GRADIENTS`.
Work = Callable[[Batch], tuple[Predictions, Sequence[int]]]

DEFAULT_EPS = Fraction(1, 255)

#: What is counted of the per-image gradients of a unit: all, those exactly zero, those not finite.
GRADIENTS = ("gradients", "zero_gradients", "bad_gradients")

#: Where fooled images leave, so many batches are under attack together: as they shrink, they close ranks.
TOGETHER = 4
# What a forward pass costs, in forward and backward passes.
_FORWARD = 1 / 3


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
    restarts: int = 1
    random_start: bool = True
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
        self.units = self._plan()
        self.labels = torch.tensor(list(task.data.labels))
        self._by_id = torch.tensor(sorted(range(len(task.data)), key=lambda i: task.data.ids[i]), dtype=torch.long)
        self.store = _Store(store, self.identity())
        self.predictions: dict[str, Predictions] = {}
        self.seconds: dict[str, float] = {}
        self.gradients: dict[str, dict[str, int]] = {}

    def _plan(self) -> list[Unit]:
        return plan(self.task, self.options)

    @property
    def clean(self) -> Predictions:
        """What came of the clean pass."""
        return self.predictions[self.units[0].key]

    def stand_ins(self) -> list[str]:
        """Which loss stands in for which where a level has too few classes for it, a sentence each."""
        found = [
            f"{unit.attack} at level {unit.level}: {fault}"
            for unit in self.units
            if unit.level is not None and (fault := attack_spec(unit.attack).stands_in(self.task.tree, unit.level))
        ]
        return list(dict.fromkeys(found))

    def budget(self, unit: Unit) -> Budget:
        """What the attack of this unit may spend."""
        assert unit.eps is not None
        return budget_of(self.options, unit.eps, attack_spec(unit.attack))

    def cost(self, unit: Unit) -> float:
        """Forward and backward passes of an image that nothing fools."""
        if unit.eps is None:
            return _FORWARD
        return sum(part.cost for part, _ in self._parts(unit)) + _FORWARD

    def passes(self) -> int:
        """Forward and backward passes of the whole, if nothing were fooled."""
        return round(len(self.labels) * sum(self.cost(unit) for unit in self.units))

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

    @exact_fp32()
    def run(self, progress: Progress | None = None) -> None:
        """Every unit, part by part and batch by batch; finished batches are read back from the store.

        ``progress`` counts forward and backward passes; the total is what it would take if nothing more were fooled.
        """
        done, later = 0.0, sum(len(self.labels) * self.cost(unit) for unit in self.units)

        def tick(passes: float, left: float, title: str) -> None:
            nonlocal done
            done += passes
            if progress is not None:
                progress(round(done), round(done + left + later), title)

        before = self.model.at_once
        self.model.at_once = self.options.batch_size
        try:
            for unit in self.units:
                later -= len(self.labels) * self.cost(unit)
                self.seconds[unit.key] = 0.0
                self.gradients[unit.key] = dict.fromkeys(GRADIENTS, 0)
                if unit.eps is None:
                    self._run_clean(unit, tick)
                else:
                    self._run_attack(unit, tick)
        finally:
            self.model.at_once = before

    def _run_clean(self, unit: Unit, tick: Tick) -> None:
        self._score(unit, self._look, tick)

    def _score(self, unit: Unit, work: Work, tick: Tick) -> None:
        """Every image, each by one forward pass."""
        n = len(self.labels)
        found = Predictions.empty(self.task.tree, n)
        self.predictions[unit.key] = found
        done = 0
        for rows, part in self._batches(unit, 0, torch.arange(n), self.options.batch_size, work):
            found.put(rows, part)
            done += len(rows)
            tick(_FORWARD * len(rows), _FORWARD * (n - done), unit.title)

    def _run_attack(self, unit: Unit, tick: Tick) -> None:
        """Attack the images that can still be lost: wrong at every scored place already, an image is left alone."""
        right = metrics.right(self.task.tree, self.labels, self.clean.nodes)
        stops = self._stops_early(unit)
        worth = right[SCORINGS.index(unit.scoring), int(str(unit.level))] if stops else right.flatten(0, 1).any(0)
        found = Predictions(self.clean.nodes.clone(), ~worth, self.clean.distances.clone())
        self.predictions[unit.key] = found
        parts = self._parts(unit)
        size = self.options.batch_size * (TOGETHER if stops else 1)
        for i, (attack, objective) in enumerate(parts):
            left = (~found.won).nonzero().squeeze(1)
            after, done = sum(part.cost for part, _ in parts[i + 1 :]), 0
            for rows, part in self._batches(unit, i, left, size, partial(self._attack, attack, objective, i)):
                found.put(rows, part)
                done += len(rows)
                still = int((~found.won).sum())
                tick(attack.cost * len(rows), attack.cost * (len(left) - done) + after * still, unit.title)

    def _stops_early(self, unit: Unit) -> bool:
        """What is scored away from its own aim is attacked for all steps, or transfer would be overstated."""
        return not (self.options.matrix or isinstance(unit.level, str))

    def _parts(self, unit: Unit) -> list[tuple[Attack, Objective]]:
        assert unit.level is not None
        spec = attack_spec(unit.attack)
        attack = spec.optimiser(self.budget(unit), early_stop=self._stops_early(unit))
        return attack.parts(spec.objective(self.classifier, unit.level, unit.scoring))

    def _batches(
        self,
        unit: Unit,
        part: int,
        rows: Int[Tensor, "m"],
        size: int,
        work: Work,
    ) -> Iterator[tuple[Int[Tensor, "b"], Predictions]]:
        """What ``work`` makes of these images, batch by batch, or what the store kept of it."""
        start = 0
        for record in self.store.read(f"{unit.key}|{part}"):
            yield self._take(unit, record, rows[start : start + len(record["won"])])
            start += len(record["won"])
        rest = rows[start:]
        for batch in loader(self.task.data, size, self.options.workers, rest.tolist()):
            began = time.monotonic()
            found, gradients = work(batch)
            record = {
                "nodes": found.nodes.tolist(), "won": found.won.tolist(), "distances": found.distances.tolist(),
                "gradients": list(gradients), "seconds": time.monotonic() - began,
            }  # fmt: skip
            self.store.write(f"{unit.key}|{part}", record)
            yield self._take(unit, record, rows[start : start + len(batch.ids)])
            start += len(batch.ids)

    def _take(self, unit: Unit, record: dict[str, Any], rows: Int[Tensor, "b"]) -> tuple[Tensor, Predictions]:
        self.seconds[unit.key] += record["seconds"]
        for name, count in zip(GRADIENTS, record["gradients"], strict=True):
            self.gradients[unit.key][name] += count
        distances = torch.tensor(record["distances"], dtype=torch.float64)
        return rows, Predictions(torch.tensor(record["nodes"]), torch.tensor(record["won"]), distances)

    def _look(self, batch: Batch) -> tuple[Predictions, Sequence[int]]:
        won = torch.zeros(len(batch.labels), dtype=torch.bool)
        return self._predict(batch.images.to(self.model.device), batch.labels, won), (0, 0, 0)

    def _attack(
        self, attack: Attack, objective: Objective, part: int, batch: Batch
    ) -> tuple[Predictions, Sequence[int]]:
        images, labels = batch.images.to(self.model.device), batch.labels.to(self.model.device)
        seeds = further_seeds(sample_seeds(batch.ids, self.options.seed), part)
        result = attack(self.model, objective, images, labels, seeds)
        counts = (result.gradients, result.zero_gradients, result.bad_gradients)
        return self._predict(result.images, batch.labels, result.won.cpu()), counts

    def _predict(self, images: Tensor, labels: Int[Tensor, "B"], won: Bool[Tensor, "B"]) -> Predictions:
        features = features_of(self.model, images)
        nodes = self.classifier.predict(features).cpu()
        likeliest = self.classifier.likeliest(features, max(metrics.TOP)).cpu()
        return Predictions(nodes, won, metrics.hierarchical_distances(self.task.tree, labels, likeliest))

    def again(self, unit: Unit, batch: Batch, labels: Int[Tensor, "B"]) -> Float[Tensor, "B 3 H W"]:
        """The adversarial images of these under one unit, attacked once more as they were then."""
        assert unit.level is not None
        spec = attack_spec(unit.attack)
        objective = spec.objective(self.classifier, unit.level, unit.scoring)
        attack = spec.optimiser(self.budget(unit), early_stop=False)
        seeds = sample_seeds(batch.ids, self.options.seed)
        device = self.model.device
        return attack(self.model, objective, batch.images.to(device), labels.to(device), seeds).images

    # -- what comes of it -----------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """One row for each (ε, attack, attack level, level, scoring) (docs/evaluation.md)."""
        return [row for unit in self.units for row in self._rows(unit)]

    def _rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        tree, n = self.task.tree, len(self.labels)
        truth = tree.ancestors[: tree.top, self.labels]
        clean = metrics.right(tree, self.labels, self.clean.nodes)
        budget = None if unit.eps is None else self.budget(unit)
        here = self.predictions[unit.key]
        adversarial = metrics.right(tree, self.labels, here.nodes)
        for level in range(tree.top):
            weights, present = metrics.node_weights(truth[level]), len(set(truth[level].tolist()))
            for scoring in SCORINGS:
                attacked_here = unit.level == level and unit.scoring == scoring
                if not self._is_scored(unit, level, scoring, attacked_here):
                    continue
                s = SCORINGS.index(scoring)
                correct, robust = int(clean[s, level].sum()), None
                held = clean[s, level]
                if unit.eps is not None:
                    held = held & adversarial[s, level]
                    held = held & ~here.won if attacked_here else held
                    robust = int(held.sum())
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
                    # Balanced over the nodes of the level that have images, and what a constant answer would score.
                    "nodes": present,
                    "clean_balanced": metrics.balanced(clean[s, level], weights),
                    "robust_balanced": None if robust is None else metrics.balanced(held, weights),
                    "clean_balanced_ci95": metrics.balanced_interval(clean[s, level], weights),
                    "robust_balanced_ci95": None if robust is None else metrics.balanced_interval(held, weights),
                    "constant": metrics.constant_answer(truth[level]),
                    "constant_balanced": 1 / present,
                    "precision": self.model.precision,
                    "seconds": round(self.seconds[unit.key], 3),
                    # A row is white-box where the attack aimed at this very level through this very scoring.
                    "transfer": None
                    if unit.eps is None
                    else not (attacked_here or (unit.level == "all" and scoring == "prompt")),
                    "attacked_through": None if unit.eps is None else unit.scoring,
                    "norm": None if budget is None else budget.norm,
                    "steps": None if budget is None else budget.steps,
                    "step_size": None if budget is None else format_eps(budget.step_size),
                    # Which images are right (robust, where something was attacked), in the order of their ids.
                    "right": metrics.to_bits(held[self._by_id]),
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
        """Per ε: any-level robust accuracy (only for the whole suite), severity and consistency per attack.

        The constant answer of any-level accuracy names one leaf with all its ancestors.
        """
        tree, n = self.task.tree, len(self.labels)
        weights = metrics.weights_over_levels(tree.ancestors[: tree.top, self.labels])
        clean_right = metrics.right(tree, self.labels, self.clean.nodes)[0]
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
                    "any_level_robust": None if robust is None else int(robust.sum()) / n,
                    "any_level_robust_ci95": None if robust is None else metrics.wilson(int(robust.sum()), n),
                    "any_level_clean_balanced": metrics.balanced(clean_right.all(0), weights),
                    "any_level_robust_balanced": None if robust is None else metrics.balanced(robust, weights),
                    "any_level_robust_balanced_ci95": None
                    if robust is None
                    else metrics.balanced_interval(robust, weights),
                    "any_level_constant": metrics.constant_answer(self.labels),
                    "any_level_constant_balanced": metrics.constant_answer(self.labels, weights),
                    "any_level_suite": None if robust is None else list(SUITE),
                    "any_level_right": None if robust is None else metrics.to_bits(robust[self._by_id]),
                    "severity": {u.title: metrics.severity(tree, self.labels, self.predictions[u.key])
                                 for u in (self.units[0], *units)},
                    "consistency": {u.title: metrics.consistency(tree, self.predictions[u.key].nodes[0])
                                    for u in (self.units[0], *units)},
                }
            )  # fmt: skip
        return summary

    def truth(self) -> dict[str, Any]:
        """The node of each image at every level, in the order of their ids: what balanced figures weigh images by.

        ``labels`` are places among the leaves, ``ancestors`` the place at each level of every leaf's ancestor: numbers
        between spaces, for there may be many.
        """

        def words(numbers: Tensor) -> str:
            return " ".join(map(str, numbers.tolist()))

        tree = self.task.tree
        return {"labels": words(self.labels[self._by_id]), "ancestors": [*map(words, tree.ancestors[: tree.top])]}

    def _any_level(self, clean: Bool[Tensor, "levels n"], units: list[Unit]) -> Bool[Tensor, "n"] | None:
        """Which images hold everywhere; None unless the whole suite was run.

        ``matrix`` or not makes no difference: an image that left early was fooled at the attack's own aim.
        """
        tree = self.task.tree
        wanted = {(name, level) for name in SUITE for level in attack_spec(name).levels(tree, "all")}
        suite = [u for u in units if (u.attack, u.level) in wanted]
        if len(suite) < len(wanted):
            return None
        attacked = [
            (metrics.right(tree, self.labels, self.predictions[u.key].nodes)[0], self.predictions[u.key].won)
            for u in suite
        ]
        return metrics.any_level(clean, attacked)


def budget_of(options: EvalOptions, eps: Fraction, spec: AttackSpec) -> Budget:
    """The adversary's budget at this ε."""
    steps = spec.steps if options.steps is None else options.steps
    step_size = options.step_size or default_step_size(eps)
    return Budget(eps, step_size, steps, options.norm, options.restarts, options.random_start)


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
        write_text(path, "".join(f"{line}\n" for line in whole))

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
