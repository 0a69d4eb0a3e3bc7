"""A group of one does nothing; groups of real processes are in training/test_several_processes.py."""

from __future__ import annotations

import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrzs import distributed, stopping
from hrzs.distributed import ALONE, Group, joined
from hrzs.errors import HrzsError


@given(st.integers(0, 200), st.integers(1, 20))
def test_parts_are_all_and_alike(n: int, size: int) -> None:
    parts = [range(n)[Group(rank, size).part(n)] for rank in range(size)]
    assert [i for part in parts for i in part] == list(range(n))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), st.integers(1, 20))
def test_packets_are_all_and_small(shapes: list[tuple[int, bool]], most: int) -> None:
    tensors = [torch.zeros(n, dtype=torch.float64 if wide else torch.float32) for n, wide in shapes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "PACKET", most)
        packets = list(distributed._packets(tensors))
    assert [id(t) for packet in packets for t in packet] == [id(t) for t in tensors]
    for packet in packets:
        assert len({t.dtype for t in packet}) == 1
        assert len(packet) == 1 or sum(t.numel() for t in packet) <= most


def test_alone_nothing_changes() -> None:
    x = torch.rand(3, 2, requires_grad=True)
    assert ALONE.gather(x) is x
    assert (ALONE.share("a"), ALONE.collect("a")) == ("a", ["a"])
    before = x.detach().clone()
    ALONE.average([x])
    assert torch.equal(x, before)
    ALONE.agree()
    with pytest.raises(HrzsError, match="no image"):
        ALONE.agree(HrzsError("no image"))


def test_without_torchrun_one_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined(torch.device("cpu")) as group:
        assert group == ALONE


def test_alone_a_signal_is_heeded_where_all_agree() -> None:
    with stopping.listen(), stopping.unbroken():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(stopping.Stopped) as stopped:
            ALONE.agree()
        assert stopped.value.status == 143
        ALONE.agree()


def test_under_torchrun_a_second_signal_changes_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with stopping.listen(), stopping.unbroken():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stopping.asked() == signal.SIGTERM
        assert stopping.asked() is None
    assert capfd.readouterr().err == ""


def test_a_process_that_is_gone_is_named() -> None:
    gloo = "[/pytorch/gloo/pair.cc:545] Read error [10.0.0.2]:45456: Connection reset by peer. This is typically GLHF!"
    said = r"\(Read error \[10\.0\.0\.2\]:45456: Connection reset by peer\)"
    with pytest.raises(distributed.ProcessLostError, match=said), distributed._talking():
        raise RuntimeError(gloo)
