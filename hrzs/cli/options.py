"""Options that several subcommands share, and what makes every option also a line of a YAML file."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
import yaml
from rich.markup import escape

from hrzs.cli.console import LIST, print_names
from hrzs.data_options import DataOptions
from hrzs.errors import UsageError
from hrzs.evaluation.options import EvalOptions
from hrzs.option import Option
from hrzs.safe_yaml import BadYamlError, Map, Scalar, parse
from hrzs.torchrun import place

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., None])

#: What the configuration in a report says beyond the options; passed over when it is fed back.
REPORTED = ("tasks", "prompts_digest", "versions")


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    """``--config FILE.yaml``: defaults for every option of this subcommand; the command line wins."""
    if path is None:
        return None
    given = _read_config(path)
    flags = {flag.lstrip("-").replace("-", "_"): p for p in context.command.params for flag in p.opts}
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name in REPORTED:
            continue
        if name not in flags or name == "config":
            near = difflib.get_close_matches(name, flags, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--config {path}: {key!r} is no option of `hrzs {context.command.name}`{hint}")
        parameter = flags[name]
        if value is None:
            continue
        if isinstance(value, dict):
            raise UsageError(f"--config {path}: {key}: a value is needed, not a mapping")
        if not isinstance(value, str | int | float | list):  # a date, say
            value = str(value)
        if isinstance(value, bool) and not getattr(parameter, "is_flag", False):
            raise UsageError(f"--config {path}: {key}: {str(value).lower()} is no value of --{key}")
        if parameter.multiple and not isinstance(value, list):
            value = [value]
        elif not parameter.multiple and isinstance(value, list):
            value = ",".join(map(str, value))
        values[parameter.name or name] = value
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _read_config(path: Path) -> dict[Any, Any]:
    """A mapping, within the bounds that files of strangers have (`hrzs.safe_yaml`), each key once."""

    def refuse(line: int, message: str) -> None:
        raise BadYamlError(line, message)

    try:
        data = path.read_bytes()
        data.decode()
        top = parse(data, 10, refuse)
        given = yaml.safe_load(data)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {path}: the text is not UTF-8") from error
    except BadYamlError as error:
        raise UsageError(f"--config {path}:{error.line}: not valid YAML: {error.message}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that is none
        raise UsageError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(given, dict) or not isinstance(top, Map):
        raise UsageError(f"--config {path}: a mapping of option names to values is needed")
    names = Counter(key.value for key, _ in top.pairs if isinstance(key, Scalar))
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"--config {path}: {twice[0]!r} is there {names[twice[0]]} times; write it once")
    return given


Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML with any of these options; the command line wins.", is_eager=True,
                 callback=_load_config),
]  # fmt: skip
Model = Annotated[
    str,
    typer.Option(
        "--model", help="tiny, an open_clip architecture, hf-hub:OWNER/NAME, CONFIG.json, a run folder, or list."
    ),
]
Pretrained = Annotated[
    str | None, typer.Option("--pretrained", help="A tag of open_clip, a file, or none (random weights).")
]
Visual = Annotated[
    Path | None,
    typer.Option("--visual", metavar="FILE", help="The image encoder's weights alone: a file of FARE, TeCoA, PMG-AFT."),
]
Tokenizer = Annotated[
    str | None,
    typer.Option("--tokenizer", metavar="FOLDER", help="The tokenizer, in place of the one that the model names."),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="R,G,B", help="The model's mean of pixels.", show_default="as its weights want it"),
]
Std = Annotated[
    str | None,
    typer.Option("--std", metavar="R,G,B", help="Their deviation.", show_default="as its weights want it"),
]
Interpolation = Annotated[
    str | None,
    typer.Option(
        "--interpolation", help="Of resized images: bicubic or bilinear.", show_default="as its weights want it"
    ),
]
ResizeMode = Annotated[
    str | None,
    typer.Option(
        "--resize-mode",
        help="Images resized before: shortest (side, and the centre cut out), or squash (both sides).",
        show_default="as its weights want it",
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Where named datasets lie.", show_default="$HRZS_DATA")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Only this many images, balanced over the classes.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Precision = Annotated[
    str, typer.Option("--precision", help="fp32, or bf16 for the encoder's gradients (verdicts stay fp32).")
]
Seed = Annotated[int, typer.Option("--seed")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that read images ahead.",
        show_default="0 on a CPU, on a GPU one per core, at most 16",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads.", show_default="all cores")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr, only warnings.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks and a verbose log.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Resolve everything, estimate time and memory, and stop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted.")]


def takes(*kinds: type, before: str, without: Sequence[str] = ()) -> Callable[[Command], Command]:
    """For a command with ``**run``: what these are, from the fields of ``kinds`` (see `hrzs.option`).

    Each is None, or False for a flag, where it was not given. In ``--help`` they stand before the parameter ``before``.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = list(signature.parameters.values())
        at = next(i for i, p in enumerate(own) if p.name == before)
        said = [
            (f, hint) for kind in kinds for f, hint in zip(fields(kind), get_type_hints(kind).values(), strict=True)
        ]
        added = [_parameter(f, hint) for f, hint in said if f.name not in without]
        parameters = [p for p in (*own[:at], *added, *own[at:]) if p.kind is not inspect.Parameter.VAR_KEYWORD]
        # Whatever asks for the signature gets this one.
        vars(command)["__signature__"] = signature.replace(parameters=parameters)
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(f: Field[Any], hint: Any) -> inspect.Parameter:
    said: Option = f.metadata["option"]
    kind = next((part for part in get_args(hint) if part is not type(None)), hint)
    name, switch = f.name.replace("_", "-"), kind is bool and f.default is True
    # None stands for the default, so that what was given is told from what was not; the text shows it.
    about = typer.Option(
        f"--{name}/--no-{name}" if switch else f"--{name}", help=escape(said.with_default(f.default)),
        rich_help_panel=said.panel, show_default=said.shown or False,
        autocompletion=(lambda: [*said.choices]) if said.choices else None,
    )  # fmt: skip
    if kind is bool and not switch:
        return _named(f.name, Annotated[bool, about], default=False)
    # What is several, or exact, or a number or a word, is a text until the options are settled.
    plain = kind if kind in (bool, int, float, str) and len(get_args(hint)) <= 2 else str
    return _named(f.name, Annotated[plain | None, about], default=None)


