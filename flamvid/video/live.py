"""Frames of what can't be wound back: streams, standard input, cameras; forward, each one once.

An ffmpeg child decodes. It writes each frame as a picture with a header (PAM) to one pipe and the
frame's pts to another; both are written by the thread that encodes, in the same order, and the
line of a frame is flushed before the frame is passed on.
"""

from __future__ import annotations

import io
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import DecodeError, DecoderLost, InputError, SourceError
from flamvid.types import Frames, VideoInfo
from flamvid.video.address import ANALYSED, Kind, classify, shown
from flamvid.video.live_child import LiveChild
from flamvid.video.live_graph import Wishes, live_graph
from flamvid.video.record import Record
from flamvid.video.sample import Fps

__all__ = ["LiveSource", "at_ticks", "is_endless", "open_live", "recorded"]

_LONGEST_GAP = 3600.0  # seconds between two frames; a jump of more is an error of the clock


class LiveSource:
    """A source read forward; `info` is known once the first frame has come.

    Frames wait in the pipe: while nobody asks for one, the pipe is full and ffmpeg stops reading.
    No thread reads ahead, so that the memory is that of one frame however long the stream, and
    nothing is dropped behind the back of who reads; who can't keep up is the one to choose what
    to leave out. Where that loses packets (UDP) the stream goes on.

    Times rise strictly, from 0 at the first frame. A pts that does not come after the last one, or
    comes over an hour after it, begins a new clock: its frame follows the last one by that one's
    duration, and later frames keep their distance to it. ffmpeg has mended wraps of 33-bit pts and
    jumps of over 10 s in MPEG-TS and HLS in the same way before.

    What `fps`, `size`, `hwaccel`, `realtime` and `record` mean, `stream.open_stream` says; that one
    also opens a stream again when it is lost.

    A frame lasts until the next one comes, which is not known yet: `duration_seconds` is how long
    the frame before it lasted, at most a second or what the container says.
    """

    def __init__(
        self,
        source: str,
        *,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        timeout: float = 15.0,
        stdin: BinaryIO | None = None,
        hwaccel: str | None = None,
        realtime: bool = False,
        record: Record | None = None,
    ) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise InputError(f"timeout is {timeout} s; must be above 0")
        _check_target(size)
        if fps is not None:
            Fps(fps)  # checks it
        self.kind = classify(source)
        self.name = "standard input" if self.kind is Kind.STDIN else shown(source)
        self.info: VideoInfo | None = None
        self.timeout = timeout
        self._size = size
        self._clock = _Clock()
        self._ticks, self._number, self._placed = 0, b"", (0.0, 0.0)
        self._ahead: Frames | None = None  # the first frame, where it was read to connect
        self._fps, self._hwaccel = fps, hwaccel
        # An even multiple of the rate has a tick at the start, where the clock begins, and in the
        # middle of each part. It is over one per second, so that the watchdog hears of the child.
        self._thin = 0 if fps is None else 2 * math.ceil(0.5 / fps)
        rate = None if fps is None else fps * self._thin
        graph = live_graph(source, Wishes(size, rate, timeout, hwaccel, realtime, record))
        self._child: LiveChild | None = LiveChild(
            graph, _input_of(self.kind, stdin), limited=hwaccel is None
        )
        self._log = self._child.log

    @property
    def jumps(self) -> int:
        """How often the sender's clock has been set: where what follows does not continue."""
        return self._clock.jumps + self._log.jumps

    @property
    def unrecorded(self) -> str:
        """Why nothing is recorded any more, where it was to be; else an empty text."""
        return self._log.unrecorded

    @property
    def complaints(self) -> int:
        """How often the demuxer or decoder has found something wrong with the data."""
        return self._log.complaints

    def connect(self) -> VideoInfo:
        """Wait for the first frame, which stays to be read; `DecodeError` where none comes."""
        if self.info is None:
            self._ahead = self._read()
        if self.info is None:
            raise DecodeError(f"{self.name} is closed; open it again")
        return self.info

    def frames(
        self, *, fps: float | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[Frames]:
        """One frame after the other, each as `Frames` of T = 1, until the stream ends.

        fps: the frame shown at each tick, as `at_ticks` says. size: height and width. Both are
        cheaper if they were given at opening, so that nothing else has to come through the pipe;
        then fps is left out here. A later call goes on where the last one stopped.
        """
        _check_target(size)
        if fps is not None:
            Fps(fps)  # checks it
            if self._fps is not None:
                raise InputError(f"fps is {fps}; {self.name} was opened with {self._fps} fps")
        if self._thin:
            frames = self._thinned()
        else:
            frames = self._forward() if fps is None else at_ticks(self._forward(), fps)
        return frames if size is None else (_resized(frame, size) for frame in frames)

    def close(self) -> None:
        """End the child at once; safe to call twice. The same happens when this is forgotten.

        To be called by the thread that reads.
        """
        if self._child is not None:
            self._child.kill()
            self._child = None
        self._ahead = None

    def interrupt(self, *, gently: bool = False) -> None:
        """Kill the child from any thread; who reads meets the end of the stream, or an error.

        gently: let it finish what it records, while somebody still reads.
        """
        if (child := self._child) is not None:
            (child.process.terminate if gently else child.process.kill)()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _forward(self) -> Iterator[Frames]:
        while True:
            frame, self._ahead = self._ahead or self._read(), None
            if frame is None:
                return
            yield frame

    def _thinned(self) -> Iterator[Frames]:
        frame = None
        for frame in self._forward():
            self._ticks += 1
            if self._ticks % self._thin == (self._thin // 2 + 1) % self._thin:
                yield frame
        # As `at_ticks`: one frame of what ends before its first tick.
        if frame is not None and self._ticks <= self._thin // 2:
            yield frame

    def _read(self) -> Frames | None:
        """The next frame; None at the end, with the child gone."""
        if self._child is None:
            return None
        patience = self.timeout + (ANALYSED / 1e6 if self.info is None else 0.0)
        try:
            frame = self._next(self._child, time.monotonic() + patience)
        except BaseException:
            self.close()
            raise
        if frame is None:
            self.close()
        return frame

    def _next(self, child: LiveChild, deadline: float) -> Frames | None:
        try:
            line = child.line(deadline)
            if line is None:
                self._check_end(child)
                return None
            pts, base, size, number = line.split()
            pixels = child.picture(int(size), self.name, deadline)
        except TimeoutError:
            known = child.log.container
            what = "sent no frame" if known or self.info else "gave no answer"
            raise DecodeError(
                f"{self.name} {what} within {self.timeout:g} s; check that it is on the air, or "
                "give it a longer timeout"
            ) from None
        if pixels is None:
            self._check_end(child)
            return None
        if self.info is None:
            self.info = child.log.info(self.name, pixels, self._size)
            self._clock.nominal = 1 / self.info.fps if self.info.fps > 0 else 0.0
        above, below = (int(n) for n in base.split(b"/"))
        if not self._thin or number != self._number:
            # Without a pts ffmpeg writes the least integer there is.
            raw = int(pts) * above / below if int(pts) > -(1 << 62) else None
            self._placed, self._number = self._clock.place(raw), number
        at, lasts = self._placed  # of a frame that is shown for several ticks, as before
        return Frames(pixels[None], np.array([at]), np.array([lasts]))

    def _check_end(self, child: LiveChild) -> None:
        """`DecodeError` when the stream has not ended by itself, or never began."""
        status, log, at = child.wait(), child.log, f"{self._clock.last:.3f} s"
        if status < 0 and self.info is None and self._hwaccel is not None:
            # The bundled ffmpeg aborts where the libraries of a decoder are missing.
            raise DecoderLost(
                f"{self.name} can't be decoded by {self._hwaccel} hardware: ffmpeg crashed (signal "
                f"{-status}), as it does where a driver is missing; leave it out, or give auto"
            )
        if status < 0:
            raise DecoderLost(f"{self.name}: its decoder crashed (signal {-status}); try again")
        if self.info is None:
            raise DecodeError(log.complaint(self.name, self.kind, self.timeout))
        # ffmpeg takes it for an error when a stream of no known length ends, as it must, by the
        # server closing the connection.
        endless = self.kind is Kind.RTMP or log.endless
        if endless and log.broken == "Input/output error":
            return
        if log.broken or status or (log.cut and self.kind is Kind.STDIN):
            why = log.breach(self.kind, self.timeout)
            raise DecodeError(f"{self.name} broke off at {at}: {why}")


def open_live(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    timeout: float = 15.0,
    stdin: BinaryIO | None = None,
) -> LiveSource:
    """Connect to a stream, a camera (cam:0) or standard input (-), and wait for its first frame.

    size: height and width that frames are resized to while they are decoded. timeout: seconds
    without any frame after which it is given up, now or later. stdin: what to read for `-`
    instead of this process's standard input.
    """
    live = LiveSource(source, size=size, timeout=timeout, stdin=stdin)
    live.connect()
    return live


def is_endless(info: VideoInfo) -> bool:
    """Whether the container knows no end: a live stream, or one that came without its length."""
    return info.duration <= 0


def recorded(source: str, *, timeout: float = 15.0) -> bool:
    """Whether a source has an end and can be read again from its start.

    A web address is asked, which takes one connection; other streams and pipes never can.
    """
    kind = classify(source)
    if kind not in (Kind.HTTP, Kind.HLS):
        return kind is Kind.FILE
    with open_live(source, size=(2, 2), timeout=timeout) as live:
        return live.info is not None and not is_endless(live.info)


def at_ticks(frames: Iterator[Frames], fps: float) -> Iterator[Frames]:
    """The frame shown in the middle of each 1 / fps seconds, as `sample.Fps` takes it.

    A frame shown for long comes again, as time passes. Which one is shown at a tick is known when
    one after the tick has come; then its true duration is known as well.
    """
    held: Frames | None = None
    tick = 0
    for frame in frames:
        if held is not None:
            lasted = frame.pts_seconds - held.pts_seconds
            held = Frames(held.pixels, held.pts_seconds, lasted)
            while (tick + 0.5) / fps < frame.pts_seconds[0]:
                yield held
                tick += 1
        held = frame
    if held is None:
        return
    end = float(held.pts_seconds[0] + held.duration_seconds[0])
    while tick == 0 or (tick + 0.5) / fps < end:
        yield held
        tick += 1


@dataclass(slots=True)
class _Clock:
    """Raw pts to seconds that rise, by the rule of `LiveSource`."""

    origin: float = 0.0
    last: float = -1.0  # before the first frame
    lasts: float = 0.0
    nominal: float = 0.0
    jumps: int = 0

    def place(self, raw: float | None) -> tuple[float, float]:
        """Time and probable duration of the next frame; raw is None where it has no pts."""
        if self.last < 0:
            self.origin, self.last, self.lasts = raw or 0.0, 0.0, self.nominal
            return 0.0, self.lasts
        follows = self.last + (self.lasts or self.nominal or 0.04)
        at = follows if raw is None else raw - self.origin
        if not self.last < at <= self.last + _LONGEST_GAP:
            at = follows
            if raw is not None:
                self.jumps += raw - self.origin != self.last  # the same pts twice is no jump
                self.origin = raw - at
        self.lasts = min(at - self.last, max(1.0, self.nominal))
        self.last = at
        return at, self.lasts


def _input_of(kind: Kind, stdin: BinaryIO | None) -> int | BinaryIO:
    """What the child gets as standard input."""
    if kind is not Kind.STDIN:
        return subprocess.DEVNULL
    stream: BinaryIO | None = stdin if stdin is not None else getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise SourceError("standard input is closed; pipe a video into it")
    if stream.isatty():
        raise SourceError("standard input is a terminal; pipe a video into it")
    try:
        return int(stream.fileno())
    except (OSError, io.UnsupportedOperation):
        return stream


def _check_target(size: tuple[int, int] | None) -> None:
    if size is not None and min(size) < 1:
        raise InputError(f"size is {size}; height and width must be at least 1")


def _resized(frame: Frames, size: tuple[int, int]) -> Frames:
    if frame.pixels.shape[2:] == size:
        return frame
    pixels: Tensor = F.interpolate(frame.pixels, size, mode="bicubic", antialias=True)
    return Frames(pixels, frame.pts_seconds, frame.duration_seconds)
