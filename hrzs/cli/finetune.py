"""`hrzs finetune`: adversarial (or clean) fine-tuning of a CLIP-like model; prints the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hrzs.cli import console, options
from hrzs.errors import UsageError
from hrzs.files import check_folder, dump_yaml

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
    from hrzs.models.loading import load_model
    from hrzs.training.job import LOOKS, begin, estimate, open_run, settle
    from hrzs.training.trainer import is_finished

    given, typed = _given(context)
    settings = settle(recipe, given, typed)
    folder = output or options.default_folder(settings.method, model, visual, data)
    if not resume and not dry_run:
        check_folder(folder)
    device = options.prepare_torch(device, precision, threads)
    if resume and is_finished(folder):
        console.emit(str(folder))
        return
    loaded = load_model(model, pretrained, visual=visual, device=device, precision=precision, seed=seed)
    trainer, task = open_run(
        loaded, settings, folder, given=given, recipe=recipe, data=data, data_root=data_root, split=split, tree=tree,
        classes=options.read_class_list(classes), limit=limit, skip=skip, resize=resize, val_split=val_split,
        insist=bool(typed & LOOKS), workers=workers, save_every=save_every, licence=licence,
        half=half,
    )  # fmt: skip
    if dry_run:
        console.emit(dump_yaml(estimate(trainer, task)))
        return
    begin(trainer, options.saved_config(context))
    if resume and not trainer.resume():
        console.note(f"no checkpoint in {folder}: starting anew")
    with console.progress_bar(f"finetune {settings.method}", quiet=quiet) as update:
        trainer.run(lambda done, total, log: update(done, total, f"loss {log['loss']:.3f}"))
    console.emit(str(folder))


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


def _given(context: typer.Context) -> tuple[dict[str, Any], set[str]]:
    """The options of the run, here or in the configuration file, and which of all options were typed here.

    A saved configuration names every option, so only what was typed can be a misunderstanding.
    """
    from hrzs.training.options import option_names

    given = {"compile" if name == "compile_encoder" else name: value for name, value in context.params.items()}
    if given["no_hnsa"]:
        if given["hnsa"] not in (None, "none"):
            raise UsageError(f"--no-hnsa and --hnsa {given['hnsa']} contradict each other; give one of them")
        given["hnsa"] = "none"
    sources = {name: context.get_parameter_source(name) for name in given}
    typed = {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    return {name: given[name] for name in option_names()}, typed
