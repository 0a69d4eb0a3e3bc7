from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import typer
from typer.testing import CliRunner

from hrzs.cli.options import takes
from hrzs.errors import UsageError
from hrzs.option import INSIDE, NOT_NEGATIVE, POSITIVE, SHARE, Range, check, divide, listed, option
from hrzs.training.options import TrainOptions


@dataclass(frozen=True)
class Some:
    """Options of every kind."""

    colour: str = option("red", "Of the [thing].", choices=("red", "blue"))
    size: float | None = option(None, "How large.", "Panel", range=POSITIVE, shown="its own")
    loud: bool = option(False, "Say more.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Some(colour="green"), "--colour 'green': one of red, blue"),
        (Some(size=0.0), "--size 0.0: must be more than 0"),
    ],
)
def test_what_an_option_cannot_be_is_named(options: Some, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(options)


@dataclass(frozen=True)
class Others:
    """Options beside `Some`."""

    place: str | None = option(None, "Where.")


def test_options_go_to_the_dataclass_that_holds_them() -> None:
    given = {"size": 2.0, "place": None, "loud": True}
    assert divide(given, "a thing", Some, Others) == [{"size": 2.0, "loud": True}, {"place": None}]
    with pytest.raises(UsageError, match="colours: no option of a thing; did you mean colour"):
        divide({"colours": "red"}, "a thing", Some, Others)


@pytest.mark.parametrize("value", ["a, b", ["a", "b"], ("a", "b")])
def test_several_are_a_text_with_commas_or_a_sequence(value: object) -> None:
    assert listed(value) == ("a", "b")


def test_a_default_of_none_is_no_value() -> None:
    check(Some())
    check(Some(size=0.5))


@pytest.mark.parametrize(
    ("range_", "inside", "outside"),
    [(POSITIVE, [1e-9, 5], [0, -1]), (NOT_NEGATIVE, [0, 5], [-1e-9]), (SHARE, [0, 0.99], [1, -0.1]),
     (INSIDE, [0.01, 0.99], [0, 1])],
)  # fmt: skip
def test_ranges(range_: Range, inside: list[float], outside: list[float]) -> None:
    assert all(map(range_.holds, inside))
    assert not any(map(range_.holds, [*outside, float("nan")]))


def test_a_command_takes_them() -> None:
    seen: list[dict[str, object]] = []
    app = typer.Typer()

    @app.command()
    @takes(Some, before="last")
    def command(first: str = "a", last: str = "b", **some: object) -> None:
        seen.append({"first": first, "last": last, **some})

    run = CliRunner().invoke
    for arguments in ([], ["--colour", "blue", "--size", "2", "--loud"]):
        assert run(app, arguments).exit_code == 0
    assert seen == [
        {"first": "a", "last": "b", "colour": None, "size": None, "loud": False},
        {"first": "a", "last": "b", "colour": "blue", "size": 2.0, "loud": True},
    ]
    shown = run(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "Of the [thing]. [red | blue] [default: red]" in shown
    assert "[default: (its own)]" in shown
    assert shown.index("--first") < shown.index("--colour") < shown.index("--last")
    assert run(app, ["--size", "much"]).exit_code == 2


def test_every_option_of_a_run_is_explained_and_its_own_default() -> None:
    for f in fields(TrainOptions):
        assert f.metadata["option"].help.endswith(".")
    check(TrainOptions())
