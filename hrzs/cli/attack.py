"""`hrzs attack`: adversarial images as float32, with a manifest and a picture; prints the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrzs.cli import console, options, shards
from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.evaluation.options import OF_CERTIFICATES, OF_DEFENCES, EvalOptions
from hrzs.files import check_folder, output_folder, write_config
from hrzs.option import divide

if TYPE_CHECKING:
    from hrzs.evaluation.adversarial import AdversarialSet
    from hrzs.models.clip import ClipModel
    from hrzs.tasks import Task


@options.takes(
    EvalOptions,
    before="png",
    without=("attack", "scoring", "matrix", "certify", *OF_CERTIFICATES, "defence", *OF_DEFENCES),
)
@options.takes(DataOptions, before="attack")
def attack(
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
    attack: Annotated[str, typer.Option("--attack", help="A name, or list.")] = "leaf-pgd",
    png: Annotated[bool, typer.Option("--png", help="Also write images/*.png, rounded to 8 bits.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder.", show_default="runs/ATTACK-MODEL-DATA")] = None,
    shard: shards.ShardOption = None,
    merge: shards.MergeOption = False,
    resume: options.Resume = False,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    threads: options.Threads = None,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
    **run: Any,
) -> None:  # fmt: skip
    """Write adversarial images against a model, aimed at the leaves, at a superclass level, or at all levels."""
    role = shards.Role.of(context, shard, merge)
    console.set_up(quiet=quiet, debug=debug)
    if options.wants_list(model, run["data"], attack, run["template"]):
        _print_list(model, run["data"], attack, run["template"])
        return
    where, run = divide(run, "an attack", DataOptions, EvalOptions)
    data = DataOptions.of(where)
    folder = output or options.default_folder(attack, model, visual, data.spec)
    resume = resume or role.is_divided  # shards go on by themselves
    if not resume and not dry_run:
        check_folder(folder)
    device = options.prepare_torch(device, precision, threads)

    from hrzs.attacks import attack_spec
    from hrzs.evaluation.adversarial import AdversarialSet, is_finished, remove_shards
    from hrzs.evaluation.plan import plan, settle
    from hrzs.evaluation.runner import Evaluation
    from hrzs.evaluation.shards import WHOLE, begun, blocks
    from hrzs.models.loading import load_model
    from hrzs.tasks import open_task

    attack_spec(attack)
    settings = settle({**run, "attack": (attack,), "scoring": "prompt"})
    if settings.eps is not None and len(settings.eps) > 1:
        raise UsageError(f"--eps {run['eps']}: one radius, for the images of one attack")
    loaded = load_model(model, pretrained, visual=visual, tokenizer=tokenizer, mean=mean, std=std,
                        interpolation=interpolation, resize_mode=resize_mode, device=device, precision=precision,
                        seed=settings.seed)  # fmt: skip
    task = open_task(data.spec, loaded, data, purpose="eval", template=settings.template)
    units = plan(task, settings)
    # Shards take turns over the blocks of all levels.
    firsts = [i * len(blocks(len(task.data), settings.batch_size)) for i in range(len(units))]
    if dry_run:
        evaluation = Evaluation(loaded, task, settings)
        images = [sum(map(len, evaluation.blocks(role.shard or WHOLE, first))) for first in firsts]
        passes = sum(n * evaluation.cost(unit) for n, unit in zip(images, evaluation.units[1:], strict=True))
        share = {} if role.shard is None else {"shard": str(role.shard), "images_of_shard": sum(images)}
        console.emit_estimate({"data": task.describe(), "units": [u.title for u in units], "output": str(folder),
                               **share, **_estimate(loaded, task, sum(images), passes, settings.batch_size, png=png)})  # fmt: skip
        return
    if resume and len(units) > 1 and is_finished(folder):
        raise UsageError(
            f"-o {folder}: holds the images of one level, and --level asks for {len(units)}; give another folder"
        )
    places = [folder if len(units) == 1 else folder / f"level-{unit.level}" for unit in units]
    role.check([other for place in places for other in begun(place, "")], f"-o {folder}")

    def open_sets() -> list[AdversarialSet]:
        return [
            AdversarialSet(loaded, task, settings, unit, place, origin=data, resume=resume)
            for unit, place in zip(units, places, strict=True)
        ]

    if role.shard is not None:
        with output_folder(folder, resume=True, part=role.shard.name):
            for first, each in zip(firsts, open_sets(), strict=True):
                part = each.share(role.shard, first)
                if not each.finished and not part.finished:
                    _run(part, quiet=quiet)
        if not role.merges:
            console.note(f"when all shards are done: {role.command('--merge')}")
            console.emit(str(folder))
            return
    said = options.saved_config(context, data, settings)
    with output_folder(folder, resume=resume):
        for place in places:
            if not resume:
                check_folder(place)
        made = open_sets()
        whole = []
        if role.merges and not all(each.finished for each in made):
            whole = role.finished(
                begun(places[0], ""), lambda shard: all(is_finished(place, shard) for place in places), f"-o {folder}"
            )
        for first, each in zip(firsts, made, strict=True):
            if not each.finished:
                each.folder.mkdir(exist_ok=True)
                write_config(each.folder, said)
                if role.merges:
                    each.merge([each.share(shard, first) for shard in whole], png=png)
                else:
                    _run(each, png=png, quiet=quiet)
                console.note(json.dumps({k: [round(v, 4) for v in vs] for k, vs in each.summary().items() if k != "n"}))
        for place in places:
            remove_shards(place)
    console.emit(str(folder))


def _print_list(model: str, data: str | None, attack: str, template: str | None) -> None:
    if attack == console.LIST:
        from hrzs.attacks import ATTACKS

        console.print_names([(a.name, a.description) for a in ATTACKS.values()])
    else:
        options.print_models_or_data(model, data, template)


def _estimate(
    model: ClipModel, task: Task, images: int, passes: float, batch_size: int, *, png: bool
) -> dict[str, float]:
    from hrzs.estimate import seconds_per_image
    from hrzs.evaluation.image_file import bytes_of

    shape = task.data[0].image.shape
    seconds, megabytes = seconds_per_image(model, task.data)
    return {
        "estimated_minutes": round(seconds * passes / 60, 1),
        "estimated_memory_mb": round(batch_size * megabytes),
        # A PNG of adversarial noise hardly shrinks.
        "estimated_disk_mb": round((bytes_of(images, shape) + images * shape.numel() * png) / 1e6, 1),
    }


def _run(made: AdversarialSet, *, png: bool = False, quiet: bool) -> None:
    made.folder.mkdir(exist_ok=True)
    share = "" if made.shard is None else f", shard {made.shard}"
    with console.progress_bar(made.unit.title + share, quiet=quiet) as update:
        made.run(lambda done, total: update(done, total, ""), png=png)
