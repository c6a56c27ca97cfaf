"""The decoding side of the indexer: sources to pieces of decoded frames, several at a time.

Legend: T frames, h, w height and width that the encoder reads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid import video
from flamvid.errors import DecodeError, DecoderLost, FlamvidError, SourceError
from flamvid.index.channel import Channel, Stopped, Switch
from flamvid.index.content import Content, Gone, on_disk
from flamvid.index.encoder import FrameEncoder
from flamvid.index.sieve import Changed, Job, Sieve, changed
from flamvid.index.stats import Stats
from flamvid.index.watch import Look
from flamvid.store import StoreWriter, VideoRecord, VideoWriter
from flamvid.video.sample import Sampling, thinned

__all__ = [
    "REASONS",
    "Decoders",
    "Ending",
    "Item",
    "Piece",
    "is_last",
    "is_look",
    "reason_of",
]

_AT_ONCE = 16  # frames that are read together
_LARGE = 64 << 20  # bytes of frames that are read together, where they come in full size
_PATIENCE = 0.2  # seconds until the switch is looked at
_AHEAD = 8  # pieces, at least, that wait for the encoder: videos take turns to be short and long


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Sampled frames of a job: which of them, their pts, and uint8 [T,3,h,w]."""

    job: Job
    numbers: NDArray[np.int64]
    pts: NDArray[np.float64]
    pixels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """Nothing more comes of a job: it was read to its end, or failed."""

    job: Job
    error: Exception | None = None


Item = Piece | Ending


