"""Stores that were damaged, split, or thinned out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import lmdb
import numpy as np
import pytest

from flamvid.errors import DamagedStore, FlamvidError, InputError, StoreError
from flamvid.store import FeatureStore, StoreWriter
from flamvid.store.audit import verify
from flamvid.store.maintain import compact, merge, remove, repair
from flamvid.store.schema import dump
from tests.store.stores import MADE, arrays, length, record, write_store, write_video
from tests.store.test_writer import entries

VIDEOS = 16


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with failures, an unfinished video, free pages, and a seal."""
    path = write_store(tmp_path_factory.mktemp("store") / "lib.lmdb", range(VIDEOS + 2))
    pts, features, vectors = arrays(50, 25)
    with StoreWriter(path, MADE) as writer:
        for number in (VIDEOS, VIDEOS + 1):
            writer.remove(record(number).id)
        for number in range(5):
            writer.fail(f"bad{number}.mp4", "decode", "no frames")
    writer = StoreWriter(path, MADE)
    try:
        with writer.video(record(50)) as video:
            video.add(pts, features, vectors)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        writer.close()
    return path


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("seed", range(4))
def test_every_flipped_bit_is_found_and_repaired(whole: Path, tmp_path: Path, seed: int) -> None:
    rng, path, size = np.random.default_rng(seed), tmp_path / "lib.lmdb", whole.stat().st_size
    before = verify(whole)
    assert not before.findings
    assert before.sealed
    for turn in range(30):
        shutil.copy(whole, path)
        # Every third in the pages that everything hangs from.
        flip(path, int(rng.integers(size if turn % 3 else 8192)), int(rng.integers(8)))
        assert verify(path).findings
        if turn % 10 == 1:
            _read_in_a_child(path)
            outcome = repair(path)
            assert outcome.found
            after = verify(path)
            assert not after.findings
            # One bit spoils one page at the most, and a leaf holds few videos.
            assert outcome.kept == after.videos >= VIDEOS - 9
            _check_videos(path)


def _read_in_a_child(path: Path) -> None:
    """Whatever the bytes are, LMDB must not bring the process down."""
    child = os.fork()
    if not child:
        code = 1
        try:
            store = FeatureStore(path, check=True)
            for video in store:
                store[video].features()
            code = 0
        except FlamvidError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def _check_videos(path: Path) -> None:
    store = FeatureStore(path, check=True)
    for number in range(VIDEOS):
        if record(number).id in store:
            features = store[record(number).id].features()
            np.testing.assert_array_equal(features, arrays(number, length(number))[1])


def test_repair_drops_what_is_broken_and_no_more(whole: Path, tmp_path: Path) -> None:
    path = shutil.copy(whole, tmp_path / "lib.lmdb")
    broken = next(number for number in range(VIDEOS) if length(number) > 20)
    place = path.read_bytes().index(arrays(broken, length(broken))[1][10:20].tobytes())
    flip(path, place + 99, 3)
    store = FeatureStore(path, check=True)
    with pytest.raises(DamagedStore, match=r"features \w+ chunk 1 has a wrong checksum"):
        store[record(broken).id].features()
    with pytest.raises(StoreError, match="in use by others"):
        repair_elsewhere(path)
    store.close()
    outcome = repair(path)
    assert outcome.kept == VIDEOS - 1
    assert {finding.video for finding in outcome.dropped if finding.video} == {record(broken).path}
    assert not verify(path).findings
    with StoreWriter(path, MADE) as writer, writer.video(record(broken)) as video:
        assert video.resume_at == 10  # the chunk before the broken one is kept
        pts, features, vectors = arrays(broken, length(broken))
        video.add(pts[10:], features[10:], vectors[10:])
    assert _but_state(path) == _but_state(whole)
    assert repair(path).found == ()


def repair_elsewhere(path: Path) -> None:
    """As another process would."""
    from flamvid.store.locks import replace

    other = path.with_name("other.lmdb")
    shutil.copy(path, other)
    replace(path, other)


def _but_state(path: Path) -> dict[tuple[str, bytes], bytes]:
    return {key: value for key, value in entries(path).items() if key[0] != "state"}


@pytest.mark.parametrize(
    ("db", "value"),
    [
        ("meta", None),
        ("meta", [1]),
        ("meta", {**asdict(MADE), "patches": "four"}),
        ("meta", {**asdict(MADE), "later": 1}),
        ("meta", {**asdict(MADE), "chunk_frames": -1}),
        ("meta", {**asdict(MADE), "chunk_frames": 1 << 40}),
        ("videos", [1]),
        ("videos", {"path": "a.mp4"}),
        ("videos", {"path": 5, "content_hash": record(1).content_hash}),
        ("videos", {"path": "a.mp4", "content_hash": record(1).content_hash, "stored": "x"}),
        ("failures", {"source": "a.mp4"}),
        ("failures", [1]),
    ],
)
def test_what_a_stranger_wrote_is_damage_in_a_line(tmp_path: Path, db: str, value: object) -> None:
    """Values whose checksums are right, and that make no sense."""
    path = write_store(tmp_path / "lib.lmdb", [1])
    key = {"meta": b"provenance", "videos": bytes.fromhex(record(1).id)}.get(db, bytes(16))
    with lmdb.open(str(path), subdir=False, max_dbs=16) as environment:
        database = environment.open_db(db.encode())
        with environment.begin(write=True) as txn:
            txn.put(key, dump(db, key, value), db=database)

    def read() -> None:
        store = FeatureStore(path, check=True)
        store[record(1).id].features()
        store.failures()

    with pytest.raises(DamagedStore):
        read()
    assert verify(path).findings


