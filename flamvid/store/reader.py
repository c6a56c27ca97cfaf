"""Reading a store: videos by id, their features by time, from one moment's view of the file.

Legend: T frames, N patches, F feature width, E width of a search vector.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DamagedStore, InputError, StoreError
from flamvid.store.file import StoreFile, open_file, translated
from flamvid.store.schema import (
    FORMAT,
    Provenance,
    VideoRecord,
    as_written,
    check_value,
    chunk_key,
    id_bytes,
    load,
    newer,
    provenance_from_json,
    record_from_json,
    restore,
    unpack,
)

__all__ = ["Failure", "FeatureStore", "Snapshot", "StoredVideo"]

_KEPT = 256  # videos whose times and places are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a source is not in the store: how often it was tried, and when last (since 1970, s)."""

    source: str
    reason: str
    message: str
    count: int
    time: float


class Snapshot:
    """The store as it was at one moment, whatever a writer does meanwhile.

    It holds as long as it, or an array that was read from it, is alive. (If the map of the file
    has to grow in this very process, it moves on to that moment.)
    """

    def __init__(self, file: StoreFile, check: bool) -> None:
        self._file, self._check = file, check
        self._generation = self._held = -1
        self._txn: lmdb.Transaction | None = None

        file.holders.add(self)
        with file.lock:
            self._begin()
        self.provenance = self._provenance()

    @property
    def path(self) -> Path:
        """The store's file."""
        return self._file.path

    @property
    def held(self) -> int:
        """The number of the last transaction that it sees; -1 if it no longer holds one."""
        return self._held if self._generation == self._file.generation else -1

    def drop(self) -> None:
        """Forget the transaction: the file is closed, or this is another process than it was."""
        self._txn = None

    def _begin(self) -> lmdb.Transaction:
        if self._txn is None or self._generation != self._file.generation:
            self._txn = self._file.begin()
            self._generation, self._held = self._file.generation, int(self._txn.id())
        return self._txn

    def _provenance(self) -> Provenance:
        layout = self.json("meta", b"format")
        if layout is None:
            raise StoreError(f"{self._file.path} is no feature store, or not one yet")
        with translated(self._file.path), as_written("the format"):
            if layout["version"] > FORMAT:
                raise newer(str(self._file.path), layout["version"])
        with translated(self._file.path):
            return provenance_from_json(self.json("meta", b"provenance"))

    # -- values --

    def json(self, db: str, key: bytes) -> Any:
        """The JSON at `key`, or None."""
        with self._file.lock, translated(self._file.path):
            value = self._begin().get(key, db=self._file.databases[db])
            return None if value is None else load(db, key, memoryview(value))

    def array(self, db: str, key: bytes) -> tuple[NDArray[Any], NDArray[np.float32] | None] | None:
        """The array at `key` and its scales, or None; read-only, and not copied if it is large."""
        with self._file.lock, translated(self._file.path):
            value = self._begin().get(key, db=self._file.databases[db])
            if value is None:
                return None
            pinned = self._file.pin(memoryview(value), self)
            kept = bytes(value) if pinned is None else memoryview(np.asarray(pinned))
        with translated(self._file.path):
            return unpack(db, key, memoryview(kept), check=self._check)

    def value(self, db: str, key: bytes) -> bytes:
        """A value as it is, header and all; DamagedStore if it is missing or not as written."""
        with self._file.lock, translated(self._file.path):
            value = self._begin().get(key, db=self._file.databases[db])
            if value is None:
                raise DamagedStore(f"{self._file.path}: {db} {key.hex()} is missing")
            kept = bytes(value)
        with translated(self._file.path):
            check_value(db, key, memoryview(kept))
        return kept

    def keys(self, db: str, prefix: bytes = b"") -> Iterator[bytes]:
        """Keys in order, a thousand at a time: the lock is not held while they are used."""
        after, found = prefix, [b""]
        while found:
            found = []
            with self._file.lock, translated(self._file.path):
                cursor = self._begin().cursor(self._file.databases[db])
                more = cursor.set_range(after)
                while more and len(found) < 1000:
                    key = bytes(cursor.key())
                    if not key.startswith(prefix):
                        break
                    found.append(key)
                    more = cursor.next()
                cursor.close()
            yield from found
            if found:
                after = found[-1] + b"\0"

    # -- videos --

    def __len__(self) -> int:
        with self._file.lock, translated(self._file.path):
            return int(self._begin().stat(self._file.databases["videos"])["entries"])

    def __iter__(self) -> Iterator[str]:
        return (key.hex() for key in self.keys("videos"))

    def __contains__(self, video_id: str) -> bool:
        return self.json("videos", id_bytes(video_id)) is not None

    def __getitem__(self, video_id: str) -> StoredVideo:
        table = self.json("videos", id_bytes(video_id))
        if table is None:
            raise InputError(f"{self._file.path} holds no video {video_id}")
        with translated(self._file.path):
            return StoredVideo(self, record_from_json(table))

    def failures(self) -> list[Failure]:
        """What could not be indexed, by source."""
        rows = (self.json("failures", key) for key in self.keys("failures"))
        with translated(self._file.path), as_written("the ledger of failures"):
            return sorted((Failure(**row) for row in rows), key=lambda failure: failure.source)


