"""Frozen features of frames, kept on disk: a frame is encoded once in all epochs and runs.

A frame is known by its content, so whatever shows it, clips that overlap or another corpus, finds
it. Features are float16 whether they were just made or found: a run that is resumed sees the same.

Legend: B batch, M media, T frames, X different frames of a batch, N patches, F feature width.
"""

from __future__ import annotations

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

_CHUNK = 32  # frames that are encoded together


class FeatureCache:
    """Gives batches of frames their features, from a file where they lie there.

    encode: uint8 [X,3,H,W] to features [X,N,F]. about: all that features depend on beside the
    frames. path: None keeps nothing. Past `limit` bytes the file grows no more, nor on a full disk.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        about: str,
        path: Path | None = None,
        limit: int = 20 << 30,
    ) -> None:
        self.encode, self.about, self.limit = encode, about.encode()[:64], limit
        self.hits = self.misses = 0
        self._file: sqlite3.Connection | None = None
        if path is not None:
            self._file = _open(path)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with features float32 [B,M,T,N,F], 0 past a media's frames, for its frames."""
        frames, counts = batch.frames, batch.frame_counts
        if frames is None or counts is None:
            return batch
        B, M, T = frames.shape[:3]
        real_BMT = torch.arange(T) < counts[..., None]
        pictures = frames[real_BMT]
        features_XNF, order = self._features(pictures)
        out = features_XNF.new_zeros(B, M, T, *features_XNF.shape[1:], dtype=torch.float32)
        out[real_BMT] = features_XNF[order].float()
        return replace(batch, frames=None, features=out)

    def _features(self, pictures: Tensor) -> tuple[Tensor, list[int]]:
        """Features float16 of the different pictures, and which of them each picture has."""
        names = [self._name(picture) for picture in pictures]
        first = {name: at for at, name in reversed(list(enumerate(names)))}
        found = self._read(list(first))
        missing = [name for name in first if name not in found]
        self.hits, self.misses = self.hits + len(found), self.misses + len(missing)
        for start in range(0, len(missing), _CHUNK):
            some = missing[start : start + _CHUNK]
            encoded = self.encode(pictures[[first[name] for name in some]]).half().cpu()
            found |= dict(zip(some, encoded, strict=True))
        self._write({name: found[name] for name in missing})
        place = {name: at for at, name in enumerate(first)}
        return torch.stack([found[name] for name in first]), [place[name] for name in names]

    def _name(self, picture: Tensor) -> bytes:
        digest = blake2b(digest_size=20, key=self.about)
        digest.update(str(tuple(picture.shape)).encode())
        digest.update(memoryview(picture.contiguous().numpy()).cast("B"))
        return digest.digest()

    def _read(self, names: list[bytes]) -> dict[bytes, Tensor]:
        found = {}
        for name in names if self._file else ():
            assert self._file is not None
            query = "SELECT patches, data FROM features WHERE name = ?"
            if row := self._file.execute(query, (name,)).fetchone():
                values = torch.from_numpy(np.frombuffer(row[1], np.float16).copy())
                found[name] = values.view(row[0], -1)
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
            rows = [(n, len(x), x.contiguous().numpy().tobytes()) for n, x in features.items()]
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
            "CREATE TABLE IF NOT EXISTS features (name BLOB PRIMARY KEY, patches INT, data BLOB)"
        )
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(
            f"can't keep features in {path} ({error}); correct run.cache, or remove the file"
        ) from error
    return file
