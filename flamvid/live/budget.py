"""What to leave out when captions come too late.

In this order, each on top of those before: greedy instead of beams, half of the latents, half of
the frames, three quarters of the frames. One is taken back when captions are well in time again.
Frames that wait too long in the queue are dropped besides; the stream counts those.
"""

from __future__ import annotations

import math
from enum import IntEnum

from flamvid.errors import InputError

__all__ = ["Budget", "Shed"]

_WELL = 0.5  # of the budget: so early is time to spare
_IN_A_ROW = 3  # captions with time to spare, before anything is taken back


class Shed(IntEnum):
    """How much is left out."""

    NOTHING = 0
    BEAMS = 1
    LATENTS = 2
    HALF = 3
    MOST = 4


class Budget:
    """Decides by how late captions are, in seconds from the frame or the wish that they are for."""

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise InputError(f"the latency budget is {seconds:g} s; must be above 0")
        self.seconds = seconds
        self.level = Shed.NOTHING
        self._well = 0
        self._frames = 0
        self.skipped = 0  # frames that were not looked at, in all

    def took(self, latency: float) -> None:
        """Hear how late a caption was."""
        if self.seconds is None:
            return
        if latency > self.seconds:
            self.level = Shed(min(self.level + 1, Shed.MOST))
            self._well = 0
            return
        self._well = self._well + 1 if latency < _WELL * self.seconds else 0
        if self._well >= _IN_A_ROW and self.level:
            self.level, self._well = Shed(self.level - 1), 0

    def skips(self) -> bool:
        """Whether the next frame is not looked at."""
        self._frames += 1
        stride = {Shed.HALF: 2, Shed.MOST: 4}.get(self.level, 1)
        skip = self._frames % stride != 0
        self.skipped += skip
        return skip

    @property
    def greedy(self) -> bool:
        """Whether to search with one beam."""
        return self.level >= Shed.BEAMS

    @property
    def stride(self) -> int:
        """Which of the latents are read: every first or every second."""
        return 2 if self.level >= Shed.LATENTS else 1
