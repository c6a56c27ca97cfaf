"""One clock for a stream that is opened again and again: where its frames and gaps lie on it."""

from __future__ import annotations

from flamvid.video.events import Gap
from flamvid.video.live_graph import FAR_LONGER

__all__ = ["Timeline"]


class Timeline:
    """Times of a connection's own clock, which begins at 0, to times that only ever rise.

    fps: frames come at ticks, in the middle of each 1 / fps seconds; None where all of them come.
    hole: a frame that comes so many seconds late is a gap, unless frames are always so far apart.
    """

    def __init__(self, fps: float | None, hole: float, begin: float = 0.0) -> None:
        self.step = None if fps is None else 1 / fps
        self.hole = hole
        self.end = begin  # of what was seen
        self._lasted = 0.0  # the last frame
        self._origin, self._tick = begin, begin

    def connect(self, lost: float) -> None:
        """The next frame is the first of a connection, and comes `lost` seconds after the last."""
        self.end += max(0.0, lost)
        self._origin = self._tick = self.end

    def place(self, own: float, lasts: float) -> tuple[float, float, Gap | None]:
        """Of a frame shown at `own` for `lasts` seconds, by its connection's clock: when it is
        looked at, when it begins to be shown, and the gap before it."""
        shown, gap = self._origin + own, None
        if self.step is None:
            late = shown - self.end
            if late > max(self.hole, FAR_LONGER * self._lasted):
                gap = Gap(self.end, shown, "nothing was sent")
            self.end, self._lasted = shown + lasts, max(lasts, late)
            return shown, shown, gap
        # A picture is not looked at before it is shown: time was lost, and ticks begin anew.
        if shown > self._tick + self.step / 2:
            if shown - self._tick > self.step:
                gap = Gap(self._tick, shown, "nothing was sent")
            self._tick = shown
        at = self._tick + self.step / 2
        self.end = self._tick = self._tick + self.step
        return at, shown, gap
