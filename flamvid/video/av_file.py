"""Random access by PyAV with a check on every frame, for files that decord can't be trusted with.

A wanted frame counts only when the decoder hands out the very pts that the index promised. Runs in
a child.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.video.policy import FORMATS, pixel_aspect
from flamvid.video.reader import Distrusted, Pixels

__all__ = ["AvFile", "open_container"]


def open_container(path: str, *, briefly: bool = False) -> Any:
    """Open with the formats and protocols that a local file may use; av's errors pass.

    briefly: look at a packet or two instead of five seconds of them, which is enough where the
    header tells of the codec.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    if briefly:
        options["analyzeduration"] = "1"
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


class AvFile:
    """An indexed file, read key frame by key frame."""

    name = "av"

    def __init__(self, path: str, stream: int, size: tuple[int, int] | None) -> None:
        """List the packets; `Distrusted` where they don't say which frames a player shows."""
        self.path, self.size = path, size
        self._container = open_container(path)
        self._stream = self._container.streams[stream]
        self._stream.thread_type = "AUTO"
        # Of each packet its facts alone: together their data are the file.
        packets = [
            (p.pts, p.duration or 0, p.is_keyframe, p.is_discard)
            for p in self._container.demux(self._stream)
            if p.size
        ]
        counted = self._stream.frames
        if counted and abs(counted - len(packets)) > 1:  # an AVI fills gaps with empty frames
            raise Distrusted(f"the container counts {counted} frames, but has {len(packets)}")
        seen = [(pts, duration, key) for pts, duration, key, discard in packets if not discard]
        if not seen or any(pts is None for pts, _, _ in seen):
            raise Distrusted("frames without pts")
        ticks, durations, keys = np.array(sorted(seen), dtype=np.int64).T
        if (np.diff(ticks) <= 0).any():
            raise Distrusted("pts that do not rise")
        # An AVI holds no pts: where frames are reordered, those that it seems to have are guesses.
        if self._container.format.name == "avi" and self._stream.codec_context.has_b_frames:
            raise Distrusted("reordered frames in a container without pts")
        self._ticks: list[int] = ticks.tolist()
        self._keys = np.flatnonzero(keys)
        if not keys[0] and self._container.format.name != "mov,mp4,m4a,3gp,3g2,mj2":
            raise Distrusted("the first frame shown is no key frame")
        base = self._stream.time_base
        seconds: NDArray[np.float64] = ticks * np.float64(base)
        self._seconds = seconds
        last = float(durations[-1]) * float(base)
        if last <= 0:
            last = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
        self.pts = seconds - seconds[0]
        self.durations = np.diff(self.pts, append=self.pts[-1] + last)
        self._graph: tuple[tuple[Any, ...], Graph] | None = None
        self._frames: Iterator[Any] | None = None
        self._at = -1  # place of the frame that was decoded last

    def keyframes(self) -> NDArray[np.int64]:
        """Places of the key frames."""
        return self._keys

    def raw_seconds(self) -> NDArray[np.float64]:
        """The pts as the container has them, float64 [N]."""
        return self._seconds

    def read(self, indices: Sequence[int]) -> Pixels:
        """The frames at these places, uint8 [T,H,W,3], in the order asked."""
        try:
            kept = {at: self._convert(self._decode(at)) for at in sorted(set(indices))}
        except (av.error.FFmpegError, OSError) as error:
            self._frames = None
            raise DecodeError(f"av can't decode the frames asked for ({error})") from error
        return np.stack([kept[at] for at in indices])

    def _decode(self, at: int) -> Any:
        """The frame at a place, by seeking where that saves decoding."""
        # Before the first key frame lie frames whose own is hidden by an edit list.
        before = bisect_right(self._keys, at) - 1
        key = int(self._keys[before]) if before >= 0 else 0
        if self._frames is None or at <= self._at or key > self._at:
            self._seek(key)
        assert self._frames is not None
        for frame in self._frames:
            if frame.pts == self._ticks[at]:
                self._at = at
                return frame
            if frame.pts is None or frame.pts > self._ticks[at]:
                break
        self._frames = None
        raise DecodeError(f"av shows no frame at {self.pts[at]:.3f} s, where the index has one")

    def _seek(self, key: int) -> None:
        """Go to a key frame; where that lands behind it, further back, twice as far each time."""
        target, back = self._ticks[key], 1
        while True:
            self._container.seek(target, stream=self._stream, backward=True)
            frames = self._container.decode(self._stream)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.pts <= self._ticks[key]:
                self._frames = _chain(first, frames)
                self._at = key - 1
                return
            if target <= self._ticks[0] - self._ticks[-1]:
                raise DecodeError(f"av can't seek to {self.pts[key]:.3f} s")
            target -= back * max(1, (self._ticks[-1] - self._ticks[0]) // max(len(self._ticks), 1))
            back *= 2

    def _convert(self, frame: Any) -> Pixels:
        """Upright, resized, RGB; by swscale's filter, which knows the frame's matrix and range."""
        quarter_turns = round(frame.rotation / 90) % 4
        height, width = self.size or self._natural(frame, quarter_turns)
        if quarter_turns % 2:
            height, width = width, height
        key = (frame.width, frame.height, frame.format.name, width, height)
        if self._graph is None or self._graph[0] != key:
            self._graph = key, self._scaler(frame, width, height)
        graph = self._graph[1]
        graph.vpush(frame)
        pixels: Pixels = graph.vpull().to_ndarray().astype(np.uint8, copy=False)
        return np.rot90(pixels, quarter_turns)

    def _natural(self, frame: Any, quarter_turns: int) -> tuple[int, int]:
        """Height and width as shown, with square pixels."""
        aspect = pixel_aspect(float(self._stream.sample_aspect_ratio or 0), 1)
        size = frame.height, max(1, round(frame.width * aspect))
        return size if quarter_turns % 2 == 0 else size[::-1]

    def _scaler(self, frame: Any, width: int, height: int) -> Graph:
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=self._stream.time_base,
        )
        scale = graph.add("scale", f"{width}:{height}:flags=bicubic")
        rgb = graph.add("format", "rgb24")
        graph.link_nodes(source, scale, rgb, graph.add("buffersink")).configure()
        return graph


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
