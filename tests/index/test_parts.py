"""The parts of a cluster's work and their merge, without the cluster: tasks run here, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flamvid import library
from flamvid.api import Captioner
from flamvid.errors import DamagedStore, StoreError
from flamvid.index import cluster
from flamvid.index.cluster import Cluster, Work, index_on_cluster, merge_left_over
from flamvid.index.stats import Stats
from flamvid.store import FeatureStore, StoreWriter
from flamvid.store.audit import verify
from tests.store.stores import MADE, arrays, length, record, write_store, write_video


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(
        work: Work, sources: Sequence[str], folder: Path, given: Cluster
    ) -> Iterator[tuple[Stats, Path]]:
        for number, part in enumerate(cluster._parts(sources, given.part, 1)):
            shard = folder / f"{number:06}.lmdb"
            yield cluster._task(work, part, str(shard)), shard

    monkeypatch.setattr(cluster, "_run", run)


def written(sources: Sequence[str], store: Path) -> Stats:
    write_store(store, map(int, sources))
    return Stats(found=len(sources), indexed=len(sources))


def spoilt(sources: Sequence[str], store: Path) -> Stats:
    """The same, but a bit of video 4 is lost on its way."""
    stats, data = written(sources, store), bytearray(store.read_bytes())
    place = data.find(arrays(4, length(4))[1][10:20].tobytes())
    if place >= 0:
        data[place] ^= 1
        store.write_bytes(data)
    return stats


def test_a_damaged_part_is_told_and_done_again(tmp_path: Path) -> None:
    store, sources = tmp_path / "all.lmdb", ["1", "4", "5"]
    with pytest.raises(DamagedStore, match="run it again"):
        index_on_cluster(sources, store, spoilt, Cluster(part=2))
    assert set(FeatureStore(store)) == {record(1).id, record(5).id}
    assert index_on_cluster(["4"], store, written, Cluster()).indexed == 1
    assert set(FeatureStore(store)) == {record(number).id for number in (1, 4, 5)}
    assert not verify(store).findings


def changed(sources: Sequence[str], store: Path) -> Stats:
    """Other contents of the source that `written` calls video 1."""
    with StoreWriter(store, MADE) as writer:
        write_video(writer, 9, record(1).path)
    return Stats(found=1, indexed=1)


@pytest.mark.parametrize("left_over", [False, True])
def test_a_source_that_changed_is_there_once(tmp_path: Path, left_over: bool) -> None:
    """Whether its part is merged by the run that made it or, stopped before, by the next."""
    store = tmp_path / "all.lmdb"
    index_on_cluster(["1", "4"], store, written, Cluster())
    if left_over:
        parts = tmp_path / "all.lmdb.parts"
        parts.mkdir()
        changed(["1"], parts / "000000.lmdb")
        merge_left_over(store)
    else:
        index_on_cluster(["1"], store, changed, Cluster())
    assert set(FeatureStore(store)) == {record(9).id, record(4).id}
    assert not verify(store).findings


def exchanged(sources: Sequence[str], store: Path) -> Stats:
    """The source of video 1 holds 4, and that of 4 holds 1; video 5 is under the name of 6."""
    holds = {"1": 4, "4": 1, "6": 5}
    with StoreWriter(store, MADE) as writer:
        for source in sources:
            write_video(writer, holds[source], record(int(source)).path)
    return Stats(found=len(sources), indexed=len(sources))


@pytest.mark.parametrize("part", [1, 3])
def test_records_follow_their_sources(tmp_path: Path, part: int) -> None:
    store = tmp_path / "all.lmdb"
    index_on_cluster(["1", "4", "5"], store, written, Cluster())
    stats = index_on_cluster(["1", "4", "6"], store, exchanged, Cluster(part=part))
    assert (stats.indexed, stats.moved, stats.removed) == (0, 3, 0)
    opened = FeatureStore(store)
    found = {opened[video].record.path: video for video in opened}
    assert found == {
        record(source).path: record(held).id for source, held in ((1, 4), (4, 1), (6, 5))
    }
    assert not verify(store).findings


def test_what_is_there_is_counted(
    tmp_path: Path, videos: Path, captioner: Captioner, toml: Path
) -> None:
    store = tmp_path / "s.lmdb"
    library.index(videos, store, model=captioner)
    stats = library.index_on_ray(videos, store, Cluster(part=2), model=str(toml), device="cpu")
    assert (stats.total, stats.found, stats.over, stats.present) == (8, 8, 8, 6)
    assert (stats.indexed, stats.duplicates, stats.failed_before) == (0, 1, 1)


def test_parts_hold_all_and_keep_all_busy() -> None:
    sources = [str(number) for number in range(100)]
    for most, at_once, count in ((64, 1, 2), (64, 16, 15), (7, 3, 15), (64, 500, 100)):
        parts = list(cluster._parts(sources, most, at_once))
        assert [source for part in parts for source in part] == sources
        assert len(parts) == count
        assert max(map(len, parts)) <= most


class Heard:
    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        self.over: list[int] = []

    def progress(self, stats: Stats) -> None:
        self.over.append(stats.over)

    def failed(self, source: str, reason: str, message: str) -> None:
        assert message
        self.failures.append((source, reason))


def test_failures_are_named_as_parts_end(tmp_path: Path, videos: Path, toml: Path) -> None:
    heard, store = Heard(), tmp_path / "s.lmdb"
    stats = library.index_on_ray(
        videos, store, Cluster(part=2), model=str(toml), device="cpu", listener=heard
    )
    assert heard.failures == [(str(videos / "broken.mp4"), "source")]
    assert heard.over == [2, 4, 6, 8]
    assert (stats.indexed, stats.duplicates, stats.failed) == (6, 1, 1)
    assert [failure.source for failure in FeatureStore(store).failures()] == [heard.failures[0][0]]


def test_what_a_stopped_run_handed_over_is_merged(tmp_path: Path, videos: Path, toml: Path) -> None:
    """Whatever the parts of the next run are."""
    store = tmp_path / "s.lmdb"

    class Stopping(Heard):
        def progress(self, stats: Stats) -> None:
            super().progress(stats)
            if len(self.over) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.index_on_ray(
            videos, store, Cluster(part=2), model=str(toml), device="cpu", listener=Stopping()
        )
    assert not store.exists()
    stats = library.index_on_ray(videos, store, Cluster(part=3), model=str(toml), device="cpu")
    assert stats.present + stats.failed_before == 4
    assert stats.over == stats.total == 8
    assert len(FeatureStore(store)) == 6
    assert not store.with_name("s.lmdb.parts").exists()


def index_red(videos: Path, store: Path, toml: Path, fps: float = 1.0) -> Stats:
    red, config = videos / "red 0.mp4", library.IndexConfig(fps=fps)
    return library.index_on_ray(red, store, model=str(toml), device="cpu", config=config)


def test_other_settings_are_refused_before_the_work(
    tmp_path: Path, videos: Path, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is indexed for nothing, and no part is left for later runs to stumble over."""
    store, parts = tmp_path / "s.lmdb", tmp_path / "s.lmdb.parts"
    index_red(videos, store, toml)
    with monkeypatch.context() as patch:
        patch.delattr(library, "index_videos")
        with pytest.raises(StoreError, match="sampling is 'fps 1', not 'fps 2'"):
            library.index_on_ray(
                videos / "blue 2.mp4",
                store,
                model=str(toml),
                device="cpu",
                config=library.IndexConfig(fps=2),
            )
    assert not parts.exists()
    assert index_red(videos, store, toml).present == 1


