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
from typing import BinaryIO, Self

from flamvid.errors import DecodeError, InputError
from flamvid.types import Frames, VideoInfo
from flamvid.video.address import Kind, classify, local_path
from flamvid.video.backlog import Backlog, Drop
from flamvid.video.events import Event, Frame, Gap, Mark
from flamvid.video.live import LiveSource, is_endless
from flamvid.video.reconnect import Reconnect
from flamvid.video.sample import Fps
from flamvid.video.source import check_file

__all__ = ["Drop", "Event", "Frame", "Gap", "Mark", "Reconnect", "Stats", "Stream", "open_stream"]

_log = logging.getLogger("flamvid.video")
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
    taken: int = 0
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
    decode with, by ffmpeg's name. realtime: play a recording no faster than its time passes, as a
    camera would. after: go on from there, where an earlier reader stopped: of a live stream by the
    wall clock, with a gap; of a recording with the first frame after it. stdin: what to read for
    `-` instead of this process's standard input.

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

        def connection() -> LiveSource:
            return LiveSource(
                source,
                size=size,
                timeout=timeout,
                stdin=stdin,
                hwaccel=hwaccel,
                realtime=realtime,
            )

        self._connection = connection
        self._fps = fps
        self._policy = reconnect
        self._waits = reconnect.waits()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._received = self._taken = self._reconnects = self._gaps = self._garbage = 0
        self._last, self._end = -math.inf, 0.0  # of the last frame: when it is, and when it is over
        self._seen = time.monotonic()  # when it came
        self.outage: str | None = None  # why nothing comes at present
        self._live = self._open()
        self.name, self.endless = self._live.name, self._is_live(self._live)
        can_wait = not (self.endless or realtime) or self.kind is Kind.STDIN
        self._backlog = Backlog(queue, drop or (Drop.WAIT if can_wait else Drop.OLDEST))
        self._after = after if after is not None and not self.endless else None
        if after is not None and self.endless:
            self._resume(after)
        self._thread = threading.Thread(target=self._run, name="flamvid-stream", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> Stats:
        """Counts up to now."""
        complaints = self._live.complaints
        return Stats(
            received=self._received,
            taken=self._taken,
            dropped=self._backlog.dropped,
            waiting=len(self._backlog),
            reconnects=self._reconnects,
            gaps=self._gaps,
            garbage=self._garbage + complaints,
        )

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None at the end. `TimeoutError` where none comes within `timeout` s."""
        event = self._backlog.get(timeout)
        self._taken += isinstance(event, Frame)
        return event

    def __iter__(self) -> Iterator[Event]:
        while (event := self.get()) is not None:
            yield event

    def close(self) -> None:
        """Kill the decoder and forget what waits; from any thread, and safe to call twice."""
        self._closed.set()
        with self._lock:
            self._live.interrupt()
        self._backlog.clear()
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
        except Exception as error:  # the consumer's to hear, with all that came before
            self._backlog.end(error)
        else:
            self._backlog.end()
        finally:
            self._live.close()

    def _play(self, live: LiveSource) -> str | None:
        """Everything a connection gives; why it ended too early, None where it was the end."""
        began, offset = time.monotonic(), None
        try:
            for n, frames in enumerate(live.frames(fps=self._fps)):
                if offset is None:
                    offset = self._begin()
                self._put(frames, offset, n)
                self._seen = time.monotonic()
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

    def _begin(self) -> float:
        """Where on our clock a connection begins, whose own clock begins at 0."""
        if self.outage is None:
            return max(0.0, self._end)
        begin = max(self._end, self._end + time.monotonic() - self._seen)
        self._gap(Gap(self._end, begin, self.outage))
        self._reconnects += 1
        self.outage = None
        return begin

    def _put(self, frames: Frames, offset: float, n: int) -> None:
        own = float(frames.pts_seconds[0])
        at, lasts = own, float(frames.duration_seconds[0])
        if self._fps is not None:
            at, lasts = (n + 0.5) / self._fps, 0.5 / self._fps
        self._received += 1
        self._last, self._end = offset + at, offset + at + lasts
        if self._after is not None and self._last <= self._after.pts:
            return
        placed = Frames(frames.pixels, frames.pts_seconds + offset, frames.duration_seconds)
        self._backlog.put(Frame(placed, self._last, time.time()))

    def _gap(self, gap: Gap) -> None:
        self._gaps += 1
        self._backlog.put(gap)

    def _again(self, reason: str) -> bool:
        """Connect anew, however long it takes; False where nobody waits for it any more."""
        self.outage = reason
        for wait in self._waits:
            lost = time.monotonic() - self._seen
            if lost + wait > self._policy.patience:
                break
            _log.warning("%s; trying again in %.1f s", self.outage, wait)
            if self._closed.wait(wait):
                return False
            self._garbage += self._live.complaints
            self._live.close()
            try:
                self._live = self._open()
            except DecodeError as error:
                self.outage = str(error)
            else:
                return True
            if self._closed.is_set():
                return False
        self._gap(Gap(self._end, self._end + time.monotonic() - self._seen, reason))
        raise DecodeError(
            f"{self.name} was lost at {self._end:.3f} s and did not come back within "
            f"{self._policy.patience:g} s: {self.outage}"
        )

    def _open(self) -> LiveSource:
        """A connection that has its first frame; `close` can end it meanwhile."""
        live = self._connection()
        with self._lock:
            self._live = live
            if self._closed.is_set():
                live.interrupt()
        self.info = live.connect()
        return live

    def _is_live(self, live: LiveSource) -> bool:
        """Whether a source goes on for ever, as far as we know."""
        if self.kind in (Kind.HTTP, Kind.HLS):
            return is_endless(self.info)
        return self.kind is not Kind.FILE

    def _resume(self, after: Mark) -> None:
        """Begin where an earlier reader stopped: what was shown meanwhile is a gap."""
        begin = after.pts + max(0.0, time.time() - after.wall)
        self._gap(Gap(after.pts, begin, "nobody was watching"))
        self._end = begin
