"""What is searched: a vector for each window of time of every video, in files that are mapped.

They are made from a store's vectors of frames when it is first searched, and kept in the cache
folder: one part for each time that videos were new since. A part is never changed.

Legend: T frames, W windows, E width of a vector.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid.errors import InputError, StoreError
from flamvid.store import FeatureStore, Provenance, Snapshot, StoredVideo
from flamvid.weights.hub import cache_dir

__all__ = ["ROW", "Clip", "Part", "Windows", "check", "cut", "load_part", "open_windows"]

_MOST_PARTS = 16  # before they are made into one
ROW = np.dtype([("video", "<u4"), ("start", "<f8"), ("end", "<f8")])
_BLOCK = 8192  # windows that are written together


@dataclass(frozen=True, slots=True)
class Clip:
    """A video that is searched: its id and path, seconds long, last changed (since 1970, s)."""

    id: str
    path: str
    duration: float
    mtime: float


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Windows of some videos: float16 vectors [W,E] of length 1; whose they are, start and end."""

    vectors: Tensor
    rows: NDArray[Any]
    clips: tuple[Clip, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """All windows of a snapshot of a store.

    folder: where its parts lie, and what is derived from them may. alive: for each part which of
    its rows count; None for all.
    """

    folder: Path
    parts: tuple[Part, ...]
    alive: tuple[NDArray[np.bool_] | None, ...]

    def __len__(self) -> int:
        return sum(len(part.rows) for part in self.parts)


def cut(
    pts: NDArray[np.float64], vectors_TE: NDArray[Any], duration: float, size: float, every: float
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Start and end [W,2] of the windows that have a frame, and the sums [W,E] of their vectors.

    They are `size` seconds long and begin `every` seconds; the last ends with the video.
    """
    count = max(1, math.ceil((duration - size) / every - 1e-9) + 1)
    starts = np.arange(count) * every
    ends = np.minimum(starts + size, max(duration, 1e-3))
    first, last = pts.searchsorted(starts), pts.searchsorted(ends)
    last[-1] = len(pts)
    some = last > first
    sums = np.zeros((len(pts) + 1, vectors_TE.shape[1]))
    np.cumsum(vectors_TE, axis=0, dtype=np.float64, out=sums[1:])
    spans = np.stack([starts, ends], 1)[some]
    return spans, (sums[last[some]] - sums[first[some]]).astype(np.float32)


def open_windows(
    store: FeatureStore, size: float = 4.0, every: float | None = None, folder: Path | None = None
) -> Windows:
    """The windows of all videos that a store holds now, `size` seconds long.

    every: seconds from one to the next, half of the size if None. folder: where they are kept, in
    the cache folder if None. InputError for a store without vectors, StoreError where
    they can't be kept.
    """
    every = size / 2 if every is None else every
    # Windows are kept: what is damaged must not get into them, and one that is no number hides all.
    snapshot = FeatureStore(store.path, check=True).snapshot()
    check(store.path, snapshot.provenance, size, every)
    home = (folder or cache_dir() / "search") / _key(store.path, snapshot, size, every)
    try:
        return _opened(home, snapshot, size, every)
    except OSError as error:
        raise StoreError(
            f"can't keep what is searched in {home} ({error.strerror}); make room there, or name "
            "another folder by FLAMVID_HOME"
        ) from error


def check(path: Path, made: Provenance, size: float, every: float) -> None:
    """InputError for a store, by how it was made, and windows that can't be."""
    for name, value in (("window", size), ("every", every)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value} s; must be above 0")
    if not made.embedding:
        raise InputError(f"{path} holds no vectors to search by; index it with flamvid index")


def _opened(home: Path, snapshot: Snapshot, size: float, every: float) -> Windows:
    parts = _load_all(home, snapshot.provenance.embedding)
    if len(parts) >= _MOST_PARTS:
        shutil.rmtree(home, ignore_errors=True)
        parts = []
    ids = list(snapshot)
    known = {clip.id for part in parts for clip in part.clips}
    if new := [id for id in ids if id not in known]:
        parts.append(_make(home, len(parts), (snapshot[id] for id in new), snapshot, size, every))
    parts = [_placed(part, snapshot, set(ids)) for part in parts]
    return Windows(home, tuple(parts), tuple(_alive(parts, set(ids))))


def _placed(part: Part, snapshot: Snapshot, ids: set[str]) -> Part:
    """A part whose videos are where the store has them now: files are renamed."""
    clips = []
    for clip in part.clips:
        if clip.id in ids:
            record = snapshot[clip.id].record
            clip = replace(clip, path=record.path, mtime=record.mtime)
        clips.append(clip)
    return replace(part, clips=tuple(clips))


def _key(path: Path, snapshot: Snapshot, size: float, every: float) -> str:
    text = f"{os.path.realpath(path)} {snapshot.provenance} {size!r} {every!r}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _alive(parts: Sequence[Part], ids: set[str]) -> Iterator[NDArray[np.bool_] | None]:
    """Rows of videos that were removed since, or are in an earlier part too, don't count."""
    for part in parts:
        wanted = np.array([clip.id in ids for clip in part.clips], bool)
        ids -= {clip.id for clip in part.clips}
        yield None if wanted.all() else wanted[part.rows["video"]]


def _make(
    home: Path,
    number: int,
    videos: Iterator[StoredVideo],
    snapshot: Snapshot,
    size: float,
    every: float,
) -> Part:
    """A part with the windows of these videos, which appears whole."""
    home.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=home))
    try:
        clips, rows = [], []
        with (scratch / "vectors").open("wb") as file:
            for place, video in enumerate(videos):
                record, vectors = video.record, video.vectors()
                assert vectors is not None
                spans, sums = cut(video.pts(), vectors, record.duration, size, every)
                lengths = np.linalg.norm(sums, axis=1, keepdims=True)
                (sums / np.maximum(lengths, 1e-12)).astype("<f2").tofile(file)
                some = np.empty(len(spans), ROW)
                some["video"], some["start"], some["end"] = place, spans[:, 0], spans[:, 1]
                rows.append(some)
                clips.append([record.id, record.path, record.duration, record.mtime])
        np.save(scratch / "rows.npy", np.concatenate(rows))
        (scratch / "clips.json").write_text(json.dumps(clips))
        final = home / f"part-{number}-{scratch.name[6:]}"
        scratch.rename(final)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return load_part(final, snapshot.provenance.embedding)


def _load_all(home: Path, width: int) -> list[Part]:
    folders = sorted(home.glob("part-*"), key=lambda path: (int(path.name.split("-")[1]), path))
    try:
        return [load_part(folder, width) for folder in folders]
    except (EOFError, OSError, RuntimeError, ValueError):  # as a crash of the machine leaves them
        shutil.rmtree(home, ignore_errors=True)
        return []


def load_part(folder: Path, width: int) -> Part:
    """A part from its files, mapped."""
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    vectors = torch.from_file(
        str(folder / "vectors"), shared=False, size=len(rows) * width, dtype=torch.float16
    )
    clips = tuple(Clip(*row) for row in json.loads((folder / "clips.json").read_text()))
    return Part(vectors.view(len(rows), width), rows, clips)
