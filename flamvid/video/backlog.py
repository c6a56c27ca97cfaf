"""A bounded queue between the thread that reads a stream and who looks at its frames."""

from __future__ import annotations

import threading
import time
from collections import deque
from enum import StrEnum

from flamvid.video.events import Event, Frame, Gap

__all__ = ["Backlog", "Drop"]


class Drop(StrEnum):
    """What happens to frames while the queue is full."""

    OLDEST = "oldest"  # the one that waits longest goes: little lag, newest pictures
    NEWEST = "newest"  # the one that comes goes: what waits stays whole
    WAIT = "wait"  # none goes: the reader waits, and with it the sender


class Backlog:
    """At most `most` frames in order, and the gaps between them; one reader, one consumer.

    Gaps are never dropped. Two that meet, because all frames between them were dropped, become
    one, so that there are never more of them than frames and one.
    """

    def __init__(self, most: int, drop: Drop) -> None:
        self.most, self.drop = most, drop
        self.dropped = 0
        self._events: deque[Event] = deque()
        self._frames = 0
        self._over = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """How many frames wait."""
        return self._frames

    def put(self, event: Event) -> None:
        """Add one at the end; under `Drop.WAIT` this waits for a place."""
        with self._changed:
            if isinstance(event, Frame):
                if self._frames >= self.most and self.drop is Drop.WAIT:
                    self._changed.wait_for(lambda: self._frames < self.most or self._over)
                if self._over:
                    return
                if self._frames >= self.most:
                    self.dropped += 1
                    if self.drop is Drop.NEWEST:
                        return
                    self._drop_oldest()
                self._frames += 1
                self._events.append(event)
            elif not self._over:
                self._append_gap(event)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next one; None at the end. `TimeoutError` where none comes in time.

        What ended the stream is raised once all that came before it was taken.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not self._events and not self._over:
                # In steps, so that Ctrl-C is heard on every system.
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._changed.wait(min(left, 1.0))
            if self._events:
                event = self._events.popleft()
                self._frames -= isinstance(event, Frame)
                self._changed.notify_all()
                return event
            error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def end(self, error: BaseException | None = None) -> None:
        """Nothing follows. What waits can still be taken."""
        with self._changed:
            if not self._over:
                self._over, self._error = True, error
            self._changed.notify_all()

    def clear(self) -> None:
        """Nothing follows and nobody takes what waits."""
        with self._changed:
            self._over, self._error, self._frames = True, None, 0
            self._events.clear()
            self._changed.notify_all()

    def _drop_oldest(self) -> None:
        at = next(i for i, event in enumerate(self._events) if isinstance(event, Frame))
        del self._events[at]
        self._frames -= 1
        if 0 < at < len(self._events):
            before, after = self._events[at - 1], self._events[at]
            if isinstance(before, Gap) and isinstance(after, Gap):
                del self._events[at]
                self._events[at - 1] = before.joined(after)

    def _append_gap(self, gap: Gap) -> None:
        if self._events and isinstance(last := self._events[-1], Gap):
            self._events[-1] = last.joined(gap)
        else:
            self._events.append(gap)
