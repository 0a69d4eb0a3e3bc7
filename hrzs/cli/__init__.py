"""The command line: `hrzs build-tree | finetune | attack | eval`. One file per subcommand; imports stay lazy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hrzs._version import __version__
from hrzs.errors import HrzsError, UsageError

app = typer.Typer(
    name="hrzs",
    help="Build class trees, fine-tune, attack and evaluate CLIP-like models, at the leaves and at superclasses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        sys.stdout.write(f"hrzs {__version__}\n")
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def _register() -> None:
    from hrzs.cli.attack import attack
    from hrzs.cli.build_tree import build_tree
    from hrzs.cli.eval import evaluate
    from hrzs.cli.finetune import finetune

    app.command("build-tree")(build_tree)
    app.command("finetune")(finetune)
    app.command("attack")(attack)
    app.command("eval")(evaluate)


_register()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a subcommand and turns its end into the exit status.

    0: done; 1: it failed; 2: the call was wrong.
    """
    given: list[str] = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, standalone_mode=True)
    except UsageError as error:
        _fail(error, 2, given)
    except HrzsError as error:
        _fail(error, 1, given)
    except Exception as error:
        _fail(error, 1, given)


def _fail(error: Exception, status: int, given: Sequence[str]) -> Any:
    if "--debug" in given:
        raise error
    if isinstance(error, HrzsError):
        _say(str(error))
    else:
        _say(f"{type(error).__name__}: {error} (a fault of hrzs? --debug shows where)")
    sys.exit(status)


def _say(message: str) -> None:
    print(f"Error: {message}", file=sys.stderr)  # noqa: T201
