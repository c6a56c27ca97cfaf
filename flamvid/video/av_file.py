"""Random access by PyAV with a check on every frame.

A wanted frame counts only when the decoder hands out the very pts that the index promised. Runs in
a child.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import av
import numpy as np
from av.stream import Discard
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.video.av_picture import Picture
from flamvid.video.av_run import Run, can_skip
from flamvid.video.policy import FORMATS, pixel_aspect
from flamvid.video.reader import Distrusted, Pixels
from flamvid.video.slices import in_order, length_bytes

__all__ = ["AvFile", "open_container"]

_HELD = 16 << 20  # bytes: the packets of a file up to here are kept and never read again
_NEAR = 1  # frames: to seek empties the decoder, so that its threads stand still


def open_container(path: str) -> Any:
    """Open with the formats and protocols that a local file may use.

    Where the headers tell of the codec, a packet or two are looked at instead of five seconds of
    them. An AVI's don't tell whether frames are reordered: `AvFile` looks for it in H.264 itself.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    brief = {**options, "analyzeduration": "1"}
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        avi = head[:4] == b"RIFF"
        if not (avi or head[4:] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3"):
            return _open(path, options)
        container = _open(path, brief)
        if avi and any(_codec(stream) != "h264" for stream in container.streams.video):
            container.close()
            container = _open(path, options)
        return container
    except (OSError, ValueError) as error:  # av's errors are both, by kind
        raise DecodeError(f"av can't open it ({error})") from error


def _open(path: str, options: dict[str, str]) -> Any:
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


def _codec(stream: Any) -> str:
    return stream.codec_context.name if stream.codec_context else ""


class AvFile:
    """An indexed file, read key frame by key frame. It takes the open `container` over."""

    name = "av"

    def __init__(self, container: Any, stream: int, size: tuple[int, int] | None) -> None:
        """List the packets; `Distrusted` where they don't say which frames a player shows."""
        self._container = container
        self._stream = container.streams[stream]
        self._stream.thread_type = "AUTO"
        for other in container.streams:  # is not even read from the disk
            if other.index != stream:
                other.discard = Discard.all
        # Of a long file, of each packet its facts alone: together their data are the file.
        self._held: list[Any] | None = [] if container.size <= _HELD else None
        packets = []
        reordered = self._stream.codec_context.has_b_frames
        look = container.format.name == "avi" and _codec(self._stream) == "h264"
        lengths = length_bytes(self._stream.codec_context.extradata or b"")
        for packet in container.demux(self._stream):
            if packet.size:
                pts, lasts = packet.pts, packet.duration or 0
                packets.append((pts, lasts, packet.is_keyframe, packet.is_discard))
                if look and not packet.is_keyframe and not in_order(memoryview(packet), lengths):
                    reordered, look = True, False
                if self._held is not None:
                    self._held.append(packet)
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
        if container.format.name == "avi" and reordered:
            raise Distrusted("reordered frames in a container without pts")
        self._ticks: list[int] = ticks.tolist()
        self._keys = np.flatnonzero(keys)
        if not keys[0] and container.format.name != "mov,mp4,m4a,3gp,3g2,mj2":
            raise Distrusted("the first frame shown is no key frame")
        base = self._stream.time_base
        seconds: NDArray[np.float64] = ticks * np.float64(base)
        self._seconds = seconds
        last = float(durations[-1]) * float(base)
        if last <= 0:
            last = float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0
        self.pts = seconds - seconds[0]
        self.durations = np.diff(self.pts, append=self.pts[-1] + last)
        aspect = pixel_aspect(float(self._stream.sample_aspect_ratio or 0), 1)
        self._picture = Picture(size, aspect, base)
        self._skips = can_skip(self._stream.codec_context.name)
        self._run: Run | None = None
        self._at = -1  # place of the frame that was given last

    def keyframes(self) -> NDArray[np.int64]:
        """Places of the key frames."""
        return self._keys

    def raw_seconds(self) -> NDArray[np.float64]:
        """The pts as the container has them, float64 [N]."""
        return self._seconds

    def read(self, places: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """The frames at these places, which rise."""
        try:
            groups = self._groups(places)
            for number, (key, wanted) in enumerate(groups):
                last = number == len(groups) - 1
                for at, frame in self._decode(key, wanted, go_on=last):
                    yield at, self._picture.of(frame)
        except MemoryError:  # av's own is both
            self._run = None
            raise
        except (av.error.FFmpegError, OSError) as error:
            self._run = None
            raise DecodeError(f"av can't decode the frames asked for ({error})") from error

    def _groups(self, places: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Places that are reached from one key frame, and that."""
        groups: list[tuple[int, list[int]]] = []
        for at in places:
            # Before the first key frame lie frames whose own is hidden by an edit list.
            before = bisect_right(self._keys, at) - 1
            key = int(self._keys[before]) if before >= 0 else 0
            if groups and key <= groups[-1][1][-1] + _NEAR:
                groups[-1][1].append(at)
            else:
                groups.append((key, [at]))
        return groups

    def _decode(self, key: int, wanted: list[int], *, go_on: bool) -> Iterator[tuple[int, Any]]:
        """The frames at the wanted places with these, by seeking where that saves decoding."""
        place = {self._ticks[at]: at for at in wanted}
        first, run = self._ticks[wanted[0]], self._run
        if run is None or not run.reaches(first) or key > self._at + _NEAR:
            run = self._run = self._seek(key)
        while True:
            for frame in run.frames(list(place), go_on=go_on):
                self._at = place.pop(frame.pts)
                yield self._at, frame
            if not place:
                return
            self._run = None
            if not self._skips:
                at = min(place.values())
                raise DecodeError(
                    f"av shows no frame at {self.pts[at]:.3f} s, where the index has one"
                )
            self._skips = False  # damaged, or against the standard: once more, with every frame
            run = self._run = self._seek(key)

    def _seek(self, key: int) -> Run:
        """Go to a key frame; where that lands behind it, further back, twice as far each time."""
        context, target, back = self._stream.codec_context, self._ticks[key], 1
        if self._held is not None:
            context.flush_buffers()
            at = next(i for i, p in enumerate(self._held) if p.pts == target and not p.is_discard)
            while at and not self._held[at].is_keyframe:  # its own is hidden by an edit list
                at -= 1
            return Run(context, islice(self._held, at, None), skip=self._skips)
        while True:
            self._container.seek(target, stream=self._stream, backward=True)
            packets: Iterable[Any] = self._container.demux(self._stream)
            first: Any = next((p for p in packets if p.size), None)
            there = first is not None and first.is_keyframe and first.pts is not None
            if there and first.pts <= self._ticks[key]:
                return Run(context, chain([first], packets), skip=self._skips)
            if target <= self._ticks[0] - self._ticks[-1]:
                raise DecodeError(f"av can't seek to {self.pts[key]:.3f} s")
            target -= back * max(1, (self._ticks[-1] - self._ticks[0]) // max(len(self._ticks), 1))
            back *= 2
