"""`hrzs eval`: clean and robust accuracy at every level; prints a table or JSON."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrzs.cli import console, options, shards
from hrzs.cli.next_step import after_eval
from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError, UsageError
from hrzs.evaluation.options import OF_CERTIFICATES, EvalOptions
from hrzs.files import write_text
from hrzs.option import divide
from hrzs.progress import in_words

if TYPE_CHECKING:
    from hrzs.evaluation.job import Job
    from hrzs.evaluation.shards import Shard
    from hrzs.results.report import Report

#: Named protocols: overrides of the defaults (docs/evaluation.md).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"attack": "leaf-pgd,superclass-pgd,hierarchical-pgd,cw", "level": "all", "eps": "1/255",
              "step_size": "1/255", "steps": 20, "template": "photo"},
    "tecoa": {"attack": "leaf-pgd", "eps": "1/255", "step_size": "1/255", "steps": 100, "template": "tecoa",
              "resize": "in-graph"},
    # Its ImageNet-sized images, attacked at that size; the first 1,000, without the two slow parts of AutoAttack.
    "robustvlm": {"attack": "aa-2", "eps": "2/255,4/255", "template": "openai", "resize": "before", "limit": 1000,
                  "matrix": False},
}  # fmt: skip


def _apply_preset(context: typer.Context, name: str | None) -> str | None:
    if name is None or name == console.LIST:
        return name
    if name not in PRESETS:
        raise UsageError(f"--preset {name!r}: one of {', '.join(PRESETS)}; `--preset list` explains them")
    context.default_map = {**PRESETS[name], **(context.default_map or {})}
    return name


@options.takes(DataOptions, EvalOptions, before="adversarial")
def evaluate(
    context: typer.Context,
    config: options.Config = None,
    preset: Annotated[str | None, typer.Option("--preset", help="paper, tecoa, robustvlm, or list: a named protocol.", is_eager=True, callback=_apply_preset)] = None,
    model: options.Model = "tiny",
    pretrained: options.Pretrained = None,
    visual: options.Visual = None,
    tokenizer: options.Tokenizer = None,
    mean: options.Mean = None,
    std: options.Std = None,
    interpolation: options.Interpolation = None,
    resize_mode: options.ResizeMode = None,
    adversarial: Annotated[Path | None, typer.Option("--adversarial", metavar="DIR", help="Run no attack: score the images that `hrzs attack` wrote there, on their data.")] = None,
    canaries: Annotated[bool, typer.Option("--canaries/--no-canaries", help="Check the set-up on 64 images.")] = True,
    json_out: Annotated[str | None, typer.Option("--json", help="Write JSON to FILE, or to stdout with -.")] = None,
    report_out: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.html", help="Write a self-contained page with everything.")
    ] = None,
    csv_out: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the rows as CSV.")] = None,
    latex_out: Annotated[Path | None, typer.Option("--latex", metavar="FILE", help="Write LaTeX rows.")] = None,
    against: Annotated[Path | None, typer.Option("--against", metavar="OTHER.json", help="Paired significance: compare with the report of another model on the same images.")] = None,
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
    """Evaluate a model: clean, and under attack at the leaves and at superclasses."""
    role = shards.Role.of(context, shard, merge)
    console.set_up(quiet=quiet, debug=debug)
    if options.wants_list(model, run["data"], run["attack"], preset, run["template"], run["defence"]):
        _print_list(model, run["data"], run["attack"], run["template"], run["defence"])
        return
    device = options.prepare_torch(device, precision, threads)

    from msgspec.structs import replace

    from hrzs.evaluation.adversarial import ORIGIN
    from hrzs.evaluation.certify import shard_votes
    from hrzs.evaluation.job import Job
    from hrzs.evaluation.plan import settle
    from hrzs.evaluation.shards import WHOLE, begun, kept_file
    from hrzs.models.loading import load_model
    from hrzs.results.significance import check_same_images
    from hrzs.results.table import render

    if adversarial is not None:
        _refuse_attacks(context)
        run["attack"] = "none"
    # Beside given images, only what somebody typed says where their clean ones are.
    where, run = divide(run, "an evaluation", DataOptions, EvalOptions)
    given = where if adversarial is None else {name: _given(context, name) for name in ORIGIN}
    data, settings = DataOptions.of(given), settle(run)
    target = None if json_out in (None, "-") else Path(str(json_out))
    _check_outputs(json=target, report=report_out, csv=csv_out, latex=latex_out)
    if (resume or role.is_divided) and target is None:
        raise UsageError(
            f"{role if role.is_divided else '--resume'}: needs --json FILE, beside which finished batches are kept"
        )
    other = None if against is None else _read("--against", against)
    store = None if target is None or dry_run else target.with_name(target.name + ".partial")
    votes = None if target is None or dry_run else target.with_name(target.name + ".votes")
    if store is not None and store.is_file() and not resume and not role.is_divided:
        raise UsageError(
            f"--json {target}: {store.name} beside it is what an interrupted evaluation has done; "
            "go on with --resume, or delete it"
        )
    if target is not None and not dry_run:
        role.check(begun(target.parent, f"{target.name}."), f"--json {target}")
    loaded = load_model(model, pretrained, visual=visual, tokenizer=tokenizer, mean=mean, std=std,
                        interpolation=interpolation, resize_mode=resize_mode, device=device, precision=precision,
                        seed=settings.seed)  # fmt: skip
    job = Job(loaded, settings, data, adversarial=adversarial, canaries=canaries, store=store, votes=votes,
              config=options.saved_config(context, data, settings))  # fmt: skip
    if dry_run:
        console.emit_estimate(job.estimate(role.shard or WHOLE))
        return
    report = job.head()
    if other is not None:
        check_same_images(report, other)  # before hours of work, not after
    # A shard that starts late must not begin anew what the others have finished and merged.
    again = resume or role.is_divided
    finished = None
    if again and target is not None and target.is_file() and (report_out is None or report_out.is_file()):
        finished = _finished(target, report)
    if finished is not None:
        report, report_out, job.store.path = finished, None, None
    elif role.shard is not None:
        assert target is not None
        _run_shard(job, role.shard, target, quiet=quiet)
    if role.shard is not None and not role.merges:
        assert target is not None
        console.note(f"when all shards are done: {role.command('--merge')}")
        console.emit(str(kept_file(target, role.shard) if finished is None else target))
        return
    if role.merges and finished is None:
        assert target is not None
        kept = partial(kept_file, target)
        done = role.finished(
            begun(target.parent, f"{target.name}."), lambda shard: kept(shard).is_file(), f"--json {target}"
        )
        job.store.path, job.store.shards = store, [kept(shard) for shard in done]
        if job.certifications and votes is not None:
            job.votes.path, job.votes.beside = votes, ()
            job.votes.parts = [shard_votes(votes, shard) for shard in done]
    with job.store.opened():
        if finished is None:
            with console.progress_bar("eval", quiet=quiet or role.merges) as update:
                report = job.run(update, (lambda _: None) if quiet else console.note)
        if other is not None:
            report = replace(report, summary=replace(report.summary, against=report.against(other)))
        if target is not None:
            write_text(target, report.to_json(), f"--json {target}")
        # Shown before anything else can fail.
        console.emit(
            report.to_json()
            if json_out == "-" and finished is None
            else console.printable(render(report, console.width()))
        )
        for file, name, text in (
            (csv_out, "csv", report.to_csv), (latex_out, "latex", report.to_latex),
            (report_out, "report", lambda: report.to_html(job.pictures())),
        ):  # fmt: skip
            if file is not None:
                write_text(file, text(), f"--{name} {file}")
        job.store.remove()
    if report_out is not None:
        console.note(f"report: {report_out}")
    console.note(f"measured in {in_words(report.seconds)}, canaries aside")
    console.suggest(after_eval(context, report, target))


def _check_outputs(**files: Path | None) -> None:
    """Places that cannot be written to are refused before hours of work, not after."""
    for name, file in files.items():
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"--{name} {file}: the folder {file.parent} does not exist")
        if file is not None and file.is_dir():
            raise UsageError(f"--{name} {file}: is a folder; give a file" + (", or - for stdout" * (name == "json")))
        if file is not None:
            try:
                TemporaryFile(dir=file.parent).close()
            except OSError as error:
                raise HrzsError(f"--{name} {file}: cannot be written ({error.strerror}); give another place") from error


def _read(option: str, file: Path) -> Report:
    from hrzs.results.report import Report

    try:
        return Report.from_json(file)
    except UsageError as error:
        raise UsageError(f"{option} {error}") from error


def _run_shard(job: Job, shard: Shard, target: Path, *, quiet: bool) -> None:
    from hrzs.evaluation.certify import shard_votes
    from hrzs.evaluation.shards import kept_file

    kept = kept_file(target, shard)
    job.store.path = kept.with_name(f"{kept.name}.partial")
    if job.votes.path is not None:
        # What earlier calls have kept is read, and only the merge adds to it.
        job.votes.path, job.votes.beside = shard_votes(job.votes.path, shard), [job.votes.path]
    if kept.is_file():
        job.store.shards = [kept]
        with job.store.opened():  # refuses that of another call
            console.note(f"shard {shard} is finished already")
        return
    with console.progress_bar(f"eval, shard {shard}", quiet=quiet) as update:
        job.run_shard(shard, kept, update)


def _finished(target: Path, report: Report) -> Report | None:
    """The report in ``target``, if it is that of this very call; None if more can be certified from what it has kept."""
    old = _read("give another --json FILE;", target)
    was, now = old.call, report.call
    differing = [key for key in now if was.get(key) != now[key]]
    if differing and was.get("certify") == now.get("certify") is not None and {*differing} <= {*OF_CERTIFICATES}:
        console.note(f"{target} differs in {', '.join(differing)}; its votes are used again")
        return None
    if differing:
        raise UsageError(
            f"--json {target} is the finished report of another call, which differs in {', '.join(differing)}; give "
            "another FILE, or delete this one"
        )
    console.note(f"{target} is finished already")
    return old


def _print_list(model: str, data: str | None, attack: str | None, template: str | None, defence: str | None) -> None:
    if defence == console.LIST:
        from hrzs.defences import DEFENCES

        console.print_names([(str(kind()), kind.description) for kind in DEFENCES.values()])
    elif attack == console.LIST:
        from hrzs.attacks import ATTACKS

        console.print_names([("none", "clean accuracy only"), *((a.name, a.description) for a in ATTACKS.values())])
    elif console.LIST in (model, data, template):
        options.print_models_or_data(model, data, template)
    else:
        console.print_names([(name, ", ".join(f"{k} {v}" for k, v in p.items())) for name, p in PRESETS.items()])


# -- --adversarial ------------------------------------------------------------------------------------------------


def _given(context: typer.Context, name: str) -> Any:
    """The value of an option that somebody gave, else None; the defaults in a saved configuration were not given."""
    value = context.params[name]
    default = next(p.default for p in context.command.params if p.name == name)
    default = (DataOptions().as_config() | EvalOptions().as_config()).get(name.replace("_", "-"), default)
    # By name: typer carries a click of its own.
    source = context.get_parameter_source(name)
    typed = source is not None and source.name == "COMMANDLINE"
    return value if typed or value != default else None


def _refuse_attacks(context: typer.Context) -> None:
    if (attack := _given(context, "attack")) not in (None, "none"):
        raise UsageError(
            f"--attack {attack} with --adversarial: the images are given and none is attacked; leave out one of the "
            "two (a --preset brings attacks too)"
        )
    for name in ("level", "eps", "step_size", "steps", "restarts", "random_start", "norm", "limit", "skip", "resize"):
        if (value := _given(context, name)) is not None:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value} with --adversarial: it is as `hrzs attack` had it; leave it out")
