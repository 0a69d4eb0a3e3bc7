"""Signals, as a scheduler or a person sends them."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from hrzs.stopping import Stopped, is_ended, listen, stop_here, unbroken


def test_outside_of_long_work_a_signal_counts_at_once() -> None:
    with listen(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.status == 143


def test_in_long_work_it_waits_for_a_place_where_the_state_is_whole(capfd: pytest.CaptureFixture[str]) -> None:
    done = []

    @unbroken()
    def work() -> None:
        stop_here()
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the batch")
        stop_here()
        done.append("the next")

    with listen(), pytest.raises(Stopped):
        work()
    assert done == ["the batch"]
    assert "stopping as soon as" in capfd.readouterr().err


def test_a_second_signal_does_not_wait() -> None:
    done = []

    @unbroken()
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the batch")

    with listen(), pytest.raises(Stopped) as stopped:
        work()
    assert not done
    assert stopped.value.status == 130


def test_under_torchrun_a_process_that_fails_is_not_kept_from_saying_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun sends SIGTERM to all processes of a job in which one has failed, wherever they are."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(signum) for signum in signals]
    said = []

    @unbroken()
    def work() -> None:
        raise RuntimeError("a fault")

    try:
        try:
            with listen():
                try:
                    work()
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)
        except RuntimeError as fault:
            os.kill(os.getpid(), signal.SIGTERM)
            said.append(str(fault))
        assert is_ended(patience=0)
        assert said == ["a fault"]
        with listen(), pytest.raises(Stopped):  # and the next work hears again
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)


def test_no_error_handler_takes_it() -> None:
    taken = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as error:
            taken.append(error)

    with listen(), pytest.raises(Stopped):
        work()
    assert not taken


def test_handlers_are_given_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with listen():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGINT) != interrupt
        assert signal.getsignal(signal.SIGINT) == interrupt
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_does_not_listen() -> None:
    seen = []

    def work() -> None:
        with listen():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
