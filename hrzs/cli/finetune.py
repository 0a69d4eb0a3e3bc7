"""`hrzs finetune`: adversarial (or clean) fine-tuning of a CLIP-like model; prints the run folder."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrzs.cli import console, options
from hrzs.errors import HrzsError, UsageError

if TYPE_CHECKING:
    from hrzs.data import Dataset
    from hrzs.tasks import Task
    from hrzs.training.options import TrainOptions

#: Panels of ``--help``.
METHOD, ADVERSARY, OPTIMISER, VALIDATION = "Method", "Adversary", "Optimiser", "Validation while training"


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
    tree: Annotated[list[str] | None, typer.Option("--tree", help="Tree or forest; may be given several times. FILE#2 is its second tree alone.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="hierarchical, tecoa, pmg-aft, fare, clean, tga-zsr, trades, or list.", show_default="hierarchical", rich_help_panel=METHOD)] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="default, paper, tecoa, fare, or list: what a paper sets.", rich_help_panel=METHOD)] = "default",
    eps: Annotated[str | None, typer.Option("--eps", help="L∞ radius: 1/255 or 0.0039.", show_default="1/255", rich_help_panel=ADVERSARY)] = None,
    step_size: Annotated[str | None, typer.Option("--step-size", help="Of each PGD step.", show_default="1/255, or ε/4", rich_help_panel=ADVERSARY)] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="PGD steps.", show_default="3", rich_help_panel=ADVERSARY)] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", show_default="1", rich_help_panel=OPTIMISER)] = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Optimiser steps at most.", rich_help_panel=OPTIMISER)] = None,
    optimizer: Annotated[str | None, typer.Option("--optimizer", help="adamw or sgd.", show_default="adamw", rich_help_panel=OPTIMISER)] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.", show_default="3e-4", rich_help_panel=OPTIMISER)] = None,
    momentum: Annotated[float | None, typer.Option("--momentum", help="Of sgd.", show_default="0.9", rich_help_panel=OPTIMISER)] = None,
    weight_decay: Annotated[float | None, typer.Option("--weight-decay", show_default="1e-4", rich_help_panel=OPTIMISER)] = None,
    clip_grad: Annotated[float | None, typer.Option("--clip-grad", help="Largest norm of the whole gradient; 0: any.", show_default="10", rich_help_panel=OPTIMISER)] = None,
    warmup: Annotated[float | None, typer.Option("--warmup", help="Share of all steps.", show_default="0.05", rich_help_panel=OPTIMISER)] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="After the warm-up: cosine (to zero) or constant.", show_default="cosine", rich_help_panel=OPTIMISER)] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, show_default="128", rich_help_panel=OPTIMISER)] = None,
    per_class: Annotated[int | None, typer.Option("--per-class", min=1, help="N > 1: a batch has N images each of random classes, so that class means average something.", show_default="1: any images", rich_help_panel=OPTIMISER)] = None,
    accumulate: Annotated[int | None, typer.Option("--accumulate", min=1, help="Work through a batch in N parts: less memory.", show_default="1", rich_help_panel=OPTIMISER)] = None,
    checkpoint_activations: Annotated[bool, typer.Option("--checkpoint-activations", help="Compute activations twice instead of keeping them: less memory, about a third more time.", rich_help_panel=OPTIMISER)] = False,
    compile_encoder: Annotated[bool, typer.Option("--compile", help="torch.compile the image encoder (a C++ compiler is needed).", rich_help_panel=OPTIMISER)] = False,
    ema: Annotated[float | None, typer.Option("--ema", help="Validate and save a running mean of the weights, with this decay; 0.999, say.", show_default="0: the weights themselves", rich_help_panel=OPTIMISER)] = None,
    interpolate: Annotated[float | None, typer.Option("--interpolate", help="Move what is validated and saved this share of the way back to the original weights.", show_default="0", rich_help_panel=OPTIMISER)] = None,
    freeze: Annotated[str | None, typer.Option("--freeze", help="Parts of the image encoder that stay as they are: conv1,transformer.resblocks.0, say.", rich_help_panel=OPTIMISER)] = None,
    tune: Annotated[str | None, typer.Option("--tune", help="image, image+projection, or all (pretraining).", show_default="the method's", rich_help_panel=METHOD)] = None,
    augment: Annotated[str | None, typer.Option("--augment", help="none, flip or dihedral.", show_default="none", rich_help_panel=OPTIMISER)] = None,
    template: Annotated[str | None, typer.Option("--template", help="photo, tecoa, name, or a text with {}.", show_default="photo")] = None,
    every_level: Annotated[bool, typer.Option("--every-level", help="All but hierarchical and fare: cross-entropy at every level.", rich_help_panel=METHOD)] = False,
    perturbation: Annotated[str | None, typer.Option("--perturbation", help="hierarchical: against all levels at once (universal), the leaves alone (leaf), or one for each level (per-level).", show_default="universal", rich_help_panel=METHOD)] = None,
    geometry: Annotated[str | None, typer.Option("--geometry", help="hierarchical: hyperbolic or euclidean.", show_default="hyperbolic", rich_help_panel=METHOD)] = None,
    level_weights: Annotated[str | None, typer.Option("--level-weights", help="ω of the levels: paper (1 - l/(L+1)), equal, or numbers from the leaves upwards: 1,0.5,0.", show_default="paper", rich_help_panel=METHOD)] = None,
    level_balance: Annotated[str | None, typer.Option("--level-balance", help="Whatever has a loss over several levels: the mean of a superclass level weighs its nodes alike (node) or its images (image).", show_default="node", rich_help_panel=METHOD)] = None,
    image_levels: Annotated[str | None, typer.Option("--image-levels", help="What stands for a superclass's image: per-image, hypavg (the paper's), mixed.", rich_help_panel=METHOD)] = None,
    hnsa: Annotated[str | None, typer.Option("--hnsa", help="Negatives from neighbouring levels: none, lower, upper, both.", rich_help_panel=METHOD)] = None,
    no_hnsa: Annotated[bool, typer.Option("--no-hnsa", help="The same as --hnsa none.", rich_help_panel=METHOD)] = False,
    depth: Annotated[str | None, typer.Option("--depth", help="What lies at the depth of its level from the start: texts and images (both), texts alone (text), or nothing (none).", show_default="both", rich_help_panel=METHOD)] = None,
    beta_levels: Annotated[str | None, typer.Option("--beta-levels", help="An inverse temperature for each level, learnt together (tied) or alone (free), or one for all (shared).", show_default="tied", rich_help_panel=METHOD)] = None,
    head_lr: Annotated[float | None, typer.Option("--head-lr", help="The head's scales, depths and temperatures learn that many times as fast as the rest.", show_default="10", rich_help_panel=METHOD)] = None,
    radius: Annotated[float | None, typer.Option("--radius", help="Where the mean image starts, as a share of the ball's.", rich_help_panel=METHOD)] = None,
    radius_text: Annotated[float | None, typer.Option("--radius-text", help="Where the mean leaf text starts.", rich_help_panel=METHOD)] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="Initial inverse temperature.", show_default="half the spread of the model's own logits", rich_help_panel=METHOD)] = None,
    curvature: Annotated[float | None, typer.Option("--curvature", help="r > 0; the ball's curvature is -r.", rich_help_panel=METHOD)] = None,
    learn_curvature: Annotated[bool, typer.Option("--learn-curvature", rich_help_panel=METHOD)] = False,
    lambda_vic: Annotated[float | None, typer.Option("--lambda-vic", help="λ1: weight of the neighbourhood term.", rich_help_panel=METHOD)] = None,
    lambda_gap: Annotated[float | None, typer.Option("--lambda-gap", help="λ2: weight of the norm-order terms.", rich_help_panel=METHOD)] = None,
    lambda_anchor: Annotated[float | None, typer.Option("--lambda-anchor", help="Weight of the distance from the original's features on clean images, as a share of their square (not in the paper).", rich_help_panel=METHOD)] = None,
    zeta_vic: Annotated[float | None, typer.Option("--zeta-vic", help="Distance to the leaf's text that costs nothing.", rich_help_panel=METHOD)] = None,
    zeta_gap: Annotated[float | None, typer.Option("--zeta-gap", help="Norm gap wanted between parent and child.", rich_help_panel=METHOD)] = None,
    eps_text: Annotated[float | None, typer.Option("--eps-text", help="Radius of the text perturbation, relative to the mean norm.", rich_help_panel=ADVERSARY)] = None,
    pmg_original: Annotated[float | None, typer.Option("--pmg-original", help="pmg-aft: weight of the divergence from the original's prediction on attacked images.", show_default="1", rich_help_panel=METHOD)] = None,
    pmg_clean: Annotated[float | None, typer.Option("--pmg-clean", help="pmg-aft: weight of the divergence from the model's own prediction on clean images.", show_default="1", rich_help_panel=METHOD)] = None,
    pmg_direction: Annotated[str | None, typer.Option("--pmg-direction", help="pmg-aft: target-first, KL(target ‖ attacked), or adversarial-first.", show_default="target-first", rich_help_panel=METHOD)] = None,
    pmg_reduction: Annotated[str | None, typer.Option("--pmg-reduction", help="pmg-aft: divergences as sum over the batch, beside a mean cross-entropy, or as mean.", show_default="sum", rich_help_panel=METHOD)] = None,
    fare_clean: Annotated[float | None, typer.Option("--fare-clean", help="fare: the clean images' share of the loss.", show_default="0", rich_help_panel=METHOD)] = None,
    trades_beta: Annotated[float | None, typer.Option("--trades-beta", help="trades: weight of the divergence of clean and attacked predictions.", show_default="6", rich_help_panel=METHOD)] = None,
    tga_refinement: Annotated[float | None, typer.Option("--tga-refinement", help="tga-zsr: weight of attacked images' attention, held to the original's on clean ones.", show_default="0.08", rich_help_panel=METHOD)] = None,
    tga_constraint: Annotated[float | None, typer.Option("--tga-constraint", help="tga-zsr: weight of clean images' attention, held to the original's.", show_default="0.05", rich_help_panel=METHOD)] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the new weights, for their header.", show_default="the old weights'")] = None,
    validate_every: Annotated[int | None, typer.Option("--validate-every", min=0, help="Steps between looks at held-out images; 0: never.", show_default="100", rich_help_panel=VALIDATION)] = None,
    val_split: Annotated[str, typer.Option("--val-split", help="Where these images come from.", rich_help_panel=VALIDATION)] = "val",
    val_limit: Annotated[int | None, typer.Option("--val-limit", min=1, help="How many, balanced over the classes.", show_default="100", rich_help_panel=VALIDATION)] = None,
    val_steps: Annotated[int | None, typer.Option("--val-steps", min=1, help="PGD steps, at each level.", show_default="5", rich_help_panel=VALIDATION)] = None,
    best_by: Annotated[str | None, typer.Option("--best-by", help="What the model in RUN_DIR/best is best by: balanced, clean, leaf, levels, any-level.", show_default="balanced", rich_help_panel=VALIDATION)] = None,
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
    settings = _settings(context, recipe)
    folder = output or options.default_folder(settings.method, model, visual, data)
    if not resume and not dry_run:
        check_folder(folder)
    device = options.prepare_torch(device, precision, threads)

    from hrzs.models.loading import load_model
    from hrzs.tasks import open_task
    from hrzs.training.trainer import Trainer, is_finished

    if resume and is_finished(folder):
        console.emit(str(folder))
        return
    loaded = load_model(model, pretrained, visual=visual, device=device, precision=precision, seed=seed)
    task = open_task(data, loaded, purpose="train", split=split, root=data_root, tree=tree,
                     classes=options.read_class_list(classes), limit=limit, skip=skip, resize=resize,
                     template=settings.template)  # fmt: skip
    settings = _for_data(settings, context, recipe, task)
    held_out = _validation(context, data, task, loaded, settings, val_split, data_root)
    if dry_run:
        _estimate(loaded, task, settings, folder, held_out)
        return
    trainer = Trainer(loaded, task.data, task.tree, settings, folder, workers=workers, save_every=save_every,
                      origin=(model, pretrained), licence=licence, half=half, more_trees=task.more_trees,
                      validation=held_out)  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        options.write_config(folder / "config.yaml", options.saved_config(context) | _as_config(settings))
    except OSError as error:
        raise HrzsError(f"-o {folder}: cannot be written ({error.strerror}); give another folder") from error
    if resume and not trainer.resume():
        console.note(f"no checkpoint in {folder}: starting anew")
    with console.progress_bar(f"finetune {settings.method}", quiet=quiet) as update:
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


def _listed(model: str, data: str, method: str | None, recipe: str, template: str | None) -> bool:
    """Print the names of the one option that was given as ``list``."""
    if not options.wants_list(model, data, method, recipe, template):
        return False
    if method == console.LIST:
        from hrzs.training.methods import METHODS

        console.print_names([(name, m.description) for name, m in METHODS.items()])
    elif recipe == console.LIST:
        from hrzs.training.options import RECIPES, about_recipe

        console.print_names([(name, about_recipe(name)) for name in RECIPES])
    else:
        options.print_models_or_data(model, data, template)
    return True


def _settings(context: typer.Context, recipe: str) -> TrainOptions:
    """Defaults, then the recipe, then what was given here or in the configuration file."""
    from hrzs.attacks.budget import default_step_size, parse_eps
    from hrzs.training.methods import check_options
    from hrzs.training.options import PUBLISHED, RECIPES, TrainOptions, about_recipe

    if recipe not in RECIPES:
        raise UsageError(f"--recipe {recipe!r}: one of {', '.join(RECIPES)}")
    if recipe in PUBLISHED:
        console.note(f"--recipe {recipe}: {about_recipe(recipe)}")
    values: dict[str, Any] = dict(RECIPES[recipe])
    given = {"compile" if name == "compile_encoder" else name: value for name, value in context.params.items()}
    if given["no_hnsa"]:
        if given["hnsa"] not in (None, "none"):
            raise UsageError(f"--no-hnsa and --hnsa {given['hnsa']} contradict each other; give one of them")
        given["hnsa"] = "none"
    for field in fields(TrainOptions):
        if given.get(field.name) is not None and given[field.name] is not False:
            values[field.name] = given[field.name]
    for name in ("eps", "step_size"):
        if isinstance(values.get(name), str):
            values[name] = parse_eps(values[name], option=f"--{name.replace('_', '-')}")
    if "eps" in values and "step_size" not in values:
        values["step_size"] = default_step_size(values["eps"])
    settings = TrainOptions(**values)
    # A saved configuration names every option, so only what was typed can be a misunderstanding.
    check_options(settings.method, {name for name in given if _typed(context, name)})
    return settings


def _typed(context: typer.Context, name: str) -> bool:
    """Was this option given on the command line itself?"""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _validation(
    context: typer.Context, spec: str, task: Task, model: Any, settings: TrainOptions, split: str, root: Path | None
) -> Dataset | None:
    """Held-out images of the same data; that there are none is no error unless they were asked for."""
    from hrzs.tasks import open_validation

    if not settings.validate_every:
        return None
    try:
        return open_validation(spec, task, model, split=split, root=root, limit=settings.val_limit)
    except UsageError as error:
        if any(_typed(context, name) for name in ("validate_every", "val_split", "val_limit", "val_steps", "best_by")):
            raise
        console.note(f"no validation while training ({error})")
        return None


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


def _estimate(model: Any, task: Task, settings: TrainOptions, folder: Path, held_out: Dataset | None) -> None:
    """``--dry-run``: what would be done, and a measured guess of its cost."""
    from hrzs.estimate import seconds_per_image
    from hrzs.training.methods import method_class
    from hrzs.training.trainer import options_as_config, total_steps

    steps = total_steps(settings, len(task.data))
    batch = min(settings.batch_size, len(task.data))
    levels = max(tree.top for tree in (task.tree, *task.more_trees))
    per_step = batch * method_class(settings.method).encodings(settings, levels)
    looks = 0 if held_out is None else -(-steps // settings.validate_every)
    per_look = 0 if held_out is None else len(held_out) * task.tree.top * settings.val_steps
    seconds, megabytes = seconds_per_image(model, task.data)
    parameters = sum(p.numel() for p in model.parameters())
    plan = {
        "model": model.info.source, "data": task.describe(), "trees": 1 + len(task.more_trees), "output": str(folder),
        **options_as_config(settings), "optimiser_steps": steps, "images_per_step": batch,
        "validation_images": 0 if held_out is None else len(held_out),
        "estimated_minutes": round((steps * per_step + looks * per_look) * seconds / 60, 1),
        "estimated_memory_mb": round(-(-batch // settings.accumulate) * megabytes + 16 * parameters / 1e6),
    }  # fmt: skip
    console.emit(options.dump_yaml(plan))