class Decoders:
    """One thread that looks which sources are new, in order, and `workers` that decode them.

    All that they make goes to `items`: of one job in order, of several in any.
    """

    def __init__(
        self,
        writer: StoreWriter,
        encoder: FrameEncoder,
        sampling: Sampling,
        *,
        workers: int,
        timeout: float | None,
        tell: int,
        stats: Stats,
        switch: Switch,
    ) -> None:
        self.items: Channel[Item] = Channel(max(_AHEAD, 2 * workers), switch)
        self._writer, self._encoder, self._sampling = writer, encoder, sampling
        self._workers, self._timeout, self._tell = workers, timeout, tell
        self._stats, self._switch = stats, switch
        self._jobs: Channel[Job | None] = Channel(workers, switch)
        self._picking = threading.Lock()  # a sieve is for one at a time

    def start(self, sources: Iterable[str | Look], sieve: Sieve) -> list[threading.Thread]:
        """Set to work. Of each worker, whose threads these are, an item that `is_last` comes."""
        feeding = threading.Thread(target=self._guarded, args=(self._feed, sources, sieve))
        feeding.daemon = True  # it may wait for new files, or for stdin, when all is called off
        feeding.start()
        threads = [
            threading.Thread(target=self._guarded, args=(self._work, sieve))
            for _ in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, work: object, *args: object) -> None:
        try:
            work(*args)  # type: ignore[operator]
        except Stopped:
            pass
        except BaseException as error:
            self._switch.stop(error)

    def _feed(self, sources: Iterable[str | Look], sieve: Sieve) -> None:
        for source in sources:
            self._switch.check()
            if isinstance(source, Look):
                with self._picking:
                    sieve.forget(source.gone)
                if not source.changing:
                    self._settle(sieve)
                with self._picking:
                    again = sieve.anew()
                for each in again:
                    self._feed_one(each, sieve)
            else:
                self._feed_one(source, sieve)
        for _ in range(self._workers):
            self._jobs.put(None)

    def _feed_one(self, source: str, sieve: Sieve) -> None:
        if (job := self._pick(source, sieve)) is not None:
            self._jobs.put(job)

    def _pick(self, source: str, sieve: Sieve) -> Job | None:
        with self._picking:
            self._stats.found += 1
            try:
                return sieve.pick(source)
            except SourceError as raised:
                error = raised
        self.items.put(Ending(Job(source, Content("", 0, 0.0)), error))
        return None

    def _settle(self, sieve: Sieve) -> None:
        """Wait until records agree with what was met: half of an exchange would be a loss."""
        sieve.settled.clear()
        self.items.put(Ending(_LOOKED))
        while not sieve.settled.wait(_PATIENCE):
            self._switch.check()

    def _work(self, sieve: Sieve) -> None:
        while (job := self._jobs.get()) is not None:
            if (written := self._do(job)) is None:
                continue
            while not written.undone.wait(_PATIENCE):
                self._switch.check()
            with self._picking:
                sources = sieve.retake(job)
            for source in sources:  # here, for who waits to put a job waits for the workers
                if (again := self._pick(source, sieve)) is not None:
                    self._do(again, last=True)
        self.items.put(Ending(_LAST))

    def _do(self, job: Job, last: bool = False) -> Changed | None:
        """Carry out a job; says so where its file was written over meanwhile, which is a failure
        the `last` time."""
        error: Exception | None = None
        try:
            if job.stored is not None:
                self._remember(job, job.stored)
            else:
                self._decode(job)
        except Stopped:
            raise
        except Exception as raised:  # one odd file must not take the other thousand with it
            error = raised
            job.vanished = job.stored is None and Gone()(job.source)
        written = Changed(job.source) if job.stored is None and changed(job) else None
        if written is not None:
            error = SourceError(str(written)) if last else written
        self.items.put(Ending(job, error))
        return None if last else written

    def _remember(self, job: Job, record: VideoRecord) -> None:
        """What the store has of a video, to tell of it."""
        stored = self._writer.reader[record.id]
        frames = thinned(record.stored, self._tell).tolist()
        features = np.concatenate([stored.frames(n, n + 1) for n in frames])
        job.seen.append(torch.from_numpy(features.astype(np.float32)))
        job.end = record.duration

    def _decode(self, job: Job) -> None:
        size = self._encoder.decode_size
        with (
            on_disk(job.source) as path,
            video.open_recorded(path, size=size, timeout=self._timeout) as opened,
        ):
            # A frame that is shown for long is kept once: pts say how long.
            at = np.unique(self._sampling.indices(opened.pts, opened.durations))
            info = opened.info
            job.end = float(opened.pts[-1] + opened.durations[-1])
            record = VideoRecord(
                path=job.source,
                content_hash=job.content.sha256,
                size=job.content.size,
                mtime=job.content.mtime,
                duration=job.end,
                fps=info.fps,
                codec=info.codec,
                width=info.width,
                height=info.height,
                frames=len(opened.pts),
            )
            job.video = VideoWriter(self._writer, record)
            if self._tell:
                job.told = thinned(len(at), self._tell)
            numbers = np.union1d(np.arange(job.video.resume_at, len(at)), job.told)
            frame = 3 * info.width * info.height
            step = _AT_ONCE if size else max(1, min(_AT_ONCE, _LARGE // max(1, frame)))
            for first in range(0, len(numbers), step):
                some = numbers[first : first + step]
                frames = opened.read(at[some].tolist())
                pixels = self._encoder.shrink(frames.pixels)
                self.items.put(Piece(job, some, frames.pts_seconds, pixels))


_LAST = Job("", Content("", 0, 0.0))
"""The job of no source: a worker's last words."""
_LOOKED = Job("", Content("", 0, 0.0))
"""Likewise: those who watch have looked at all sources once."""


def is_last(item: Item) -> bool:
    """Whether a worker has found nothing more to do."""
    return item.job is _LAST


def is_look(item: Item) -> bool:
    """Whether all sources were looked at once more, by who watches."""
    return item.job is _LOOKED


REASONS = ("source", "decode", "lost", "refused", "unexpected")
"""The words of the ledger."""


def reason_of(error: Exception) -> str:
    """One word for the ledger, which `--retry-failed --reason` chooses by."""
    if isinstance(error, DecoderLost):
        return "lost"
    if isinstance(error, DecodeError):
        return "decode"
    if isinstance(error, SourceError):
        return "source"
    return "refused" if isinstance(error, FlamvidError) else "unexpected"
