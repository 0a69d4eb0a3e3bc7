"""Whatever stands in a configuration: exit 0 or 2, no traceback, and soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hrzs.training.options import DEFAULTS

NAMES = [*DEFAULTS, "data", "limit", "tree", "classes", "threads", "model", "config", "tasks"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode(errors="replace"))
    | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4).map(lambda d: yaml.safe_dump(d).encode())
)
@example(b"lr: 1e9999999\n")
@example(b"limit: " + b"9" * 5000)
@example(b"a: &x [*x]\n")
@example(b"? " * 2000)
@example(b"%TAG ! tag:x,2000:\n" * 50 + b"--- {}\n")
@example(b"lr: !!python/object/apply:os.system ['true']\n")
@example(b"\xff\xfel\x00r\x00")
def test_any_configuration(hrzs: Callable[..., Any], tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_bytes(data)
    began = time.monotonic()
    ended = hrzs("finetune", "--config", file, "--recipe", "list")
    assert ended.status in (0, 2), ended.err
    assert "Traceback" not in ended.err
    assert "a fault of hrzs" not in ended.err
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("option", ["--classes", "--data", "--tree"])
def test_many_ids_are_no_path(hrzs: Callable[..., Any], option: str) -> None:
    ids = ",".join(f"n{i:08d}" for i in range(60))
    ended = hrzs("eval", option, ids, "--dry-run")
    assert ended.status == 2
    assert "a fault of hrzs" not in ended.err
