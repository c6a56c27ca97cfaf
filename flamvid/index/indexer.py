"""The indexer: decode workers, one encoder over all videos' frames, one writer, one pass.

    sources -> sieve -> jobs -> decode workers -> pieces -> lanes -> features -> writer -> store

Every arrow is a bounded queue, so memory does not grow with the library. A video is in the store
once it is whole; of a long one, chunks are, and the next run goes on behind them.

Legend: T frames, N patches, F feature width.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from os import PathLike
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.index.channel import Channel, Stopped, Switch
from flamvid.index.content import Gone
from flamvid.index.encoder import FrameEncoder
from flamvid.index.feed import REASONS, Decoders, Ending, Item, Piece, is_last, is_look, reason_of
from flamvid.index.lanes import Lanes
from flamvid.index.sieve import Changed, Job, Sieve
from flamvid.index.stats import Stats
from flamvid.index.watch import Look
from flamvid.store import StoreWriter
from flamvid.store.places import settle
from flamvid.types import Caption
from flamvid.video.sample import Fps, Sampling, Uniform

__all__ = ["Describe", "IndexConfig", "Listener", "index_videos"]

Describe = Callable[[str, float, Tensor], Sequence[Caption]]
"""Source, its length in seconds and features [T,N,F] of some of its frames, to its captions."""

_IDLE = 0.5  # seconds without a frame, after which those that wait for company are encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """What is kept of each video, and how the work is done.

    fps: frames per second that are encoded, or frames: how many per video instead. dtype: of the
    stored features. workers: videos decoded at once. timeout: seconds that decoding may take at
    once. retry: failures of earlier runs with this reason are tried again, "" for all of them.
    """

    fps: float = 1.0
    frames: int | None = None
    dtype: str = "float16"
    workers: int = 2
    timeout: float | None = None
    retry: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"the number of workers is {self.workers}; must be at least 1")
        if self.retry and self.retry not in REASONS:
            raise InputError(f"the reason is {self.retry!r}; must be one of {', '.join(REASONS)}")
        self.sampling()

    def sampling(self) -> Sampling:
        """The rule that chooses frames."""
        return Fps(self.fps) if self.frames is None else Uniform(self.frames)

    def tries_again(self, reason: str) -> bool:
        """Whether what failed for this reason is tried once more."""
        return self.retry is not None and self.retry in ("", reason)

    @property
    def sampled(self) -> str:
        """The same as text, for the store."""
        return f"fps {self.fps:g}" if self.frames is None else f"{self.frames} frames"


class Listener(Protocol):
    """Hears how it goes, on the writer's thread."""

    def progress(self, stats: Stats) -> None:
        """Something was done."""

    def failed(self, source: str, reason: str, message: str) -> None:
        """A source is in the ledger now."""


class _Deaf:
    """For who asks for no news."""

    def progress(self, stats: Stats) -> None: ...

    def failed(self, source: str, reason: str, message: str) -> None: ...


