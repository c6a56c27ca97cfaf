"""SIGTERM and Ctrl-C while training: the update is finished, a snapshot written, then all ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "on_signals"]


class Stop:
    """Whether a signal asked for the end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and signum == signal.SIGINT:  # twice: at once
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def on_signals() -> Iterator[Stop]:
    """A Stop that SIGTERM and SIGINT ask, for as long as the context lasts."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread is told of signals
        return
    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
