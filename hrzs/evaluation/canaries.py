"""Checks that run beside every evaluation, on at most 64 images: would this set-up notice a model that is not robust?

Each canary says what it measured, what was expected, and whether the two agree (docs/evaluation.md). Most of them
compare two attacks image by image: leaf PGD, which has the model's gradients, and one that has less to go by (one step,
no gradients, another model's). What the weaker attack fools and the stronger one does not is no robustness: there the
gradients lead nowhere (Athalye et al., ICML 2018, section 3.1; Carlini et al. 2019, "On Evaluating Adversarial
Robustness"; Croce & Hein, ICML 2020, who have Square in AutoAttack for that). One compares the gradients themselves
with finite differences (`hrzs.evaluation.gradient_check`). Those that need no other model look at one attacked
superclass level too. What follows from all canaries together says `hrzs.results.masking`.

With so few images a share may lie above its bound by chance: a canary fails only where Wilson's 95% interval does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hrzs.attacks import ATTACKS, Attack, Budget, sample_seeds
from hrzs.attacks.base import judge
from hrzs.attacks.budget import format_eps
from hrzs.attacks.noise import Noise
from hrzs.attacks.objectives import LevelObjective
from hrzs.data import loader, subset
from hrzs.defences import Defended
from hrzs.errors import HrzsError
from hrzs.evaluation.gradient_check import DIRECTIONS, SATURATED, STEPS, agreement
from hrzs.evaluation.images import VERDICT
from hrzs.evaluation.options import EvalOptions
from hrzs.evaluation.plan import ADAPTIVE, STATIC, budget_of
from hrzs.evaluation.runner import Evaluation
from hrzs.models.cache import digest_of, kept_json
from hrzs.models.classifier import SCORINGS, ZeroShotClassifier
from hrzs.models.clip import ClipModel
from hrzs.models.encoder import ImageEncoder
from hrzs.models.exact import exact_fp32
from hrzs.models.loading import load_model
from hrzs.results import metrics
from hrzs.results.masking import ASTRAY, CHECKED, DEAD, HELD_AT_HUGE, LEAST, MISSED, UNTOUCHED, Canary
from hrzs.results.metrics import wilson

logger = logging.getLogger(__name__)

LEAF_PGD = ATTACKS["leaf-pgd"]
IMAGES = 64
HUGE = Fraction(64, 255)
#: Leaf PGD takes as many steps as the attacks of the run, but no more than these: Square's 5,000 are no steps.
MOST_STEPS = 100
QUERIES = 500
#: Where a model behind defences takes more forward passes than this to judge an image, there are fewer images.
_CHEAP = 4
DRAWS = 20
#: Less of a correlation is a gradient that points elsewhere. Honest models have 0.98 and more (docs/evaluation.md).
AGREES = 0.7


@exact_fp32()
def run_canaries(evaluation: Evaluation, update: Callable[[str], None] = lambda _: None) -> list[Canary]:
    """All canaries of one evaluated dataset, at the first ε of its plan.

    What depends on model, images and options alone is kept on disk (`hrzs.models.cache`).
    """
    eps = next((u.eps for u in evaluation.units if u.eps is not None), None)
    if eps is None:
        return []
    name = evaluation.task.data.name
    bench = _bench(evaluation, eps)
    above = _superclasses(bench, evaluation) if bench.defended is None else None

    def measure() -> list[dict[str, Any]]:
        say: Callable[[str], None] = lambda what: update(f"{name}, canary: {what}")
        return [asdict(c) for c in (*_measure(bench, evaluation, say), *_measure_above(above, say))]

    about = _about(bench, evaluation) | {"superclasses": above and [above.objective.level, above.objective.scoring]}
    with _at_once(evaluation):
        kept = kept_json("canaries", about, measure, fits=_is_whole)
    canaries = [*(Canary(**c) for c in kept), _dead_gradients(evaluation)]
    if bench.defended is not None:
        gaps = _adversaries(evaluation)
        canaries = [*(replace(canary, adversary=ADAPTIVE) for canary in canaries), *gaps]
    for canary in canaries:
        if canary.ok is False:
            logger.warning("canary %s: %s, expected %s. %s", canary.name, canary.value, canary.expected, canary.note)
    return [replace(canary, dataset=name) for canary in canaries]


@contextmanager
def _at_once(evaluation: Evaluation) -> Iterator[None]:
    """Inside, no more images go through the model at a time than the evaluation has, however many views each has."""
    model = evaluation.model
    before = model.at_once
    model.at_once = before if evaluation.defended is None else evaluation.options.batch_size
    try:
        yield
    finally:
        model.at_once = before


# -- the images and who attacks them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """The canaries' images under one model and one objective: at its leaves, or at one level of superclasses."""

    model: ClipModel
    objective: LevelObjective
    images: Float[Tensor, "n 3 H W"]
    labels: Int[Tensor, "n"]
    ids: tuple[str, ...]
    options: EvalOptions
    eps: Fraction
    defended: Defended | None = None

    def encoder(self, rows: Int[Tensor, "b"], salt: str) -> ImageEncoder:
        """The model for these images: behind its defences, under draws that follow from ``salt``."""
        if self.defended is None:
            return self.model
        return self.defended.of(sample_seeds([self.ids[i] for i in rows.tolist()], self.options.seed, salt))

    def attacked(self, rows: Int[Tensor, "b"], salt: str) -> ImageEncoder:
        """What an adversary sees of the model."""
        if self.defended is None or self.options.draw == "unknown":
            return self.encoder(rows, f"adversary {salt}")
        ids = [self.ids[i] for i in rows.tolist()]
        return self.defended.of(sample_seeds(ids, self.options.seed, VERDICT), stays=True)

    def wins(self, rows: Int[Tensor, "b"], images: Float[Tensor, "b 3 H W"]) -> Bool[Tensor, "b"]:
        """Are these versions of the images at ``rows`` taken for something else?"""
        return judge(self.encoder(rows, VERDICT), self.objective, images, self.labels[rows])

    @property
    def stops_early(self) -> bool:
        """Do fooled images leave? Not if they are judged under another draw than that of the attack."""
        return self.defended is None

    @property
    def white_box(self) -> str:
        """What the strongest attack here is called: PGD, which has the model's gradients."""
        if not self.objective.level:
            return "leaf-pgd" if self.defended is None else "adaptive leaf-pgd"
        through = "" if self.objective.scoring == "prompt" else f" through {self.objective.scoring}"
        return f"superclass-pgd at level {self.objective.level}{through}"

    def budget(self, eps: Fraction | None = None) -> Budget:
        """That of PGD."""
        budget = budget_of(self.options, eps or self.eps, LEAF_PGD)
        return replace(budget, steps=min(budget.steps, MOST_STEPS))

    def fooled(
        self, attack: Attack, among: Bool[Tensor, "n"], through: _Bench | None = None, salt: str = ""
    ) -> Bool[Tensor, "n"]:
        """Which of the images ``among`` are wrong after the attack on them, made ``through`` another bench or this one.

        ``salt`` gives other random numbers than those of the run.
        """
        through, fooled = through or self, torch.zeros_like(among)
        if not among.any():  # splitting nothing gives one part, which no model takes
            return fooled
        for rows in torch.split(among.nonzero().squeeze(1), self.options.batch_size):
            seeds = sample_seeds([self.ids[i] for i in rows.tolist()], self.options.seed, salt)
            model = through.attacked(rows, salt)
            found = attack(model, through.objective, self.images[rows], self.labels[rows], seeds)
            fooled[rows] = self.wins(rows, found.images)
        return fooled

    def pgd(self, eps: Fraction | None = None, *, steps: int | None = None, early_stop: bool = True) -> Attack:
        budget = self.budget(eps)
        early_stop = early_stop and self.stops_early
        return LEAF_PGD.optimiser(replace(budget, steps=steps or budget.steps), early_stop=early_stop)

    @cached_property
    def correct(self) -> Bool[Tensor, "n"]:
        """Right when clean: these are attacked."""
        return ~self.wins(torch.arange(len(self.labels), device=self.labels.device), self.images)

    @cached_property
    def robust(self) -> Bool[Tensor, "n"]:
        """Right under PGD too, the white-box attack that the others are compared with."""
        return self.correct & ~self.fooled(self.pgd(), self.correct)

    def missed(self, name: str, weaker: str, missed: Bool[Tensor, "n"], note: str = "") -> Canary:
        """A comparison: ``missed`` by PGD although the ``weaker`` attack fools them."""
        attacked = int(self.correct.sum())
        expected = f"at most {MISSED} of the images attacked fall to {weaker} and not to {self.white_box}"
        note = note or f"{int(self.robust.sum())} hold under {self.white_box}"
        return _measured(name, int(missed.sum()), attacked, MISSED, expected, note)


