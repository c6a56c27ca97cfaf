"""Which frames to look at: arithmetic on pts alone, never index / fps.

A frame is shown from its pts until the next one's. To sample at a time is to take the frame that
is shown then, so variable frame rates and late starts need no care.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import InputError
from flamvid.types import Segment

__all__ = [
    "Clips",
    "Fps",
    "Keyframes",
    "Sampling",
    "Stride",
    "Times",
    "Uniform",
    "frame_at",
    "span",
    "thinned",
    "windows",
]

Seconds = NDArray[np.float64]
Indices = NDArray[np.int64]


def frame_at(pts: Seconds, times: NDArray[np.floating[Any]]) -> Indices:
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
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, without repeats, int64 [<= n]."""
        first, last = span(pts, durations, start, end)
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
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, int64; a frame shown for long is repeated, as time passes."""
        first, last = span(pts, durations, start, end)
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
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, int64 [<= window]; fewer where the span is short."""
        first, last = span(pts, durations, start, end)
        inside = np.flatnonzero((pts >= first - 1e-9) & (pts < last))
        if len(inside) == 0:
            inside = frame_at(pts, np.array([first]))
        wanted = min(self.window, (len(inside) - 1) // self.stride + 1)
        lead = (len(inside) - 1 - (wanted - 1) * self.stride) // 2
        return inside[lead :: self.stride][:wanted].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Clips:
    """`n` clips of `frames` frames, `fps` a second, from the middles of n equal parts.

    A clip that is longer than the span is squeezed into it: frames closer by, and repeated.
    """

    n: int
    frames: int
    fps: float

    def indices(
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, clip after clip, int64 [n * frames]."""
        first, last = span(pts, durations, start, end)
        length = min(self.frames / self.fps, last - first)
        middles = first + (np.arange(self.n) + 0.5) / self.n * (last - first)
        begins = np.clip(middles - length / 2, first, last - length)
        ticks = (np.arange(self.frames) + 0.5) / self.frames * length
        return frame_at(pts, (begins[:, None] + ticks).ravel())


@dataclass(frozen=True, slots=True)
class Times:
    """The frame shown at each of these seconds of the source, in this order."""

    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.seconds:
            raise InputError("no time is given; give at least one, in seconds")

    def indices(
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, one for each time; a time outside the span is an error."""
        first, last = span(pts, durations, start, end)
        for t in self.seconds:
            # The one frame of a still lasts no time, and is shown at its start all the same.
            if not (first <= t < last or t == first):
                length = float(pts[-1] + durations[-1])
                raise InputError(
                    f"time {t:g} s must be in [{first:g}, {last:.3f}); "
                    f"the source is {length:.3f} s long"
                )
        # A pts written down to the microsecond, 0.033333, names the frame that begins there.
        return frame_at(pts, np.array(self.seconds) + 1e-6)


@dataclass(frozen=True, slots=True)
class Keyframes:
    """The key frames that begin in the span, spread thinner where there are more than `n`."""

    places: tuple[int, ...]  # of all key frames, rising
    n: int | None = None

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise InputError(f"the number of frames is {self.n}; must be at least 1")

    @classmethod
    def of(cls, source: object, n: int | None = None) -> Keyframes:
        """The key frames that a source knows of; `InputError` if it knows of none."""
        places = getattr(source, "keyframes", None)
        if places is None or len(places) == 0:
            info = getattr(source, "info", None)
            raise InputError(
                f"{getattr(info, 'path', 'the source')} does not say which of its frames are key "
                "frames; sample it uniformly or by fps"
            )
        return cls(tuple(int(i) for i in places), n)

    def indices(
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, int64; the frame shown at the start where no key frame is."""
        first, last = span(pts, durations, start, end)
        places = np.array(self.places, dtype=np.int64)
        places = places[places < len(pts)]
        inside = places[(pts[places] >= first) & (pts[places] < last)]
        if len(inside) == 0:
            inside = frame_at(pts, np.array([first]))
        return inside if self.n is None else inside[thinned(len(inside), self.n)]


class Sampling(Protocol):
    """A rule that chooses frames by their times; `Shots` of shots.py is one, too."""

    def indices(
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts` of what is to be looked at in [start, end)."""
        ...


def thinned(count: int, n: int) -> Indices:
    """At most `n` of `count` places, each from the middle of one of n equal parts."""
    return np.unique((2 * np.arange(n) + 1) * count // (2 * n))


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


def span(
    pts: Seconds, durations: Seconds, start: float | None, end: float | None
) -> tuple[float, float]:
    """First and last second of [start, end) in a source; `InputError` where it is empty."""
    length = float(pts[-1] + durations[-1])
    first, last = start or 0.0, length if end is None else min(end, length)
    _check_span(first, last, length)
    return first, last


def _check_span(start: float, end: float, length: float) -> None:
    if not 0 <= start < max(length, 1e-9):
        raise InputError(f"start is {start:g} s; must be in [0, {length:.3f}), the source's length")
    if end <= start and length > 0:
        raise InputError(f"end is {end:g} s; must come after the start, {start:g} s")
