"""What fails takes one video, stands in the ledger, and is tried again when it is asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from flamvid import library
from flamvid.api import Captioner
from flamvid.errors import StoreError
from flamvid.index.encoder import FrameEncoder
from flamvid.library import IndexConfig
from flamvid.store import FeatureStore, StoreWriter, VideoRecord
from tests.index.library_files import ids


def test_failures_are_tried_again(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    broken = tmp_path / "v.mp4"
    broken.write_bytes(b"no video")
    os.utime(broken, (1e9, 1e9))
    store = tmp_path / "s.lmdb"
    assert library.index(broken, store, model=captioner).failed == 1
    assert library.index(broken, store, model=captioner).failed_before == 1
    other = library.index([], store, model=captioner, config=IndexConfig(retry="lost"))
    assert (other.total, other.failed) == (0, 0)
    assert library.index([], store, model=captioner, config=IndexConfig(retry="")).failed == 1
    assert FeatureStore(store).failures()[0].count == 2

    shutil.copy(videos / "red 0.mp4", broken)
    os.utime(broken, (1e9, 1e9))  # even if it does not look newer
    mended = library.index([], store, model=captioner, config=IndexConfig(retry="source"))
    assert (mended.indexed, FeatureStore(store).failures()) == (1, [])


def test_a_mended_file_is_tried_at_once(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    broken, store = tmp_path / "v.mp4", tmp_path / "s.lmdb"
    broken.write_bytes(b"no video")
    library.index(broken, store, model=captioner)
    shutil.copy(videos / "red 0.mp4", broken)
    later = time.time() + 5
    os.utime(broken, (later, later))
    assert library.index(broken, store, model=captioner).indexed == 1


def test_an_odd_error_takes_one_video(
    tmp_path: Path, videos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FrameEncoder.shrink

    def shrink(self: FrameEncoder, pixels: torch.Tensor) -> torch.Tensor:
        if pixels[:, 2].float().mean() > 200 > pixels[:, 0].float().mean() + 100:
            raise RuntimeError("blue is out")
        return real(self, pixels)

    monkeypatch.setattr(FrameEncoder, "shrink", shrink)
    names = [videos / "red 0.mp4", videos / "blue 2.mp4"]
    stats = library.index(names, tmp_path / "s.lmdb", model=captioner)
    assert (stats.indexed, stats.failed) == (1, 1)
    [failure] = FeatureStore(tmp_path / "s.lmdb").failures()
    assert (failure.reason, failure.message) == ("unexpected", "blue is out")


def test_features_too_large_for_the_store(
    tmp_path: Path, videos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FrameEncoder.encode
    monkeypatch.setattr(
        FrameEncoder, "encode", lambda self, x: tuple(1e6 * (y + 1) for y in real(self, x))
    )
    stats = library.index(videos / "blue 2.mp4", tmp_path / "s.lmdb", model=captioner)
    assert (stats.indexed, stats.failed) == (0, 1)
    [failure] = FeatureStore(tmp_path / "s.lmdb").failures()
    assert "not finite as float16" in failure.message


def test_a_beginning_longer_than_its_video_takes_one_video(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """As another version of the decoder may have left; what is there of it is dropped."""
    red, blue, store = videos / "red 0.mp4", videos / "blue 2.mp4", tmp_path / "s.lmdb"
    made = FrameEncoder(captioner.model).provenance("fps 1")
    T = made.chunk_frames + 1
    with StoreWriter(store, made) as writer:
        digest = hashlib.sha256(red.read_bytes()).hexdigest()
        wanted = VideoRecord(path=str(red), content_hash=digest)
        with suppress(KeyboardInterrupt), writer.video(wanted) as begun:
            vectors = np.zeros((T, made.embedding))
            begun.add(np.arange(T), np.zeros((T, made.patches, made.width)), vectors)
            raise KeyboardInterrupt
    stats = library.index([red, blue], store, model=captioner)
    assert (stats.indexed, stats.failed) == (1, 1)
    retried = library.index([], store, model=captioner, config=IndexConfig(retry=""))
    assert (retried.indexed, set(ids(store))) == (1, {str(red), str(blue)})


def test_a_store_that_fails_ends_the_run(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    before = threading.active_count()
    with pytest.raises(StoreError):
        library.index(videos, tmp_path / "no folder" / "s.lmdb", model=captioner)
    assert threading.active_count() == before