def _bench(evaluation: Evaluation, eps: Fraction) -> _Bench:
    model, defended = evaluation.model, evaluation.defended
    most = IMAGES if defended is None else round(min(max(IMAGES * _CHEAP / (1 + defended.passes), LEAST), IMAGES))
    batch = next(iter(loader(subset(evaluation.task.data, limit=most), most)))
    images, labels = batch.images.to(model.device), batch.labels.to(model.device)
    classifier = evaluation.classifier if defended is None else defended.classifier
    return _Bench(
        model, LevelObjective(classifier, 0), images, labels, batch.ids, evaluation.options, eps, defended
    )  # fmt: skip


def _superclasses(bench: _Bench, evaluation: Evaluation) -> _Bench | None:
    """The same images at the attacked superclass level that has the most to lose; None where none was attacked.

    That is where most images of the run hold: the figure that would be the most wrong.
    """
    robust: dict[tuple[int, str], Bool[Tensor, "n"]] = {}
    clean = metrics.correct(evaluation.task.tree, evaluation.labels, evaluation.clean.nodes)
    for unit in evaluation.units:
        if unit.eps != bench.eps or not isinstance(unit.level, int) or not unit.level:
            continue
        found, s = evaluation.predictions[unit.key], SCORINGS.index(unit.scoring)
        after = metrics.correct(evaluation.task.tree, evaluation.labels, found.nodes)[s, unit.level] & ~found.success
        place = (unit.level, unit.scoring)
        robust[place] = robust.get(place, clean[s, unit.level]) & after
    if not robust:
        return None
    level, scoring = max(robust, key=lambda place: int(robust[place].sum()))
    return replace(bench, objective=LevelObjective(evaluation.classifier, level, scoring))


