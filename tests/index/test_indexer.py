"""The indexer on a library of small clips: what it keeps, and what it leaves alone."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flamvid import library, video
from flamvid.api import Captioner
from flamvid.errors import StoreError
from flamvid.index.encoder import FrameEncoder
from flamvid.library import IndexConfig, Shard
from flamvid.store import FeatureStore
from flamvid.store.maintain import merge
from tests.index.library_files import COLOURS, contents, ids
from tests.tiny import write_colours, write_tar


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
    assert str(videos / "zz copy.mp4") not in ids(store)
    [failure] = FeatureStore(store).failures()
    assert failure.source == str(videos / "broken.mp4")
    assert (failure.reason, failure.count) == ("source", 1)
    before = contents(store)

    again = library.index(videos, store, model=captioner)
    assert (again.present, again.duplicates, again.failed_before, again.indexed) == (6, 1, 1, 0)
    assert contents(store) == before


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
    assert set(ids(store)) >= {f"{films}#a.mp4", f"{films}#b.mp4", f"{pictures}#m0"}
    # They are known again by name and size: a tar is not read through to tell.
    again = library.index([films, pictures], store, model=captioner)
    assert (again.present, again.duplicates) == (5, 0)
    # The same bytes outside a tar are the same video.
    assert library.index(videos / "red 0.mp4", store, model=captioner).duplicates == 1


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
