"""Decoding by PyAV from one key frame on, of no more than the frames that are asked for need.

Over half of what an H.264 encoder with B-frames writes is referred to by no other frame. Such a
frame is left out unless it is asked for, which changes no pixel of another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["Run", "can_skip"]

_NEVER = -(1 << 63)  # before any pts


def can_skip(codec: str) -> bool:
    """Whether FFmpeg's decoder of it tells by a frame's head that nothing refers to the frame."""
    return codec == "h264"


class Run:
    """A decoder on its way through a file; `packets` begin with a key frame."""

    def __init__(self, context: Any, packets: Iterable[Any], *, skip: bool) -> None:
        self._context, self._packets = context, iter(packets)
        self._skip = skip
        self._inside: set[int] = set()  # pts that went in, and have yet to come out
        self._ready: deque[Any] = deque()
        self._gone = _NEVER  # pts: no frame up to here will come any more, or it was left out
        self._over = False  # nothing more goes in
        self._leaving_out: bool | None = None

    def reaches(self, tick: int) -> bool:
        """Whether the frame of that pts is still to come."""
        return tick > self._gone and (tick in self._inside or not self._over)

    def frames(self, ticks: Iterable[int], *, go_on: bool) -> Iterator[Any]:
        """The frames of these pts, rising; it ends early where one is missing or in doubt.

        go_on: leave the decoder fit for later frames. Else it is emptied once it has what it needs,
        which saves it as many frames as it holds back.
        """
        wanted = set(ticks)
        missing = wanted - self._inside  # of what went in already nothing more is needed
        while wanted:
            if not self._ready and not self._feed(missing, go_on):
                return
            while self._ready and wanted:
                frame = self._ready.popleft()
                if frame.pts is None or (self._skip and frame.is_corrupt):
                    self._over = True  # what hides the damage may have been left out
                    self._inside.clear()
                    return
                self._inside.discard(frame.pts)
                self._gone = max(self._gone, frame.pts)
                if frame.pts in wanted:
                    wanted.remove(frame.pts)
                    yield frame

    def _feed(self, missing: set[int], go_on: bool) -> bool:
        """Give the decoder its next packet; False where there is none and it is empty."""
        if self._over:
            return False
        packet = next(self._packets, None) if missing or go_on else None
        if packet is None:
            self._over = True
            self._ready.extend(self._context.decode(None))
            return True
        if not packet.size:  # a gap of an AVI, or the end; to decode it would empty the decoder
            return True
        pts = packet.pts
        # Beyond the frames asked for nothing is left out: the next request may go on there.
        leave_out = self._skip and bool(missing) and pts not in missing
        if leave_out is not self._leaving_out:  # each time costs as much as to read a packet
            self._leaving_out = leave_out
            self._context.skip_frame = "NONREF" if leave_out else "DEFAULT"
        if pts is not None and not packet.is_discard:
            if not leave_out:
                self._inside.add(pts)
            elif pts > self._gone:
                self._gone = pts
        missing.discard(pts)
        self._ready.extend(self._context.decode(packet))
        return True