def _measured(name: str, count: int, of: int, bound: float, expected: str, note: str = "") -> Canary:
    if not of:
        return Canary(name, None, expected, None, "not run: the model is right about none of the images")
    said = f"{count} of {of} images" + (f"; {note}" if note else "")
    return Canary(name, count / of, expected, wilson(count, of)[0] <= bound, said, count=count, of=of, bound=bound)


def _about(bench: _Bench, evaluation: Evaluation) -> dict[str, Any]:
    """All that the canaries depend on but for the run itself. A model is known by the weights that it has now."""
    model, classifier, budget = bench.model, evaluation.classifier, bench.budget()
    return {
        "model": digest_of([*model.state_dict().items(), ("mean", model.mean), ("std", model.std)]),
        "config": model.info.config,
        "interpolation": model.info.interpolation,
        "precision": model.precision,
        "base": model.info.run.get("base"),
        "head": classifier.head.name,
        "texts": digest_of([("prepared", classifier.prepared), ("leaves", classifier.columns[0])]),
        "tree": evaluation.task.tree.digest,
        "template": bench.options.template,
        "images": digest_of([("images", bench.images), ("labels", bench.labels)]),
        "ids": bench.ids,
        "budget": {k: str(v) for k, v in asdict(budget).items()},
        "step_size": str(bench.options.step_size),
        "seed": bench.options.seed,
        "bounds": [str(HUGE), QUERIES, DRAWS, MISSED, HELD_AT_HUGE, UNTOUCHED],
        "gradient check": [CHECKED, AGREES, ASTRAY, DIRECTIONS, STEPS, SATURATED],
        "device": model.device.type,
        "versions": [torch.__version__, open_clip.__version__],
        "defences": str(bench.defended),
        "eot": bench.options.eot,
        "draw": bench.options.draw,
    }


