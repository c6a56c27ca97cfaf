"""Writing a store: one writer at a time, a video visible once it is whole.

Legend: T frames, N patches, F feature width, E width of a search vector.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
from numpy.typing import NDArray

from flamvid.errors import InputError, StoreError
from flamvid.store import seal
from flamvid.store.file import open_file, translated
from flamvid.store.locks import exclusive
from flamvid.store.reader import Failure, FeatureStore
from flamvid.store.schema import (
    FORMAT,
    Provenance,
    VideoRecord,
    chunk_key,
    dump,
    id_bytes,
    pack,
    quantise,
    record_to_json,
)
from flamvid.types import Caption

__all__ = ["StoreWriter", "VideoWriter", "check_target", "failure_key"]

_CLOSED = b"closed"

Put = tuple[str, bytes, bytes | None]
"""Database, key, value; None deletes the key."""


def failure_key(source: str) -> bytes:
    """Where a source stands in the ledger."""
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).digest()[:16]


def check_target(path: Path) -> None:
    """Raise the StoreError that a writer of this store would, before there is anything to write."""
    _has_folder(path)
    if path.exists() and path.stat().st_size:  # an empty file would become a store
        with translated(path):
            open_file(path, write=True)
            with exclusive(path):
                pass


def _has_folder(path: Path) -> None:
    if not path.exists() and not path.absolute().parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist; create it first")


class StoreWriter:
    """Writes features by one `Provenance` to a store, which it creates if there is none.

    Every transaction is on the disk when it returns, but for one page that follows with the next
    or at `close`: the end of the process loses nothing, a crash of the machine at most the last
    transaction. StoreError where the store holds other features, is of a newer format, can't be
    written, or has a writer.
    """

    def __init__(self, path: str | os.PathLike[str], provenance: Provenance) -> None:
        self.path, self.provenance = Path(path), provenance
        self.reader = FeatureStore(path)
        self._pid = os.getpid()
        self._dirty = self._closed = False
        self._exit = ExitStack()
        _has_folder(self.path)
        try:
            with translated(self.path):
                self._file = open_file(self.path, write=True)
                self._exit.enter_context(exclusive(self.path))
            if self._has_format():
                self.provenance = self.reader.provenance
                self.provenance.check(provenance, str(self.path))
            else:
                made = asdict(provenance)
                self._put("meta", b"format", {"version": FORMAT}, b"provenance", made)
        except BaseException:
            self._exit.close()
            raise

    def _has_format(self) -> bool:
        with self._file.lock, translated(self.path):
            meta = self._file.databases["meta"]
            return self._file.begin().get(b"format", db=meta) is not None

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def video(self, record: VideoRecord) -> Iterator[VideoWriter]:
        """Write one video, which is in the store when the block ends without an error.

        After an error what was committed of it stays hidden, and the next `video` of the same
        content goes on from there: see `VideoWriter.resume_at`.
        """
        if record.content_hash in self:
            raise InputError(f"{record.path} is in {self.path} already; remove it there first")
        video = VideoWriter(self, record)
        yield video
        video.finish()

    def __contains__(self, content_hash: str) -> bool:
        """Whether a whole video with this sha256 (or id) is in the store."""
        return content_hash[:32] in self.reader

    def fail(self, source: str, reason: str, message: str) -> None:
        """Note that a source could not be indexed; its next success clears that."""
        key = failure_key(source)
        earlier = self.reader.snapshot().json("failures", key)
        failure = Failure(
            source=source,
            reason=reason,
            message=message,
            count=earlier["count"] + 1 if earlier else 1,
            time=time.time(),
        )
        self._put("failures", key, asdict(failure))

    def tell(self, video_id: str, captions: Sequence[Caption]) -> None:
        """Put captions in the place of those of a video that is there."""
        key, record = id_bytes(video_id), self.reader[video_id].record
        record = replace(record, captions=tuple(captions))
        self._put("videos", key, record_to_json(record))

    def remove(self, video_id: str) -> None:
        """Drop a video, or what there is of one that isn't whole."""
        self.commit(self.removal(video_id))

    def removal(self, video_id: str) -> list[Put]:
        """The changes that `remove` commits, for those who have more to commit with them."""
        snapshot, prefix = self.reader.snapshot(), id_bytes(video_id)
        puts: list[Put] = [("videos", prefix, None)]
        for db in ("pts", "features", "vectors"):
            puts += [(db, key, None) for key in snapshot.keys(db, prefix)]
        puts += [("hash", key, None) for key in snapshot.keys("hash", prefix)]
        if len(puts) == 1:
            raise InputError(f"{self.path} holds no video {video_id}")
        return puts

    def _put(self, db: str, *pairs: Any) -> None:
        self.commit([(db, k, dump(db, k, v)) for k, v in zip(pairs[::2], pairs[1::2], strict=True)])

    def commit(self, puts: Sequence[Put]) -> None:
        """One transaction; the map grows as it must."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self.path} is written by the process that forked; write there")
        if not self._dirty:
            with translated(self.path):
                seal.remove(self.path)
            puts = [*puts, ("state", _CLOSED, None)]
            self._dirty = True
        with self._file.lock, translated(self.path):
            while True:
                try:
                    with self._file.environment().begin(write=True) as txn:
                        for db, key, value in puts:
                            if value is None:
                                txn.delete(key, db=self._file.databases[db])
                            else:
                                txn.put(key, value, db=self._file.databases[db])
                    return
                except lmdb.MapFullError:
                    self._file.grow(2 * self._file.environment().info()["map_size"])

    def close(self) -> None:
        """Seal the store, and let others write."""
        if os.getpid() != self._pid or self._closed:
            return
        self._closed = True
        with self._exit:
            if self._dirty:
                # LMDB keeps the last two transactions. This one makes both hold all videos, so
                # that damage to either one's first page loses none.
                self._put("state", _CLOSED, True)
                with self._file.lock, translated(self.path):
                    self._file.environment().sync(True)
                    seal.write(self.path)
        self.reader.close()
        del self._file  # or it would stay open for as long as anyone remembers this writer


class VideoWriter:
    """Frames of one video, in order, however many at a time.

    record: what is, or will be, said of it. resume_at: frames that are in the store already, from a
    run that was stopped; `add` those after them.
    """

    def __init__(self, writer: StoreWriter, record: VideoRecord) -> None:
        self._writer, self.record = writer, record
        provenance = writer.provenance
        self._key, step = id_bytes(record.id), provenance.chunk_frames
        snapshot = writer.reader.snapshot()
        chunks = list(snapshot.keys("pts", self._key))
        self._chunk = len(chunks)
        self.resume_at = self._chunk * step
        self._latest = -np.inf
        if chunks and (last := snapshot.array("pts", chunks[-1])) is not None:
            self._latest = float(last[0][-1])
        kept = np.dtype("f2" if provenance.dtype == "float16" else "f4")
        self._pts = np.empty(step, np.float64)
        self._features = np.empty((step, provenance.patches, provenance.width), kept)
        self._vectors = np.empty((step, provenance.embedding), np.float16)
        self._filled = 0

    def add(self, pts: Any, features: Any, vectors: Any = None) -> None:
        """Append frames: pts [T] in seconds, features [T,N,F], vectors [T,E] if the store has them.

        Arrays or tensors on the CPU. InputError where shapes or times break a rule, or a value is
        too large for the store's dtype.
        """
        pts, features = np.asarray(pts, np.float64), np.asarray(features)
        T = len(pts)
        self._check("features", features, (T, *self._features.shape[1:]))
        if self._writer.provenance.embedding or vectors is not None:
            vectors = np.asarray(vectors)
            self._check("vectors", vectors, (T, self._vectors.shape[1]))
        if not (np.isfinite(pts).all() and (np.diff(pts, prepend=self._latest) > 0).all()):
            raise InputError(f"times of {self.record.path} must be finite and ascend")
        at = 0
        while at < T:
            if self._filled == len(self._pts):  # not before there is more: the last is `finish`'s
                self._writer.commit(self._pieces())
            count = min(T - at, len(self._pts) - self._filled)
            place = slice(self._filled, self._filled + count)
            with np.errstate(over="ignore"):
                self._features[place] = features[at : at + count]
            if not np.isfinite(self._features[place]).all():
                raise InputError(
                    f"features of {self.record.path} are not finite as {self._features.dtype}; "
                    "use the dtype float32, or another model"
                )
            if self._writer.provenance.embedding:
                self._vectors[place] = vectors[at : at + count]
            self._pts[place] = pts[at : at + count]
            self._filled += count
            self._latest = float(pts[at + count - 1])
            at += count

    def captions(self, captions: Sequence[Caption]) -> None:
        """What was said about the video, beside its features."""
        self.record = replace(self.record, captions=tuple(captions))

    def finish(self, duration: float | None = None, replaces: Iterable[str] = ()) -> None:
        """Write the last chunk and, in the same transaction, make the video visible.

        duration: in seconds, of a stream, which did not know it before. replaces: ids of videos
        that go as this one comes.
        """
        if not self._filled:
            raise InputError(f"{self.record.path} has no frames; a video needs one")
        stored = self._chunk * len(self._pts) + self._filled
        record = replace(self.record, stored=stored)
        if duration is not None:
            record = replace(record, duration=duration)
        full = bytes.fromhex(record.content_hash)
        puts = [put for video_id in replaces for put in self._writer.removal(video_id)]
        puts += self._pieces()
        puts.append(("videos", self._key, dump("videos", self._key, record_to_json(record))))
        puts.append(("hash", full, pack("hash", full, np.frombuffer(self._key, np.uint8))))
        puts.append(("failures", failure_key(record.path), None))
        self._writer.commit(puts)

    def _check(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise InputError(f"{name} have shape {array.shape}; must be {shape} as the store's are")

    def _pieces(self) -> list[Put]:
        """What is buffered, as the next chunk."""
        key, T = chunk_key(self._key, self._chunk), self._filled
        features, scales = self._features[:T], None
        if self._writer.provenance.dtype == "int8":
            features, scales = quantise(features)
        puts: list[Put] = [
            ("pts", key, pack("pts", key, self._pts[:T])),
            ("features", key, pack("features", key, features, scales)),
        ]
        if self._writer.provenance.embedding:
            puts.append(("vectors", key, pack("vectors", key, self._vectors[:T])))
        self._chunk, self._filled = self._chunk + 1, 0
        return puts
