"""What a source shows, as frozen features: whole, or window by window, recorded or live."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from flamvid import video
from flamvid.errors import InputError
from flamvid.live.spread import Spread
from flamvid.types import Frames, Segment
from flamvid.video.live import LiveSource
from flamvid.video.sample import Clips, Fps, Uniform, windows
from flamvid.weights.load import LoadedModel

__all__ = ["Looker", "View"]

_READ_AT_ONCE = 32  # frames in memory, however many are asked for
_LIVE_FPS = 2.0  # of a stream that is looked at until it ends
_MOST_OF_LIVE = 128  # frames of it that are kept when fps asks for all


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which part of a source to look at, and which of its frames.

    frames: how many (by default what suits the model; of a video encoder, filled up to whole
    clips), or fps: how many per second. start, end: in seconds. every, window: a part every so
    many seconds, each of `window` seconds (by default `every`). timeout: seconds that opening the
    source or reading from it may take at once; by default it grows with the source.
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    every: float | None = None
    window: float | None = None
    timeout: float | None = None
    segments: bool = False

    def __post_init__(self) -> None:
        if self.segments and self.every is not None:
            raise InputError(
                f"every is {self.every:g}, but segments end where scenes do; choose one"
            )
        if not self.segments and self.frames is not None and self.fps is not None:
            raise InputError("both frames and fps are given; choose one")
        if self.window is not None and self.every is None:
            raise InputError(f"window is {self.window} without every; give every as well")


@dataclass(frozen=True, slots=True)
class Looker:
    """Looks at sources for a model. Keeps nothing between calls."""

    model: LoadedModel

    def encode(self, frames: Frames) -> Tensor:
        """Frozen features [T,N,F] of decoded frames; of a video encoder's clips, T moments."""
        return self._features(self.model.transform(frames.pixels))

    @torch.no_grad()  # of an unfrozen encoder too: a stream would keep every graph it made
    def _features(self, pictures_X3HW: Tensor) -> Tensor:
        pictures = pictures_X3HW.to(self.model.device, self.model.dtype)
        if pictures.device.type == "cpu" and self.model.flamingo.vision.clip is None:
            # oneDNN rounds by how many pictures there are. A frame of a stream comes alone, and
            # must get the very features that it gets among others; so here each comes alone.
            return torch.cat([self.model.flamingo.encode(one) for one in pictures.split(1)])
        return self.model.flamingo.encode(pictures)

    def look(self, source: str | PathLike[str], view: View) -> Iterator[tuple[Segment, Tensor]]:
        """The parts of a source that the view asks for, and features [T,N,F] of their frames."""
        sampling = self._sampling(view)
        scaled = self.model.transform.decode_size
        with video.open_source(source, size=scaled, timeout=view.timeout) as opened:
            if isinstance(opened, LiveSource):
                yield from self._watch(
                    opened, sampling, Segment(view.start or 0.0, view.end or math.inf), view
                )
                return
            length = float(opened.pts[-1] + opened.durations[-1])
            start = view.start or 0.0
            parts = [Segment(start, length if view.end is None else min(view.end, length))]
            if view.every is not None and length > 0:
                window = view.every if view.window is None else view.window
                parts = windows(length, window, view.every, start, view.end)
            for part in parts:
                at = sampling.indices(opened.pts, opened.durations, part.start, part.end).tolist()
                size = sampling.frames if isinstance(sampling, Clips) else _READ_AT_ONCE
                chunks = [at[i : i + size] for i in range(0, len(at), size)]
                yield part, torch.cat([self.encode(opened.read(chunk)) for chunk in chunks])

    def _watch(
        self,
        live: LiveSource,
        sampling: Uniform | Fps | Clips,
        part: Segment,
        view: View,
    ) -> Iterator[tuple[Segment, Tensor]]:
        """As `_look` on what can only be read forward, in bounded memory: windows as they end."""
        every = view.every
        if every is None:
            most = _MOST_OF_LIVE if isinstance(sampling, Fps) else sampling.n
            yield self._watch_whole(live, _pace(sampling), most, part)
            return
        size = every if view.window is None else view.window
        pace = _pace(sampling, size, every)
        seen: deque[tuple[float, Tensor]] = deque()
        begin = last = told = part.start
        for time, pictures in self._pieces(live, pace, part):
            while time >= begin + size:
                if inside := [f for t, f in seen if t >= begin]:
                    yield Segment(begin, begin + size), torch.cat(inside)
                begin, told = begin + every, begin + size
            while seen and seen[0][0] < begin:
                seen.popleft()
            last = time + 0.5 / pace.rate
            if pictures is not None and time >= begin:
                seen.append((time, self._features(pictures)))
        while max(begin, told) < last - 1e-9:
            if inside := [f for t, f in seen if t >= begin]:
                yield Segment(begin, min(begin + size, last)), torch.cat(inside)
            begin, told = begin + every, begin + size

    def _watch_whole(
        self, live: LiveSource, pace: _Pace, most: int, part: Segment
    ) -> tuple[Segment, Tensor]:
        """Everything until the stream ends, by frames or clips spread evenly over it."""
        spread: Spread[Tensor] = Spread(most)
        last = part.start
        for time, pictures in self._pieces(live, pace, part):
            last = time + 0.5 / pace.rate
            if pictures is None:
                continue
            if spread.wants():
                spread.add(self._features(pictures))
            else:
                spread.skip()
        features = spread.choose()
        if not features:
            raise InputError(f"start is {part.start:g} s; {live.name} ended before that")
        return Segment(part.start, last), torch.cat(features)

    def _pieces(
        self, live: LiveSource, pace: _Pace, part: Segment
    ) -> Iterator[tuple[float, Tensor | None]]:
        """Each tick's time, and what is to be encoded then, pictures [X,3,h,w]; None for nothing.

        For a video encoder, a clip from the middle of each period; the last may be cut short.
        """
        held: list[Tensor] = []
        lead = (pace.period - pace.frames) // 2
        for tick, (time, frame) in enumerate(_between(live, pace.rate, part)):
            if 0 <= tick % pace.period - lead < pace.frames:
                held.append(self.model.transform(frame.pixels))
            whole = len(held) == pace.frames
            yield time, torch.cat(held) if whole else None
            if whole:
                held.clear()
        if held:
            yield time, torch.cat(held)

    def _sampling(self, view: View) -> Uniform | Fps | Clips:
        config, clip = self.model.config, self.model.flamingo.vision.clip
        if clip is None and view.fps is not None:
            return Fps(view.fps)
        usual = config.frames or (clip.frames if clip else config.resampler.frames) or 1
        even = Uniform(usual if view.frames is None else view.frames)
        if clip is None:
            return even
        if view.fps is not None:
            raise InputError(
                f"fps is {view.fps:g}, but {config.vision.encoder} looks at clips of {clip.frames} "
                f"frames, {clip.fps:g} a second; say how many frames instead"
            )
        return Clips(math.ceil(even.n / clip.frames), clip.frames, clip.fps)