def _is_whole(kept: Any) -> bool:
    """Canaries, all of which could be run: one that could not may be by now."""
    names = {field.name for field in fields(Canary)}
    return isinstance(kept, list) and all(
        isinstance(c, dict) and c.keys() == names and (c["ok"] is not None or not c["applicable"]) for c in kept
    )


# -- one by one -------------------------------------------------------------------------------------------------------


def _measure(bench: _Bench, evaluation: Evaluation, update: Callable[[str], None]) -> list[Canary]:
    if bench.defended is not None:
        # The static attack takes the place of the untouched model. The adversary's gradients are not those of the
        # defence where those are of no use (BPDA), so finite differences say nothing of them.
        update("growing ε")
        return [_huge(bench), _eps_monotone(bench), *_weaker_attacks(bench, update)]
    update("untouched model, transfer from it")
    canaries = _untouched(bench, evaluation)
    update("growing ε and steps")
    canaries += [_huge(bench), _eps_monotone(bench), _steps_monotone(bench)]
    canaries += _weaker_attacks(bench, update)
    update("gradients and finite differences")
    canaries.append(_gradient_check(bench))
    if evaluation.classifier.head.name != "cosine":
        update("cosine head")
        canaries.append(_cosine_head(bench, evaluation))
    return canaries


def _measure_above(bench: _Bench | None, update: Callable[[str], None]) -> list[Canary]:
    """Those canaries that need nothing but the model, at a level of superclasses, where it may be masked too."""
    if bench is None:
        return []
    level = bench.objective.level
    update(f"level {level}")
    found = [
        _huge(bench),
        *_weaker_attacks(bench, lambda what: update(f"level {level}, {what}")),
        _gradient_check(bench),
    ]
    return [replace(canary, name=f"{canary.name}@{level}", level=level) for canary in found]


def _weaker_attacks(bench: _Bench, update: Callable[[str], None]) -> list[Canary]:
    """What has less to go by than PGD on the same images: one step, noise, no gradients; and another loss."""
    update("one step, noise, margin")
    one_step = ATTACKS["fgsm"].optimiser(bench.budget())
    noise = Noise(replace(bench.budget(), steps=DRAWS), early_stop=bench.stops_early)
    margin = replace(bench, objective=bench.objective.with_loss("margin"))
    canaries = [
        bench.missed("one-step-vs-iterative", "one step (FGSM)", bench.fooled(one_step, bench.robust)),
        bench.missed("noise-vs-white-box", f"one of {DRAWS} draws of noise", bench.fooled(noise, bench.robust)),
        bench.missed("margin-vs-ce", "PGD on the margin", bench.fooled(bench.pgd(), bench.robust, margin)),
    ]
    update("Square")
    # Behind defences as many forward passes as without them, all together.
    passes = 1.0 if bench.defended is None else 1 + bench.defended.passes
    queries = min(QUERIES, round(QUERIES * IMAGES / (len(bench.labels) * passes)))
    square = ATTACKS["square"].optimiser(replace(bench.budget(), steps=queries), early_stop=bench.stops_early)
    fooled = bench.fooled(square, bench.robust, margin)
    return [*canaries, bench.missed("square-vs-white-box", f"Square ({queries} queries)", fooled)]


def _gradient_check(bench: _Bench) -> Canary:
    """Of images that are right when clean: those whose gradient does not point where the loss rises."""
    name, rows = "gradient-check", bench.correct.nonzero().squeeze(1)[:CHECKED]
    where = f" of {bench.white_box}" if bench.objective.level else ""
    expected = f"at most {ASTRAY} of the gradients{where} disagree with finite differences (correlation under {AGREES})"
    if not len(rows):
        return _measured(name, 0, 0, ASTRAY, expected)
    parts = [
        agreement(
            bench.model, bench.objective, bench.images[part], bench.labels[part], bench.budget(),
            sample_seeds([bench.ids[i] for i in part.tolist()], bench.options.seed),
        )
        for part in torch.split(rows, bench.options.batch_size)
    ]  # fmt: skip
    found = torch.cat(parts)
    found = found[~found.isnan()]
    if not len(found):
        note = "not applicable: the softmax is saturated, or loss and gradient are flat, at every image"
        return Canary(name, None, expected, None, note, applicable=False)
    note = f"median correlation {float(found.median()):.2f}, lowest {float(found.min()):.2f}"
    return _measured(name, int((found < AGREES).sum()), len(found), ASTRAY, expected, note)


