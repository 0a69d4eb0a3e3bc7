"""From options and names of data to a run: what `hrzs finetune` and `hrzs.finetune` do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hrzs.attacks.budget import default_step_size, parse_eps
from hrzs.data import Dataset
from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.estimate import seconds_per_image
from hrzs.files import output_folder, write_config
from hrzs.models.clip import ClipModel
from hrzs.models.templates import template_for
from hrzs.progress import Update
from hrzs.tasks import Task, open_task, open_validation
from hrzs.training.checkpoints import has_checkpoint
from hrzs.training.methods import check_options, method_class
from hrzs.training.options import PUBLISHED, RECIPES, TrainOptions, about_recipe
from hrzs.training.trainer import Progress, Trainer, is_finished, options_as_config, total_steps

logger = logging.getLogger(__name__)

#: Options that ask for a validation if they are given.
LOOKS = {"validate_every", "val_split", "val_limit", "val_steps", "best_by"}


def settle(recipe: str, given: Mapping[str, Any], typed: set[str] | None = None) -> TrainOptions:
    """The options of a run: the defaults, overridden by the recipe, overridden by what is given.

    Args:
        given: options by the names of `TrainOptions`; None, or False for a flag, means not given.
        typed: the options that the method must read; by default all that are given.

    Raises:
        UsageError: an unknown recipe, a value out of range, or an option that the method does not read.
    """
    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe!r}: one of {', '.join(RECIPES)}")
    if recipe in PUBLISHED:
        logger.info("--recipe %s: %s", recipe, about_recipe(recipe))
    values: dict[str, Any] = dict(RECIPES[recipe])
    values |= {name: value for name, value in given.items() if value is not None and value is not False}
    for name in ("eps", "step_size"):
        if isinstance(values.get(name), str):
            values[name] = parse_eps(values[name], option=f"--{name.replace('_', '-')}")
    if "eps" in values and "step_size" not in values:
        values["step_size"] = default_step_size(values["eps"])
    options = TrainOptions(**values)
    check_options(options.method, {name for name in given if given[name] is not None} if typed is None else typed)
    return options


def open_run(
    model: ClipModel,
    options: TrainOptions,
    folder: Path,
    data: DataOptions,
    *,
    given: Mapping[str, Any],
    recipe: str = "default",
    val_split: str = "val",
    insist: bool = False,
    **of_trainer: Any,
) -> tuple[Trainer, Task]:
    """The trainer of a run, and its data with the tree; nothing is written yet.

    Args:
        options: those of `settle`; an ε and templates of the data's own replace them unless ``given``.
        insist: is it an error that there are no held-out images?
        of_trainer: see `Trainer`.

    Raises:
        UsageError: an option is wrong, or what it names is missing or does not fit.
    """
    spec, root = data.spec, data.data_root
    task = open_task(spec, model, data, purpose="train", template=options.template)
    options = _for_data(options, given, recipe, task)
    held_out: Dataset | None = None
    if options.validate_every:
        try:
            held_out = open_validation(spec, task, model, split=val_split, root=root, limit=options.val_limit)
        except UsageError as error:
            if insist:
                raise
            logger.info("no validation while training (%s)", error)
    trainer = Trainer(model, task.data, task.tree, options, folder, more_trees=task.more_trees, validation=held_out,
                      **of_trainer)  # fmt: skip
    return trainer, task


def _for_data(options: TrainOptions, given: Mapping[str, Any], recipe: str, task: Task) -> TrainOptions:
    """``options`` with the data's own ensemble of templates and ε (``shapes`` has one), unless they were given."""
    options = replace(options, template=template_for(options.template, task.data.name))
    own = task.data.default_eps
    if own is None or given.get("eps") is not None or "eps" in RECIPES[recipe]:
        return options
    step = options.step_size if given.get("step_size") is not None else default_step_size(own)
    return replace(options, eps=own, step_size=step)


def run(trainer: Trainer, config: Mapping[str, Any], *, resume: bool = False, progress: Progress | None = None) -> None:
    """Train in the run folder, or go on with what it holds; of a finished run, mend what is damaged.

    Args:
        config: options for ``config.yaml``, which holds every option, so that new defaults cannot change the run.

    Raises:
        UsageError: another process is at work in the folder, or it holds a run, with ``resume`` one of other options.
        HrzsError: it cannot be written.
    """
    folder, group = trainer.folder, trainer.group
    settled = {name.replace("_", "-"): value for name, value in options_as_config(trainer.options).items()}
    with output_folder(folder, resume=resume) if group.is_first else nullcontext():
        if group.share(resume and is_finished(folder) and not has_checkpoint(folder)):
            if group.is_first:
                _check_config(folder / "config.yaml", settled)
            return
        if resume and not trainer.resume():
            logger.info("no checkpoint in %s: starting anew", folder)
        if group.is_first:
            write_config(folder, {**config, **settled})
        trainer.run(progress)


def with_loss(update: Update) -> Progress:
    """The progress of a run for what shows any progress."""
    return lambda done, total, log: update(done, total, f"loss {log['loss']:.3f}")


def _check_config(file: Path, settled: Mapping[str, Any]) -> None:
    """Was a run that is finished, and whose checkpoints are gone, made with these options?"""
    try:
        was = yaml.safe_load(file.read_text(encoding="utf-8"))
        other = [
            f"{name} {was[name]} (now {value})" for name, value in settled.items() if was.get(name, value) != value
        ]
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise UsageError(f"--resume: {file} cannot be read ({error}); give another folder") from error
    if other:
        raise UsageError(f"--resume: {file.parent} is finished, with {', '.join(other)}; give another folder")


def estimate(trainer: Trainer, task: Task) -> dict[str, Any]:
    """What a run would do, and an estimate of its cost, measured on this machine; memory is that of each process."""
    options, model = trainer.options, trainer.model
    steps = total_steps(options, len(task.data))
    batch = min(options.batch_size, len(task.data))
    levels = max(tree.height for tree in (task.tree, *task.more_trees))
    per_step = batch * method_class(options.method).encodings(options, levels)
    if options.accumulate > 1:  # what a forward pass computes, the backward pass computes once more
        per_step *= 4 / 3
    held_out = 0 if trainer.validation is None else len(trainer.validation)
    looks = -(-steps // options.validate_every) if held_out else 0
    per_look = held_out * task.tree.height * options.val_steps
    seconds, megabytes = seconds_per_image(model, task.data)
    parameters = sum(p.numel() for p in model.parameters())
    at_once = -(-batch // (options.accumulate * trainer.group.size))
    return {
        "model": model.info.source, "data": task.describe(), "trees": 1 + len(task.more_trees),
        "output": str(trainer.folder), **options_as_config(options), "optimiser_steps": steps,
        "images_per_step": batch, "validation_images": held_out,
        "estimated_minutes": round((steps * per_step + looks * per_look) * seconds / trainer.group.size / 60, 1),
        "estimated_memory_mb": round(at_once * megabytes + 16 * parameters / 1e6),
    }  # fmt: skip