def index_videos(
    sources: Iterable[str | Look],
    store: str | PathLike[str],
    encoder: FrameEncoder,
    config: IndexConfig,
    *,
    describe: Describe | None = None,
    listener: Listener | None = None,
    stats: Stats | None = None,
) -> Stats:
    """Index every source that the store does not have. A source that fails is in its ledger.

    sources: may be endless. describe: makes captions, from the same decoding; videos that are there
    without get theirs too, by their features. Raises StoreError
    where the store can't be written; what was committed until then stays.
    """
    stats, switch = stats or Stats(), Switch()
    with StoreWriter(store, encoder.provenance(config.sampled, config.dtype)) as writer:
        looked_at = encoder.model.config
        tell = (looked_at.frames or looked_at.resampler.frames or 1) if describe else 0
        decoders = Decoders(
            writer,
            encoder,
            config.sampling(),
            workers=config.workers,
            timeout=config.timeout,
            tell=tell,
            stats=stats,
            switch=switch,
        )
        sieve = Sieve(writer.reader, stats, config.tries_again, tell=describe is not None)
        writing = _Writing(writer, stats, switch, listener or _Deaf(), sieve)
        threads = [writing.start(), *decoders.start(sources, sieve)]
        try:
            _encode(decoders, writing, encoder, config, describe, stats)
            threads[0].join()
        except Stopped:
            pass
        except BaseException as error:
            switch.stop(error)
        finally:
            switch.stop()
            for thread in threads:
                thread.join()
        if switch.error is not None:
            raise switch.error
        writing.settle()
    return stats


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Pieces that are encoded together; endings, each with how many pieces stand before it."""

    pieces: tuple[Piece, ...]
    endings: tuple[tuple[int, Ending], ...]

    def encoded(self, encoder: FrameEncoder) -> tuple[Tensor, Tensor]:
        """Features [T,N,F] and vectors [T,E] of all its frames."""
        if not self.pieces:
            return torch.empty(0), torch.empty(0)
        return encoder.encode(torch.cat([piece.pixels for piece in self.pieces]))


def _encode(
    decoders: Decoders,
    writing: _Writing,
    encoder: FrameEncoder,
    config: IndexConfig,
    describe: Describe | None,
    stats: Stats,
) -> None:
    """Encode frames in full batches across videos, until the last worker is done."""
    items = decoders.items
    waiting: deque[Item] = deque()
    frames, working = 0, config.workers

    def encode(batch: _Batch) -> tuple[Tensor, Tensor]:
        return batch.encoded(encoder)

    with closing(Lanes(encode, encoder.model.device)) as lanes:
        while working:
            item = items.get(_IDLE)
            stats.decode_wait, stats.encode_wait = items.empty, items.full
            stats.write_wait = writing.items.full
            if item is not None and is_last(item):
                working -= 1
            elif item is not None and is_look(item):
                writing.items.put(_LOOKED)
                item = None  # few are to come until the next look
            elif item is not None:
                waiting.append(item)
                frames += len(item.numbers) if isinstance(item, Piece) else 0
            while frames >= encoder.batch or (waiting and (item is None or not working)):
                batch = _batch(waiting, encoder.batch)
                frames -= sum(len(piece.numbers) for piece in batch.pieces)
                for done, made in lanes.put(batch):
                    writing.take(done, *made, describe)
            for done, made in lanes.ready(all_of_them=not working):
                writing.take(done, *made, describe)
    writing.items.put(None)


def _batch(waiting: deque[Item], room: int) -> _Batch:
    """Take the oldest frames that wait, at most `room`, and the endings up to behind them."""
    pieces: list[Piece] = []
    endings: list[tuple[int, Ending]] = []
    while waiting and (room or isinstance(waiting[0], Ending)):
        item = waiting.popleft()
        if isinstance(item, Ending):
            endings.append((len(pieces), item))
            continue
        if len(item.numbers) > room:
            waiting.appendleft(_slice(item, slice(room, None)))
            item = _slice(item, slice(room))
        pieces.append(item)
        room -= len(item.numbers)
    return _Batch(tuple(pieces), tuple(endings))


def _slice(piece: Piece, part: slice) -> Piece:
    return Piece(piece.job, piece.numbers[part], piece.pts[part], piece.pixels[part])


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """Frames of a job that are encoded: pts [T], features [T,N,F], vectors [T,E]."""

    job: Job
    pts: np.ndarray
    features: Tensor
    vectors: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """A job's end, and what was said about it."""

    job: Job
    error: Exception | None
    captions: Sequence[Caption]


class _Looked:
    """All sources were looked at once more."""


_LOOKED = _Looked()


