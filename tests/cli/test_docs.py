"""docs/cli.md says what the commands do today."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
Hrzs = Callable[..., Any]
Options = tuple[str, ...]


def test_every_option_is_there_as_it_is() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    make_reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_reference)
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
