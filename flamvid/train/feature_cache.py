"""Frozen features of frames, kept on disk: a frame is encoded once in all epochs and runs.

A frame is known by its content, so whatever shows it, clips that overlap or another corpus, finds
it. Features are float16 whether they were just made or found: a run that is resumed sees the same.

Legend: B batch, M media, T frames, X pictures, N patches, F feature width.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flamvid.data.collate import Batch
from flamvid.errors import ConfigError

__all__ = ["FeatureCache"]

_log = logging.getLogger("flamvid.train")

_CHUNK = 32  # frames that are encoded together


class FeatureCache:
    """Gives batches of frames their features, from a file where they lie there.

    encode: uint8 [X,3,H,W] to features [X,N,F]. about: all that features depend on beside the
    frames. path: None keeps nothing. Past `limit` bytes the file grows no more, nor on a full disk.
    whole: features are of a media, as a video encoder has them, and not of each of its frames.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        about: str,
        path: Path | None = None,
        *,
        limit: int = 20 << 30,
        whole: bool = False,
    ) -> None:
        self.encode, self.limit, self.whole = encode, limit, whole
        self.about = blake2b(about.encode(), digest_size=32).digest()
        self.hits = self.misses = 0
        self._path = path
        self._file: sqlite3.Connection | None = None
        if path is not None:
            self._file = _open(path)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with features float32 [B,M,T,N,F], 0 past a media's frames, for its frames."""
        frames, counts = batch.frames, batch.frame_counts
        if frames is None or counts is None:
            return batch
        B, M = counts.shape
        media = [frames[b, m, : counts[b, m]] for b in range(B) for m in range(M)]
        if self.whole:
            features = self._features(media)
        else:
            pictures = iter(self._features([frame for clip in media for frame in clip.split(1)]))
            features = [torch.cat([next(pictures) for _ in clip]) for clip in media]
        longest = max(len(x) for x in features)
        out = torch.zeros(B * M, longest, *features[0].shape[1:])
        for row, x in zip(out, features, strict=True):
            row[: len(x)] = x
        lengths = torch.tensor([len(x) for x in features]).view(B, M)
        return replace(batch, frames=None, features=out.unflatten(0, (B, M)), frame_counts=lengths)

    def _features(self, clips: list[Tensor]) -> list[Tensor]:
        """Features float16 [T,N,F] of each clip uint8 [T,3,H,W]; a picture is a clip of one."""
        names = [self._name(clip) for clip in clips]
        different = dict(zip(names, clips, strict=True))
        found = self._read(list(different))
        missing = {name: clip for name, clip in different.items() if name not in found}
        self.hits, self.misses = self.hits + len(found), self.misses + len(missing)
        made = dict(zip(missing, self._encoded(list(missing.values())), strict=True))
        self._write(made)
        found |= made
        return [found[name] for name in names]

    def _encoded(self, clips: list[Tensor]) -> list[Tensor]:
        if self.whole:
            return [self.encode(clip).half().cpu() for clip in clips]
        pictures: list[Tensor] = []
        for start in range(0, len(clips), _CHUNK):
            some = torch.cat(clips[start : start + _CHUNK])
            pictures += self.encode(some).half().cpu().split(1)
        return pictures

    def _name(self, clip: Tensor) -> bytes:
        digest = blake2b(digest_size=20, key=self.about)
        digest.update(str(tuple(clip.shape)).encode())
        digest.update(memoryview(clip.contiguous().numpy()).cast("B"))
        return digest.digest()

    def _read(self, names: list[bytes]) -> dict[bytes, Tensor]:
        found: dict[bytes, Tensor] = {}
        if self._file is None:
            return found
        query = "SELECT shape, data FROM features WHERE name = ?"
        try:
            for name in names:
                if row := self._file.execute(query, (name,)).fetchone():
                    values = torch.from_numpy(np.frombuffer(row[1], np.float16).copy())
                    found[name] = values.view(*map(int, row[0].split()))
        except (sqlite3.Error, ValueError, TypeError, RuntimeError) as error:
            _log.warning("%s is damaged (%s) and not used; remove it", self._path, error)
            self._file = None
            return {}
        return found

    def _write(self, features: dict[bytes, Tensor]) -> None:
        """All of a batch or none, so that what is found never depends on when a run was stopped."""
        if self._file is None or not features:
            return
        try:
            pages, size = (
                self._file.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "page_size")
            )
            if pages * size > self.limit:
                return
            rows = [
                (name, " ".join(map(str, x.shape)), x.contiguous().numpy().tobytes())
                for name, x in features.items()
            ]
            with self._file:
                self._file.executemany("INSERT OR IGNORE INTO features VALUES (?, ?, ?)", rows)
        except sqlite3.Error:  # a full disk; what lies there can still be read
            self.limit = 0


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(path, timeout=60)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute(
            "CREATE TABLE IF NOT EXISTS features (name BLOB PRIMARY KEY, shape TEXT, data BLOB)"
        )
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"can't keep features in {path} ({error}); correct run.cache, or remove the file"
        ) from error
    return file