@dataclass(frozen=True, slots=True)
class _Pace:
    """How a stream is looked at: `rate` frames a second, of each `period` the middle `frames`."""

    rate: float
    frames: int = 1
    period: int = 1


def _pace(
    sampling: Uniform | Fps | Clips, size: float | None = None, every: float | None = None
) -> _Pace:
    """For windows of `size` seconds `every` seconds, or for all of what may end at any time."""
    if isinstance(sampling, Fps):
        return _Pace(sampling.rate)
    if isinstance(sampling, Uniform):
        return _Pace(_LIVE_FPS if size is None else sampling.n / size)
    if size is None or every is None:
        return _Pace(sampling.fps, sampling.frames, sampling.frames)
    each = min(size, every) / sampling.n  # seconds from one clip to the next
    rate = max(sampling.fps, sampling.frames / each)
    return _Pace(rate, sampling.frames, max(sampling.frames, int(each * rate + 1e-6)))


def _between(live: LiveSource, rate: float, part: Segment) -> Iterator[tuple[float, Frames]]:
    """The frames shown at ticks of `rate` per second in a part of a stream, and the ticks."""
    for tick, frame in enumerate(live.frames(fps=rate)):
        time = (tick + 0.5) / rate
        if time >= part.end:
            return
        if time >= part.start:
            yield time, frame
