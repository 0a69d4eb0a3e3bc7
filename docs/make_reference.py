"""What the docs have from the code itself: `python docs/make_reference.py` writes it anew.

The tables of options in docs/cli.md, and the JSON schema of a report in docs/report.schema.json.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import typer

from hrzs.cli import app
from hrzs.results.report import Report

PAGE = Path(__file__).with_name("cli.md")
SCHEMA = Path(__file__).with_name("report.schema.json")
BEGIN = "<!-- Written by docs/make_reference.py from here on. -->"


def tables() -> str:
    """A section for each command, a table for each panel of its ``--help``."""
    group: Any = typer.main.get_command(app)
    return "\n".join(_section(name, command) for name, command in group.commands.items())


def _section(name: str, command: Any) -> str:
    lines = [f"## Options of {name}", "", command.help.strip().splitlines()[0], ""]
    shown = [p for p in command.params if not p.hidden]
    for panel in dict.fromkeys(p.rich_help_panel for p in shown):
        lines += [f"**{panel}**", ""] if panel else []
        rows = [_row(p) for p in shown if p.rich_help_panel == panel]
        lines += ["| option | | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(option: Any) -> str:
    help_text = (option.help or "").replace("\\[", "[")
    text, default = re.fullmatch(r"(.*?)(?: \[default: (.*)\])?", help_text, re.S).groups()  # type: ignore[union-attr]
    text, choices = re.fullmatch(r"(.*?)(?: \[([^\]]+ \| [^\]]+)\])?", text, re.S).groups()  # type: ignore[union-attr]
    if choices:
        text += " " + ", ".join(f"`{choice}`" for choice in choices.split(" | "))
    if default is None:
        default = option.show_default if isinstance(option.show_default, str) else _shown(option)
    names = [option.metavar] if option.param_type_name == "argument" else [*option.opts, *option.secondary_opts]
    flags = " ".join(f"`{name}`" for name in names)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in (flags, text, default)) + " |"


def _shown(option: Any) -> str:
    if option.default is None or option.default is False or callable(option.default):
        return ""
    return "on" if option.default is True else str(option.default)


def page(text: str) -> str:
    """``text`` with the tables of today."""
    return text[: text.index(BEGIN)] + f"{BEGIN}\n\n{tables()}".rstrip() + "\n"


def schema() -> str:
    """The JSON schema of a report, as text. Docstrings lose their indentation, as new Pythons and msgspecs do it."""
    found = json.loads(json.dumps(msgspec.json.schema(Report)))
    for struct in found["$defs"].values():
        struct["description"] = inspect.cleandoc(struct["description"])
    return json.dumps(found, indent=1) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    SCHEMA.write_text(schema())
