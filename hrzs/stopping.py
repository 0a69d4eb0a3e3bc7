"""Stopping in good order: what a signal asks for is done where the state is whole, between two steps or batches.

The command line listens (`listen`). Long work says where it may not be broken off (`unbroken`), and asks at each place
where it may (`stop_here`). Outside of such work a signal counts at once, and so does a second one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hrzs.torchrun import is_watched

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """The signal ``signum`` asked the process to stop. Like KeyboardInterrupt, no ``except Exception`` takes it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def status(self) -> int:
        """The exit status that shells and schedulers know this by: 130, 143 or 129."""
        return 128 + self.signum


class _State:
    asked: int | None = None
    depth = 0
    #: This process is on its way out, and torchrun's signal to the rest of the job must not keep it from saying why.
    ends = False


@contextmanager
def listen() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise `Stopped`: in long work where its state is whole, else at once.

    A signal that the process was started to ignore (``nohup``) stays ignored. Only the main thread can listen.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    _State.asked, _State.ends = None, False
    try:
        for signum, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(signum, _on_signal)
        with _last_words():
            yield
    finally:
        if not _State.ends:
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def _last_words() -> Iterator[None]:
    """Under torchrun, a process that leaves by an exception hears no more signals: SIGKILL still ends it."""
    try:
        yield
    except BaseException as end:
        _State.ends = is_watched() and not isinstance(end, SystemExit)
        raise


def _on_signal(signum: int, _: Any) -> None:
    if _State.ends:
        _State.asked = signum
        return
    # Under torchrun a second one changes nothing: it and the scheduler send several at a time.
    if _State.depth == 0 or (_State.asked is not None and not is_watched()):
        raise Stopped(signum)
    _State.asked = signum
    if not is_watched():
        # Not by `print`: the signal may have come in the middle of one.
        os.write(2, b"\nstopping as soon as what is done can be kept; the same again stops at once\n")


@contextmanager
def unbroken() -> Iterator[None]:
    """Inside, a first signal waits for the next `stop_here`."""
    _State.depth, _State.ends = _State.depth + 1, False
    try:
        with _last_words():
            yield
    finally:
        _State.depth -= 1


def is_ended(patience: float) -> bool:
    """Does torchrun, within ``patience`` seconds, end this process, which has met a fault?"""
    until = time.monotonic() + patience
    while _State.asked is None and time.monotonic() < until:
        time.sleep(0.02)
    return _State.asked is not None


def asked() -> int | None:
    """The signal that has asked to stop, if one has; it counts as answered."""
    signum, _State.asked = _State.asked, None
    return signum


def stop_here() -> None:
    """
    Raises:
        Stopped: a signal asked for it.
    """
    signum = asked()
    if signum is not None:
        raise Stopped(signum)
