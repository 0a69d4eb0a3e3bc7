"""The command line: one file per subcommand; imports stay lazy."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from signal import Signals
from typing import Annotated, Any

import typer
import typer.core

from hrzs._version import __version__
from hrzs.errors import HrzsError, ProcessLostError, UsageError
from hrzs.stopping import Stopped, is_ended, listen
from hrzs.torchrun import is_first, is_watched, place, tell

#: Seconds that other processes give the first one to name what is wrong.
PATIENCE = 5


class _Group(typer.core.TyperGroup):
    """Names the one option that a mistyped one is nearest to."""

    def invoke(self, ctx: Any) -> Any:
        with _near_miss():
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _near_miss():
            return super().parse_args(ctx, args)


@contextmanager
def _near_miss() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # by what it has, not by its class: typer carries a click of its own
        if possible := getattr(error, "possibilities", None):
            wrong = str(getattr(error, "option_name", ""))
            near = difflib.get_close_matches(wrong, possible, 1, 0) or possible
            vars(error).update(message=f"No such option: {wrong}; did you mean {near[0]}?", possibilities=None)
        raise


app = typer.Typer(
    name="hrzs",
    cls=_Group,
    help="Build class trees, fine-tune, attack, evaluate and publish CLIP-like models, at the leaves and at superclasses.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        sys.stdout.write(f"hrzs {__version__}\n")
        sys.stdout.write(_built_on())
        raise typer.Exit
    return wanted


def _built_on() -> str:
    """What figures and faults may depend on, a line each."""
    from importlib.metadata import version
    from platform import platform, python_version

    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    lines = (
        f"torch {torch.__version__} ({cuda}, {', '.join(gpus) or 'no GPU'})",
        f"open_clip {version('open_clip_torch')}",
        f"Python {python_version()} on {platform()}",
    )
    return "".join(f"{line}\n" for line in lines)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print it, and those of torch, CUDA and open_clip."
        ),
    ] = False,
) -> None:
    pass


def _register() -> None:
    from hrzs.cli.attack import attack
    from hrzs.cli.build_tree import build_tree
    from hrzs.cli.eval import evaluate
    from hrzs.cli.export import export
    from hrzs.cli.finetune import finetune
    from hrzs.cli.leaderboard import leaderboard

    app.command("build-tree")(build_tree)
    app.command("finetune")(finetune)
    app.command("attack")(attack)
    app.command("eval")(evaluate)
    app.command("export")(export)
    app.command("leaderboard")(leaderboard)


_register()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a subcommand and turns its end into the exit status.

    0: done; 1: it failed; 2: the call was wrong; 128 + n: signal n stopped it. Of several processes the first one says
    why, unless the fault is another's alone.
    """
    given: list[str] = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, TextIOWrapper) and (not given or {"-h", "--help"} & {*given}):
        sys.stdout.reconfigure(errors="backslashreplace")  # the help has signs such as ε
    try:
        with listen():
            app(args=given, standalone_mode=True, obj=tuple(given))
    except Stopped as stop:
        if is_first():
            _say(f"Stopped by {Signals(stop.signum).name}. {_how_to_go_on(given)}")
        sys.exit(stop.status)
    except UsageError as error:
        _fail(error, 2, given)
    except HrzsError as error:
        _fail(error, 1, given)
    except Exception as error:
        _fail(error, 1, given)


def _fail(error: Exception, status: int, given: Sequence[str]) -> Any:
    if isinstance(error, HrzsError):
        fault = str(error)
    elif isinstance(error, OSError) and error.strerror:  # a full disk, missing rights: faults of the machine
        fault = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        fault = f"{type(error).__name__}: {error} (a fault of hrzs? --debug shows where)"
    who = "Error"
    if is_watched():
        rank, is_lost = place().rank, isinstance(error, ProcessLostError)
        if not is_lost:
            tell(fault)
        elif rank == 0:
            _say(f"Error: {fault}")
        # Most faults are those of all processes: when the first has named it, torchrun ends the others. And a process
        # that was lost is for torchrun to name, which notices it a little later than those who were talking to it.
        if (rank or is_lost) and is_ended(PATIENCE):
            sys.exit(status)
        if is_lost:
            tell(fault)
            if rank == 0:  # has said it
                sys.exit(status)
        who = f"Error of process {rank}" if rank else who
    if "--debug" in given:
        raise error
    _say(f"{who}: {fault}")
    sys.exit(status)


def _how_to_go_on(given: Sequence[str]) -> str:
    """The whole command, where what was done is kept."""
    words = [] if given[:1] == ["build-tree"] else list(given)
    if words[:1] == ["eval"] and not any(word == "--json" or word.startswith("--json=") for word in words):
        return "Nothing is kept of an evaluation without --json FILE, beside which finished batches are kept"
    if not words:
        return "Nothing was written"
    started, goes_on = ["hrzs"], bool({"--resume", "--shard", "--merge"} & {word.split("=")[0] for word in words})
    if is_watched():
        started = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "hrzs"]
        goes_on = goes_on or words[0] in ("attack", "eval")  # as shards
    return f"To go on: {shlex.join([*started, *words, *([] if goes_on else ['--resume'])])}"


def _say(message: str) -> None:
    from hrzs.cli.console import printable

    with suppress(OSError):  # where stderr is full or closed, the exit status is left to tell
        print(printable(message), file=sys.stderr)  # noqa: T201