class _Writing:
    """The one thread that writes to the store."""

    def __init__(
        self,
        writer: StoreWriter,
        stats: Stats,
        switch: Switch,
        listener: Listener,
        sieve: Sieve,
    ) -> None:
        self.items: Channel[_Made | _Whole | _Looked | None] = Channel(8, switch)
        self._writer, self._stats, self._switch = writer, stats, switch
        self._listener, self._sieve = listener, sieve
        self._kind = torch.float16 if writer.provenance.dtype == "float16" else torch.float32
        self._broken: set[Job] = set()
        self._settled = (-1, -1)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run)
        thread.start()
        return thread

    def take(
        self, batch: _Batch, features: Tensor, vectors: Tensor, describe: Describe | None
    ) -> None:
        """A batch, features [T,N,F] and vectors [T,E] of its frames."""
        at, endings = 0, deque(batch.endings)
        for place, piece in enumerate((*batch.pieces, None)):
            while endings and endings[0][0] == place:
                self.end(endings.popleft()[1], describe)
            if piece is not None:
                part = slice(at, at + len(piece.numbers))
                self.add(piece, features[part], vectors[part])
                at = part.stop

    def add(self, piece: Piece, features: Tensor, vectors: Tensor) -> None:
        """Encoded frames of a job, in order; those that the store has serve its caption only."""
        job = piece.job
        told = np.flatnonzero(np.isin(piece.numbers, job.told))
        if len(told):
            job.seen.append(features[told])
        assert job.video is not None
        new = int(np.searchsorted(piece.numbers, job.video.resume_at))
        if new < len(piece.numbers):
            kept = features[new:].to(self._kind)
            self.items.put(_Made(job, piece.pts[new:], kept, vectors[new:]))

    def end(self, ending: Ending, describe: Describe | None) -> None:
        """A job is over; if all went well, it is described now."""
        job, error = ending.job, ending.error
        captions: Sequence[Caption] = ()
        if error is None and describe is not None and job.seen:
            try:
                captions = describe(job.source, job.end, torch.cat(job.seen))
            except Exception as raised:
                error = raised
        self.items.put(_Whole(job, error, captions))

    def _run(self) -> None:
        try:
            while (item := self.items.get()) is not None:
                if isinstance(item, _Whole):
                    self._end(item)
                    if isinstance(item.error, Changed):
                        item.error.undone.set()
                elif isinstance(item, _Looked):
                    self.settle()
                    self._sieve.settled.set()
                elif item.job not in self._broken:
                    self._add(item)
                self._listener.progress(self._stats)
            for job, error in self._sieve.lost:  # nobody looks once more
                self._note(job, error)
        except Stopped:
            pass
        except BaseException as error:
            self._switch.stop(error)

    def _add(self, made: _Made) -> None:
        assert made.job.video is not None
        try:
            made.job.video.add(made.pts, made.features.numpy(), made.vectors.numpy())
        except InputError as error:  # features that its dtype can't hold, times that go back
            self._broken.add(made.job)
            self._fail(made.job, error)
        self._stats.frames += len(made.pts)

    def _end(self, whole: _Whole) -> None:
        job = whole.job
        if job in self._broken:
            self._broken.remove(job)
        elif whole.error is not None:
            self._fail(job, whole.error)
        elif job.stored is not None:
            if job.stored.id in self._writer.reader:
                self._writer.tell(job.stored.id, whole.captions)
            self._stats.captioned += 1
        else:
            assert job.video is not None
            job.video.captions(whole.captions)
            try:
                with self._sieve.lock:
                    here, copied = self._writer.reader, self._sieve.copied
                    job.video.finish(
                        replaces=[i for i in job.stale if i in here and i not in copied]
                    )
            except InputError as error:  # a run before this one stored more frames than there are
                self._fail(job, error)
                return
            self._sieve.keep(job.video.record)
            self._stats.indexed += 1
            self._stats.video_seconds += job.end

    def settle(self) -> None:
        """Let records follow files, where there is news of those."""
        news = self._sieve.changes, self._stats.indexed
        if news == self._settled:
            return
        settled, self._settled = settle(self._writer, self._sieve.met, Gone()), news
        self._stats.moved += settled.moved
        self._stats.removed += settled.removed

    def _fail(self, job: Job, error: Exception) -> None:
        """Into the ledger, and what there is of the video out of the store."""
        if job.video is not None:
            with suppress(InputError):  # no chunk of it was full yet
                self._writer.remove(job.content.sha256[:32])
        if isinstance(error, Changed):
            return
        if job.vanished:
            self._sieve.lost.append((job, error))
        else:
            self._note(job, error)

    def _note(self, job: Job, error: Exception) -> None:
        reason = reason_of(error)
        message = " ".join(str(error).split()) or type(error).__name__
        if job.stored is None:
            self._writer.fail(job.source, reason, message)
        self._stats.failed += 1
        self._listener.failed(job.source, reason, message)
