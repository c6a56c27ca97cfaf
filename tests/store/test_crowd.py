"""Many readers while the store grows under them."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import numpy as np
import pytest

from flamvid.store import FeatureStore, StoreWriter
from flamvid.store.audit import verify
from tests.store.stores import MADE, write_store, write_video


def _read(path: Path, seed: int, stop: object, told: object) -> None:
    """Read at random, every checksum checked, till told to stop; then say how it went."""
    rng, store, reads = np.random.default_rng(seed), FeatureStore(path, check=True), 0
    try:
        while not stop.is_set():
            ids = list(store)
            for video_id in rng.choice(ids, 8):
                video = store[str(video_id)]
                start = float(rng.uniform(0, 15))
                pts = video.pts(start, start + 3)
                assert video.features(start, start + 3).shape == (len(pts), 4, 48)
                assert video.vectors(start, start + 3).shape == (len(pts), 8)
                reads += 1
        told.put((reads, len(ids), ""))
    except BaseException as error:
        told.put((reads, 0, repr(error)))


# With little room, the maps of readers in other processes have to grow as well.
@pytest.mark.parametrize("room", [None, pytest.param(1 << 17, marks=pytest.mark.slow)])
def test_readers_and_a_growing_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int | None
) -> None:
    monkeypatch.setattr("flamvid.store.file._FIRST_MAP", 1 << 17)
    if room is not None:
        monkeypatch.setattr("flamvid.store.file._ROOM", room)
        monkeypatch.setattr("flamvid.store.file._ROOM_TIMES", 1)
    path = write_store(tmp_path / "lib.lmdb", range(3))
    context = multiprocessing.get_context("fork")
    stop, told = context.Event(), context.Queue()
    readers: list[threading.Thread | multiprocessing.process.BaseProcess] = [
        context.Process(target=_read, args=(path, seed, stop, told)) for seed in range(8)
    ]
    for reader in readers:
        reader.start()
    readers += [
        threading.Thread(target=_read, args=(path, 8 + seed, stop, told)) for seed in range(4)
    ]
    for reader in readers[8:]:
        reader.start()
    with StoreWriter(path, MADE) as writer:
        for number in range(3, 50 if room is None else 80):
            write_video(writer, number)
    stop.set()
    answers = [told.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    assert [error for _, _, error in answers if error] == []
    assert min(reads for reads, _, _ in answers) > 0
    assert not verify(path).findings
