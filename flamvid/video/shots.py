"""Where one shot ends and the next begins, from small frames.

Two frames differ by how little their structure agrees (correlation of their luma, blind to light)
and how little their colours do (histograms, blind to motion): by the geometric mean of both. A cut
is where all frames just before differ from all just after, and by much more than frames around it
do, so motion, flicker and flashes are no cuts. Fades and dissolves are looked for a second apart,
between spans that are calm.

A third of the picture overlaid at once counts as a cut; a cut within a pan that crosses the picture
in half a second is missed, and so is a fade between spans that move.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from flamvid.errors import InputError
from flamvid.types import Frames, Segment
from flamvid.video.sample import Indices, Seconds, frame_at, span, thinned

if TYPE_CHECKING:
    from flamvid.video.source import Source

__all__ = ["SIZE", "Shots", "find_shots"]

SIZE = (27, 48)  # height and width of the frames that are compared: open sources at this size

_CHUNK = 64 << 20  # bytes of frames read from a source at a time
_BATCH = 256  # frames looked at at a time

_DIFFERENT = 0.3  # other scenes differ by 0.4 to 1, one scene in another light by 0.25
_OUTSTANDING = 2.0  # a cut, against what changes around it
_JUST = 0.2  # seconds on either side of a cut that must differ; flashes are shorter
_MOST_JUST = 8  # ... and frames
_AROUND = 0.5  # seconds on either side of a cut that count as around it, or the shortest shot

_APART = 1 / 6  # seconds between the frames that fades are looked for in
_HALF, _SIDE = 3, 3  # of those frames: half of a fade, and what must be calm on either side
_FADED = 0.4  # what differs across a fade
_CALM = 4.0  # ... against what changes on either side
_REACH = (_HALF + _SIDE) * _APART  # seconds

_FLAT = 2 / 255  # deviation of luma that is noise
_BINS = 16  # of luma; of the chromas together its square

_MIDDLE = 0.5 + 0.5 / _BINS  # grey lies in the middle of a bin of chroma, not on an edge

_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shots:
    """`n` frames spread over shots: from the middle of each, and more from the longer ones."""

    segments: tuple[Segment, ...]
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"the number of frames is {self.n}; must be at least 1")

    @classmethod
    def of(cls, source: Source, n: int) -> Shots:
        """Over the shots of a source; to find them all of its frames are read."""
        return cls(tuple(find_shots(source)), n)

    def indices(
        self, pts: Seconds, durations: Seconds, start: float | None = None, end: float | None = None
    ) -> Indices:
        """Places in `pts`, rising, without repeats, int64 [<= n]."""
        first, last = span(pts, durations, start, end)
        inside = [(max(s.start, first), min(s.end, last)) for s in self.segments]
        inside = [(a, b) for a, b in inside if a < b] or [(first, last)]
        starts, ends = np.array([inside[i] for i in thinned(len(inside), self.n)]).T
        counts = np.ones(len(starts), dtype=np.int64)
        for _ in range(self.n - len(starts)):  # to where frames are furthest apart
            counts[np.argmax((ends - starts) / counts)] += 1
        times = [
            a + (np.arange(count) + 0.5) / count * (b - a)
            for a, b, count in zip(starts, ends, counts, strict=True)
        ]
        return np.unique(frame_at(pts, np.concatenate(times)))


def find_shots(frames: Source | Iterable[Frames], *, shortest: float = 0.5) -> list[Segment]:
    """The shots of a source, or of successive frames in chunks; together they cover it all.

    shortest: seconds that a shot lasts at least. Memory is bounded but for some 100 bytes a frame.
    """
    if not (math.isfinite(shortest) and shortest > 0):
        raise InputError(f"the shortest shot is {shortest} s; must be above 0")
    pts: list[float] = []
    distant: list[float] = []  # pts of the frames that fades are looked for in
    for batch in _batches(frames):
        looks, black = _look(batch.pixels)
        if not pts:
            step = float(np.median(batch.duration_seconds)) or 1.0
            just = min(max(round(_JUST / step), 1), _MOST_JUST)
            near, far = _Differences(2 * just - 1), _Differences(2 * (_HALF + _SIDE))
            cell = -1.0
        near.add(looks)
        # A fade through black is a dissolve once what is black is left out.
        cells = np.floor(batch.pts_seconds / _APART + 1e-6)
        taken = (np.diff(cells, prepend=cell) > 0) & ~black
        far.add(looks[taken])
        pts += batch.pts_seconds.tolist()
        distant += batch.pts_seconds[taken].tolist()
        cell, end = cells[-1], float(batch.pts_seconds[-1] + batch.duration_seconds[-1])
    if not pts:
        raise InputError("there are no frames to find shots in; give at least one")
    bounds = [pts[0], end]
    for i in _cuts(near.table(), just, max(2, round(min(_AROUND, shortest) / step))):
        _insert(bounds, pts[i], shortest)
    if step <= 1.5 * _APART:
        hard = bounds[1:-1]
        for i in _fades(far.table()):
            if all(abs(distant[i] - cut) > _REACH for cut in hard):
                _insert(bounds, distant[i], max(shortest, _REACH))
    return [Segment(a, b) for a, b in pairwise(bounds)]


class _Differences:
    """How much each frame differs from those up to `lags` before it; frames come in batches."""

    def __init__(self, lags: int) -> None:
        self.lags = lags
        self._tail: _Floats | None = None
        self._rows: list[_Floats] = []

    def add(self, looks: _Floats) -> None:
        """The next frames."""
        tail = looks[:0] if self._tail is None else self._tail
        both, before = np.concatenate([tail, looks]), len(tail)
        rows = np.full((self.lags + 1, len(looks)), np.inf, dtype=np.float32)
        for lag in range(1, min(self.lags, len(both) - 1) + 1):
            new = max(before, lag)
            rows[lag, new - before :] = _difference(both[new:], both[new - lag : len(both) - lag])
        self._rows.append(rows)
        self._tail = both[-self.lags :]

    def table(self) -> _Floats:
        """Differences [lags + 1, T]: [k, i] is of the frames i - k and i; infinite without one."""
        return np.concatenate(self._rows, axis=1)


def _cuts(table: _Floats, just: int, around: int) -> list[int]:
    """Places of the first frames after hard cuts, the strongest first."""
    T = table.shape[1]
    change = np.full(T, np.inf, dtype=np.float32)  # the least between just before and just after
    for after in range(just):
        for before in range(1, just + 1):
            shifted = table[before + after, after:]
            np.minimum(change[: T - after], shifted, out=change[: T - after])
    change[~np.isfinite(change)] = 0
    found = []
    for i in np.flatnonzero(change >= _DIFFERENT).tolist():
        beside = np.concatenate([change[max(0, i - around) : i], change[i + 1 : i + 1 + around]])
        # The second largest: one other cut may be near.
        if len(beside) < 2 or change[i] >= _OUTSTANDING * np.partition(beside, -2)[-2]:
            found.append(i)
    return sorted(found, key=lambda i: -float(change[i]))


def _fades(table: _Floats) -> list[int]:
    """Places in the middle of fades, the strongest first."""
    T = table.shape[1]
    inner = range(_HALF + _SIDE, T - _HALF - _SIDE)
    if len(inner) == 0:
        return []
    places = np.array(inner)
    across = np.full(len(places), np.inf, dtype=np.float32)
    for before in range(_SIDE + 1):
        for after in range(_SIDE + 1):
            lag = 2 * _HALF + before + after
            across = np.minimum(across, table[lag, places + _HALF + after])
    within = np.zeros(T, dtype=np.float32)  # the most among a frame and the _SIDE before it
    for last in range(_SIDE):
        for lag in range(1, _SIDE - last + 1):
            within[_SIDE:] = np.maximum(within[_SIDE:], table[lag, _SIDE - last : T - last])
    beside = np.maximum(within[places - _HALF], within[places + _HALF + _SIDE])
    faded = (across >= _FADED) & (across >= _CALM * beside)
    # Successive places tell of one fade: the one in their middle stands for them.
    runs = np.split(np.arange(len(places)), np.flatnonzero(np.diff(faded)) + 1)
    runs = [run for run in runs if faded[run[0]]]
    runs.sort(key=lambda run: -float(across[run].max()))
    return [int(places[run[len(run) // 2]]) for run in runs]


def _insert(bounds: list[float], time: float, shortest: float) -> None:
    """Add to the rising bounds, unless that makes a shot too short."""
    at = bisect(bounds, time)
    if all(abs(time - bound) >= shortest - 1e-6 for bound in bounds[at - 1 : at + 1]):
        bounds.insert(at, time)


def _look(pixels: torch.Tensor) -> tuple[_Floats, NDArray[np.bool_]]:
    """What frames look like, [T, structure and colours], and which are black, [T]."""
    small = pixels.float() / 255
    if tuple(small.shape[2:]) != SIZE:
        small = torch.nn.functional.interpolate(small, SIZE, mode="area")
    r, g, b = small.flatten(2).numpy().transpose(1, 0, 2)  # each T x pixels
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    blue, red = 0.564 * (b - luma), 0.713 * (r - luma)
    T = len(luma)

    # Luma of mean 0 and deviation 1; what is flat has no structure to agree.
    mean, deviation = luma.mean(1, keepdims=True), luma.std(1, keepdims=True)
    structure = (luma - mean) / np.sqrt(deviation**2 + _FLAT**2)

    # One histogram of luma and one of both chromas.
    bins = np.hstack([_bin(luma), _BINS + _BINS * _bin(blue + _MIDDLE) + _bin(red + _MIDDLE)])
    count = _BINS + _BINS**2
    counts = np.bincount((bins + count * np.arange(T)[:, None]).ravel(), minlength=count * T)
    colours = counts.reshape(T, count) / luma.shape[1]

    black = (mean < 0.05) & (deviation < 0.03)
    return np.hstack([structure, colours]).astype(np.float32), black[:, 0]


def _bin(values: _Floats) -> NDArray[np.int64]:
    """[0, 1] in equal parts."""
    return np.clip(values * _BINS, 0, _BINS - 1).astype(np.int64)


def _difference(a: _Floats, b: _Floats) -> _Floats:
    """Of the looks of frames, [T] in [0, 1]."""
    pixels = SIZE[0] * SIZE[1]
    agreement = (a[:, :pixels] * b[:, :pixels]).mean(1)
    moved = np.abs(a[:, pixels:] - b[:, pixels:])  # each histogram's sum is at most 2
    colours = np.maximum(moved[:, :_BINS].sum(1), moved[:, _BINS:].sum(1)) / 2
    difference: _Floats = np.sqrt(np.clip(1 - agreement, 0, 1) * colours)
    return difference


def _batches(frames: Source | Iterable[Frames]) -> Iterator[Frames]:
    """Frames in pieces that are cheap to look at."""
    for chunk in frames if isinstance(frames, Iterable) else _read(frames):
        for at in range(0, len(chunk), _BATCH):
            part = slice(at, at + _BATCH)
            yield Frames(chunk.pixels[part], chunk.pts_seconds[part], chunk.duration_seconds[part])


def _read(source: Source) -> Iterator[Frames]:
    """All frames of a source, in chunks of bounded size."""
    count = max(1, _CHUNK // source.read([0]).pixels.numel())
    for at in range(0, len(source.pts), count):
        yield source.read(range(at, min(at + count, len(source.pts))))
