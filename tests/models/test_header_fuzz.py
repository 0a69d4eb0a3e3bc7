"""Whatever stands in the header of a run's weights: the model loads, or the file is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hrzs.errors import HrzsError
from hrzs.models.clip import ClipModel
from hrzs.models.loading import load_model
from hrzs.models.saving import save_model

KEYS = ("arch", "config", "preprocess", "licence", "training_data", "run", "probe", "geometry", "hrzs")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("hf-hub:a/b"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KEYS), JSON.map(json.dumps) | st.text(max_size=30))
def test_any_header(make_model: Callable[[], ClipModel], tmp_path: Path, name: str, value: str) -> None:
    file = tmp_path / "model.safetensors"
    if not file.exists():
        save_model(make_model(), tmp_path)
    with safe_open(file, framework="pt") as opened:
        header = dict(opened.metadata())
    changed = tmp_path / "changed.safetensors"
    save_file(load_file(file), changed, header | {name: value})
    began = time.monotonic()
    with suppress(HrzsError):
        load_model(str(changed))
    assert time.monotonic() - began < 5
