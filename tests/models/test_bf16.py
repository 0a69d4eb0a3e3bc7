from __future__ import annotations

import pytest
import torch

from hrzs.models import bf16


def test_leaves_the_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert 0.01 < bf16.bf16_speed() < 100
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_is_fp32_over_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 3.0, torch.bfloat16: 2.0}
    monkeypatch.setattr(bf16, "_seconds", lambda a, b: seconds[a.dtype] + (a.dtype != b.dtype))
    assert bf16.bf16_speed() == 1.5
