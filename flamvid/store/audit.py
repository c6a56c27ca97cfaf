"""What is wrong with a store: every checksum, every rule between values, LMDB's own pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb.verify
import numpy as np

from flamvid.errors import DamagedStore, FlamvidError, StoreError
from flamvid.store import seal
from flamvid.store.locks import unwritten
from flamvid.store.pages import Entry, Pages
from flamvid.store.reader import FeatureStore, Snapshot
from flamvid.store.schema import (
    FORMAT,
    Provenance,
    VideoRecord,
    load,
    newer,
    provenance_from_json,
    record_from_json,
    unpack,
)

__all__ = ["Contents", "Finding", "Report", "verify"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written; `video` is the path of the one it spoils, or ""."""

    what: str
    video: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` saw. sealed: the digest of the whole file fits; None: closed in no order."""

    path: str
    videos: int
    partial: int
    chunks: int
    failures: int
    size: int
    sealed: bool | None
    findings: tuple[Finding, ...]


@dataclass
class Contents:
    """The values of a store, as they come, and what is wrong with them."""

    provenance: Provenance | None = None
    records: dict[bytes, VideoRecord] = field(default_factory=dict)
    hashes: dict[bytes, bytes] = field(default_factory=dict)
    failures: dict[bytes, Any] = field(default_factory=dict)
    chunks: dict[str, dict[bytes, dict[int, int]]] = field(
        default_factory=lambda: {db: defaultdict(dict) for db in ("pts", "features", "vectors")}
    )
    bounds: dict[bytes, dict[int, tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    findings: list[Finding] = field(default_factory=list)

    def take(self, db: str, key: bytes, value: memoryview) -> None:
        """Read one value; DamagedStore says what is wrong with it."""
        if db in self.chunks:
            self._take_chunk(db, key, value)
        elif db == "meta":
            self._take_meta(key, value)
        elif db == "videos":
            self.records[key] = _record(key, value)
        elif db == "failures":
            self.failures[key] = load(db, key, value)
        elif db == "state":
            load(db, key, value)
        elif db == "hash":
            self.hashes[key] = unpack(db, key, value)[0].tobytes()
        else:
            raise DamagedStore(f"there is a database {db!r}, which no store has")

    def _take_meta(self, key: bytes, value: memoryview) -> None:
        table = load("meta", key, value)
        if key == b"format" and table["version"] > FORMAT:
            raise newer("the store", table["version"])
        if key == b"provenance":
            self.provenance = provenance_from_json(table)

    def _take_chunk(self, db: str, key: bytes, value: memoryview) -> None:
        array, _ = unpack(db, key, value)
        if len(key) != 20:
            raise DamagedStore(f"{db} has a key of {len(key)} bytes; must be 20")
        video, number = key[:16], int.from_bytes(key[16:], "big")
        if db == "pts":
            if array.ndim != 1 or not len(array) or not (np.diff(array) > 0).all():
                raise DamagedStore(f"pts {video.hex()} chunk {number} don't ascend")
            self.bounds[video][number] = float(array[0]), float(array[-1])
        self.chunks[db][video][number] = len(array)
        if self.provenance is not None:
            made = self.provenance
            sides = {
                "pts": (),
                "features": (made.patches, made.width),
                "vectors": (made.embedding,),
            }
            if array.shape[1:] != sides[db]:
                raise DamagedStore(f"{db} {video.hex()} chunk {number} have shape {array.shape}")

    def whole(self, video: bytes) -> int:
        """Chunks of a video that are there and fit, counted from the first up to a gap."""
        assert self.provenance is not None
        step, number = self.provenance.chunk_frames, 0
        dbs = ["pts", "features", *(["vectors"] if self.provenance.embedding else [])]
        record = self.records.get(video)
        latest = -np.inf
        while True:
            expected = step if record is None else min(step, record.stored - number * step)
            counts = {self.chunks[db][video].get(number) for db in dbs}
            if expected <= 0 or counts != {expected} or self.bounds[video][number][0] <= latest:
                return number
            latest = self.bounds[video][number][1]
            number += 1

    def check(self) -> None:
        """Rules between values; what breaks one is added to the findings."""
        if self.provenance is None:
            self.findings.append(Finding("its provenance is missing"))
            return
        step = self.provenance.chunk_frames
        for video, record in self.records.items():
            need = -(-record.stored // step)
            have = self.whole(video)
            if have != need:
                what = f"{record.path} lacks chunk {have} of {need}"
                self.findings.append(Finding(what, record.path))
            elif any(max(self.chunks[db][video], default=0) >= need for db in self.chunks):
                self.findings.append(Finding(f"{record.path} has too many chunks", record.path))
            if self.hashes.get(bytes.fromhex(record.content_hash)) != video:
                self.findings.append(Finding(f"the hash of {record.path} is missing", record.path))
        for key, video in self.hashes.items():
            if video not in self.records:
                self.findings.append(Finding(f"the hash {key.hex()} leads to no video"))
        for video in self.partial():
            if self.whole(video) != len(self.chunks["pts"][video]):
                self.findings.append(Finding(f"the unfinished video {video.hex()} has a gap"))

    def partial(self) -> list[bytes]:
        """Videos that a stopped run left unfinished, or that lost their record."""
        every = {video for db in self.chunks.values() for video in db if db[video]}
        return sorted(every - self.records.keys())

    def take_all(self, entries: Iterable[Entry], pages: Pages) -> None:
        """Take what is sound; the rest becomes findings."""
        # The format and the provenance come first: the rest is checked against them.
        for entry in sorted(entries, key=lambda entry: (entry.db != "meta", entry.offset)):
            try:
                self.take(entry.db, entry.key, pages.read(entry))
            except DamagedStore as error:
                self.findings.append(Finding(str(error)))
            except StoreError:
                raise  # a newer format
            except (FlamvidError, LookupError, TypeError, ValueError) as error:
                self.findings.append(Finding(f"{entry.db} {entry.key.hex()} is damaged ({error})"))
        self.findings += [Finding(what) for what in pages.problems]


def _check_file(path: Path, contents: Contents) -> bool | None:
    """Compare with the seal, and check LMDB's pages by its own rules."""
    sealed = None
    try:
        sealed = seal.holds(path)
        contents.findings += [Finding(what) for what in lmdb.verify.verify(str(path))]
    except (DamagedStore, lmdb.verify.VerifyError) as error:
        contents.findings.append(Finding(str(error)))
    return sealed


def _pinned(path: Path) -> tuple[Snapshot, int]:
    """A snapshot of a store that is being written, and the root of its tree."""
    while True:
        snapshot = FeatureStore(path).snapshot()
        with Pages(path) as pages:
            root = pages.roots.get(snapshot.held)
        if root is not None:
            return snapshot, root


def _record(key: bytes, value: memoryview) -> VideoRecord:
    record = record_from_json(load("videos", key, value))
    if record.id != key.hex():
        raise DamagedStore(f"videos {key.hex()} holds the record of {record.id}")
    return record


def verify(path: Path) -> Report:
    """Read every byte of a store and check it, without mapping it or opening it with LMDB.

    A store that is being written is read through a snapshot, whose values are checked, but not
    LMDB's pages, which change meanwhile. Raises StoreError for what is no store.
    """
    sealed, contents = None, Contents()
    if path.is_dir():
        raise StoreError(f"{path} is a folder; a store is one file")
    try:
        with unwritten(path) as still, Pages(path) as pages:
            if still:
                sealed = _check_file(path, contents)
                root = next(iter(pages.roots.values()), None)
                if root is None:
                    raise StoreError(f"{path} is no feature store; give one that flamvid made")
                contents.take_all(pages.walk(root), pages)
            else:
                snapshot, root = _pinned(path)
                contents.take_all(pages.walk(root), pages)
                del snapshot
    except OSError as error:
        raise StoreError(f"can't read the store {path} ({error.strerror})") from error
    contents.check()
    if sealed is False and not contents.findings:
        contents.findings.append(
            Finding("bytes that no video uses are not as they were when the store was closed")
        )
    return Report(
        path=str(path),
        videos=len(contents.records),
        partial=len(contents.partial()),
        chunks=sum(len(chunks) for chunks in contents.chunks["features"].values()),
        failures=len(contents.failures),
        size=pages.size,
        sealed=sealed,
        findings=tuple(dict.fromkeys(contents.findings)),
    )
