"""Endless sources that survive: watched, reconnected, on one clock, through a bounded queue.

A thread reads a `LiveSource` after the other and puts what comes into the queue. Whoever looks at
the frames takes them from there, and may be slower than the stream.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np

from flamvid.errors import DecodeError, InputError
from flamvid.types import Frames, VideoInfo
from flamvid.video.address import Kind, classify, local_path
from flamvid.video.backlog import Backlog, Drop
from flamvid.video.events import Event, Frame, Gap, Mark
from flamvid.video.live import LiveSource, is_endless
from flamvid.video.live_graph import HOLE
from flamvid.video.reconnect import Reconnect
from flamvid.video.record import Record
from flamvid.video.sample import Fps
from flamvid.video.source import check_file
from flamvid.video.timeline import Timeline

__all__ = [
    "Drop",
    "Event",
    "Frame",
    "Gap",
    "Mark",
    "Reconnect",
    "Record",
    "Stats",
    "Stream",
    "open_stream",
]

_log = logging.getLogger("flamvid.video")
_FAREWELL = 2.0  # seconds that a decoder gets to finish what it records
_FRUITLESS = 3  # restarts on the rest of a pipe without a frame, after which it is given up


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the stream was opened.

    received: frames that came out of the decoder, at the rate that was asked for. taken: events
    aside, how many of them were looked at. dropped: how many were not, because the queue was full.
    waiting: how many are in the queue. reconnects: connections after the first that gave a frame.
    gaps: how often something is missing. garbage: how often the demuxer or decoder complained.
    """

    received: int = 0
    dropped: int = 0
    waiting: int = 0
    reconnects: int = 0
    gaps: int = 0
    garbage: int = 0


def open_stream(
    source: str,
    *,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    timeout: float = 15.0,
    reconnect: Reconnect | None = None,
    queue: int = 8,
    drop: Drop | None = None,
    hwaccel: str | None = None,
    realtime: bool = False,
    record: Record | None = None,
    after: Mark | None = None,
    stdin: BinaryIO | None = None,
) -> Stream:
    """Connect to a source, wait for its first frame, and read on in the background.

    source: a stream, camera, standard input, web address or file. fps: the frame shown in the
    middle of each 1 / fps seconds; None gives all. size: height and width that frames are resized
    to while they are decoded. timeout: seconds without a frame after which the decoder is killed
    and the source opened again, by the rules of `reconnect`. queue: how many frames may wait.
    drop: what happens to more; by default `Drop.WAIT` where the source can wait (files, pipes,
    recordings on the web that are not read in `realtime`), else `Drop.OLDEST`. hwaccel: hardware to
    decode with, by ffmpeg's name; `auto` goes without where there is none. realtime: play a
    recording no faster than its time passes, as a camera would. record: keep what comes in files,
    too. after: go on from there, where an earlier reader stopped: of a live stream by the wall
    clock, with a gap; of a recording with the first frame after it. stdin: what to read for `-`
    instead of this process's standard input.

    `SourceError` where the source can't be read at all: the first connection is not tried again.
    """
    return Stream(
        source,
        fps=fps,
        size=size,
        timeout=timeout,
        reconnect=reconnect or Reconnect(),
        queue=queue,
        drop=drop,
        hwaccel=hwaccel,
        realtime=realtime,
        record=record,
        after=after,
        stdin=stdin,
    )


