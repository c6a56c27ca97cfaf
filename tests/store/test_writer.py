"""Writing: whole videos, resumption, growth, one writer, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import lmdb
import numpy as np
import pytest

from flamvid.errors import InputError, StoreError
from flamvid.store import FeatureStore, Provenance, StoreWriter
from flamvid.store.audit import verify
from flamvid.store.schema import dump, pack
from flamvid.types import Caption
from tests.store.stores import MADE, arrays, length, record, write_store, write_video


def entries(path: Path) -> dict[tuple[str, bytes], bytes]:
    """Every key and value, as LMDB itself tells."""
    out = {}
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False, max_dbs=16) as environment:
        for name in environment.dbs():
            database = environment.open_db(bytes(name), create=False)
            with environment.begin(db=database) as txn:
                out |= {(bytes(name).decode(), key): value for key, value in txn.cursor()}
    return out


def test_portions_make_no_difference(tmp_path: Path) -> None:
    one, other = tmp_path / "one.lmdb", write_store(tmp_path / "other.lmdb", [4])
    pts, features, vectors = arrays(4, length(4))
    with StoreWriter(one, MADE) as writer, writer.video(record(4)) as video:
        video.add(pts, features, vectors)
    assert entries(one) == entries(other)
    video, key = bytes.fromhex(record(4).id), bytes.fromhex(record(4).id) + bytes(4)
    assert entries(one)["features", key] == pack("features", key, features[:10])
    assert {key for db, key in entries(one) if db == "videos"} == {video}


def test_a_video_is_visible_when_it_is_whole_and_resumes_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "lib.lmdb"
    pts, features, vectors = arrays(4, 29)
    wanted = record(4)
    with StoreWriter(path, MADE) as writer:
        with suppress(KeyboardInterrupt), writer.video(wanted) as video:
            video.add(pts[:25], features[:25], vectors[:25])
            raise KeyboardInterrupt
        assert wanted.id not in FeatureStore(path)
        assert len(writer.reader) == 0
    assert verify(path).partial == 1
    with StoreWriter(path, MADE) as writer:
        with writer.video(wanted) as video:
            assert video.resume_at == 20
            video.add(pts[20:], features[20:], vectors[20:])
        with pytest.raises(InputError, match="already"), writer.video(wanted):
            pass
    assert entries(path) == entries(write_store(tmp_path / "whole.lmdb", [4]))


def test_captions_and_failures_stand_beside_features(tmp_path: Path) -> None:
    path = tmp_path / "lib.lmdb"
    said = Caption(source="clips/v1.mp4", start=0, end=2, text="a cat", logprob=-1.5, model="m")
    with StoreWriter(path, MADE) as writer:
        writer.fail("clips/v1.mp4", "decode", "no frames")
        writer.fail("clips/v1.mp4", "timeout", "slow")
        writer.fail("other.mp4", "decode", "empty")
        failure = writer.reader.failures()[0]
        assert (failure.reason, failure.count) == ("timeout", 2)
        pts, features, vectors = arrays(1, 3)
        with writer.video(record(1)) as video:
            video.add(pts, features, vectors)
            video.captions([said])
    store = FeatureStore(path)
    assert store[record(1).id].record.captions == (said,)
    assert [failure.source for failure in store.failures()] == ["other.mp4"]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    made = Provenance(**{**dataclasses.asdict(MADE), "dtype": dtype, "chunk_frames": 0})
    pts, features, vectors = arrays(2, 30)
    features = features.astype(np.float32) * np.logspace(-2, 2, MADE.width, dtype=np.float32)
    with StoreWriter(tmp_path / "lib.lmdb", made) as writer, writer.video(record(2)) as video:
        video.add(pts, features, vectors)
    read = FeatureStore(tmp_path / "lib.lmdb", check=True)[record(2).id].features()
    assert read.dtype == np.float32
    if dtype == "float32":
        np.testing.assert_array_equal(read, features)
    else:  # half a step of 127, of the largest value of each feature
        step = np.abs(features).max(axis=(0, 1)) / 127
        assert (np.abs(read - features) <= 0.501 * step).all()


def test_the_map_grows_as_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamvid.store.file._FIRST_MAP", 1 << 17)
    path = write_store(tmp_path / "lib.lmdb", range(40))
    assert path.stat().st_size > 1 << 18
    assert not verify(path).findings
    store = FeatureStore(path, check=True)
    for number in range(40):
        features = store[record(number).id].features()
        np.testing.assert_array_equal(features, arrays(number, length(number))[1])


@pytest.mark.parametrize("field", ["encoder", "weights_sha256", "preprocessing", "sampling"])
def test_other_features_are_refused(tmp_path: Path, field: str) -> None:
    path = write_store(tmp_path / "lib.lmdb", [0])
    before = path.read_bytes()
    other = dataclasses.replace(MADE, **{field: "another"})
    with pytest.raises(StoreError, match=rf"{field} is .*'another'.*another --store"):
        StoreWriter(path, other)
    assert path.read_bytes() == before


def test_wrong_frames_are_refused(tmp_path: Path) -> None:
    pts, features, vectors = arrays(2, 4)
    with StoreWriter(tmp_path / "lib.lmdb", MADE) as writer:
        for wrong, message in (
            ((pts, features[:3], vectors), "features have shape"),
            ((pts, features, vectors[:, :3]), "vectors have shape"),
            ((pts, features, None), "vectors have shape"),
            ((pts[::-1], features, vectors), "ascend"),
            ((pts * np.nan, features, vectors), "finite"),
            ((pts, features.astype(np.float32) + 1e6, vectors), "not finite as float16"),
        ):
            with pytest.raises(InputError, match=message), writer.video(record(2)) as video:
                video.add(*wrong)
        with pytest.raises(InputError, match="no frames"), writer.video(record(2)):
            pass


def test_there_is_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "lib.lmdb"
    with StoreWriter(path, MADE) as writer:
        with pytest.raises(StoreError, match="one writer at a time"):
            StoreWriter(path, MADE)
        write_video(writer, 1)
    write_store(path, [2])  # it was let go


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", [0])
    with lmdb.open(str(path), subdir=False, max_dbs=16) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as txn:
            txn.put(b"format", dump("meta", b"format", {"version": 9}), db=meta)
    for use in (
        lambda: len(FeatureStore(path)),
        lambda: StoreWriter(path, MADE),
        lambda: verify(path),
    ):
        with pytest.raises(StoreError, match=r"format 9.*upgrade flamvid"):
            use()


_RUN = """
import sys
from pathlib import Path
from flamvid.errors import FlamvidError
from flamvid.store import StoreWriter
from tests.store.stores import MADE, record, write_video
path, numbers = Path(sys.argv[1]), range(int(sys.argv[2]))
try:
    with StoreWriter(path, MADE) as writer:
        for number in numbers:
            if record(number).content_hash not in writer:
                write_video(writer, number)
                print(number, flush=True)
