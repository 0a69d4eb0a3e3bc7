"""Whatever stands in a folder that calls itself a set of adversarial images: it is read, or refused."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hrzs.data_options import DataOptions
from hrzs.errors import HrzsError
from hrzs.evaluation.saved import find_saved

HEADER: dict[str, Any] = {
    "hrzs": "0.1.0", "attack": "leaf-pgd", "attack_level": 0, "scoring": "prompt", "eps": "1/255", "step_size": "1/255",
    "steps": 3, "norm": "linf", "restarts": 1, "random_start": True, "early_stop": False, "stands_in": None, "seed": 0,
    "precision": "fp32", "head": "cosine", "template": "photo", "prompts_digest": "d", "model": "tiny",
    "model_digest": "d", "model_config": {"embed_dim": 16}, "task": {"resize": "in-graph", "tree_digest": "d"},
    "origin": {"data": "shapes", "data_root": None, "split": None, "tree": None, "classes": None},
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("9" * 6000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(st.text(max_size=40) | JSON.map(lambda value: json.dumps({"id": value, "label": value})), max_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two images, as far as its header and manifest go."""
    (tmp_path / "adv").mkdir()
    return tmp_path / "adv"


def write(folder: Path, header: dict[str, str], lines: list[str]) -> None:
    save_file({"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2)}, folder / "adversarial.safetensors", header)
    (folder / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8", errors="replace")


def read(folder: Path) -> None:
    (found,) = find_saved(folder)
    _ = found.unit, found.budget
    found.source(DataOptions())


def test_the_set_itself_is_read(folder: Path) -> None:
    write(
        folder,
        {k: json.dumps(v) for k, v in HEADER.items()},
        ['{"id": "a", "label": "b"}', '{"id": "c", "label": "b"}'],
    )
    read(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(HEADER)), JSON.map(json.dumps) | st.text(max_size=30), st.none() | LINES)
def test_any_header_and_manifest(folder: Path, name: str, value: str, lines: list[str] | None) -> None:
    header = {k: json.dumps(v) for k, v in HEADER.items()} | {name: value}
    write(folder, header, ['{"id": "a", "label": "b"}', '{"id": "c", "label": "b"}'] if lines is None else lines)
    began = time.monotonic()
    with suppress(HrzsError):
        read(folder)
    assert time.monotonic() - began < 5