class Stream:
    """Frames and gaps in order, by iteration or `get`; a context manager. See `open_stream`.

    Iteration ends with a source that ends. A live one does not: that its server hangs up and that
    it breaks down look the same from here. It ends when `reconnect.patience` is over, with
    `DecodeError`. `info` is what the present connection says of the video.
    """

    info: VideoInfo

    def __init__(
        self,
        source: str,
        *,
        fps: float | None,
        size: tuple[int, int] | None,
        timeout: float,
        reconnect: Reconnect,
        queue: int,
        drop: Drop | None,
        hwaccel: str | None,
        realtime: bool,
        record: Record | None,
        after: Mark | None,
        stdin: BinaryIO | None,
    ) -> None:
        if queue < 1:
            raise InputError(f"the queue has {queue} places; must be at least 1")
        if fps is not None:
            Fps(fps)  # checks it
        self.kind = classify(source)
        if self.kind is Kind.FILE:
            check_file(local_path(source))

        self._source, self._hwaccel = source, hwaccel
        self._options: dict[str, Any] = {
            "size": size,
            "fps": fps,
            "timeout": timeout,
            "stdin": stdin,
            "realtime": realtime,
            "record": record,
        }
        self._policy = reconnect
        self._waits = reconnect.waits()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._received = self._reconnects = self._gaps = self._garbage = 0
        self._jumps = 0  # of the sender's clock in this connection, as far as they were told
        self._seen = time.monotonic()  # when the last frame came
        self.outage: str | None = None  # why nothing comes at present
        self._live = self._connection()
        try:
            self.info = self._live.connect()
        except DecodeError as error:
            if hwaccel != "auto":
                raise
            _log.warning("%s; decoded without hardware", error)
            self._hwaccel = None
            self._live = self._connection()
            self.info = self._live.connect()
        self.name, self.endless = self._live.name, self._is_live()
        can_wait = not (self.endless or realtime) or self.kind is Kind.STDIN
        self._backlog = Backlog(queue, drop or (Drop.WAIT if can_wait else Drop.OLDEST))
        self._after, begin = after, 0.0
        if after is not None and self.endless:  # what was shown meanwhile is lost
            begin = after.pts + max(0.0, time.time() - after.wall)
            self._gap(Gap(after.pts, begin, "nobody was watching"))
        self._times = Timeline(fps, math.inf if self.kind is Kind.FILE else HOLE, begin)
        self._thread = threading.Thread(target=self._run, name="flamvid-stream", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> Stats:
        """Counts up to now."""
        with self._lock:
            garbage = self._garbage + self._live.complaints
        return Stats(
            received=self._received,
            dropped=self._backlog.dropped,
            waiting=len(self._backlog),
            reconnects=self._reconnects,
            gaps=self._gaps,
            garbage=garbage,
        )

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None at the end. `TimeoutError` where none comes within `timeout` s."""
        return self._backlog.get(timeout)

    def __iter__(self) -> Iterator[Event]:
        while (event := self.get()) is not None:
            yield event

    def close(self) -> None:
        """Kill the decoder and forget what waits; from any thread, and safe to call twice."""
        self._closed.set()
        self._backlog.clear()
        if self._options["record"] is not None:
            with self._lock:
                self._live.interrupt(gently=True)
            self._thread.join(_FAREWELL)
        with self._lock:
            self._live.interrupt()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # What follows runs in the thread that reads, but for the first connection.

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                reason = self._play(self._live)
                if reason is None or not self._again(reason):
                    break
        except Exception as error:  # the consumer's to hear, after all that came before
            self._backlog.end(error)
        else:
            self._backlog.end()
        finally:
            self._live.close()

    def _play(self, live: LiveSource) -> str | None:
        """Everything a connection gives; why it ended too early, None where it was the end."""
        began = time.monotonic()
        if self.outage is not None:
            end = self._times.end
            self._times.connect(began - self._seen)
            self._gap(Gap(end, self._times.end, self.outage))
            self._reconnects, self.outage = self._reconnects + 1, None
        self._jumps, told = live.jumps, False
        try:
            for frames in live.frames():
                self._put(live, frames)
                if live.unrecorded and not told:
                    _log.warning("%s is not recorded any more: %s", self.name, live.unrecorded)
                    told = True
        except DecodeError as error:
            if not self.endless or self._closed.is_set():
                raise
            reason = str(error)
        else:
            if not self.endless or self.kind is Kind.STDIN:
                return None
            reason = f"{self.name} hung up"
        if time.monotonic() - began >= self._policy.longest:
            self._waits = self._policy.waits()
        return reason

    def _put(self, live: LiveSource, frames: Frames) -> None:
        own, lasts = float(frames.pts_seconds[0]), float(frames.duration_seconds[0])
        if live.jumps != self._jumps:
            self._jumps = live.jumps
            self._gap(Gap(self._times.end, self._times.end, "the sender's clock was set"))
        at, shown, gap = self._times.place(own, lasts)
        if gap is not None:
            self._gap(gap)
        self._received += 1
        if self._after is None or at > self._after.pts:
            placed = Frames(frames.pixels, np.array([shown]), frames.duration_seconds)
            self._backlog.put(Frame(placed, at, time.time()))
        self._seen = time.monotonic()

    def _gap(self, gap: Gap) -> None:
        self._gaps += 1
        self._backlog.put(gap)

    def _again(self, reason: str) -> bool:
        """Connect anew, however long it takes; False where nobody waits for it any more."""
        self.outage = latest = reason
        for n, wait in enumerate(self._waits):
            if self.kind is Kind.STDIN:
                wait = 0.0  # the rest of a pipe is there or is not
                if n == _FRUITLESS:
                    break
            if time.monotonic() - self._seen + wait > self._policy.patience:
                break
            _log.warning("%s; trying again in %.1f s", latest, wait)
            if self._closed.wait(wait):
                return False
            try:
                self._open()
            except DecodeError as error:
                latest = str(error)
            else:
                # That a stream has ended meanwhile can be told now: it knows its length.
                return self._is_live()
        end = self._times.end
        self._gap(Gap(end, end + time.monotonic() - self._seen, reason))
        raise DecodeError(f"{self.name} was lost at {end:.3f} s for good: {reason}")

    def _connection(self) -> LiveSource:
        return LiveSource(self._source, hwaccel=self._hwaccel, **self._options)

    def _open(self) -> None:
        """A connection that has its first frame; `close` can end it meanwhile."""
        live = self._connection()
        with self._lock:
            self._garbage += self._live.complaints
            self._live = live
            if self._closed.is_set():
                live.interrupt()
        self.info = live.connect()

    def _is_live(self) -> bool:
        """Whether a source goes on for ever, as far as we know."""
        if self.kind in (Kind.HTTP, Kind.HLS):
            return is_endless(self.info)
        return self.kind is not Kind.FILE