except FlamvidError as error:
    print(f"error: {error}", flush=True)
"""


def run(path: Path, count: int, limit: int | None = None) -> subprocess.Popen[str]:
    def bound() -> None:
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(path), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=bound,
    )


def test_a_killed_writer_loses_no_video(tmp_path: Path) -> None:
    path, count, rng = tmp_path / "lib.lmdb", 60, np.random.default_rng(0)
    done: set[int] = set()
    for _ in range(6):
        process = run(path, count)
        assert process.stdout is not None
        for _, line in zip(range(int(rng.integers(1, 9))), process.stdout, strict=False):
            done.add(int(line))
        process.kill()
        done |= {int(line) for line in process.communicate()[0].split()}
        report = verify(path)
        assert not report.findings
        assert {record(number).id for number in done} <= set(FeatureStore(path))
    run(path, count).communicate()
    assert entries(path) == entries(write_store(tmp_path / "whole.lmdb", range(count)))


def test_a_full_disk_is_a_line_and_loses_nothing(tmp_path: Path) -> None:
    # A limit on the size of files stands for it: both fail in the same write.
    path = tmp_path / "lib.lmdb"
    process = run(path, 60, limit=300_000)
    said = process.communicate()[0].split("\n")[:-1]
    assert said[-1].startswith("error: can't ")
    assert "\n" not in said[-1]
    done = [int(line) for line in said[:-1]]
    assert done
    assert not verify(path).findings
    assert {record(number).id for number in done} <= set(FeatureStore(path))
    run(path, 60).communicate()
    assert len(FeatureStore(path)) == 60


def test_a_folder_that_can_not_be_written_is_read_all_the_same() -> None:
    with tempfile.TemporaryDirectory() as name:  # one that others than root may enter
        folder = Path(name)
        path = write_store(folder / "lib.lmdb", range(3))
        (folder / "lib.lmdb-lock").unlink()
        path.chmod(0o444)
        folder.chmod(0o555)
        child = os.fork()
        if not child:
            code = 1
            try:
                if not os.getuid():
                    os.setuid(65534)
                store = FeatureStore(path, check=True)
                assert [len(store[record(n).id].features()) for n in range(3)] == [
                    length(n) for n in range(3)
                ]
                assert not verify(path).findings
                for target in (path, folder / "new.lmdb"):
                    with pytest.raises(StoreError, match="Permission denied"):
                        StoreWriter(target, MADE)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        folder.chmod(0o755)


def test_json_is_the_record(tmp_path: Path) -> None:
    path = write_store(tmp_path / "lib.lmdb", [3])
    value = entries(path)["videos", bytes.fromhex(record(3).id)]
    assert value[:4] == b"FLVC"
    assert json.loads(value[48:])["path"] == "clips/v3.mp4"
