"""Where videos are: records follow files that were renamed, written over, or exchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flamvid.store.schema import VideoRecord, dump, id_bytes, record_to_json
from flamvid.store.writer import Put, StoreWriter, failure_key

__all__ = ["Met", "Settled", "gone", "settle"]


@dataclass(frozen=True, slots=True)
class Met:
    """What a path was found to hold: a video's id, and when the file was last changed."""

    id: str
    mtime: float


@dataclass(frozen=True, slots=True)
class Settled:
    """Records that have another path now, and videos that went for want of one."""

    moved: int
    removed: int


def gone(path: str) -> bool:
    """Whether nothing is there that was: a file, or the tar that a sample was in."""
    archive = path.rpartition("#")[0]
    return "://" not in path and not (os.path.lexists(path) or os.path.lexists(archive))


def settle(
    writer: StoreWriter, met: Mapping[str, Met], gone: Callable[[str], bool] = gone
) -> Settled:
    """Let records say where their videos are, after sources were looked at.

    A video whose path holds another one that is in the store, or is gone, moves to a path at which
    it was met. Where there is none, it goes in the first case, for nobody could play it; in the
    second it stays, as its disk may come back. What a path in the store failed with is forgotten.
    """
    snapshot = writer.reader.snapshot()
    records = [snapshot[video].record for video in snapshot]
    known = {record.id for record in records}
    met = {path: found for path, found in met.items() if found.id in known}
    homes: dict[str, list[str]] = {}
    for path, found in met.items():
        homes.setdefault(found.id, []).append(path)
    mended = met.keys() & {failure.source for failure in snapshot.failures()}
    puts: list[Put] = [("failures", failure_key(path), None) for path in sorted(mended)]
    moved = removed = 0
    for record in records:
        here, elsewhere = met.get(record.path), homes.get(record.id, [])
        if here is not None and here.id == record.id:
            if here.mtime != record.mtime:
                puts.append(_put(replace(record, mtime=here.mtime)))
        elif elsewhere and (here is not None or gone(record.path)):
            path = elsewhere[0]
            puts.append(_put(replace(record, path=path, mtime=met[path].mtime)))
            moved += 1
        elif here is not None:
            puts += writer.removal(record.id)
            removed += 1
    if puts:  # at once: half of an exchange would be two videos at one path
        writer.commit(puts)
    return Settled(moved, removed)


def _put(record: VideoRecord) -> Put:
    key = id_bytes(record.id)
    return "videos", key, dump("videos", key, record_to_json(record))
