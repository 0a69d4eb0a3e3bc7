"""`hrzs finetune`: adversarial (or clean) fine-tuning of a CLIP-like model; prints the run folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrzs.cli import console, options
from hrzs.errors import HrzsError, UsageError

if TYPE_CHECKING:
    from hrzs.tasks import Task
    from hrzs.training.options import TrainOptions


def finetune(
    context: typer.Context,
    config: options.Config = None,
    model: options.Model = "tiny",
    pretrained: options.Pretrained = None,
    visual: options.Visual = None,
    data: options.Data = "shapes",
    data_root: options.DataRoot = None,
    split: options.Split = None,
    classes: options.Classes = None,
    limit: options.Limit = None,
    skip: options.Skip = 0,
    resize: options.Resize = "auto",
    tree: Annotated[str | None, typer.Option("--tree", help="Tree file; FILE#2 is its second tree.")] = None,
    method: Annotated[str, typer.Option("--method", help="hierarchical, tecoa, clean, or list.")] = "hierarchical",
    recipe: Annotated[str, typer.Option("--recipe", help="default, paper, or list: what a paper sets.")] = "default",
    eps: Annotated[str | None, typer.Option("--eps", help="L∞ radius: 1/255 or 0.0039.", show_default="1/255")] = None,
    step_size: Annotated[str | None, typer.Option("--step-size", help="Of each PGD step.", show_default="1/255, or ε/4")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="PGD steps.", show_default="3")] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", show_default="1")] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimiser steps at most.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate (AdamW, warm-up, cosine).", show_default="3e-4")] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", show_default="1e-4")] = None,
    warmup: Annotated[float | None, typer.Option("--warmup", help="Share of all steps.", show_default="0.05")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, show_default="128")] = None,
    tune: Annotated[str | None, typer.Option("--tune", help="image, image+projection, or all (pretraining).", show_default="the method's")] = None,
    augment: Annotated[str | None, typer.Option("--augment", help="none, flip or dihedral.", show_default="none")] = None,
    template: Annotated[str | None, typer.Option("--template", help="photo, tecoa, name, or a text with {}.", show_default="photo")] = None,
    every_level: Annotated[bool, typer.Option("--every-level", help="clean, tecoa: cross-entropy at every level.")] = False,
    image_levels: Annotated[str | None, typer.Option("--image-levels", help="What stands for a superclass's image: per-image, hypavg (the paper's), mixed.")] = None,
    hnsa: Annotated[str | None, typer.Option("--hnsa", help="Negatives from neighbouring levels: none, lower, upper, both.")] = None,
    radius: Annotated[float | None, typer.Option("--radius", help="Where the mean image starts, as a share of the ball's.")] = None,
    radius_text: Annotated[float | None, typer.Option("--radius-text", help="Where the mean leaf text starts.")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="Initial inverse temperature.", show_default="half the spread of the model's own logits")] = None,
    curvature: Annotated[float | None, typer.Option("--curvature", help="r > 0; the ball's curvature is -r.")] = None,
    learn_curvature: Annotated[bool, typer.Option("--learn-curvature")] = False,
    lambda_vic: Annotated[float | None, typer.Option("--lambda-vic", help="λ1: weight of the neighbourhood term.")] = None,
    lambda_gap: Annotated[float | None, typer.Option("--lambda-gap", help="λ2: weight of the norm-order terms.")] = None,
    zeta_vic: Annotated[float | None, typer.Option("--zeta-vic", help="Distance to the leaf's text that costs nothing.")] = None,
    zeta_gap: Annotated[float | None, typer.Option("--zeta-gap", help="Norm gap wanted between parent and child.")] = None,
    eps_text: Annotated[float | None, typer.Option("--eps-text", help="Radius of the text perturbation, relative to the mean norm.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the new weights, for their header.", show_default="the old weights'")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store the new weights as float16.")] = False,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = 100,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder.", show_default="runs/METHOD-MODEL-DATA")] = None,
    resume: options.Resume = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = None,
    workers: options.Workers = 0,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:  # fmt: skip
    """Fine-tune a model against one universal hierarchical perturbation (or with a baseline)."""
    console.set_up(quiet=quiet, debug=debug)
    if _listed(model, data, method, recipe, template):
        return
    folder = output or options.default_folder(method, model, visual, data)
    if not resume and not dry_run:
        check_folder(folder)
    device = options.prepare_torch(device, precision, threads)

    from hrzs.models.loading import load_model
    from hrzs.tasks import open_task
    from hrzs.training.methods import method_class
    from hrzs.training.trainer import Trainer, is_finished

    method_class(method)
    settings = _settings(context, recipe)
    if resume and is_finished(folder):
        console.emit(str(folder))
        return
    loaded = load_model(model, pretrained, visual=visual, device=device, precision=precision, seed=seed)
    task = open_task(data, loaded, purpose="train", split=split, root=data_root, tree=tree,
                     classes=options.read_class_list(classes), limit=limit, skip=skip, resize=resize)  # fmt: skip
    settings = _for_data(settings, context, recipe, task)
    if dry_run:
        _estimate(loaded, task, settings, folder)
        return
    trainer = Trainer(loaded, task.data, task.tree, settings, folder, workers=workers, save_every=save_every,
                      origin=(model, pretrained), licence=licence, half=half)  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        options.write_config(folder / "config.yaml", options.saved_config(context) | _as_config(settings))
    except OSError as error:
        raise HrzsError(f"-o {folder}: cannot be written ({error.strerror}); give another folder") from error
    if resume and not trainer.resume():
        console.note(f"no checkpoint in {folder}: starting anew")
    with console.progress_bar(f"finetune {method}", quiet=quiet) as update:
        trainer.run(lambda done, total, log: update(done, total, f"loss {log['loss']:.3f}"))
    console.emit(str(folder))


def check_folder(folder: Path) -> None:
    """An output folder that holds a run already is refused.

    Raises:
        UsageError: it does, or it is a file.
    """
    if folder.is_file():
        raise UsageError(f"-o {folder}: is a file; give a folder")
    if any(
        (folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "model.safetensors", "manifest.jsonl")
    ):
        raise UsageError(f"-o {folder}: holds a run already; go on with --resume, or give another folder")


def _listed(model: str, data: str, method: str, recipe: str, template: str | None) -> bool:
    """Print the names of the one option that was given as ``list``."""
    if not options.wants_list(model, data, method, recipe, template):
        return False
    if method == console.LIST:
        from hrzs.training.methods import METHODS

        console.print_names([(name, m.description) for name, m in METHODS.items()])
    elif recipe == console.LIST:
        from hrzs.training.options import RECIPES

        console.print_names(
            [(name, ", ".join(f"{k} {v}" for k, v in r.items()) or "the defaults") for name, r in RECIPES.items()]
        )
    else:
        options.print_models_or_data(model, data, template)
    return True


def _settings(context: typer.Context, recipe: str) -> TrainOptions:
    """Defaults, then the recipe, then what was given here or in the configuration file."""
    from hrzs.attacks.budget import default_step_size, parse_eps
    from hrzs.training.options import RECIPES, TrainOptions

    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe!r}: one of {', '.join(RECIPES)}")
    values: dict[str, Any] = dict(RECIPES[recipe])
    for field in fields(TrainOptions):
        given = context.params.get(field.name)
        if given is not None and given is not False:
            values[field.name] = given
    for name in ("eps", "step_size"):
        if isinstance(values.get(name), str):
            values[name] = parse_eps(values[name], option=f"--{name.replace('_', '-')}")
    if "eps" in values and "step_size" not in values:
        values["step_size"] = default_step_size(values["eps"])
    return TrainOptions(**values)


def _as_config(settings: TrainOptions) -> dict[str, Any]:
    """What was settled on, so that a saved configuration means the same when defaults have moved on."""
    from hrzs.training.trainer import options_as_config

    return {name.replace("_", "-"): value for name, value in options_as_config(settings).items()}


def _for_data(settings: TrainOptions, context: typer.Context, recipe: str, task: Task) -> TrainOptions:
    """Data has its own ensemble of templates and may set its own ε (`shapes` does), unless one was given."""
    from dataclasses import replace

    from hrzs.attacks.budget import default_step_size
    from hrzs.models.templates import template_for
    from hrzs.training.options import RECIPES

    settings = replace(settings, template=template_for(settings.template, task.data.name))
    own = task.data.default_eps
    if own is None or context.params.get("eps") is not None or "eps" in RECIPES[recipe]:
        return settings
    step = settings.step_size if context.params.get("step_size") is not None else default_step_size(own)
    return replace(settings, eps=own, step_size=step)


def _estimate(model: Any, task: Task, settings: TrainOptions, folder: Path) -> None:
    """``--dry-run``: what would be done, and a measured guess of its cost."""
    from hrzs.estimate import seconds_per_image
    from hrzs.training.trainer import options_as_config, total_steps

    steps = total_steps(settings, len(task.data))
    batch = min(settings.batch_size, len(task.data))
    passes = 1 + (0 if settings.method == "clean" else settings.steps)
    seconds, megabytes = seconds_per_image(model, task.data)
    parameters = sum(p.numel() for p in model.parameters())
    plan = {
        "model": model.info.source, "data": task.describe(), "output": str(folder), **options_as_config(settings),
        "optimiser_steps": steps, "images_per_step": batch,
        "estimated_minutes": round(steps * batch * passes * seconds / 60, 1),
        "estimated_memory_mb": round(batch * megabytes + 16 * parameters / 1e6),
    }  # fmt: skip
    console.emit(options.dump_yaml(plan))