class StoredVideo:
    """One video of a snapshot. Ranges are of time: frames with start <= pts < end, in seconds."""

    def __init__(self, snapshot: Snapshot, record: VideoRecord) -> None:
        self.record = record
        self._snapshot = snapshot
        self._key = id_bytes(record.id)
        self._step = snapshot.provenance.chunk_frames
        self._pts: NDArray[np.float64] | None = None
        self._chunks: dict[tuple[str, int], NDArray[Any]] = {}

    def __repr__(self) -> str:
        return f"StoredVideo({self.record.path!r}, {self.record.stored} frames)"

    @property
    def id(self) -> str:
        """The video's id in the store."""
        return self.record.id

    def pts(self, start: float | None = None, end: float | None = None) -> NDArray[np.float64]:
        """Times of the frames, in seconds, float64 [T]."""
        first, last = self.span(start, end)
        return self._times()[first:last]

    def features(
        self,
        start: float | None = None,
        end: float | None = None,
        *,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Features [T,N,F] in the store's dtype (float32 of int8).

        Read-only, and no copy is made, where the range lies in one chunk; else a new array. With
        `out` [at least T,N,F] they are copied to its beginning, which is what is returned.
        """
        return self.frames(*self.span(start, end), out=out)

    def vectors(self, start: float | None = None, end: float | None = None) -> NDArray[Any] | None:
        """Search vectors float16 [T,E], or None if the store has none."""
        if not self._snapshot.provenance.embedding:
            return None
        return self._range("vectors", *self.span(start, end))

    def frames(self, first: int, last: int, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Features of the frames with these numbers, `last` not included; as `features`."""
        if not 0 <= first <= last <= self.record.stored:
            raise InputError(
                f"{self.record.path} has {self.record.stored} frames, not {first} to {last}"
            )
        if out is None:
            return self._range("features", first, last)
        if len(out) < last - first:
            raise InputError(f"out has room for {len(out)} frames; {last - first} were asked for")
        return self._fill("features", first, out[: last - first])

    def chunks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[Any]]]:
        """Times [T] and features [T,N,F] of the whole video, piece by piece, without a copy."""
        times = self._times()
        for number, first in enumerate(range(0, len(times), self._step)):
            yield times[first : first + self._step], self._chunk("features", number)

    def span(self, start: float | None, end: float | None) -> tuple[int, int]:
        """Numbers of the frames in a range of time: first, and the one after the last."""
        times = self._times()
        first = 0 if start is None else int(times.searchsorted(start))
        last = len(times) if end is None else int(times.searchsorted(end))
        return first, max(first, last)

    def _times(self) -> NDArray[np.float64]:
        if self._pts is None:
            count = -(-self.record.stored // self._step)
            parts = [self._chunk("pts", number) for number in range(count)]
            times = np.concatenate(parts) if parts else np.empty(0)
            times.flags.writeable = False
            self._pts = times
        return self._pts

    def _range(self, db: str, first: int, last: int) -> NDArray[Any]:
        number, at = divmod(first, self._step)
        if first < last and at + last - first <= self._step:
            return self._chunk(db, number)[at : at + last - first]
        made = self._snapshot.provenance
        if db == "vectors":
            out: NDArray[Any] = np.empty((last - first, made.embedding), np.float16)
        else:
            dtype = np.float32 if made.dtype == "int8" else made.dtype
            out = np.empty((last - first, made.patches, made.width), dtype)
        return self._fill(db, first, out)

    def _fill(self, db: str, first: int, out: NDArray[Any]) -> NDArray[Any]:
        """Copy frames from `first` on, as many as `out` has."""
        done = 0
        while done < len(out):
            number, at = divmod(first + done, self._step)
            part = self._chunk(db, number)[at : at + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def _chunk(self, db: str, number: int) -> NDArray[Any]:
        """A whole chunk; kept when it is a view, which costs nothing."""
        kept = self._chunks.get((db, number))
        if kept is not None:
            return kept
        found = self._snapshot.array(db, chunk_key(self._key, number))
        expected = min(self._step, self.record.stored - number * self._step)
        if found is None or len(found[0]) != expected:
            raise DamagedStore(
                f"{self._snapshot.path}: {db} of {self.record.path} lack chunk {number}; "
                "see `flamvid store verify`, and drop the video with `flamvid store repair`"
            )
        array = restore(*found)
        if found[1] is None:
            self._chunks[db, number] = array
        return array


class FeatureStore:
    """A store for reading: `store[video_id].features(start, end)`.

    What is asked of it is answered from the newest snapshot; `snapshot()` keeps one. The file is
    opened when it is first used, once per process, so a FeatureStore may be shared by threads,
    forked, and pickled. check: verify the checksum of all that is read.
    """

    def __init__(self, path: str | os.PathLike[str], *, check: bool = False) -> None:
        self.path, self.check = Path(path), check
        self._file: StoreFile | None = None
        self._newest: Snapshot | None = None
        self._videos: dict[str, StoredVideo] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(FeatureStore, check=self.check), (self.path,)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r})"

    def snapshot(self) -> Snapshot:
        """The store as it is now."""
        file = self._opened()
        with file.lock:
            return self._current(file)

    def _opened(self) -> StoreFile:
        file = self._file
        if file is None or file.replaced:
            file = self._file = open_file(self.path)
            self._newest = None
        return file

    def _current(self, file: StoreFile) -> Snapshot:
        """The newest snapshot; the caller holds the file's lock, the only one that forks safely."""
        newest = self._newest
        if newest is None or newest.held != file.latest():
            newest = self._newest = Snapshot(file, self.check)
            self._videos = {}
        return newest

    @property
    def provenance(self) -> Provenance:
        """What made the features."""
        return self.snapshot().provenance

    def __len__(self) -> int:
        return len(self.snapshot())

    def __iter__(self) -> Iterator[str]:
        return iter(self.snapshot())

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.snapshot()

    def __getitem__(self, video_id: str) -> StoredVideo:
        file = self._opened()
        with file.lock:
            snapshot = self._current(file)
            video = self._videos.get(video_id)
            if video is None:
                if len(self._videos) >= _KEPT:
                    del self._videos[next(iter(self._videos))]
                video = self._videos[video_id] = snapshot[video_id]
            return video

    def failures(self) -> list[Failure]:
        """What could not be indexed, by source."""
        return self.snapshot().failures()

    def close(self) -> None:
        """Let go of the file, unless arrays or others of this process still use it."""
        self._file = self._newest = None
        self._videos = {}
