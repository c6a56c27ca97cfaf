"""Features on disk and in batches, with an encoder that gives back the colour it sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flamvid.data.features import (
    FeatureSet,
    cache_name,
    compute_features,
    digest_of,
    features_of,
    load_features,
)
from flamvid.errors import SourceError
from flamvid.weights.load import load_model
from tests.tiny import encode, make_model, picture, write_colours, write_tar


def colours(pictures: list[Tensor]) -> Tensor:
    """Features [X,N=2,F=3]: the corner's colour, twice."""
    return torch.stack([p[:, 0, 0].float() for p in pictures])[:, None].expand(-1, 2, -1)


def shard(path: Path, counts: list[int], red: int = 0) -> Path:
    """Media of so many frames; frame t of media i is coloured (red, i, t)."""
    members = []
    for i, count in enumerate(counts):
        members += [(f"{i}.f{t:02}.webp", encode(picture((red, i, t), 4))) for t in range(count)]
        members.append((f"{i}.json", json.dumps({"captions": [f"media {i}"]}).encode()))
    return write_tar(path, members)


def features(folder: Path, counts: list[int], red: int = 0) -> FeatureSet:
    compute_features(shard(folder / "a.tar", counts, red), folder / "a.safetensors", colours)
    return load_features(folder / "a.safetensors")


def test_every_frame_has_its_place(tmp_path: Path) -> None:
    # More frames than are encoded at once, and media that lie across two such batches.
    counts = [1, 4, 2] * 12
    loaded = features(tmp_path, counts, red=7)
    assert loaded.ids == tuple(map(str, range(36)))
    assert loaded.captions == tuple((f"media {i}",) for i in range(36))
    assert loaded.shards[0].dtype == torch.float16
    for i, count in enumerate(counts):
        batch, counted = loaded.batch([i])
        assert counted.tolist() == [count]
        assert batch[0, :, 0].tolist() == [[7, i, t] for t in range(count)]


def test_short_media_are_padded_with_nothing(tmp_path: Path) -> None:
    batch, counts = features(tmp_path, [2, 4, 1], red=9).batch([2, 1, 2])
    assert (batch.dtype, batch.shape, counts.tolist()) == (torch.float32, (3, 4, 2, 3), [1, 4, 1])
    assert (batch[1] != 0).any(-1).all()
    assert batch[0, 0, 0].tolist() == [9, 2, 0]
    assert not batch[[0, 2], 1:].any()


def test_a_broken_sample_is_named_and_left_out(tmp_path: Path) -> None:
    members = [("0.webp", b"RIFF"), ("1.webp", encode(picture((1, 2, 3), 4)))]
    captions = [(f"{n}.json", json.dumps({"captions": ["a"]}).encode()) for n in range(2)]
    pairs = [x for both in zip(members, captions, strict=True) for x in both]
    told: list[SourceError] = []
    path = write_tar(tmp_path / "a.tar", pairs)
    compute_features(path, tmp_path / "f", colours, wrong=told.append)
    assert load_features(tmp_path / "f").ids == ("1",)
    assert len(told) == 1


def test_sets_are_added(tmp_path: Path) -> None:
    parts = []
    for red, counts in ((1, [2, 1]), (2, [3]), (3, [1, 4])):
        folder = tmp_path / str(red)
        folder.mkdir()
        parts.append(features(folder, counts, red))
    total = parts[0] + parts[1] + parts[2]
    assert (len(total), total.ids) == (5, ("0", "1", "0", "0", "1"))
    batch, counts = total.batch([4, 0, 2])
    assert counts.tolist() == [4, 2, 3]
    assert batch[:, :, 0].tolist() == [
        [[3, 1, 0], [3, 1, 1], [3, 1, 2], [3, 1, 3]],
        [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]],
        [[2, 0, 0], [2, 0, 1], [2, 0, 2], [0, 0, 0]],
    ]


def test_a_failure_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    def fails(pictures: list[Tensor]) -> Tensor:
        if int(pictures[0][1, 0, 0]) > 0:
            raise RuntimeError("out of memory")
        return colours(pictures)

    with pytest.raises(RuntimeError, match="out of memory"):
        compute_features(shard(tmp_path / "a.tar", [32, 8]), tmp_path / "a.safetensors", fails)
    assert [f.name for f in tmp_path.iterdir()] == ["a.tar"]


def test_a_file_that_is_there_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    features(tmp_path, [2, 1], red=1)
    before = (tmp_path / "a.safetensors").read_bytes()
    seen = []

    def looks(pictures: list[Tensor]) -> Tensor:
        seen.append((tmp_path / "a.safetensors").read_bytes() == before)
        return colours(pictures)

    compute_features(shard(tmp_path / "a.tar", [40], red=2), tmp_path / "a.safetensors", looks)
    assert seen == [True, True]
    assert load_features(tmp_path / "a.safetensors").ids == ("0",)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.safetensors", "a.tar"]


def test_a_shard_without_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.tar .*no samples"):
        compute_features(shard(tmp_path / "a.tar", []), tmp_path / "a.safetensors", colours)


def test_another_encoder_or_another_shard_has_another_name(tmp_path: Path) -> None:
    name = cache_name(shard(tmp_path / "a-0.tar", [1]), "timm:x|w|224|squash")
    assert name == cache_name(tmp_path / "a-0.tar", "timm:x|w|224|squash")
    assert name.startswith(f"{tmp_path.name}-a-0-")
    assert name.endswith(".safetensors")
    (tmp_path / "other").mkdir()
    others = [
        cache_name(tmp_path / "a-0.tar", "timm:y|w|224|squash"),
        cache_name(shard(tmp_path / "a-1.tar", [1]), "timm:x|w|224|squash"),
        cache_name(shard(tmp_path / "other" / "a-0.tar", [1]), "timm:x|w|224|squash"),
        cache_name(shard(tmp_path / "a-0.tar", [9] * 9), "timm:x|w|224|squash"),
    ]
    assert len({name, *others}) == 5


def test_an_encoder_trained_anew_is_another() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    before = digest_of(encoder)
    assert digest_of(encoder) == before
    with torch.no_grad():
        encoder[0].weight += 1e-6
    after = digest_of(encoder)
    assert after != before
    encoder[1].running_mean += 1
    assert digest_of(encoder) != after


def test_features_of_weights_that_changed_in_their_folder_are_made_anew(tmp_path: Path) -> None:
    toml, path = str(make_model(tmp_path)), write_colours(tmp_path / "a.tar", 2, 1, 0)

    def made() -> Tensor:
        model = load_model(toml, trained=False)
        return features_of([path], tmp_path / "cache", model, told.append).shards[0]

    told: list[str] = []
    before = made()
    assert torch.equal(made(), before)
    assert len(told) == 1
    weights = tmp_path / "vision" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    tensors["conv_stem.weight"] *= 2
    save_file(tensors, weights)
    assert not torch.equal(made(), before)
    assert len(told) == 2