def _untouched(bench: _Bench, evaluation: Evaluation) -> list[Canary]:
    """The untouched model under the same attack, and what was made against it on this one."""
    name, transfer = "untouched-model", "transfer-vs-white-box"
    weaker = "images made against the untouched model"
    eps = format_eps(bench.eps)
    expected = f"at most {UNTOUCHED} under leaf-pgd at ε {eps}: a model that nobody made robust must fall"
    base = bench.model.info.run.get("base")
    if not base or base["pretrained"] == "none":  # what was trained from scratch is untouched itself
        note = "not applicable: the model is itself untouched"
        return [
            _holds(name, bench, expected),
            Canary(transfer, None, f"{weaker} do not beat leaf-pgd", None, note, applicable=False),
        ]
    try:
        model = load_model(base["model"], base["pretrained"], device=str(bench.model.device))
        if base["digest"] != model.info.digest:
            raise HrzsError(f"{base['model']} is not the file the run started from")
    except HrzsError as error:
        note = f"not run: {error}"
        return [
            Canary(name, None, expected, None, note),
            Canary(transfer, None, f"{weaker} do not beat leaf-pgd", None, note),
        ]
    classifier = ZeroShotClassifier(model, evaluation.task.tree, evaluation.options.template)
    untouched = replace(bench, model=model, objective=LevelObjective(classifier, 0))
    # Attacked for all steps: an image that barely crosses a boundary of that model transfers to no other.
    fooled = bench.fooled(bench.pgd(early_stop=False), bench.robust, untouched)
    return [_holds(name, untouched, expected), bench.missed(transfer, weaker, fooled)]


def _holds(name: str, bench: _Bench, expected: str) -> Canary:
    """The robust accuracy of a model, over all images."""
    n, robust = len(bench.labels), int(bench.robust.sum())
    return _measured(name, robust, n, UNTOUCHED, expected, f"clean {int(bench.correct.sum()) / n:.3f}")


def _huge(bench: _Bench) -> Canary:
    expected = f"at most {HELD_AT_HUGE} of the images attacked hold at ε {format_eps(HUGE)}"
    budget = replace(bench.budget(HUGE), norm="linf", step_size=HUGE / 4)
    attack = LEAF_PGD.optimiser(budget, early_stop=bench.stops_early)
    robust = bench.correct & ~bench.fooled(attack, bench.correct)
    return _measured("huge-eps", int(robust.sum()), int(bench.correct.sum()), HELD_AT_HUGE, expected)


def _eps_monotone(bench: _Bench) -> Canary:
    """What falls at ε must fall at 2ε, whose ball contains the smaller one."""
    double = 2 * bench.eps if bench.options.norm == "l2" else min(2 * bench.eps, Fraction(1))
    robust = bench.correct & ~bench.fooled(bench.pgd(double), bench.correct)
    small, large = format_eps(bench.eps), format_eps(double)
    expected = f"at most {MISSED} of the images attacked fall at ε {small} and not at ε {large}"
    note = f"{int(bench.robust.sum())} hold at ε {small}, {int(robust.sum())} at ε {large}"
    missed = int((bench.correct & ~bench.robust & robust).sum())
    return _measured("eps-monotone", missed, int(bench.correct.sum()), MISSED, expected, note)