def test_a_truncated_store_is_said_to_be_one(whole: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "cut.lmdb", whole.read_bytes()
    for share in (0.999, 0.9, 0.5):
        path.write_bytes(data[: int(len(data) * share)])
        assert verify(path).findings
    for size in (0, 100):
        path.write_bytes(data[:size])
        with pytest.raises(StoreError, match="is no feature store"):
            verify(path)


def test_shards_merge_into_what_one_run_would_have_made(tmp_path: Path) -> None:
    shards = [write_store(tmp_path / f"{i}.lmdb", range(i, 12, 3)) for i in range(3)]
    with StoreWriter(shards[0], MADE) as writer:
        writer.fail("bad.mp4", "decode", "no frames")
        writer.fail(record(1).path, "decode", "the other shard has it")
    target = tmp_path / "all.lmdb"
    assert merge(target, shards).added == 12
    first = _but_state(target)
    again = merge(target, shards)
    assert (again.added, again.present) == (0, 12)
    assert _but_state(target) == first
    assert [failure.source for failure in FeatureStore(target).failures()] == ["bad.mp4"]
    expected = _but_state(write_store(tmp_path / "one.lmdb", range(12)))
    assert {key: value for key, value in first.items() if key[0] != "failures"} == expected
    with pytest.raises(InputError, match="is the target and a source"):
        merge(target, [target])


def test_what_is_newer_takes_its_own_place(tmp_path: Path) -> None:
    """By the name of its source, whole or not at all; other stores' videos stay side by side."""
    target, changed = write_store(tmp_path / "all.lmdb", [1, 2]), tmp_path / "changed.lmdb"
    with StoreWriter(changed, MADE) as writer:
        new = write_video(writer, 9, record(2).path)
    apart = tmp_path / "apart.lmdb"
    assert merge(apart, [target, changed]).added == 3
    for _ in range(2):
        merge(target, [changed], newer=True)
        assert set(FeatureStore(target)) == {record(1).id, new}
    assert not verify(target).findings


def test_a_merge_of_many_has_few_open(tmp_path: Path) -> None:
    """A cluster's parts may be thousands, and a process's open files are not."""
    shards = [write_store(tmp_path / f"{number}.lmdb", [number]) for number in range(20)]
    code = (
        "import resource, sys; from pathlib import Path; from flamvid.store.maintain import merge;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20));"
        "target, *shards = map(Path, sys.argv[1:]); print(merge(target, shards).added)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "all.lmdb"), *map(str, shards)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("20\n", "")


def test_a_merge_that_is_stopped_anywhere_leaves_a_sound_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a killed merge those commits are there that came before; indexing goes on behind them."""
    monkeypatch.setattr("flamvid.store.maintain._BATCH_BYTES", 1)  # as of videos that are large
    shard, real = write_store(tmp_path / "0.lmdb", [4, 2]), StoreWriter.commit
    wanted, left = _but_state(shard), [0]

    def commit(self: StoreWriter, puts: object) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(self, puts)

    stops = 0
    while True:
        target = tmp_path / f"all {stops}.lmdb"
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            StoreWriter(target, MADE).close()
            left[0] = stops
            patch.setattr(StoreWriter, "commit", commit)
            merge(target, [shard])
            break
        assert not verify(target).findings
        with StoreWriter(target, MADE) as writer:
            for number in (4, 2):
                if record(number).id not in writer:
                    write_video(writer, number)
        assert _but_state(target) == wanted
        stops += 1
    assert stops > 5


@pytest.mark.parametrize("batch", [1, 64 << 20])
def test_merge_leaves_damage_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("flamvid.store.maintain._BATCH_BYTES", batch)
    shard = write_store(tmp_path / "0.lmdb", [4, 5])
    flip(shard, shard.read_bytes().index(arrays(4, length(4))[1][10:20].tobytes()) + 5, 0)
    outcome = merge(tmp_path / "all.lmdb", [shard])
    assert outcome.added == 1
    assert "wrong checksum" in outcome.damaged[0].what
    assert not verify(tmp_path / "all.lmdb").findings


def test_a_video_is_removed_by_a_path_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The indexer keeps whole paths."""
    path = tmp_path / "lib.lmdb"
    with StoreWriter(path, MADE) as writer:
        wanted = write_video(writer, 3, str(tmp_path / "a.mp4"))
    monkeypatch.chdir(tmp_path)
    assert remove(path, ["./a.mp4"]) == [wanted]


def test_removed_videos_give_their_space_back(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", range(12))
    kept = FeatureStore(path)
    assert len(kept) == 12
    remove(path, [record(3).path, record(4).id])
    with pytest.raises(InputError, match="holds no video"):
        remove(path, ["nothing.mp4"])
    before, after = compact(path)
    assert after < before
    report = verify(path)
    assert (report.videos, report.findings, report.sealed) == (10, (), True)
    assert len(kept) == 10  # it reads the new file
    with StoreWriter(path, MADE) as writer:
        write_video(writer, 3)
    assert len(kept) == 11


def test_a_store_that_is_written_is_verified_by_its_snapshot(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", range(4))
    with StoreWriter(path, MADE) as writer:
        write_video(writer, 9)
        report = verify(path)
        assert (report.videos, report.sealed, report.findings) == (5, None, ())
    assert verify(path).sealed
