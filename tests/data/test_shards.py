"""Shards against the pictures and captions that were written into them."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from flamvid.data.shards import expand, read_shard, samples_in
from flamvid.errors import ConfigError, SourceError
from tests.tiny import encode, picture, write_tar

SHARED = Path(__file__).parents[3] / "shared"
DOG = json.dumps({"captions": ["a dog", "a  dog\n runs "]}).encode()
NOISE = encode(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
# the first bytes of a PNG that says it is 60,000 pixels wide and high
BOMB = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0)
BOMB += struct.pack(">I", zlib.crc32(BOMB[12:])) + struct.pack(">I4s", 1 << 20, b"IDAT")


def test_frames_are_in_time_order_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    frames = [picture((i, 2 * i, 250)) for i in range(12)]
    members = [(f"v1.f{i:02}.webp", encode(frames[i])) for i in (3, 0, 11, 2, 1, *range(4, 11))]
    shard = write_tar(tmp_path / "a.tar", [*members[:5], ("v1.json", DOG), *members[5:]])
    [sample] = read_shard(shard)
    assert (sample.id, sample.captions) == ("v1", ("a dog", "a dog runs"))
    assert len(sample.pictures) == 12
    for got, want in zip(sample.pictures, frames, strict=True):
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), want)


def test_numbers_without_zeros_in_front_are_in_time_order_too(tmp_path: Path) -> None:
    frames = [(f"v.f{n}.png", encode(picture((n, 0, 0)))) for n in range(12)]
    [sample] = read_shard(write_tar(tmp_path / "a.tar", [*frames, ("v.json", DOG)]))
    assert [int(p[0, 0, 0]) for p in sample.pictures] == list(range(12))


def test_a_broken_sample_is_left_out_where_somebody_is_told(tmp_path: Path) -> None:
    good = encode(picture((1, 2, 3)))
    members = [(f"{n}.{kind}", data) for n in range(3) for kind, data in
               (("webp", b"RIFF" if n == 1 else good), ("json", DOG))]  # fmt: skip
    told: list[SourceError] = []
    samples = list(read_shard(write_tar(tmp_path / "a.tar", members), told.append))
    assert [s.id for s in samples] == ["0", "2"]
    [error] = told
    assert "sample 1 can't be read" in str(error)


def test_videos_and_stills_stand_side_by_side(tmp_path: Path) -> None:
    red, blue = encode(picture((255, 0, 0))), encode(picture((0, 0, 255)))
    members = [("s.webp", red), ("s.json", DOG), ("v.f00.webp", red), ("v.f01.webp", blue)]
    samples = list(read_shard(write_tar(tmp_path / "a.tar", [*members, ("v.json", DOG)])))
    assert [(s.id, len(s.pictures)) for s in samples] == [("s", 1), ("v", 2)]
    assert samples[1].pictures[1][:, 0, 0].tolist() == [0, 0, 255]


def test_unicode_captions_and_names(tmp_path: Path) -> None:
    said = ["Ein Hündchen läuft", "一只狗 🐕"]
    captions = json.dumps({"captions": said}, ensure_ascii=False).encode()
    shard = tmp_path / "größe 🎞.tar"
    write_tar(shard, [("vidéo.webp", encode(picture((1, 2, 3)))), ("vidéo.json", captions)])
    [sample] = read_shard(shard)
    assert (sample.id, sample.captions) == ("vidéo", tuple(said))


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"a.webp": b"RIFF no picture", "a.json": DOG}, "cannot identify"),
        ({"a.webp": NOISE[:700], "a.json": DOG}, "a can't be read"),
        ({"a.png": BOMB, "a.json": DOG}, "decompression bomb"),
        ({"a.webp": NOISE}, "'json'"),
        ({"a.webp": NOISE, "a.json": b'{"captions": '}, "a can't be read"),
        ({"a.webp": NOISE, "a.json": b"{}"}, "'captions'"),
        ({"a.webp": NOISE, "a.json": b"[1]"}, "a can't be read"),
        ({"a.webp": NOISE, "a.json": b'{"captions": "dog"}'}, "a list"),
        ({"a.webp": NOISE, "a.json": b'{"captions": []}'}, "no captions"),
        ({"a.json": DOG, "a.txt": b"dog"}, "no pictures"),
    ],
)
def test_a_broken_sample_is_named(
    tmp_path: Path, members: dict[str, bytes], complaint: str
) -> None:
    shard = write_tar(tmp_path / "bad.tar", members.items())
    with pytest.raises(SourceError, match=complaint) as raised:
        list(read_shard(shard))
    assert str(shard) in str(raised.value)


@pytest.mark.parametrize("keep", [0, 700, 2000])
def test_a_shard_that_is_cut_short_is_an_error(tmp_path: Path, keep: int) -> None:
    shard = write_tar(tmp_path / "cut.tar", [("a.webp", NOISE), ("a.json", DOG)])
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"cut\.tar"):
        list(read_shard(shard))


def test_something_else_under_the_name_of_a_shard_is_an_error(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_text("no tar file " * 200)
    for read in (lambda path: list(read_shard(path)), samples_in):
        with pytest.raises(SourceError, match=r"a\.tar is no whole tar file") as raised:
            read(shard)
        assert "\n" not in str(raised.value)


def test_a_shard_with_a_name_twice_is_an_error(tmp_path: Path) -> None:
    frame = encode(picture((1, 1, 1)))
    shard = write_tar(tmp_path / "a.tar", [("a.webp", frame), ("a.webp", frame), ("a.json", DOG)])
    with pytest.raises(SourceError, match="duplicate"):
        list(read_shard(shard))


@pytest.mark.parametrize("name", ["pipe:touch ran", "pipe:touch ran #.tar", "file:a.tar", "a|b"])
def test_a_name_is_never_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # webdataset runs what follows `pipe:` in a shell
    monkeypatch.chdir(tmp_path)
    write_tar(Path(name), [("a.webp", encode(picture((1, 1, 1)))), ("a.json", DOG)])
    [shard] = expand([f"{name[0]}*"], Path())
    assert [s.id for s in read_shard(shard)] == ["a"]
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_patterns_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("b-1.tar", "b-0.tar", "a-0.tar", "a.txt"):
        (tmp_path / name).touch()
    found = expand(["b-*.tar", "a-0.tar"], tmp_path)
    assert [f.name for f in found] == ["b-0.tar", "b-1.tar", "a-0.tar"]


def test_a_pattern_without_a_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").touch()
    with pytest.raises(ConfigError, match=r"no shard matches 'c-\*\.tar'"):
        expand(["a-*.tar", "c-*.tar"], tmp_path)


@pytest.mark.needs_shared
def test_the_shared_validation_shard_is_as_its_readme_says() -> None:
    shards = expand(["msrvtt/validate-*.tar"], SHARED / "data")
    samples = [sample for shard in shards for sample in read_shard(shard)]
    assert len(samples) == len({s.id for s in samples}) == 244
    assert {len(s.captions) for s in samples} == {20}
    assert {len(s.pictures) for s in samples} == {2, 4}
    assert {p.shape for s in samples for p in s.pictures} == {(3, 192, 256)}
