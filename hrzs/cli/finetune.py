"""`hrzs finetune`: adversarial (or clean) fine-tuning of a CLIP-like model; prints the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hrzs.cli import console, options
from hrzs.cli.next_step import after_finetune
from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.files import check_folder
from hrzs.option import divide
from hrzs.torchrun import is_first, restarts
from hrzs.training.options import METHOD, VALIDATION, TrainOptions


@options.takes(TrainOptions, before="recipe")
@options.takes(DataOptions, before="tree", without=("tree",))
def finetune(
    context: typer.Context,
    config: options.Config = None,
    model: options.Model = "tiny",
    pretrained: options.Pretrained = None,
    visual: options.Visual = None,
    tokenizer: options.Tokenizer = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.Interpolation = None,
    resize_mode: options.ResizeMode = None,
    tree: Annotated[list[str] | None, typer.Option("--tree", help="Tree or forest; may be given several times. FILE#2 is its second tree alone.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="default, paper, tecoa, fare, or list: what a paper sets.", rich_help_panel=METHOD)] = "default",
    no_hnsa: Annotated[bool, typer.Option("--no-hnsa", help="The same as --hnsa none.", rich_help_panel=METHOD)] = False,
    licence: Annotated[str | None, typer.Option("--licence", help="Of the new weights, for their header.", show_default="the old weights'")] = None,
    val_split: Annotated[str, typer.Option("--val-split", help="Where these images come from.", rich_help_panel=VALIDATION)] = "val",
    half: Annotated[bool, typer.Option("--half", help="Store the new weights as float16.")] = False,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = 100,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder.", show_default="runs/METHOD-MODEL-DATA")] = None,
    export: Annotated[Path | None, typer.Option("--export", metavar="DIR", help="Then write the model as a folder to publish, as `hrzs export` does.")] = None,
    resume: options.Resume = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = None,
    workers: options.Workers = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    **run: Any,
) -> None:  # fmt: skip
    """Fine-tune a model against one universal hierarchical perturbation (or with a baseline)."""
    console.set_up(quiet=quiet, debug=debug)
    if _listed(model, run["data"], run["method"], recipe, run["template"]):
        return
    from hrzs.distributed import joined
    from hrzs.models.loading import load_model
    from hrzs.training import job

    where, run = divide(run, "a run", DataOptions, TrainOptions)
    data = DataOptions.of({**where, "tree": tree})
    given, typed = _given(context, run)
    settings = job.settle(recipe, given, typed)
    folder = output or options.default_folder(settings.method, model, visual, data.spec)
    resume = resume or restarts() > 0
    if not resume and not dry_run and is_first():
        check_folder(folder)
    if export is not None and not resume:
        from hrzs.publishing import check_export_folder

        check_export_folder(export, "--export")  # before hours of work, not after
    device = options.prepare_torch(device, precision, threads)
    loaded = load_model(model, pretrained, visual=visual, tokenizer=tokenizer, mean=mean, std=std,
                        interpolation=interpolation, resize_mode=resize_mode, device=device, precision=precision,
                        seed=settings.seed)  # fmt: skip
    with joined(loaded.device) as group:
        trainer, task = job.open_run(
            loaded, settings, folder, data, given=given, recipe=recipe, val_split=val_split,
            insist=bool(typed & job.LOOKS), workers=workers, save_every=save_every, licence=licence, half=half,
            group=group,
        )  # fmt: skip
        if dry_run:
            console.emit_estimate(job.estimate(trainer, task))
            return
        said = options.saved_config(context, data)
        with console.progress_bar(f"finetune {settings.method}", quiet=quiet) as update:
            job.run(trainer, said, resume=resume, progress=job.with_loss(update))
    if export is not None and is_first():
        import hrzs

        if resume and export.exists():
            console.note(f"{export} is exported already")
        else:
            hrzs.export(folder, export)
    console.emit(str(folder))
    console.suggest(after_finetune(context, folder))


def _listed(model: str, data: str | None, method: str | None, recipe: str, template: str | None) -> bool:
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


def _given(context: typer.Context, run: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The options of the run, here or in the configuration file, and which of all options were typed here.

    A saved configuration names every option, so only what was typed can be a misunderstanding.
    """
    if context.params["no_hnsa"]:
        if run["hnsa"] not in (None, "none"):
            raise UsageError(f"--no-hnsa and --hnsa {run['hnsa']} contradict each other; give one of them")
        run = {**run, "hnsa": "none"}
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return run, {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
