"""The indexer on a library of small clips: what it keeps, leaves alone, and writes off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flamvid import library, video
from flamvid.api import Captioner
from flamvid.errors import StoreError
from flamvid.index import indexer
from flamvid.index.encoder import FrameEncoder
from flamvid.index.feed import Decoders, Sieve
from flamvid.index.stats import Stats
from flamvid.index.windows import open_windows
from flamvid.library import IndexConfig, Shard
from flamvid.store import FeatureStore, StoreWriter, VideoRecord
from flamvid.store.audit import verify
from flamvid.store.maintain import merge
from tests.index.library_files import COLOURS, contents
from tests.store.stores import MADE
from tests.tiny import write_colours, write_tar


def paths(store: Path) -> set[str]:
    opened = FeatureStore(store)
    return {opened[video_id].record.path for video_id in opened}


def test_features_are_those_of_the_model(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """What is stored is what the model's own way to look at a file gives, at the same pts."""
    source = str(videos / "blue 2.mp4")
    library.index(source, tmp_path / "s.lmdb", model=captioner, config=IndexConfig(fps=4))
    store = FeatureStore(tmp_path / "s.lmdb")
    [video_id] = store
    stored = store[video_id]
    with video.open(source) as opened:
        at = np.searchsorted(opened.pts, stored.pts())
        np.testing.assert_array_equal(opened.pts[at], stored.pts())
        np.testing.assert_allclose(np.diff(stored.pts()), 0.25, atol=0.02)
        wanted = captioner.encode(opened.read(at.tolist()))
    assert stored.features().shape == tuple(wanted.shape) == (12, 4, 256)
    np.testing.assert_allclose(stored.features(), wanted.numpy(), atol=2e-2, rtol=2e-2)
    record = stored.record
    assert (record.width, record.height, record.fps, record.codec) == (64, 64, 30, "h264")
    assert record.size == os.stat(source).st_size
    assert record.duration == pytest.approx(3, abs=0.01)


def test_frames_do_not_depend_on_their_company(captioner: Captioner) -> None:
    encoder = FrameEncoder(captioner.model, batch=8)
    pixels = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8)
    features, vectors = encoder.encode(pixels)
    for first, last in ((0, 1), (3, 8), (5, 20)):
        some, few = encoder.encode(pixels[first:last])
        assert torch.equal(some, features[first:last])
        assert torch.equal(few, vectors[first:last])


