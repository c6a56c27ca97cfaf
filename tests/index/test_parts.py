"""The parts of a cluster's work and their merge, without the cluster: tasks run here, in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flamvid import library
from flamvid.api import Captioner
from flamvid.errors import DamagedStore
from flamvid.index import cluster
from flamvid.index.cluster import Cluster, Work, index_on_cluster
from flamvid.index.stats import Stats
from flamvid.store import FeatureStore
from flamvid.store.audit import verify
from tests.store.stores import arrays, length, record, write_store


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(
        work: Work, parts: Sequence[Sequence[str]], shards: Sequence[Path], _: Cluster
    ) -> Iterator[Stats]:
        for part, shard in zip(parts, shards, strict=True):
            yield cluster._task(work, part, str(shard))

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


def test_what_is_there_is_counted(
    tmp_path: Path, videos: Path, captioner: Captioner, toml: Path
) -> None:
    store = tmp_path / "s.lmdb"
    library.index(videos, store, model=captioner)
    stats = library.index_on_ray(videos, store, Cluster(part=2), model=str(toml), device="cpu")
    assert (stats.total, stats.found, stats.over, stats.present) == (8, 8, 8, 6)
    assert (stats.indexed, stats.duplicates, stats.failed_before) == (0, 1, 1)
