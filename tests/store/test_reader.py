"""What was written is what is read, by whoever reads it."""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flamvid.errors import DamagedStore, InputError, StoreError
from flamvid.store import FeatureStore, StoreWriter, schema
from tests.store.stores import MADE, arrays, length, record, write_store, write_video


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "lib.lmdb", range(12))


def test_videos_are_as_they_were_written(path: Path) -> None:
    store = FeatureStore(path, check=True)
    assert store.provenance == MADE
    assert sorted(store) == sorted(record(n).id for n in range(12))
    for number in range(12):
        pts, features, vectors = arrays(number, length(number))
        video = store[record(number).id]
        assert video.record.path == f"clips/v{number}.mp4"
        assert video.record.stored == len(pts)
        np.testing.assert_array_equal(video.pts(), pts)
        np.testing.assert_array_equal(video.features(), features)
        np.testing.assert_array_equal(video.vectors(), vectors)
        np.testing.assert_array_equal(np.concatenate([f for _, f in video.chunks()]), features)
    with pytest.raises(InputError, match="holds no video"):
        store["0" * 32]
    assert "0" * 32 not in store


@given(st.integers(0, 11), st.floats(-1, 40), st.floats(-1, 40))
def test_a_range_is_the_frames_between_its_times(
    path: Path, number: int, start: float, end: float
) -> None:
    pts, features, vectors = arrays(number, length(number))
    video = FeatureStore(path)[record(number).id]
    wanted = (pts >= start) & (pts < end)
    np.testing.assert_array_equal(video.pts(start, end), pts[wanted])
    np.testing.assert_array_equal(video.features(start, end), features[wanted])
    np.testing.assert_array_equal(video.vectors(start, end), vectors[wanted])


def test_a_range_in_one_chunk_is_an_aligned_view_that_can_not_be_written(path: Path) -> None:
    video = FeatureStore(path)[record(4).id]
    first, again = video.frames(0, 3), video.frames(0, 9)
    assert np.shares_memory(first, again)
    assert first.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    assert not np.shares_memory(video.frames(8, 12), video.frames(8, 12))  # two chunks


def test_arrays_outlive_their_store_and_what_is_removed(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", range(3))
    kept = FeatureStore(path)[record(2).id].features(0, 3)
    copy = kept.copy()
    gc.collect()
    with StoreWriter(path, MADE) as writer:
        for number in range(3):
            writer.remove(record(number).id)
        for number in range(20, 40):  # would take the free pages
            write_video(writer, number)
    np.testing.assert_array_equal(kept, copy)


def test_a_snapshot_stays_while_the_store_goes_on(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", range(2))
    store = FeatureStore(path)
    before = store.snapshot()
    with StoreWriter(path, MADE) as writer:
        during = store.snapshot()
        write_video(writer, 5)
        assert record(5).id in store
        assert record(5).id not in during
    assert len(store) == 3
    assert len(during) == 2
    del before


def test_a_store_is_pickled_forked_and_spawned(path: Path) -> None:
    store = FeatureStore(path, check=True)
    expected = {video: float(store[video].features().sum(dtype=np.float64)) for video in store}
    assert pickle.loads(pickle.dumps(store)).check
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        answers = context.Queue()
        child = context.Process(target=_sums, args=(store, answers))
        child.start()
        assert answers.get(timeout=60) == expected
        child.join()
        assert child.exitcode == 0
    # The parent's transaction is still in LMDB's table of readers.
    assert store.snapshot()._file.environment().readers().count("\n") >= 2


def _sums(store: FeatureStore, answers: multiprocessing.Queue[dict[str, float]]) -> None:
    answers.put({video: float(store[video].features().sum(dtype=np.float64)) for video in store})


def test_a_fork_while_threads_read_leaves_both_sides_sound(path: Path) -> None:
    store = FeatureStore(path, check=True)
    stop, faults = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                for video in FeatureStore(path, check=True):
                    store[video].features()
            except Exception as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        answers = context.SimpleQueue()
        child = context.Process(target=_sums, args=(store, answers))
        child.start()
        assert len(answers.get()) == 12
        child.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults


def test_what_is_no_store_is_refused_in_a_line(tmp_path: Path, path: Path) -> None:
    text = tmp_path / "notes.txt"
    for lines in (2000, 1):
        text.write_text("no store\n" * lines)
        with pytest.raises(StoreError, match="is no feature store"):
            len(FeatureStore(text))
    with pytest.raises(StoreError, match="No such file"):
        len(FeatureStore(tmp_path / "absent.lmdb"))
    with pytest.raises(StoreError, match="is a folder"):
        len(FeatureStore(tmp_path))
    cut = tmp_path / "cut.lmdb"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DamagedStore, match="is truncated"):
        len(FeatureStore(cut))
    cut.write_bytes(b"")
    with pytest.raises(StoreError, match=r"cut\.lmdb is no .* but empty"):
        len(FeatureStore(cut))


def test_what_is_damaged_or_newer_is_named(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file, and for what is damaged the way out."""
    bad, new, data = tmp_path / "bad.lmdb", tmp_path / "new.lmdb", path.read_bytes()
    bad.write_bytes(data.replace(b'"weights_sha256"', b'"Xeights_sha256"'))
    with pytest.raises(DamagedStore, match=r"bad\.lmdb: meta .* checksum; .*store repair"):
        len(FeatureStore(bad))
    new.write_bytes(data)
    with monkeypatch.context() as patch, StoreWriter(new, MADE) as writer:
        patch.setattr(schema, "FORMAT", 2)
        write_video(writer, 20)
    with pytest.raises(StoreError, match=r"new\.lmdb: a value of videos is of .* 2.*upgrade"):
        FeatureStore(new)[record(20).id]
