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
from flamvid.video.sample import Fps, Uniform, windows
from flamvid.weights.load import LoadedModel

__all__ = ["Looker", "View"]

_READ_AT_ONCE = 32  # frames in memory, however many are asked for
_LIVE_FPS = 2.0  # of a stream that is looked at until it ends
_MOST_OF_LIVE = 128  # frames of it that are kept when fps asks for all


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which part of a source to look at, and which of its frames.

    frames: how many (by default what suits the model), or fps: how many per second. start, end: in
    seconds. every, window: a part every so many seconds, each of `window` seconds (by default
    `every`). timeout: seconds that opening the source or reading from it may take at once; by
    default it grows with the source.
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None
    every: float | None = None
    window: float | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.fps is not None:
            raise InputError("both frames and fps are given; choose one")
        if self.window is not None and self.every is None:
            raise InputError(f"window is {self.window} without every; give every as well")


@dataclass(frozen=True, slots=True)
class Looker:
    """Looks at sources for a model. Keeps nothing between calls."""

    model: LoadedModel

    def encode(self, frames: Frames) -> Tensor:
        """Frozen features [T,N,F] of decoded frames."""
        pictures = self.model.transform(frames.pixels)
        pictures = pictures.to(self.model.device, self.model.dtype)
        if len(pictures) == 1:
            # oneDNN has other kernels for one picture than for several. A frame of a stream comes
            # alone, and must get the very features that it gets among others.
            return self.model.flamingo.encode(pictures.expand(2, -1, -1, -1))[:1].clone()
        return self.model.flamingo.encode(pictures)

    def look(self, source: str | PathLike[str], view: View) -> Iterator[tuple[Segment, Tensor]]:
        """The parts of a source that the view asks for, and features [T,N,F] of their frames."""
        config = self.model.config
        usual = config.frames or config.resampler.frames or 1
        sampling = _sampling(view, usual)
        with video.open_source(source, size=self._decode_size(), timeout=view.timeout) as opened:
            if isinstance(opened, LiveSource):
                yield from self._watch(
                    opened, sampling, Segment(view.start or 0.0, view.end or math.inf), view
                )
                return
            length = float(opened.pts[-1] + opened.durations[-1])
            start = view.start or 0.0
            parts = [Segment(start, length if view.end is None else min(view.end, length))]
            if view.every is not None and length > 0:
                size = view.every if view.window is None else view.window
                parts = windows(length, size, view.every, start, view.end)
            for part in parts:
                at = sampling.indices(opened.pts, opened.durations, part.start, part.end).tolist()
                chunks = [at[i : i + _READ_AT_ONCE] for i in range(0, len(at), _READ_AT_ONCE)]
                yield part, torch.cat([self.encode(opened.read(chunk)) for chunk in chunks])

    def _watch(
        self,
        live: LiveSource,
        sampling: Uniform | Fps,
        part: Segment,
        view: View,
    ) -> Iterator[tuple[Segment, Tensor]]:
        """As `_look` on what can only be read forward, in bounded memory: windows as they end."""
        every = view.every
        if every is None:
            most = sampling.n if isinstance(sampling, Uniform) else _MOST_OF_LIVE
            rate = sampling.rate if isinstance(sampling, Fps) else _LIVE_FPS
            yield self._watch_whole(live, rate, most, part)
            return
        size = every if view.window is None else view.window
        rate = sampling.rate if isinstance(sampling, Fps) else sampling.n / size
        seen: deque[tuple[float, Tensor]] = deque()
        begin, last = part.start, part.start
        for time, frame in _between(live, rate, part):
            while time >= begin + size:
                if inside := [f for t, f in seen if t >= begin]:
                    yield Segment(begin, begin + size), torch.cat(inside)
                begin += every
            while seen and seen[0][0] < begin:
                seen.popleft()
            last = time + 0.5 / rate
            if time >= begin:
                seen.append((time, self.encode(frame)))
        while begin < last - 1e-9:
            if inside := [f for t, f in seen if t >= begin]:
                yield Segment(begin, min(begin + size, last)), torch.cat(inside)
            begin += every

    def _watch_whole(
        self, live: LiveSource, rate: float, most: int, part: Segment
    ) -> tuple[Segment, Tensor]:
        """Everything until the stream ends, by frames spread evenly over it."""
        spread: Spread[Tensor] = Spread(most)
        last = part.start
        for time, frame in _between(live, rate, part):
            last = time + 0.5 / rate
            if spread.wants():
                spread.add(self.encode(frame))
            else:
                spread.skip()
        features = spread.choose()
        if not features:
            raise InputError(f"start is {part.start:g} s; {live.name} ended before that")
        return Segment(part.start, last), torch.cat(features)

    def _decode_size(self) -> tuple[int, int] | None:
        """What frames can be resized to while they are decoded, without a crop to come."""
        vision = self.model.config.vision
        return (vision.size, vision.size) if vision.resize == "squash" else None


def _sampling(view: View, usual: int) -> Uniform | Fps:
    if view.fps is not None:
        return Fps(view.fps)
    return Uniform(usual if view.frames is None else view.frames)


def _between(live: LiveSource, rate: float, part: Segment) -> Iterator[tuple[float, Frames]]:
    """The frames shown at ticks of `rate` per second in a part of a stream, and the ticks."""
    for tick, frame in enumerate(live.frames(fps=rate)):
        time = (tick + 0.5) / rate
        if time >= part.end:
            return
        if time >= part.start:
            yield time, frame
