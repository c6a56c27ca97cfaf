"""What keeps a store in order: repair, merge, remove, compact."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from flamvid.errors import DamagedStore, FlamvidError, InputError, StoreError
from flamvid.store import seal
from flamvid.store.audit import Contents, Finding, Report, verify
from flamvid.store.file import abandon, open_file, translated
from flamvid.store.locks import exclusive, replace
from flamvid.store.pages import Entry, Pages
from flamvid.store.places import Met, Settled, settle
from flamvid.store.reader import Failure, FeatureStore, Snapshot
from flamvid.store.schema import DATABASES, Provenance, chunk_key, dump, id_bytes, pack
from flamvid.store.writer import Put, StoreWriter, failure_key

__all__ = [
    "Merged",
    "Repaired",
    "Report",
    "compact",
    "merge",
    "provenance_of",
    "remove",
    "repair",
    "verify",
]

_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair found and kept, and what it had to drop: of that, `found` says more."""

    found: tuple[Finding, ...]
    kept: int
    partial: int
    dropped: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: videos added, those that were there already, and those left out.

    told: of those that were there, without the captions that others had. settled: of the target's,
    where the others are newer.
    """

    added: int
    present: int
    told: int
    damaged: tuple[Finding, ...]
    settled: Settled


def repair(path: Path) -> Repaired:
    """Write all that is sound into a new file, and put that in the store's place.

    A video with a broken chunk is dropped, but for the chunks before it: indexing it again goes on
    from there. Where a page of LMDB's is broken, the transaction before the last and then whatever
    looks like a page serve. Nothing is changed if nothing is broken.
    """
    report = verify(path)
    if not report.findings:
        return Repaired((), report.videos, report.partial, ())
    with exclusive(path), Pages(path) as pages, _beside(path) as new:
        contents = Contents()
        sound = _salvage(pages, contents)
        if contents.provenance is None:
            raise StoreError(f"{path} can't be repaired: what made its features is lost")
        contents.check()
        with StoreWriter(new, contents.provenance) as writer:
            kept, partial = _copy_sound(pages, sound, contents, writer)
        if not (kept or partial or contents.failures) and sound:
            raise StoreError(f"nothing in {path} can be saved; it was left as it is")
        abandon(path)
        replace(path, new)
    return Repaired(report.findings, kept, partial, tuple(dict.fromkeys(contents.findings)))


def _salvage(pages: Pages, contents: Contents) -> dict[tuple[str, bytes], Entry]:
    """Where the sound values lie; `contents` takes them, and what could not be had."""
    sound: dict[tuple[str, bytes], Entry] = {}
    bad: dict[tuple[str, bytes], str] = {}
    for source in (*map(pages.walk, pages.roots.values()), pages.scan()):
        before = len(pages.problems)
        for entry in sorted(source, key=lambda entry: (entry.db != "meta", entry.offset)):
            # A value found outside the trees tells by its checksum where it belongs.
            for db in [entry.db] if entry.db else DATABASES:
                if (db, entry.key) in sound:
                    break
                try:
                    contents.take(db, entry.key, pages.read(entry))
                except (FlamvidError, LookupError, TypeError, ValueError) as error:
                    if entry.db:
                        bad[db, entry.key] = str(error)
                else:
                    sound[db, entry.key] = entry
                    break
        if len(pages.problems) == before and contents.provenance and bad.keys() <= sound.keys():
            break
    contents.findings += [Finding(what) for place, what in bad.items() if place not in sound]
    return sound


def _copy_sound(
    pages: Pages,
    sound: dict[tuple[str, bytes], Entry],
    contents: Contents,
    writer: StoreWriter,
) -> tuple[int, int]:
    """Write whole videos, beginnings of others, and failures; how many of the first two."""
    kept, step = 0, writer.provenance.chunk_frames
    partial = set(contents.partial())

    def value(db: str, key: bytes) -> Put:
        return db, key, bytes(pages.read(sound[db, key]))

    for video, record in contents.records.items():
        need = -(-record.stored // step)
        if contents.whole(video) < need:
            partial.add(video)
            continue
        full = bytes.fromhex(record.content_hash)
        hashed: Put = ("hash", full, pack("hash", full, np.frombuffer(video, np.uint8)))
        _write(writer, _chunks(writer, video, need, value, [value("videos", video), hashed]))
        kept += 1
    begun = 0
    for video in sorted(partial):
        whole = contents.whole(video)
        # The last chunk of a video may be short, and nothing can go on after it.
        full_chunks = sum(contents.chunks["pts"][video][n] == step for n in range(whole))
        _write(writer, _chunks(writer, video, full_chunks, value))
        begun += bool(full_chunks)
    _write(writer, ([value("failures", key)] for key in contents.failures))
    return kept, begun


def _chunks(
    writer: StoreWriter,
    video: bytes,
    count: int,
    value: Callable[[str, bytes], Put],
    record: Sequence[Put] = (),
) -> Iterator[list[Put]]:
    """The values of each chunk; `record`, which makes the video visible, comes with the last."""
    dbs = ["pts", "features", *(["vectors"] if writer.provenance.embedding else [])]
    for number in range(count):
        key = chunk_key(video, number)
        yield [*(value(db, key) for db in dbs), *(record if number == count - 1 else ())]


def _write(writer: StoreWriter, groups: Iterable[list[Put]]) -> None:
    """Commit in batches of bounded size, which part no group: a run may be killed in between."""
    batch: list[Put] = []
    size = 0
    for group in groups:
        batch += group
        size += sum(len(value or b"") for _, _, value in group)
        if size >= _BATCH_BYTES:
            writer.commit(batch)
            batch, size = [], 0
    if batch:
        writer.commit(batch)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """The name of a new file in the same folder, which is gone at the end."""
    new = path.with_name(f"{path.name}.new")

    def clear() -> None:
        for file in (new, new.with_name(f"{new.name}-lock")):
            file.unlink(missing_ok=True)

    with translated(path):
        clear()
        try:
            yield new
        finally:
            clear()


def merge(target: Path, sources: Sequence[Path], newer: bool = False) -> Merged:
    """Add the videos and failures of other stores; done twice, it changes nothing more.

    The target is made if there is none. Videos with damaged values are left out, and named. Those
    that are there without captions get the others'. newer:
    the others are of the same sources, later: what the target had of a source goes as theirs comes,
    and the target's records follow what they met elsewhere.
    """
    if any(source.exists() and target.exists() and source.samefile(target) for source in sources):
        raise InputError(f"{target} is the target and a source; leave it out of the sources")
    added = present = told = 0
    damaged: list[Finding] = []
    failures: list[Failure] = []
    met: dict[str, Met] = {}
    copied: set[str] = set()
    # One at a time is open: a process has only so many files, and addresses for their maps.
    first, *_ = [provenance_of(source) for source in sources]
    with StoreWriter(target, first) as writer:
        older = _by_path(writer.reader) if newer else {}
        for source in sources:
            store = FeatureStore(source, check=True)
            snapshot = store.snapshot()
            writer.provenance.check(snapshot.provenance, str(target))
            if writer.provenance.chunk_frames != snapshot.provenance.chunk_frames:
                raise StoreError(
                    f"{snapshot.path} has chunks of {snapshot.provenance.chunk_frames} frames, not "
                    f"{writer.provenance.chunk_frames} as {target}; export and import it instead"
                )
            for video in snapshot:
                record = snapshot[video].record
                met[record.path] = Met(video, record.mtime)
                if video in writer:
                    present += 1
                    if record.captions and not writer.reader[video].record.captions:
                        writer.tell(video, record.captions)
                        told += 1
                    copied.add(video)
                    continue
                try:
                    stale = [old for old in older.pop(record.path, []) if old not in copied]
                    _merge_video(snapshot, video, writer, stale)
                    added += 1
                except DamagedStore as error:
                    damaged.append(Finding(str(error), video))
            failures += snapshot.failures()
            del snapshot
            store.close()
        settled = settle(writer, met) if newer else Settled(0, 0)
        _merge_failures(failures, writer)
    return Merged(added, present, told, tuple(damaged), settled)


def provenance_of(path: Path) -> Provenance:
    """What made the features of a store, which is not kept open."""
    store = FeatureStore(path)
    try:
        return store.provenance
    finally:
        store.close()


def _by_path(store: FeatureStore) -> dict[str, list[str]]:
    """Ids of what a store has of each source. The snapshot ends here: it would pin freed pages."""
    snapshot = store.snapshot()
    ids: dict[str, list[str]] = {}
    for video in snapshot:
        ids.setdefault(snapshot[video].record.path, []).append(video)
    return ids


def _merge_video(
    snapshot: Snapshot, video_id: str, writer: StoreWriter, stale: Sequence[str]
) -> None:
    def value(db: str, key: bytes) -> Put:
        return db, key, snapshot.value(db, key)

    video, record = id_bytes(video_id), snapshot[video_id].record
    count = -(-record.stored // writer.provenance.chunk_frames)
    shown = [value("hash", bytes.fromhex(record.content_hash)), value("videos", video)]
    known: Put = ("failures", failure_key(record.path), None)
    gone = [put for old in stale for put in writer.removal(old)]
    _write(writer, _chunks(writer, video, count, value, [*gone, *shown, known]))


def _merge_failures(failures: Iterable[Failure], writer: StoreWriter) -> None:
    """The latest word on each source that is in no store."""
    there = writer.reader.snapshot()
    indexed = {there[video].record.path for video in there}
    rows = {row.source: row for row in there.failures()}
    for row in failures:
        known = rows.get(row.source)
        if row.source not in indexed and (known is None or known.time < row.time):
            rows[row.source] = row
            key = failure_key(row.source)
            writer.commit([("failures", key, dump("failures", key, asdict(row)))])


def remove(path: Path, names: Sequence[str]) -> list[str]:
    """Drop videos, named by id or path; their ids. The space serves later videos, or `compact`."""
    store = FeatureStore(path)
    snapshot = store.snapshot()
    by_path = {snapshot[video].record.path: video for video in snapshot}
    # The indexer keeps whole paths.
    ids = [by_path.get(name, by_path.get(os.path.abspath(name), name)) for name in names]
    for name, video in zip(names, ids, strict=True):
        if video not in by_path.values():
            raise InputError(f"{path} holds no video {name!r}; name its id or its path")
    with StoreWriter(path, snapshot.provenance) as writer:
        for video in dict.fromkeys(ids):
            writer.remove(video)
    return ids


def compact(path: Path) -> tuple[int, int]:
    """Give the space of removed videos back to the disk; bytes before and after."""
    before = path.stat().st_size if path.is_file() else 0
    file = open_file(path)
    with translated(path), exclusive(path), _beside(path) as new:
        with file.lock:
            file.environment().copy(str(new), compact=True)
        seal.write(new)
        abandon(path)
        replace(path, new)
    return before, path.stat().st_size
