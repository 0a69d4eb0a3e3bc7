"""From names of datasets to a report: what `hrzs eval` and `hrzs.evaluate` do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace as replaced

from hrzs._version import __version__
from hrzs.data_options import DataOptions
from hrzs.defences import Defended
from hrzs.errors import DataMissingError, UsageError
from hrzs.estimate import seconds_per_image
from hrzs.evaluation.canaries import run_canaries
from hrzs.evaluation.certify import Certification, Votes
from hrzs.evaluation.options import SUITE, EvalOptions
from hrzs.evaluation.outcome import pictures_of
from hrzs.evaluation.plan import not_applicable
from hrzs.evaluation.rows import overall_of, rows_of, truth_of
from hrzs.evaluation.runner import Evaluation, Progress
from hrzs.evaluation.saved import SavedImages, find_saved, task_of
from hrzs.evaluation.shards import WHOLE, Shard
from hrzs.evaluation.store import Store
from hrzs.evaluation.tree_view import level_depth
from hrzs.models.clip import ClipModel
from hrzs.models.loading import describe
from hrzs.results.average import mean_over_datasets
from hrzs.results.masking import verdicts
from hrzs.results.outcome import Pictures
from hrzs.results.report import Data, DefenceNote, Defending, Model, Report, Row, Summary
from hrzs.results.significance import gaps
from hrzs.tasks import open_task

logger = logging.getLogger(__name__)

#: What is said of the canaries and the verdict where there are none.
SWITCHED_OFF = "switched off (--no-canaries)"
GIVEN = "not applicable (the images were given, no attack was run)"
CERTIFIED = "not applicable (a certificate rests on no attack)"


class Job:
    """One model on one or several datasets, or on the images of ``hrzs attack``.

    Names, data and options are checked here; nothing is computed before `run`.

    Args:
        data: where the images and the tree are; with ``adversarial`` what it does not say is as it was for the attack.
        adversarial: a folder of ``hrzs attack``, whose images are scored and none attacked.
        canaries: check the set-up, and say whether gradients are masked.
        store: where finished batches are kept, so that an interrupted job goes on; whoever has written the report
            removes it (`Store.remove`).
        votes: where the votes of certificates are kept, which stays; a job with more samples adds to it.
        config: options to keep in the report, as ``--config`` reads them back.

    Raises:
        UsageError: an option, or what it names, is not there or does not fit.
    """

    def __init__(
        self,
        model: ClipModel,
        options: EvalOptions,
        data: DataOptions,
        *,
        adversarial: Path | None = None,
        canaries: bool = True,
        store: Path | None = None,
        votes: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        suite = options.attack == SUITE
        # The default suite, and several datasets, skip what a flat tree has no level for, and say so.
        lenient = suite or len(data.specs) > 1
        options = replace(options, level="all") if suite and options.level is None else options
        self.model, self.options, self.canaries = model, options, canaries
        self.config, self.store = dict(config or {}), Store(store)
        self.votes = Votes(None if options.certify is None else votes)
        self.missing: dict[str, str] = {}
        self.evaluations: list[Evaluation] = []
        if adversarial is not None and options.certify is not None:
            raise UsageError(
                f"--certify {options.certify:g} with --adversarial: a certificate is about clean images, and holds for "
                "all others within its radius; leave out one of the two"
            )
        if adversarial is not None:
            self._open_saved(adversarial, data)
        for spec in data.specs if adversarial is None else ():
            try:
                task = open_task(spec, model, data, purpose="eval", template=options.template)
            except DataMissingError as error:
                # Of several datasets the others go on, and no average passes over this one in silence.
                if len(data.specs) == 1:
                    raise
                self.missing[spec] = str(error)
            else:
                self.evaluations.append(Evaluation(model, task, options, self.store, lenient=lenient))
        if not self.evaluations:
            raise UsageError("\n".join(self.missing.values()))
        certified = self.evaluations if options.certify is not None else ()
        self.certifications = [Certification(evaluation, self.votes) for evaluation in certified]
        self.store.about = self.head().call

    def _open_saved(self, folder: Path, given: DataOptions) -> None:
        sets = find_saved(folder)
        source = sets[0].source(given)
        self.config |= {"attack": "none", **source.as_config()}
        task = task_of(sets[0], self.model, source, self.options.template)
        self.evaluations.append(Evaluation(self.model, task, self.options, self.store, sets))

    @property
    def saved(self) -> SavedImages | None:
        """The images that were given, if they were."""
        images = self.evaluations[0].images
        return images if isinstance(images, SavedImages) else None

    def head(self) -> Report:
        """The report as far as it is known before anything was computed."""
        evaluations = self.evaluations
        why = CERTIFIED if self.certifications else GIVEN if self.saved else SWITCHED_OFF if not self.canaries else ()
        return Report(
            hrzs=__version__,
            model=msgspec.convert(describe(self.model), Model),
            config=self.config,
            tasks=tuple(msgspec.convert(e.task.describe(), Data) for e in evaluations),
            prompts_digest=evaluations[0].classifier.prompts.digest,
            versions={name: version(name) for name in ("torch", "open_clip_torch", "torchvision", "numpy")},
            summary=Summary(
                not_applicable=_named(evaluations, lambda e: tuple(not_applicable(e.task, self.options))),
                missing=self.missing,
                stand_ins=_named(evaluations, lambda e: tuple(e.images.stand_ins())),
                canaries=why,
                masking=why,
                adversarial=self.saved.provenance() if self.saved else None,
                defending=_defending(evaluations[0].defended, self.options.draw),
            ),
        )

    def run(self, progress: Progress | None = None, say: Callable[[str], None] = lambda _: None) -> Report:
        """The report of everything (docs/evaluation.md).

        Args:
            progress: called with (work done, work in all, what is being done); its ETA is that of the whole job.
            say: called with a sentence before each canary.
        """
        report = self.head()
        for name, reason in self.missing.items():
            logger.warning("%s is left out: %s", name, reason)
        for name, skipped in report.summary.not_applicable.items():
            logger.info("%s: not applicable, its tree has no superclass: %s", name, ", ".join(skipped))
        with self.store.opened(), self.votes.opened():
            self._run(progress or (lambda *_: None), WHOLE)
        found: dict[str, Any] = {
            "levels": tuple(overall for e in self.evaluations for overall in overall_of(e)),
            "truth": _named(self.evaluations, truth_of),
            "depth": _named(self.evaluations, lambda e: level_depth(self.model, e.classifier, e.task)),
        }
        if self.canaries and not self.saved and not self.certifications:
            canaries = tuple(c for evaluation in self.evaluations for c in run_canaries(evaluation, say))
            found |= {"canaries": canaries, "masking": tuple(verdicts(canaries))}
        rows = tuple(row for evaluation in self.evaluations for row in rows_of(evaluation))
        _call_out(rows)
        certificates = tuple(one for certification in self.certifications for one in certification.certificates())
        report = replaced(report, results=rows, summary=replaced(report.summary, **found), certificates=certificates)
        further: dict[str, Any] = {"mean": mean_over_datasets(report)}
        if report.summary.defending is not None:
            further["defending"] = replaced(report.summary.defending, gaps=gaps(report))
        return replaced(report, summary=replaced(report.summary, **further))

    def run_shard(self, shard: Shard, finished: Path, progress: Progress | None = None) -> None:
        """The images of one shard, all of whose batches stay in the store, which is the file ``finished`` from then on.

        The canaries, which need what all shards have done, are for whoever puts them together: `run`, with the files of
        all shards as ``store.shards``.
        """
        with self.store.opened(), self.votes.opened():
            self._run(progress or (lambda *_: None), shard)
            self.store.finish(finished)

    def pictures(self) -> dict[str, Pictures]:
        """What the page of a report shows beyond it, by dataset, once everything was run."""
        return {e.task.data.name: pictures_of(e) for e in self.evaluations}

    def _run(self, progress: Progress, shard: Shard) -> None:
        merges = bool(self.store.shards)
        parts = [(e.passes(shard, first), partial(e.run, shard=shard, first=first)) for e, first in self._firsts()]
        parts += [(c.passes(shard), partial(c.run, shard=shard, kept_only=merges)) for c in self.certifications]
        done, ahead = 0, sum(passes for passes, _ in parts)
        for passes, run in parts:
            ahead -= passes
            before, seen = done, 0

            def tick(now: int, total: int, note: str, before: int = before, ahead: int = ahead) -> None:
                nonlocal seen
                seen = now
                progress(before + now, before + total + ahead, note)

            run(tick)
            done += seen

    def _firsts(self) -> list[tuple[Evaluation, int]]:
        """The evaluations, each with the number of blocks of those before it: shards take turns over all of them."""
        counts = [len(evaluation.blocks()) for evaluation in self.evaluations]
        return [(evaluation, sum(counts[:i])) for i, evaluation in enumerate(self.evaluations)]

    def estimate(self, shard: Shard = WHOLE) -> dict[str, Any]:
        """What would be done, and what it would take on this machine."""
        minutes, memory, images = 0.0, 0.0, 0
        for (e, first), certification in zip_longest(self._firsts(), self.certifications):
            seconds, megabytes = seconds_per_image(e.model, e.task.data)
            mine = sum(map(len, e.blocks(shard, first)))
            minutes += mine * seconds * sum(e.cost(unit) for unit in e.units) / 60
            if certification is not None:
                mine = len(certification.images(shard))
                minutes += mine * seconds * certification.cost / 60
            images += mine
            memory = max(memory, megabytes * self.options.batch_size)
        share: dict[str, Any] = {} if shard == WHOLE else {"shard": str(shard), "images_of_shard": images}
        defended = self.evaluations[0].defended
        if defended is not None:
            each = {
                str(d): {"forward_passes_to_judge": round(passes, 1), "adversary": d.adversary}
                for d, passes in zip(defended.defences, defended.passes_of_each, strict=True)
            }
            share |= {"defences": each, "gradients_per_adaptive_gradient": round(defended.attack_passes, 1)}
        return {
            "tasks": [e.task.describe() for e in self.evaluations],
            "units": [unit.title for unit in self.evaluations[0].units] + [c.title for c in self.certifications[:1]],
            **share,
            "estimated_minutes": round(minutes, 1),
            "estimated_memory_mb": round(memory + 4 * sum(p.numel() for p in self.model.parameters()) / 1e6),
        }


def _named(evaluations: Sequence[Evaluation], of: Callable[[Evaluation], Any]) -> dict[str, Any]:
    """What there is to say of each dataset, by its name."""
    return {e.task.data.name: found for e in evaluations if (found := of(e))}


def _defending(defended: Defended | None, draw: str) -> Defending | None:
    if defended is None:
        return None
    stack = tuple(
        DefenceNote(defence=str(d), adversary=d.adversary, passes=round(passes, 1))
        for d, passes in zip(defended.defences, defended.passes_of_each, strict=True)
    )
    return Defending(stack=stack, draw=draw, eot=defended.eot, attack_passes=defended.attack_passes)


def _call_out(rows: Sequence[Row]) -> None:
    """What usually means a mistake, and not a result."""
    for row in rows:
        where = f"{row.dataset}, {row.attack} at level {row.attack_level}, level {row.level}"
        if row.transfer is False and row.robust == row.clean > 0:
            logger.warning("%s: robust equals clean accuracy (%.3f): is the attack blocked?", where, row.clean)
    poor = [row for row in rows if row.attack == "none" and row.clean <= 1.5 / row.classes]
    for dataset in dict.fromkeys(row.dataset for row in poor):
        levels = {row.level: f"{row.clean:.3f} at level {row.level}" for row in poor if row.dataset == dataset}
        logger.warning("%s: clean accuracy is near chance, %s: prompts, tree or weights may not belong to the data",
                       dataset, ", ".join(levels.values()))  # fmt: skip