def _named(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def prepare_torch(device: str, precision: str, threads: int | None) -> str:
    """Check ``--device`` and ``--precision``, set the number of threads, and return torch's device.

    Of several processes on a machine, each gets a GPU of its own.

    Raises:
        UsageError: an unknown precision, or no such device here.
    """
    import torch

    if precision not in ("fp32", "bf16"):
        raise UsageError(f"--precision {precision!r}: one of fp32, bf16")
    kind = device.split(":")[0]
    if kind not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device!r}: one of auto, cpu, cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; use --device cpu")
    if kind == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    here = place()
    if device == "cuda" and here.size > 1:
        if here.local >= torch.cuda.device_count():
            raise UsageError(
                f"LOCAL_RANK {here.local}: this machine has {torch.cuda.device_count()} GPUs; start as many processes"
            )
        device = f"cuda:{here.local}"
    if device == "cpu" and precision == "bf16":
        from hrzs.models.bf16 import bf16_speed

        speed = bf16_speed()
        if speed < 1:
            logger.warning(
                f"--precision bf16: on this CPU a matrix product runs at {speed:.2f} × the speed of fp32; "
                "--precision fp32 is faster"
            )
    if threads is not None:
        torch.set_num_threads(threads)
    return device


def default_folder(what: str, model: str, visual: Path | None, data: str) -> Path:
    """Where a run goes that was given no ``-o``."""
    parts = (what, Path(model).stem.replace(":", "-"), *((visual.stem,) if visual else ()), Path(data).stem)
    return Path("runs") / "-".join(parts)


def wants_list(*values: str | None) -> bool:
    """Did the user ask one of these options for its names?"""
    return LIST in values


def saved_config(context: typer.Context, *settled: DataOptions | EvalOptions) -> dict[str, Any]:
    """Every option of this call, defaults included, as ``--config`` reads it back.

    Args:
        settled: what options came to, where the call leaves that open.
    """
    came_to = {flag: value for options in settled for flag, value in options.as_config().items()}
    skip = {
        "config",
        "resume",
        "dry_run",
        "debug",
        "quiet",
        "output",
        "export",
        "json_out",
        "report_out",
        "csv_out",
        "latex_out",
        "against",
        "shard",
        "merge",
    }
    config: dict[str, Any] = {}
    for parameter in context.command.params:
        if parameter.name is None or parameter.name in skip or parameter.name not in context.params:
            continue
        flag = max(parameter.opts, key=len).lstrip("-")
        config[flag] = _plain(came_to.get(flag, context.params[parameter.name]))
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


def print_models_or_data(model: str, data: str | None, template: str | None = None) -> None:
    """``--model list``, ``--data list`` or ``--template list``."""
    if model == LIST:
        from hrzs.models.loading import describe_models

        print_names(describe_models())
    elif data == LIST:
        from hrzs.data import describe_datasets

        print_names(describe_datasets())
    elif template == LIST:
        from hrzs.models.templates import describe_templates

        print_names(describe_templates())
