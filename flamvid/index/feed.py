"""The decoding side of the indexer: sources to pieces of decoded frames, several at a time.

Legend: T frames, h, w height and width that the encoder reads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid import video
from flamvid.errors import DecodeError, DecoderLost, FlamvidError, SourceError
from flamvid.index.channel import Channel, Stopped, Switch
from flamvid.index.content import Content, Gone, identify, on_disk, status
from flamvid.index.encoder import FrameEncoder
from flamvid.index.stats import Stats
from flamvid.index.watch import Look
from flamvid.store import FeatureStore, StoreWriter, VideoRecord, VideoWriter
from flamvid.store.places import Met
from flamvid.video.sample import Sampling, thinned

__all__ = [
    "REASONS",
    "Decoders",
    "Ending",
    "Item",
    "Job",
    "Piece",
    "Sieve",
    "is_last",
    "is_look",
    "reason_of",
]

_AT_ONCE = 16  # frames that are read together
_LARGE = 64 << 20  # bytes of frames that are read together, where they come in full size
_PATIENCE = 0.2  # seconds until the switch is looked at
_AHEAD = 8  # pieces, at least, that wait for the encoder: videos take turns to be short and long


@dataclass(slots=True, eq=False)
class Job:
    """A source on its way. told: places of the sampled frames that its caption is made of.

    stale: ids of videos that the store has of this source, from before its file changed. stored:
    the video is there, and wants a caption only. vanished: its file was gone when it failed.
    """

    source: str
    content: Content
    video: VideoWriter | None = None
    end: float = 0.0
    told: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    seen: list[Tensor] = field(default_factory=list)
    stale: tuple[str, ...] = ()
    stored: VideoRecord | None = None
    vanished: bool = False


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


class Sieve:
    """Which sources are new: not in the store by name or content, and not failed before.

    again: by its reason, whether a failure is tried once more. tell: videos without a caption are
    to get one. met: what sources were found to hold; `changes` counts how often that changed.
    copied: ids that the store has of sources that don't look as it has them. lock: held from the
    look whether the store has a video until `copied` tells, and by who removes one. settled:
    records were made to agree with what was met. lost: jobs whose file vanished, and what each
    failed with; by the next look they are no failures, as the file may be there by another name.
    """

    def __init__(
        self,
        store: FeatureStore,
        stats: Stats,
        again: Callable[[str], bool],
        tell: bool = False,
    ) -> None:
        self._store, self._stats, self._tell = store, stats, tell
        snapshot = store.snapshot()
        records = [snapshot[video_id].record for video_id in snapshot]
        self._known: dict[str, list[VideoRecord]] = {}
        for record in records:
            self._known.setdefault(record.path, []).append(record)
        self._failed = {
            failure.source: failure.time
            for failure in snapshot.failures()
            if not again(failure.reason)
        }
        self._taken: set[str] = set()
        self._made: dict[str, str] = {}
        self.met: dict[str, Met] = {}
        self.changes = 0
        self.copied: set[str] = set()
        self.lock = threading.Lock()
        self.settled = threading.Event()
        self.lost: deque[tuple[Job, Exception]] = deque()

    def unseen(self, source: str) -> bool:
        """Whether a source is new as far as its name and state tell; counted if not."""
        found = status(source)
        record = self._there(source, found)
        if record is not None:
            if self._mute(record):
                return True
            self._meet(source, Met(record.id, record.mtime))
            self._stats.present += 1
            return False
        # What failed is not tried again and again, but a file that was mended is.
        if source in self._failed and (found is None or found[1] <= self._failed[source]):
            self._stats.failed_before += 1
            return False
        return True

    def pick(self, source: str) -> Job | None:
        """A job for a source that is new; SourceError where it can't be read."""
        if not self.unseen(source):
            return None
        record = self._there(source, status(source)) if self._tell else None
        if record is not None and self._mute(record):
            self._meet(source, Met(record.id, record.mtime))
            return self._to_tell(source, record)
        try:
            content = identify(source)
        except SourceError:
            self.forget([source])
            raise
        video = content.sha256[:32]
        self._meet(source, Met(video, content.mtime))
        stale = {record.id for record in self._known.pop(source, [])}
        with self.lock:
            if video in self._taken or video in self._store:
                self.copied.add(video)
                if video in self._store and self._mute(there := self._store[video].record):
                    return self._to_tell(source, there)
                self._stats.duplicates += 1
                return None
        self._taken.add(video)
        stale |= self._own(source)
        self._made[source] = video
        return Job(source, content, stale=tuple(stale))

    def keep(self, record: VideoRecord) -> None:
        """The store has this video now, so that its source is known if it comes again."""
        self._known[record.path] = [record]

    def forget(self, sources: Iterable[str]) -> None:
        """What these held, they hold no more."""
        for source in sources:
            self.changes += self.met.pop(source, None) is not None

    def anew(self) -> list[str]:
        """Sources to look at once more: they hold what is lost under another name, or again."""
        again: list[str] = []
        while self.lost:
            job, _ = self.lost.popleft()
            video = job.content.sha256[:32]
            self._taken.discard(video)
            self._made.pop(job.source, None)
            holders = [source for source, met in self.met.items() if met.id == video]
            copies = len(holders) - (job.source in holders)
            self._stats.found -= 1 + copies  # each is found when it is looked at
            self._stats.duplicates -= copies
            again += [source for source in holders if status(source) is not None]
        return again

    def _there(self, source: str, found: tuple[int, float] | None) -> VideoRecord | None:
        """The record of a source that is in the state in which the store has it."""
        for record in self._known.get(source, []):
            if (record.size, record.mtime) == (found or (0, 0.0)) and self._has(record.id):
                return record
        return None

    def _mute(self, record: VideoRecord) -> bool:
        return self._tell and not record.captions and record.id not in self._taken

    def _to_tell(self, source: str, record: VideoRecord) -> Job:
        self._taken.add(record.id)
        return Job(source, Content(record.content_hash, record.size, record.mtime), stored=record)

    def _meet(self, source: str, met: Met) -> None:
        if self.met.get(source) != met:
            self.met[source] = met
            self.changes += 1

    def _has(self, video: str) -> bool:
        """Whether the store still holds a video that it held when this run began."""
        return not self._stats.removed or video in self._store

    def _own(self, source: str) -> set[str]:
        """What this run made of an earlier state of a source, which is free to come again."""
        if source not in self._made:
            return set()
        self._taken.discard(self._made[source])
        return {self._made[source]}


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

    def start(self, sources: Iterable[str | Look], sieve: Sieve) -> list[threading.Thread]:
        """Set to work. Of each worker, whose threads these are, an item that `is_last` comes."""
        feeding = threading.Thread(target=self._guarded, args=(self._feed, sources, sieve))
        feeding.daemon = True  # it may wait for new files, or for stdin, when all is called off
        feeding.start()
        threads = [
            threading.Thread(target=self._guarded, args=(self._work,)) for _ in range(self._workers)
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
                sieve.forget(source.gone)
                if not source.changing:
                    self._settle(sieve)
                for each in sieve.anew():
                    self._pick(each, sieve)
            else:
                self._pick(source, sieve)
        for _ in range(self._workers):
            self._jobs.put(None)

    def _pick(self, source: str, sieve: Sieve) -> None:
        self._stats.found += 1
        try:
            job = sieve.pick(source)
        except SourceError as error:
            self.items.put(Ending(Job(source, Content("", 0, 0.0)), error))
            return
        if job is not None:
            self._jobs.put(job)

    def _settle(self, sieve: Sieve) -> None:
        """Wait until records agree with what was met: half of an exchange would be a loss."""
        sieve.settled.clear()
        self.items.put(Ending(_LOOKED))
        while not sieve.settled.wait(_PATIENCE):
            self._switch.check()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
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
            self.items.put(Ending(job, error))
        self.items.put(Ending(_LAST))

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
