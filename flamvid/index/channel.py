"""Bounded queues between the threads of the indexer, which count the time spent waiting."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

__all__ = ["Channel", "Stopped", "Switch"]

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - not an error: the others were told to end
    """The work was called off."""


class Switch:
    """Calls work off, for the first reason that is given."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._off = threading.Event()

    def stop(self, error: BaseException | None = None) -> None:
        """Let every thread that waits, or is about to, end with `Stopped`."""
        if not self._off.is_set():
            self.error = error
            self._off.set()

    def check(self) -> None:
        """`Stopped` once the work was called off."""
        if self._off.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait so long, or until the work is called off."""
        if self._off.wait(seconds):
            raise Stopped


class Channel(Generic[T]):
    """At most `size` items between those who put and those who get.

    full, empty: seconds that puts waited for room, and gets for items.
    """

    _PATIENCE = 0.2  # seconds until the switch is looked at

    def __init__(self, size: int, switch: Switch) -> None:
        self.full = self.empty = 0.0
        self._size, self._switch = size, switch
        self._items: deque[T] = deque()
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Append when there is room."""
        with self._changed:
            begun = time.monotonic()
            while len(self._items) >= self._size:
                self._switch.check()
                self._changed.wait(self._PATIENCE)
            self.full += time.monotonic() - begun
            self._items.append(item)
            self._changed.notify_all()
        self._switch.check()

    def get(self, timeout: float | None = None) -> T | None:
        """The oldest item; None if there is none in `timeout` seconds."""
        with self._changed:
            begun = time.monotonic()
            while not self._items:
                self._switch.check()
                waited = time.monotonic() - begun
                if timeout is not None and waited >= timeout:
                    self.empty += waited
                    return None
                self._changed.wait(self._PATIENCE)
            self.empty += time.monotonic() - begun
            item = self._items.popleft()
            self._changed.notify_all()
            return item
