"""Stopping in good order: what a signal asks for is done where the state is whole, between two steps or batches.

The command line listens (`listen`). Long work says where it may not be broken off (`unbroken`), and asks at each place
where it may (`stop_here`). Outside of such work a signal counts at once, and so does a second one.
"""

from __future__ import annotations

import os
import signal
import threading
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


@contextmanager
def listen() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise `Stopped`: in long work where its state is whole, else at once.

    A signal that the process was started to ignore (``nohup``) stays ignored. Only the main thread can listen.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    _State.asked = None
    try:
        for signum, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(signum, _on_signal)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _on_signal(signum: int, _: Any) -> None:
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
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1


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
