"""Which sources are new, and the jobs that come of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flamvid.errors import SourceError
from flamvid.index.content import Content, identify, status
from flamvid.index.stats import Stats
from flamvid.store import FeatureStore, VideoRecord, VideoWriter
from flamvid.store.places import Met

__all__ = ["Changed", "Job", "Sieve", "changed"]


class Changed(SourceError):  # noqa: N818 - no failure: it is looked at once more
    """A file was written over between the look at what it is and the end of its decoding.

    undone: nothing of what it was is in the store any more.
    """

    def __init__(self, source: str) -> None:
        super().__init__(f"{source} is being written; index it when that is done")
        self.undone = threading.Event()


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


def changed(job: Job) -> bool:
    """Whether a job's file is another than what its content was told by; touching is no change."""
    source, content = job.source, job.content
    if "://" in source or status(source) in (None, (content.size, content.mtime)):
        return False
    try:
        return identify(source).sha256 != content.sha256
    except SourceError:
        return False  # it is gone


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
            holders = self._undone(self.lost.popleft()[0])
            again += [source for source in holders if status(source) is not None]
        return again

    def retake(self, job: Job) -> list[str]:
        """The source of a job, and its copies, to look at once more: its file is another now."""
        self._known.setdefault(job.source, []).extend(
            self._store[video].record for video in job.stale if video in self._store
        )
        others = [source for source in self._undone(job) if source != job.source]
        return [job.source, *others]

    def _undone(self, job: Job) -> list[str]:
        """All sources that were to be one job, which failed; each counts when it is looked at."""
        video = job.content.sha256[:32]
        self._taken.discard(video)
        self._made.pop(job.source, None)
        holders = [source for source, met in self.met.items() if met.id == video]
        copies = len(holders) - (job.source in holders)
        self._stats.found -= 1 + copies
        self._stats.duplicates -= copies
        return holders

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