def test_parts_of_other_settings_are_named(tmp_path: Path) -> None:
    store, parts = tmp_path / "all.lmdb", tmp_path / "all.lmdb.parts"
    write_store(store, [1])
    parts.mkdir()
    with StoreWriter(parts / "0.lmdb", replace(MADE, sampling="fps 9")) as writer:
        write_video(writer, 4)
    with pytest.raises(StoreError, match=f"{parts} holds parts .* 'fps 9', not 'fps 2' .* merge"):
        merge_left_over(store)
    assert (parts / "0.lmdb").exists()
    assert set(FeatureStore(store)) == {record(1).id}


def test_a_part_that_is_cut_short_is_done_again(tmp_path: Path) -> None:
    """It stands in no later run's way."""
    store, parts = tmp_path / "all.lmdb", tmp_path / "all.lmdb.parts"
    parts.mkdir()
    write_store(parts / "0.lmdb", [1])
    part = write_store(parts / "1.lmdb", [4])
    part.write_bytes(part.read_bytes()[:9000])
    merge_left_over(store)
    assert set(FeatureStore(store)) == {record(1).id}
    assert not parts.exists()


def test_two_runs_at_once_are_refused(tmp_path: Path, videos: Path, toml: Path) -> None:
    store = tmp_path / "s.lmdb"
    with (
        cluster.claimed(store),
        pytest.raises(StoreError, match=r"another run hands parts over in .*s\.lmdb\.parts"),
    ):
        index_red(videos, store, toml)
    assert index_red(videos, store, toml).indexed == 1
    assert not store.with_name("s.lmdb.parts").exists()
    with pytest.raises(StoreError, match="No such file or directory"):
        index_red(videos, tmp_path / "none" / "s.lmdb", toml)


def test_captions_of_what_is_there(tmp_path: Path, videos: Path, toml: Path) -> None:
    store, red = tmp_path / "s.lmdb", videos / "red 0.mp4"
    index_red(videos, store, toml)
    stats = library.index_on_ray(red, store, model=str(toml), device="cpu", captions=True)
    assert (stats.captioned, stats.indexed, stats.duplicates, stats.over) == (1, 0, 0, 1)
    opened = FeatureStore(store)
    assert [len(opened[video].record.captions) for video in opened] == [1]
    stats = library.index_on_ray(red, store, model=str(toml), device="cpu", captions=True)
    assert (stats.captioned, stats.present) == (0, 1)