def test_copies_failures_and_what_is_there(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    store = tmp_path / "s.lmdb"
    stats = library.index(videos, store, model=captioner)
    assert (stats.total, stats.found, stats.indexed) == (8, 8, 6)
    assert (stats.duplicates, stats.failed, stats.present) == (1, 1, 0)
    assert str(videos / "zz copy.mp4") not in paths(store)
    [failure] = FeatureStore(store).failures()
    assert failure.source == str(videos / "broken.mp4")
    assert (failure.reason, failure.count) == ("source", 1)
    before = contents(store)

    again = library.index(videos, store, model=captioner)
    assert (again.present, again.duplicates, again.failed_before, again.indexed) == (6, 1, 1, 0)
    assert contents(store) == before


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


def test_a_file_that_changed_takes_its_own_place(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """What it showed before is not found any more; until the new one is there, it is."""
    source, store = tmp_path / "v.mp4", tmp_path / "s.lmdb"
    shutil.copy(videos / "red 0.mp4", source)
    library.index(source, store, model=captioner)
    [old] = FeatureStore(store)
    source.write_bytes(b"half of it")
    assert library.index(source, store, model=captioner).failed == 1
    assert list(FeatureStore(store)) == [old]
    shutil.copy(videos / "blue 2.mp4", source)
    later = time.time() + 5
    os.utime(source, (later, later))
    assert library.index(source, store, model=captioner).indexed == 1
    [new] = FeatureStore(store)
    assert new == hashlib.sha256(source.read_bytes()).hexdigest()[:32]
    assert not verify(store).findings
    assert library.index(source, store, model=captioner).present == 1


def ids(store: Path) -> dict[str, str]:
    """The id of each video by its path."""
    opened = FeatureStore(store)
    return {opened[video].record.path: video for video in opened}


@pytest.fixture
def library_of_three(tmp_path: Path, videos: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    for name, old in {"a": "red 0", "b": "blue 2", "c": "aqua 4"}.items():
        shutil.copy(videos / f"{old}.mp4", folder / f"{name}.mp4")
    return folder


def exchange(one: Path, other: Path) -> None:
    one.rename(spare := one.with_name("spare"))
    other.rename(one)
    spare.rename(other)


@pytest.mark.parametrize("change", ["renamed", "exchanged", "over", "over and away", "touched"])
def test_records_follow_their_files(
    tmp_path: Path, library_of_three: Path, captioner: Captioner, change: str
) -> None:
    """None is decoded twice, and what no file holds any more is not found any more."""
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    a, b, c = (str(folder / f"{name}.mp4") for name in "abc")
    was = ids(store)
    if change == "renamed":
        Path(a).rename(folder / "z.mp4")
        wanted, counts = {str(folder / "z.mp4"): was[a], b: was[b], c: was[c]}, (1, 0)
    elif change == "exchanged":
        exchange(Path(a), Path(b))
        wanted, counts = {b: was[a], a: was[b], c: was[c]}, (2, 0)
    elif change == "over":
        shutil.copy(a, b)
        wanted, counts = {a: was[a], c: was[c]}, (0, 1)
    elif change == "over and away":
        shutil.copy(b, folder / "z.mp4")
        shutil.copy(a, b)
        wanted, counts = {a: was[a], c: was[c], str(folder / "z.mp4"): was[b]}, (1, 0)
    else:
        wanted, counts = was, (0, 0)
    later = time.time() + 5
    for file in folder.iterdir():
        if change != "renamed":
            os.utime(file, (later, later))
    open_windows(FeatureStore(store))  # as a search before leaves them
    stats = library.index(folder, store, model=captioner)
    assert (stats.indexed, stats.failed, stats.moved, stats.removed) == (0, 0, *counts)
    assert ids(store) == wanted
    found = {clip.path for part in open_windows(FeatureStore(store)).parts for clip in part.clips}
    assert set(wanted) <= found
    assert change == "over" or found == set(wanted)
    assert not verify(store).findings
    again = library.index(folder, store, model=captioner)
    assert (again.moved, again.removed) == (0, 0)
    assert again.present == len(wanted)


def test_a_copy_of_what_was_written_over_stays(
    tmp_path: Path, library_of_three: Path, videos: Path, captioner: Captioner
) -> None:
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    was, c = ids(store), folder / "c.mp4"
    shutil.copy(c, folder / "a copy.mp4")  # found before the file that changed, or after
    shutil.copy(c, folder / "z copy.mp4")
    shutil.copy(videos / "sub dir" / "white 5.mp4", c)
    later = time.time() + 5
    os.utime(c, (later, later))
    stats = library.index(folder, store, model=captioner)
    assert (stats.indexed, stats.moved, stats.removed) == (1, 1, 0)
    now = ids(store)
    assert now[str(folder / "a copy.mp4")] == was[str(c)]
    assert len(now) == 4


@pytest.mark.parametrize("new", ["sub dir/white 5", "sub dir/lime 1", "sub dir/yellow 3"])
def test_a_run_that_is_stopped_before_records_follow(
    tmp_path: Path,
    library_of_three: Path,
    videos: Path,
    captioner: Captioner,
    monkeypatch: pytest.MonkeyPatch,
    new: str,
) -> None:
    """Two videos are at one path then, whichever of their ids comes first."""
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    was, c = ids(store), folder / "c.mp4"
    shutil.copy(c, folder / "a copy.mp4")
    shutil.copy(videos / f"{new}.mp4", c)
    later = time.time() + 5
    os.utime(c, (later, later))

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(indexer, "settle", stopped)
        with pytest.raises(KeyboardInterrupt):
            library.index(folder, store, model=captioner)
    assert len(FeatureStore(store)) == 4
    library.index(folder, store, model=captioner)
    now = ids(store)
    assert now[str(folder / "a copy.mp4")] == was[str(c)]
    assert now[str(c)] == hashlib.sha256(c.read_bytes()).hexdigest()[:32]
    assert len(FeatureStore(store)) == len(now) == 4


def test_a_file_that_is_again_what_it_was(tmp_path: Path, library_of_three: Path) -> None:
    """In one run, as `--watch` makes it."""
    store, source = tmp_path / "s.lmdb", library_of_three / "a.mp4"
    stats, old, new = Stats(), source.read_bytes(), (library_of_three / "b.mp4").read_bytes()
    with StoreWriter(store, MADE) as writer:
        sieve = Sieve(writer.reader, stats, lambda _: False)
        jobs = []
        for data in (old, new, old):
            source.write_bytes(data)
            jobs.append(sieve.pick(str(source)))
    first, second, third = jobs
    assert first is not None
    assert second is not None
    assert third is not None
    assert second.stale == (first.content.sha256[:32],)
    assert third.stale == (second.content.sha256[:32],)
    assert stats.duplicates == 0


def test_what_is_unchanged_is_not_written_again(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """Copies are looked at in every run; the store keeps its seal."""
    store = tmp_path / "s.lmdb"
    library.index(videos, store, model=captioner)
    before = store.stat().st_mtime_ns
    assert library.index(videos, store, model=captioner).duplicates == 1
    assert store.stat().st_mtime_ns == before


def test_a_disk_that_is_away_may_come_back(
    tmp_path: Path, library_of_three: Path, captioner: Captioner
) -> None:
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    was = ids(store)
    (folder / "a.mp4").unlink()
    library.index(folder, store, model=captioner)
    assert ids(store) == was


def test_shards_merge_to_the_whole(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    names = [videos / f"{c} {n}.mp4" for n, c in enumerate(COLOURS) if n % 2 == 0]
    whole, merged = tmp_path / "whole.lmdb", tmp_path / "merged.lmdb"
    library.index(names, whole, model=captioner)
    parts = [tmp_path / f"{n}.lmdb" for n in range(3)]
    for number, part in enumerate(parts):
        library.index(names, part, model=captioner, shard=Shard(number, 3))
    merge(merged, parts)
    assert contents(merged) == contents(whole)


def test_another_sampling_is_refused(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    source, store = videos / "red 0.mp4", tmp_path / "s.lmdb"
    library.index(source, store, model=captioner)
    with pytest.raises(StoreError, match="sampling is 'fps 1', not '3 frames'"):
        library.index(source, store, model=captioner, config=IndexConfig(frames=3))


def test_tars(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    """Videos in a WebDataset shard, and samples of pictures in another."""
    red = (videos / "red 0.mp4").read_bytes()
    blue = (videos / "blue 2.mp4").read_bytes()
    films = write_tar(tmp_path / "films.tar", [("a.mp4", red), ("a.json", b"{}"), ("b.mp4", blue)])
    pictures = write_colours(tmp_path / "pictures.tar", count=3, frames=2, seed=0)
    store = tmp_path / "s.lmdb"
    stats = library.index([films, pictures], store, model=captioner)
    assert (stats.indexed, stats.failed) == (5, 0)
    assert paths(store) >= {f"{films}#a.mp4", f"{films}#b.mp4", f"{pictures}#m0"}
    # They are known again by name and size: a tar is not read through to tell.
    again = library.index([films, pictures], store, model=captioner)
    assert (again.present, again.duplicates) == (5, 0)
    # The same bytes outside a tar are the same video.
    assert library.index(videos / "red 0.mp4", store, model=captioner).duplicates == 1


def test_captions_come_of_the_same_pass(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    source, store = str(videos / "blue 2.mp4"), tmp_path / "s.lmdb"
    config = IndexConfig(frames=captioner.model.config.resampler.frames)
    library.index(source, store, model=captioner, captions=True, config=config)
    opened = FeatureStore(store)
    [caption] = opened[next(iter(opened))].record.captions
    [wanted] = captioner.caption(source)
    assert (caption.text, caption.source) == (wanted.text, source)
    assert caption.logprob == pytest.approx(wanted.logprob, abs=1e-2)


def test_samples_of_shards_that_are_packed_anew(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    """Records follow them from tar to tar; none is encoded again."""
    red = ("a.mp4", (videos / "red 0.mp4").read_bytes())
    blue = ("b.mp4", (videos / "blue 2.mp4").read_bytes())
    store, one, two = (tmp_path / name for name in ("s.lmdb", "1.tar", "2.tar"))
    write_tar(one, [red, blue])
    library.index(one, store, model=captioner)
    write_tar(one, [red])
    write_tar(two, [blue])
    os.utime(one, (2e9, 2e9))
    stats = library.index([one, two], store, model=captioner)
    assert (stats.indexed, stats.moved, stats.removed, stats.failed) == (0, 1, 0, 0)
    assert paths(store) == {f"{one}#a.mp4", f"{two}#b.mp4"}
    one.write_bytes(b"being written")  # what is in it can't be told
    stats = library.index([one, two], store, model=captioner)
    assert paths(store) == {f"{one}#a.mp4", f"{two}#b.mp4"}


def captions_of(store: Path) -> dict[str, str]:
    opened = FeatureStore(store)
    records = [opened[video].record for video in opened]
    return {record.path: caption.text for record in records for caption in record.captions}


def test_captions_of_what_is_there(
    tmp_path: Path, library_of_three: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of a first run that was asked for them, and nothing is decoded for them."""
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, tmp_path / "at once.lmdb", model=captioner, captions=True)
    wanted = captions_of(tmp_path / "at once.lmdb")
    library.index(folder, store, model=captioner)
    assert captions_of(store) == {}
    (folder / "a.mp4").rename(folder / "z.mp4")  # is told of by its new name
    shutil.copy(folder / "b.mp4", folder / "copy.mp4")
    with monkeypatch.context() as patch:
        patch.delattr(Decoders, "_decode")
        stats = library.index(folder, store, model=captioner, captions=True)
    assert (stats.captioned, stats.present, stats.duplicates, stats.moved) == (3, 0, 1, 1)
    assert (stats.indexed, stats.failed, stats.over) == (0, 0, stats.total)
    told = captions_of(store)
    assert told.pop(str(folder / "z.mp4")) == wanted.pop(str(folder / "a.mp4"))
    assert told == wanted
    assert not verify(store).findings
    again = library.index(folder, store, model=captioner, captions=True)
    assert (again.captioned, again.present) == (0, 3)


def test_a_caption_that_fails_takes_no_video(
    tmp_path: Path, library_of_three: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = tmp_path / "s.lmdb", library_of_three
    library.index(folder, store, model=captioner)
    monkeypatch.delattr(type(captioner), "recall")
    stats = library.index(folder, store, model=captioner, captions=True)
    assert (stats.captioned, stats.failed, len(FeatureStore(store))) == (0, 3, 3)


def test_what_waits_for_the_encoder_is_bounded(
    tmp_path: Path, videos: Path, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes for its batch, decoders are only so many pieces ahead."""
    real, shrink = FrameEncoder.encode, FrameEncoder.shrink
    made: list[int] = []
    encoded: list[int] = []
    ahead: list[int] = []

    def slow(self: FrameEncoder, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not encoded:
            time.sleep(2)  # the decoders go as far as they may
        ahead.append(len(made) - len(encoded))
        encoded.append(len(pixels))
        return real(self, pixels)

    def counted(self: FrameEncoder, pixels: torch.Tensor) -> torch.Tensor:
        made.append(len(pixels))
        return shrink(self, pixels)

    monkeypatch.setattr(FrameEncoder, "encode", slow)
    monkeypatch.setattr(FrameEncoder, "shrink", counted)
    config = IndexConfig(fps=30, workers=1)
    stats = library.index(videos, tmp_path / "s.lmdb", model=captioner, config=config)
    assert (stats.indexed, sum(made)) == (6, sum(encoded))
    assert len(made) > 30
    # Eight that wait, one in the decoder's hands, one or two in the encoder's.
    assert 8 <= ahead[0] <= 12


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
    assert (retried.indexed, paths(store)) == (1, {str(red), str(blue)})


def test_a_store_that_fails_ends_the_run(
    tmp_path: Path, videos: Path, captioner: Captioner
) -> None:
    before = threading.active_count()
    with pytest.raises(StoreError):
        library.index(videos, tmp_path / "no folder" / "s.lmdb", model=captioner)
    assert threading.active_count() == before


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_dtypes(tmp_path: Path, videos: Path, captioner: Captioner, dtype: str) -> None:
    source = videos / "blue 2.mp4"
    for kind in ("float16", dtype):
        library.index(
            source, tmp_path / f"{kind}.lmdb", model=captioner, config=IndexConfig(dtype=kind)
        )
    half, other = (FeatureStore(tmp_path / f"{kind}.lmdb") for kind in ("float16", dtype))
    [video_id] = half
    wanted = half[video_id].features().astype(np.float32)
    spread = np.abs(wanted).max()
    np.testing.assert_allclose(other[video_id].features(), wanted, atol=spread / 100)


def test_report(tmp_path: Path, videos: Path, captioner: Captioner) -> None:
    stats = library.index(videos, tmp_path / "s.lmdb", model=captioner)
    report = json.loads(json.dumps(stats.report()))
    assert report["frames"] == sum(range(1, 7))
    assert report["video_seconds"] == pytest.approx(21, abs=0.1)
    assert report["frames_per_second"] == pytest.approx(21 / report["seconds"], rel=0.05)
    assert replace(stats, total=None).eta is None
