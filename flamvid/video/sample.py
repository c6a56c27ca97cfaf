"""Which frames to look at: arithmetic on pts alone, never index / fps.

A frame is shown from its pts until the next one's. To sample at a time is to take the frame that
is shown then, so variable frame rates and late starts need no care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import InputError
from flamvid.types import Segment

__all__ = ["Fps", "Sampling", "Stride", "Uniform", "frame_at", "windows"]

Times = NDArray[np.float64]
Indices = NDArray[np.int64]


def frame_at(pts: Times, times: NDArray[np.floating[Any]]) -> Indices:
    """Index of the frame shown at each time; before the first frame that is the first."""
    return np.maximum(np.searchsorted(pts, times, side="right") - 1, 0).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Uniform:
    """`n` frames, each from the middle of one of n equal parts; all of them where n are not."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"the number of frames is {self.n}; must be at least 1")

    def indices(
        self, pts: Times, durations: Times, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, without repeats, int64 [<= n]."""
        first, last = _span(pts, durations, start, end)
        times = first + (np.arange(self.n) + 0.5) / self.n * (last - first)
        return np.unique(frame_at(pts, times))


@dataclass(frozen=True, slots=True)
class Fps:
    """`rate` frames per second, from the middle of each 1 / rate seconds."""

    rate: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InputError(f"fps is {self.rate}; must be above 0")

    def indices(
        self, pts: Times, durations: Times, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, int64; a frame shown for long is repeated, as time passes."""
        first, last = _span(pts, durations, start, end)
        count = max(1, math.floor((last - first) * self.rate + 1e-6))
        return frame_at(pts, first + (np.arange(count) + 0.5) / self.rate)


@dataclass(frozen=True, slots=True)
class Stride:
    """`window` successive frames, every `stride`-th of the video, centred on the span."""

    window: int
    stride: int = 1

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; must be at least 1")

    def indices(
        self, pts: Times, durations: Times, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, int64 [<= window]; fewer where the span is short."""
        first, last = _span(pts, durations, start, end)
        inside = np.flatnonzero((pts >= first - 1e-9) & (pts < last))
        if len(inside) == 0:
            inside = frame_at(pts, np.array([first]))
        wanted = min(self.window, (len(inside) - 1) // self.stride + 1)
        lead = (len(inside) - 1 - (wanted - 1) * self.stride) // 2
        return inside[lead :: self.stride][:wanted].astype(np.int64)


Sampling = Uniform | Fps | Stride


def windows(
    duration: float, size: float, every: float, start: float = 0.0, end: float | None = None
) -> list[Segment]:
    """Segments of `size` seconds that begin `every` seconds; the last ends with the video.

    Every moment of [start, end) is in a segment when every <= size; the last one may be shorter.
    """
    for name, value in (("window", size), ("every", every)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value} s; must be above 0")
    last = min(duration, end) if end is not None else duration
    _check_span(start, last, duration)
    out = [Segment(start, min(start + size, last))]
    while out[-1].end < last - 1e-9:
        begin = start + len(out) * every
        if begin >= last - 1e-9:
            break
        out.append(Segment(begin, min(begin + size, last)))
    return out


def _span(
    pts: Times, durations: Times, start: float | None, end: float | None
) -> tuple[float, float]:
    length = float(pts[-1] + durations[-1])
    first, last = start or 0.0, length if end is None else min(end, length)
    _check_span(first, last, length)
    return first, last


def _check_span(start: float, end: float, length: float) -> None:
    if not 0 <= start < max(length, 1e-9):
        raise InputError(f"start is {start:g} s; must be in [0, {length:.3f}), the source's length")
    if end <= start and length > 0:
        raise InputError(f"end is {end:g} s; must come after the start, {start:g} s")
