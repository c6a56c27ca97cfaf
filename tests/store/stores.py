"""Small stores whose every value a test can tell beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flamvid.store import Provenance, StoreWriter, VideoRecord

MADE = Provenance(
    encoder="tiny",
    weights_sha256="0" * 64,
    preprocessing="resize 64",
    sampling="fps 2",
    patches=4,
    width=48,
    embedder="head",
    embedding=8,
    chunk_frames=10,  # 3,840 bytes of features: pages of their own
)


def record(number: int, path: str | None = None) -> VideoRecord:
    digest = hashlib.sha256(b"video %d" % number).hexdigest()
    return VideoRecord(path=path or f"clips/v{number}.mp4", content_hash=digest, duration=9.0)


def arrays(number: int, T: int) -> tuple[NDArray, NDArray, NDArray]:
    """Times [T], features [T,N,F] and vectors [T,E] that only this video has."""
    rng = np.random.default_rng(number)
    features = rng.standard_normal((T, MADE.patches, MADE.width)).astype(np.float16)
    vectors = rng.standard_normal((T, MADE.embedding)).astype(np.float16)
    return np.cumsum(rng.uniform(0.1, 0.9, T)), features, vectors


def length(number: int) -> int:
    return 1 + (number * 7) % 35


def write_video(writer: StoreWriter, number: int, path: str | None = None) -> str:
    """Write a video in portions that don't fit the chunks; its id."""
    pts, features, vectors = arrays(number, length(number))
    wanted = record(number, path)
    with writer.video(wanted) as video:
        for at in range(video.resume_at, len(pts), 7):
            part = slice(at, at + 7)
            video.add(pts[part], features[part], vectors[part])
    return wanted.id


def write_store(path: Path, numbers: Iterable[int]) -> Path:
    with StoreWriter(path, MADE) as writer:
        for number in numbers:
            write_video(writer, number)
    return path
