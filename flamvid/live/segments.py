"""The events of a recording, by when its scenes change; each frame is encoded once.

The signal is that of `flamvid live --on-change`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike

import torch
from torch import Tensor

from flamvid import video
from flamvid.errors import InputError
from flamvid.live.look import Looker, View
from flamvid.live.spread import Spread
from flamvid.live.trigger import Change, ChangeConfig
from flamvid.types import Frames, Segment
from flamvid.video.live import LiveSource
from flamvid.video.sample import Fps

__all__ = ["look_at_segments"]

_FPS = 2.0  # at which scenes are told apart
_LEAST = 2.0  # seconds of a segment; shorter ones belong to the one before
_READ_AT_ONCE = 32


def look_at_segments(
    looker: Looker, source: str | PathLike[str], view: View
) -> Iterator[tuple[Segment, Tensor]]:
    """The segments of a source, one after the other, and features [T,N,F] of each.

    They leave no gaps. `view.frames` of each are looked at (by default what suits the model), of
    those that tell scenes apart, `view.fps` of them a second.
    """
    if looker.model.flamingo.vision.clip is not None:
        raise InputError(
            f"{looker.model.config.name} looks at clips, which hide when scenes change"
        )
    config = looker.model.config
    rate = view.fps or _FPS
    Fps(rate)  # checks it
    most = view.frames or config.frames or config.resampler.frames or 8
    change = Change(ChangeConfig(least=_LEAST))
    begin, last = view.start or 0.0, 0.0
    kept: Spread[Tensor] = Spread(most)
    scaled = looker.model.transform.decode_size
    with video.open_source(source, size=scaled, timeout=view.timeout) as opened:
        for start, end, frame in _frames(opened, rate, view):
            features_1NF = looker.encode(frame)
            if change.look(features_1NF[0].mean(0), start):
                yield Segment(begin, start), torch.cat(kept.choose())
                begin, kept = start, Spread(most)
            kept.add(features_1NF)  # what is not wanted, it lets go
            last = end
    if not (chosen := kept.choose()):
        raise InputError(f"start is {begin:g} s; {source} ended before that")
    yield Segment(begin, last), torch.cat(chosen)


def _frames(
    opened: video.Source | LiveSource, rate: float, view: View
) -> Iterator[tuple[float, float, Frames]]:
    """The frame in the middle of each tick, with the time that it stands for."""
    first, end = view.start or 0.0, math.inf if view.end is None else view.end
    if isinstance(opened, LiveSource):
        for tick, frame in enumerate(opened.frames(fps=rate)):
            if (tick + 0.5) / rate >= end:
                return
            if (tick + 0.5) / rate >= first:
                yield tick / rate, min((tick + 1) / rate, end), frame
        return
    end = min(end, float(opened.pts[-1] + opened.durations[-1]))
    places = Fps(rate).indices(opened.pts, opened.durations, first, end).tolist()
    for at in range(0, len(places), _READ_AT_ONCE):
        read = opened.read(places[at : at + _READ_AT_ONCE])
        for i in range(len(read)):
            one, tick = slice(i, i + 1), at + i
            until = end if tick + 1 == len(places) else first + (tick + 1) / rate
            frame = Frames(read.pixels[one], read.pts_seconds[one], read.duration_seconds[one])
            yield first + tick / rate, until, frame
