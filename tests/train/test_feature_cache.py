"""Features of frames are made once, and are the same whether they were just made or found."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flamvid.data.collate import Batch
from flamvid.errors import ConfigError
from flamvid.train.feature_cache import FeatureCache


class Encoder:
    """Two patches of a picture's mean; it notes how many it is shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, pictures: Tensor) -> Tensor:
        self.seen.append(len(pictures))
        means = pictures.float().mean((2, 3))
        return torch.stack([means, means / 3], 1)


def batch(seed: int, counts: list[list[int]]) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    B, M, T = len(counts), len(counts[0]), max(map(max, counts))
    frames = torch.randint(0, 256, (B, M, T, 3, 8, 8), generator=rng, dtype=torch.uint8)
    frames[torch.arange(T) >= torch.tensor(counts)[..., None]] = 0
    empty = torch.zeros(B, 1, dtype=torch.int64)
    ahead = torch.zeros(B, dtype=torch.bool)
    return Batch("clips", ("a",) * B, empty, empty, ahead, torch.tensor(counts), frames=frames)


def test_features_are_those_of_each_frame(tmp_path: Path) -> None:
    encode, example = Encoder(), batch(0, [[3, 1], [2, 2]])
    cache = FeatureCache(encode, "tiny", tmp_path / "f.sqlite")
    first, again = cache(example), cache(example)
    assert encode.seen == [8]
    assert (cache.hits, cache.misses) == (8, 8)
    assert first.frames is None
    assert first.features is not None
    assert again.features is not None
    assert first.features.shape == (2, 2, 3, 2, 3)
    assert first.features.dtype == torch.float32
    assert torch.equal(first.features, again.features)
    assert example.frames is not None
    want = Encoder()(example.frames[1, 0, :2]).half().float()
    assert torch.equal(first.features[1, 0, :2], want)
    assert not first.features[1, 0, 2].any()

    # Another process beside the same file finds them; for another encoder they are others.
    other = Encoder()
    FeatureCache(other, "tiny", tmp_path / "f.sqlite")(example)
    assert other.seen == []
    FeatureCache(other, "tiny2", tmp_path / "f.sqlite")(example)
    assert other.seen == [8]


def test_a_frame_twice_in_a_batch_is_encoded_once() -> None:
    encode, example = Encoder(), batch(0, [[2], [2]])
    assert example.frames is not None
    example.frames[1, 0, 0] = example.frames[0, 0, 1]
    features = FeatureCache(encode, "tiny")(example).features
    assert encode.seen == [3]
    assert features is not None
    assert torch.equal(features[1, 0, 0], features[0, 0, 1])


def test_a_video_encoder_sees_whole_media(tmp_path: Path) -> None:
    shown = []

    def encode(clip: Tensor) -> Tensor:
        shown.append(len(clip))
        return clip.float().mean().expand(2 if len(clip) > 1 else 1, 5, 4)

    example = batch(0, [[3], [1]])
    cache = FeatureCache(encode, "clips", tmp_path / "f.sqlite", whole=True)
    found = [cache(example) for _ in range(2)][1]
    assert shown == [3, 1]
    assert found.features is not None
    assert found.frame_counts is not None
    assert found.features.shape == (2, 1, 2, 5, 4)
    assert found.frame_counts.tolist() == [[2], [1]]


def test_past_its_limit_it_grows_no_more(tmp_path: Path) -> None:
    encode = Encoder()
    cache = FeatureCache(encode, "tiny", tmp_path / "f.sqlite", limit=1)
    for _ in range(2):
        cache(batch(0, [[2]]))
    assert encode.seen == [2, 2]


def test_a_file_that_is_no_cache_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "f.sqlite").write_text("no database, but a text that is long enough" * 50)
    with pytest.raises(ConfigError, match=r"can't keep features in .*f\.sqlite .*run\.cache"):
        FeatureCache(Encoder(), "tiny", tmp_path / "f.sqlite")


def test_a_damaged_file_is_told_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, example = tmp_path / "f.sqlite", batch(0, [[3, 1], [2, 2]])
    want = FeatureCache(Encoder(), "tiny", path)(example).features
    with sqlite3.connect(path) as file:
        file.execute("UPDATE features SET data = 'cut'")
    file.close()
    encode = Encoder()
    cache = FeatureCache(encode, "tiny", path)
    got = cache(example).features
    assert want is not None
    assert got is not None
    assert torch.equal(want, got)
    cache(example)
    assert encode.seen == [8, 8]
    [record] = caplog.records
    assert "f.sqlite is damaged" in record.getMessage()