def _steps_monotone(bench: _Bench) -> Canary:
    """From another start: the steps of the same run are the first ones of the longer run, which cannot fail."""
    name, steps = "steps-monotone", bench.budget().steps
    few = steps // 4
    if not few:
        note = f"not applicable: {steps} steps have no quarter"
        return Canary(name, None, "robust accuracy falls as steps grow", None, note, applicable=False)
    fooled = bench.fooled(bench.pgd(steps=few), bench.correct, salt="steps")
    note = f"{int((bench.correct & ~fooled).sum())} hold after {few} steps, {int(bench.robust.sum())} after {steps}"
    return bench.missed(name, f"{few} of {steps} steps", bench.robust & fooled, note)


def _cosine_head(bench: _Bench, evaluation: Evaluation) -> Canary:
    """Attack through the cosine head of the same encoder; the hyperbolic head judges: it must be right on both."""
    classifier = ZeroShotClassifier(bench.model, evaluation.task.tree, evaluation.options.template, "cosine")
    cosine = replace(bench, objective=LevelObjective(classifier, 0))
    expected = f"at most {MISSED} of the images that hold under their own head fall to its cosine head"
    if not bench.robust.any():
        return Canary("cosine-head", None, expected, None, "not applicable: none holds", applicable=False)
    fooled = bench.fooled(bench.pgd(early_stop=False), bench.robust, cosine)
    return _measured("cosine-head", int(fooled.sum()), int(bench.robust.sum()), MISSED, expected)


def _adversaries(evaluation: Evaluation) -> list[Canary]:
    """Who fools more of the images that are right when clean, under the attack where the two differ most.

    One canary is about the static figures, which must not hide what the adaptive attack finds, the other about the
    adaptive ones. All images of the run count.
    """
    tree, labels = evaluation.task.tree, evaluation.labels
    clean = metrics.correct(tree, labels, evaluation.clean.nodes)
    found = []
    for name, weaker, adversary in (
        ("adaptive-vs-static", ADAPTIVE, STATIC),
        ("static-vs-adaptive", STATIC, ADAPTIVE),
    ):
        expected = f"at most {MISSED} of the images fall to the {weaker} attack only"
        most: Canary | None = None
        for unit in evaluation.units:
            if unit.adversary != ADAPTIVE or not isinstance(unit.level, int):
                continue
            attacked = clean[SCORINGS.index(unit.scoring), unit.level]
            fooled = {ADAPTIVE: evaluation.predictions[unit.key].success,
                      STATIC: evaluation.predictions[unit.as_static.key].success}  # fmt: skip
            count = int((attacked & fooled[weaker] & ~fooled[adversary]).sum())
            canary = _measured(name, count, int(attacked.sum()), MISSED, expected, replace(unit, adversary=None).title)
            most = canary if most is None or (canary.value or 0) > (most.value or 0) else most
        missing = Canary(name, None, expected, None, "not applicable: no level was attacked", applicable=False)
        found.append(replace(most or missing, adversary=adversary))
    return found


def _dead_gradients(evaluation: Evaluation) -> Canary:
    """Of the pass that has most of them: one blocked attack must not drown among many others."""
    name, expected = "dead-gradients", f"at most {DEAD} of an attack's gradients zero or not finite"
    units = [unit for unit in evaluation.units if unit.eps is not None and unit.adversary != STATIC]
    counts = {unit: evaluation.gradients[unit.key] for unit in units}
    without = dict.fromkeys(unit.attack for unit, found in counts.items() if not found["gradients"])
    taken = {unit: found for unit, found in counts.items() if found["gradients"]}
    none = f"none were taken by {', '.join(without)}" if without else ""
    if not taken:
        return Canary(name, None, expected, None, f"not applicable: {none}", applicable=False)
    dead = {unit: found["zero_gradients"] + found["bad_gradients"] for unit, found in taken.items()}
    worst = max(taken, key=lambda unit: dead[unit] / taken[unit]["gradients"])
    of = taken[worst]["gradients"]
    said = [
        f"{unit.title}: {found['zero_gradients']} zero, {found['bad_gradients']} not finite of {found['gradients']}"
        for unit, found in taken.items()
        if dead[unit]
    ] or [f"0 of {sum(found['gradients'] for found in taken.values())}"]
    canary = _measured(name, dead[worst], of, DEAD, expected)
    return replace(canary, note="; ".join([*said, *filter(None, [none])]))
