"""docs/cli.md and docs/report.schema.json say what the commands do and write today."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
Hrzs = Callable[..., Any]
Options = tuple[str, ...]


@pytest.fixture(scope="module")
def make_reference() -> Any:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schema_is_that_of_the_code(make_reference: Any) -> None:
    assert make_reference.SCHEMA.read_text() == make_reference.schema(), (
        "`python docs/make_reference.py` writes it anew"
    )


def test_every_option_is_there_as_it_is(make_reference: Any) -> None:
    text = make_reference.PAGE.read_text()
    assert make_reference.page(text) == text, "`python docs/make_reference.py` writes its tables anew"
    assert "| `--lr` | Peak learning rate. | 0.0003 |" in text
    assert (
        "| `--hnsa` | Neighbouring levels whose nodes are negatives too. `none`, `lower`, `upper`, `both` | both |"
        in text
    )


def test_every_field_of_a_row_is_explained(hrzs: Hrzs, small: Options) -> None:
    ended = hrzs("eval", *small, "--attack", "leaf-pgd", "--steps", "1", "--no-canaries", "--json", "-")
    text = (DOCS / "cli.md").read_text()
    section = text[text.index("## The JSON of `eval`") : text.index("What each figure means")]
    named = set(re.findall(r"`(\w+)`", section))
    fields = {field for row in json.loads(ended.out)["results"] for field in row}
    assert {field for field in fields if not field.endswith(("_ci95", "_balanced"))} <= named
