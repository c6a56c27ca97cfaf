"""Windows, exact search against numpy, filters, and stores that grow or shrink meanwhile."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamvid import library
from flamvid.api import Captioner
from flamvid.errors import DamagedStore, InputError, StoreError
from flamvid.index import approximate
from flamvid.index.approximate import Approximate
from flamvid.index.encoder import FrameEncoder
from flamvid.index.search import Filter, Hit, nearest, search_windows
from flamvid.index.windows import Windows, cut, open_windows
from flamvid.store import FeatureStore, Provenance, StoreWriter, VideoRecord
from flamvid.video.sample import windows as segments

E = 24


def provenance(**changes: object) -> Provenance:
    table = {
        "encoder": "tests",
        "weights_sha256": "0" * 64,
        "preprocessing": "none",
        "sampling": "fps 2",
        "patches": 1,
        "width": 2,
        "embedder": "random",
        "embedding": E,
    }
    return Provenance(**{**table, **changes})


def write(path: Path, first: int, count: int, seconds: float = 9.0) -> None:
    """Videos number `first` to `first + count`, of random vectors at 2 fps."""
    with StoreWriter(path, provenance()) as writer:
        for number in range(first, first + count):
            rng = np.random.default_rng(number)
            pts = np.arange(0.25, seconds + number, 0.5)
            record = VideoRecord(
                path=f"/lib/{number % 3}/video {number}.mp4",
                content_hash=f"{number:064x}"[::-1],
                duration=seconds + number,
                mtime=1000.0 * number,
            )
            with writer.video(record) as video:
                vectors = rng.normal(size=(len(pts), E)).astype(np.float16)
                video.add(pts, np.zeros((len(pts), 1, 2)), vectors)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    write(tmp_path / "s.lmdb", 0, 12)
    return FeatureStore(tmp_path / "s.lmdb")


def query(seed: int = 0) -> torch.Tensor:
    vector = torch.randn(E, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vector, dim=0)


def by_hand(store: FeatureStore, vector: torch.Tensor, size: float, every: float) -> list[Hit]:
    """All windows, the best first, one by one by the definition."""
    out = []
    for video_id in store:
        video = store[video_id]
        pts, vectors = video.pts(), video.vectors()
        assert vectors is not None
        for part in segments(video.record.duration, size, every):
            inside = vectors[(pts >= part.start) & (pts < part.end)].astype(np.float64)
            if len(inside):
                mean = inside.mean(0)
                score = float(mean @ vector.numpy() / np.linalg.norm(mean))
                record = video.record
                out.append(
                    Hit(
                        video=record.path, id=record.id, start=part.start, end=part.end, score=score
                    )
                )
    return sorted(out, key=lambda hit: -hit.score)


def same(got: list[Hit], wanted: list[Hit]) -> bool:
    """Whether hits agree, but for the last digits of sums in another order."""
    return [replace(hit, score=round(hit.score, 5)) for hit in got] == [
        replace(hit, score=round(hit.score, 5)) for hit in wanted
    ]


def apart(hits: list[Hit], top: int) -> list[Hit]:
    kept: list[Hit] = []
    for hit in hits:
        if all(k.id != hit.id or hit.end <= k.start or k.end <= hit.start for k in kept):
            kept.append(hit)
    return kept[:top]


@pytest.mark.parametrize(("size", "every"), [(4.0, 2.0), (3.0, 3.0), (100.0, 50.0), (0.5, 0.25)])
def test_exact(store: FeatureStore, size: float, every: float) -> None:
    opened = open_windows(store, size, every)
    wanted = by_hand(store, query(), size, every)
    assert len(opened) == len(wanted)
    got = search_windows(opened, query(), top=15)
    assert len(got) == min(15, len(apart(wanted, 15)))
    for hit, want in zip(got, apart(wanted, 15), strict=True):
        assert (hit.video, hit.start, hit.end) == (want.video, want.start, want.end)
        assert hit.score == pytest.approx(want.score, abs=2e-3)
    scores = [score for score, _, _ in nearest(opened, query(), 50)]
    np.testing.assert_allclose(scores, [hit.score for hit in wanted[:50]], atol=2e-3)


@given(st.integers(0, 60), st.floats(0.2, 9), st.floats(0.1, 9), st.floats(0.3, 3))
@settings(max_examples=60)
def test_cut(count: int, size: float, every: float, fps: float) -> None:
    """Every window holds the frames that its times say, and each frame is in one if none is left
    between them."""
    pts = (np.arange(count + 1) + 0.5) / fps
    duration = (count + 1) / fps
    vectors = np.eye(count + 1, dtype=np.float16)
    spans, sums = cut(pts, vectors, duration, size, every)
    for (start, end), row in zip(spans, sums, strict=True):
        assert 0 <= start < end <= duration + 1e-9
        assert end - start <= size + 1e-9
        inside = (pts >= start) & (pts < end)
        np.testing.assert_allclose(row, inside.astype(float), atol=1e-6)
    if every <= size:
        assert (sums.sum(0) > 0.5).all()


def test_rounding_is_allowed_for() -> None:
    """The half precision that scores are first made in errs less than what is looked at again."""
    vectors = torch.nn.functional.normalize(torch.randn(20000, 512), dim=1).half()
    for seed in range(5):
        vector = torch.nn.functional.normalize(
            vectors[seed].float() + 0.02 * torch.randn(512), dim=0
        )
        error = (vectors @ vector.half()).float() - vectors.float() @ vector
        assert error.abs().max() < 1e-3


def test_filters(store: FeatureStore) -> None:
    opened = open_windows(store)

    def found(**rules: object) -> set[int]:
        hits = search_windows(opened, query(), 500, Filter(**rules))
        return {int(hit.video.split()[1].removesuffix(".mp4")) for hit in hits}

    assert found() == set(range(12))
    assert found(path="/lib/1/*") == {1, 4, 7, 10}
    assert found(shortest=12.0, longest=14.0) == {3, 4, 5}
    assert found(after=5000.0, before=7000.0) == {5, 6}
    assert found(path="nothing*") == set()


def test_grows_and_shrinks(store: FeatureStore, tmp_path: Path) -> None:
    """Only new videos are cut, those that are gone are not found, and the result is one anew."""
    first = open_windows(store)
    assert len(first.parts) == 1
    write(store.path, 12, 4)
    with StoreWriter(store.path, provenance()) as writer:
        writer.remove(f"{3:064x}"[::-1][:32])
    grown = open_windows(store)
    assert [len(part.clips) for part in grown.parts] == [12, 4]
    anew = open_windows(store, folder=tmp_path / "elsewhere")
    assert len(anew.parts) == 1
    for seed in range(5):
        hits = search_windows(grown, query(seed), 30)
        assert same(hits, search_windows(anew, query(seed), 30))
        assert not any("video 3.mp4" in hit.video for hit in hits)
    assert len(search_windows(first, query(), 500, Filter(path="*/video 3.mp4"))) > 0  # as it was


def test_kept_parts_become_one(store: FeatureStore) -> None:
    for number in range(12, 12 + 17):
        write(store.path, number, 1)
        opened = open_windows(store)
        assert len(opened.parts) <= 16
    assert {clip.id for part in opened.parts for clip in part.clips} == set(store)


def test_two_that_cut_at_once(store: FeatureStore) -> None:
    """Two parts of the same videos count once."""
    opened = open_windows(store)
    [part] = list(opened.folder.iterdir())
    shutil.copytree(part, part.with_name("part-1-copy"))
    twice = search_windows(open_windows(store), query(), 30)
    assert same(twice, search_windows(opened, query(), 30))


@pytest.mark.parametrize("name", ["vectors", "rows.npy", "clips.json"])
def test_windows_that_a_crash_cut_short_are_made_again(store: FeatureStore, name: str) -> None:
    opened = open_windows(store)
    wanted = search_windows(opened, query(), 30)
    [part] = opened.folder.iterdir()
    (part / name).write_bytes((part / name).read_bytes()[:9])
    assert same(search_windows(open_windows(store), query(), 30), wanted)


def test_damaged_vectors_are_not_searched(store: FeatureStore, tmp_path: Path) -> None:
    [video, *_] = store
    vectors = store[video].vectors()
    assert vectors is not None
    data = store.path.read_bytes()
    place = data.index(vectors.tobytes())
    bad = tmp_path / "bad.lmdb"
    bad.write_bytes(data[:place] + b"\x00\x7e" + data[place + 2 :])  # one of them is no number
    with pytest.raises(DamagedStore, match=r"bad\.lmdb: vectors .* checksum; .*repair"):
        open_windows(FeatureStore(bad))


def test_no_room_for_windows(store: FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"can't keep what is searched in .*FLAMVID_HOME"):
        open_windows(store, folder=tmp_path / "file")


def test_empty_store(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "s.lmdb", provenance()).close()
    assert search_windows(open_windows(FeatureStore(tmp_path / "s.lmdb")), query()) == []


@pytest.mark.parametrize("size", [0.0, -1.0, math.inf, math.nan])
def test_wrong_window(store: FeatureStore, size: float) -> None:
    with pytest.raises(InputError, match="window is"):
        open_windows(store, size)


def test_verbs(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    """A clip finds itself by what it shows; words need a model that reads them."""
    store = tmp_path / "s.lmdb"
    library.index(videos, store, model=captioner, config=library.IndexConfig(fps=2))
    source = videos / "sub dir" / "lime 1.mp4"
    hits = library.search(store, like=source, top=3, model=captioner)
    assert hits[0].video == str(source)
    assert hits[0].score == pytest.approx(1, abs=5e-3)
    with pytest.raises(InputError, match="no heads that read a text"):
        library.search(store, "a dog", model=captioner)
    with pytest.raises(InputError, match="not both"):
        library.search(store, "a dog", like=source, model=captioner)
    write(tmp_path / "other.lmdb", 0, 1)
    with pytest.raises(InputError, match="indexed for search by random"):
        library.search(tmp_path / "other.lmdb", like=source, model=captioner)


def test_approximate_search_of_an_empty_store(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    made = FrameEncoder(captioner.model).provenance("fps 1")
    StoreWriter(tmp_path / "s.lmdb", made).close()
    red = videos / "red 0.mp4"
    hits = library.search(tmp_path / "s.lmdb", like=red, approximate="ivf", model=captioner)
    assert hits == []


def faiss_or_skip() -> None:
    pytest.importorskip("faiss", reason="the extra `search` is not installed")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of FAISS's own module
@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_approximate(store: FeatureStore, kind: str) -> None:
    faiss_or_skip()
    opened: Windows = open_windows(store, 1.0)
    index = Approximate(opened, kind, effort=1000)
    assert index.recall(index.sample(20)) > 0.99
    wanted = search_windows(opened, query(), 5)
    assert same(index.search(query(), 5), wanted)
    kept = Approximate(opened, kind, effort=1000)
    assert same(kept.search(query(), 5), wanted)
    some = Filter(path="/lib/2/*")
    assert same(index.search(query(), 5, some), search_windows(opened, query(), 5, some))


class Lists:
    """As FAISS's inverted lists, in little: the vectors nearest to each of a few centres."""

    METRIC_INNER_PRODUCT, nlist, nprobe = 0, 8, 1

    def index_factory(self, width: int, spec: str, metric: int) -> Lists:
        self.vectors = np.empty((0, width), np.float32)
        return self

    def train(self, vectors: np.ndarray) -> None:
        self.centres = vectors[:: max(1, len(vectors) // self.nlist)][: self.nlist]

    def add(self, vectors: np.ndarray) -> None:
        self.vectors = np.concatenate([self.vectors, vectors])

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        opened = np.argsort(-self.centres @ queries[0])[: self.nprobe]
        inside = np.isin((self.vectors @ self.centres.T).argmax(1), opened)
        scores = np.where(inside, self.vectors @ queries[0], -np.inf)
        best = np.argsort(-scores)[:count]
        found = np.full(count, -1)
        found[: len(best)] = np.where(np.isfinite(scores[best]), best, -1)
        return scores[best][None], found[None]

    def write_index(self, index: Lists, path: str) -> None:
        Path(path).touch()


def lists_of(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, effort: int
) -> tuple[Approximate, Windows]:
    monkeypatch.setattr(approximate, "_faiss", Lists)
    opened = open_windows(store, 1.0)
    return Approximate(opened, "ivf", effort), opened


@pytest.mark.parametrize("path", ["*/video 7.mp4", "*/video 1*.mp4", "/lib/2/*"])
def test_approximate_search_of_a_few_videos(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """They are found, although they are nowhere near the query."""
    index, opened = lists_of(store, monkeypatch, effort=1)
    some = Filter(path=path)
    for seed in range(5):
        assert len(index.nearest(query(seed), 500)) < len(opened) / 2
        found = index.search(query(seed), 10, some)
        assert len(found) == len(search_windows(opened, query(seed), 10, some)) > 0
    assert index.search(query(), 10, Filter(path="nothing")) == []
    narrow = Filter(path=path, shortest=20.0)
    assert same(index.search(query(), 9, narrow), search_windows(opened, query(), 9, narrow))


def test_recall_is_of_videos_that_are_there(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_windows(store, 1.0)
    with StoreWriter(store.path, provenance()) as writer:
        for number in range(2, 12):
            writer.remove(f"{number:064x}"[::-1][:32])
    index, opened = lists_of(store, monkeypatch, effort=8)
    assert sum(mask.sum() for mask in opened.alive if mask is not None) < len(opened) / 4
    assert index.recall(index.sample(20)) == 1.0
    for row in index.sample(1000):  # near one that is there
        [(score, _, _), *_] = nearest(opened, row, 1)
        assert score > 0.7
