"""Every layout of samples, against what was written into it; videos against ffmpeg's own frames."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamvid.data.samples import Look
from flamvid.data.sources import open_corpus
from flamvid.errors import ConfigError, SourceError
from tests.data.conftest import BLUE, LOOK, RED, corpus, documents, seconds, shown
from tests.tiny import encode, picture, write_tar


def test_videos_in_a_shard(tmp_path: Path, clip: Path) -> None:
    members = [("a.mp4", clip.read_bytes()), ("a.json", b'{"caption": "a  grey\\nwall"}')]
    write_tar(tmp_path / "v.tar", [*members, ("b.mp4", clip.read_bytes()), ("b.txt", b"grey")])
    one, two = documents(open_corpus(corpus("videos", "v.tar"), tmp_path))
    assert (one.id, one.texts, two.texts) == ("a", ("a grey wall",), ("grey",))
    [part] = one.parts
    assert callable(part)
    media = part(LOOK)
    assert seconds(media) == [2, 3, 4, 5, 6, 7, 8, 9]  # the middle 8 of 12 seconds
    assert np.allclose(np.diff(media.pts), 1.0)


def test_the_captions_of_img2dataset(tmp_path: Path) -> None:
    facts = {"caption": "a red wall", "url": "http://x/1.jpg", "status": "success", "width": 16}
    members = [
        ("000.webp", RED),
        ("000.txt", b"a red wall"),
        ("000.json", json.dumps(facts).encode()),
    ]
    write_tar(tmp_path / "00000.tar", members)
    [document] = documents(open_corpus(corpus("images", "*.tar"), tmp_path))
    assert (document.texts, shown(document)) == (("a red wall",), ["R"])


def test_names_that_begin_with_two_lines_are_samples(tmp_path: Path) -> None:
    """As YouTube's ids may; WebDataset keeps `__so__` for what describes a shard."""
    members = [("__aQ3xUZmZI.webp", RED), ("__aQ3xUZmZI.txt", b"red"), ("__index__", b"{}")]
    write_tar(tmp_path / "s.tar", members)
    [document] = documents(open_corpus(corpus("images", "s.tar"), tmp_path))
    assert document.id == "__aQ3xUZmZI"


def test_frames_in_natural_order_evenly_thinned(tmp_path: Path) -> None:
    frames = [(f"a.f{n}.webp", encode(picture((n * 10, 0, 0)))) for n in range(20)]
    write_tar(tmp_path / "f.tar", [*frames[::-1], ("a.txt", b"red")])
    [document] = documents(open_corpus(corpus("frames", "f.tar"), tmp_path))
    [part] = document.parts
    assert callable(part)
    media = part(Look(frames=4))
    assert media.frames is not None
    assert [int(v) // 10 for v in media.frames[:, 0, 0, 0]] == [2, 7, 12, 17]


def test_a_mask_beside_a_picture_is_none(tmp_path: Path) -> None:
    members = [("a.seg.png", BLUE), ("a.webp", RED), ("a.txt", b"red")]
    write_tar(tmp_path / "s.tar", members)
    [document] = documents(open_corpus(corpus("images", "s.tar"), tmp_path))
    assert shown(document) == ["R"]


def test_a_damaged_video_of_a_shard_is_named_rather_than_a_copy_of_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", [("a.mp4", b"no video"), ("a.txt", b"a")])
    [document] = documents(open_corpus(corpus("videos", "s.tar"), tmp_path))
    [part] = document.parts
    assert callable(part)
    with pytest.raises(SourceError, match=r"/s\.tar#a\.mp4 is no video"):
        part(LOOK)


def test_an_answer_without_an_end_is_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flamvid.data.files._MOST_PICTURE", 1000)
    (tmp_path / "big.webp").write_bytes(RED + bytes(1000))
    (tmp_path / "m.csv").write_text("image,caption\nbig.webp,a\n")
    [document] = documents(open_corpus(corpus("manifest", "m.csv"), tmp_path))
    with pytest.raises(SourceError, match=r"big\.webp has more than 1000 bytes"):
        shown(document)


def test_plain_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("three\n\nfour")
    found = documents(open_corpus(corpus("text", "a.jsonl", "b.txt"), tmp_path))
    assert [d.parts for d in found] == [("one",), ("two",), ("three\n\nfour",)]


@pytest.mark.parametrize(
    ("kind", "members", "complaint"),
    [
        ("images", {"a.webp": RED}, "a has no caption"),
        ("images", {"a.txt": b"red"}, "images were expected"),
        ("videos", {"a.webp": RED, "a.txt": b"red"}, "videos were expected"),
        ("images", {"a.webp": RED, "a.json": b"{"}, "is no JSON"),
        ("interleaved", {"a.webp": RED, "a.json": b"{}"}, "a has no page"),
        ("interleaved", {"a.json": b'{"texts": ["a"], "images": []}'}, "no page of"),
        ("interleaved", {"a.json": json.dumps({"text_list": ["a"], "image_info": [
            {"matched_text_index": 3}]}).encode()}, "matched_text_index 3"),
    ],
)  # fmt: skip
def test_a_broken_sample_is_named(
    tmp_path: Path, kind: str, members: dict[str, bytes], complaint: str
) -> None:
    write_tar(tmp_path / "s.tar", members.items())
    samples = open_corpus(corpus(kind, "s.tar"), tmp_path)
    with pytest.raises(SourceError, match=complaint):
        samples.document(0, 0)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("s.tar", b"", "is no whole tar file"),
        ("s.tar", b"no tar file " * 200, "is no whole tar file"),
        ("m.csv", b"a,b\n1,2\n", "row 1 names no video"),
        ("m.csv", b"video,start,caption\na.mp4,soon,b\n", "must be seconds"),
        ("m.jsonl", b'{"video": \n', "line 1 is no JSON"),
        ("m.json", b'{"a": 1}', "no annotation file that is known"),
        ("m.json", b'[{"video": "a.mp4"}]', "no good row: the row 0 can't be read"),
        ("m.txt", b"some words\n", "no annotation file that is known"),
        ("m.xlsx", b"PK", r"ends in \.xlsx"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=complaint) as raised:
        open_corpus(corpus("manifest" if name[0] == "m" else "images", name), tmp_path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    noise = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise, "png")
    shard = write_tar(tmp_path / "s.tar", [("a.png", noise.getvalue()), ("a.txt", b"a")])
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(SourceError, match=r"s\.tar is no whole tar file"):
        open_corpus(corpus("images", "s.tar"), tmp_path)


def test_missing_and_empty_sources_are_known_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus images: no file matches"):
        open_corpus(corpus("images", "a-*.tar"), tmp_path)
    write_tar(tmp_path / "s.tar", [])
    with pytest.raises(ConfigError, match="holds no samples"):
        open_corpus(corpus("images", "s.tar"), tmp_path)
    with pytest.raises(ConfigError, match="is named twice"):
        open_corpus(corpus("images", "s.tar", "*.tar"), tmp_path)


def test_a_shard_is_counted_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMVID_HOME", str(tmp_path / "home"))
    members = [("a.webp", RED), ("a.txt", b"red")]
    for name in ("s-0.tar", "s-1.tar"):
        write_tar(tmp_path / name, members)
    config = corpus("images", "s-*.tar")
    assert open_corpus(config, tmp_path).counts == (1, 1)
    opened: list[str] = []
    monkeypatch.setattr(
        "flamvid.data.sources.TarShard", lambda address, _: opened.append(address) or [None] * 9
    )
    assert open_corpus(config, tmp_path).counts == (1, 1)
    assert opened == []
    write_tar(tmp_path / "s-1.tar", [*members, ("b.webp", RED), ("b.txt", b"red")])
    assert open_corpus(config, tmp_path).counts == (1, 9)
    assert opened == [str(tmp_path / "s-1.tar")]


def test_a_feature_store(tmp_path: Path) -> None:
    from flamvid.store import Provenance, StoreWriter, VideoRecord
    from flamvid.types import Caption

    about = Provenance(
        encoder="e", weights_sha256="0", preprocessing="p", sampling="s", patches=2, width=3
    )
    record = VideoRecord(path="v.mp4", content_hash="ab" * 32, duration=12.0)
    spans = ((0.0, 4.0, "one"), (0.0, 4.0, "uno"), (4.0, 12.0, "two"))
    captions = [
        Caption(source="v.mp4", start=a, end=b, text=text, logprob=0.0, model="m")
        for a, b, text in spans
    ]
    pts = np.arange(24) / 2  # two frames a second, whose features are their times
    with StoreWriter(tmp_path / "lib.lmdb", about) as writer, writer.video(record) as video:
        video.add(pts, np.broadcast_to(pts[:, None, None], (24, 2, 3)))
        video.captions(captions)
    one, two = documents(open_corpus(corpus("store", "lib.lmdb"), tmp_path))
    assert (one.texts, two.texts) == (("one", "uno"), ("two",))
    for document, frames, wanted in ((one, 8, [0.5, 1.5, 2.5, 3.5]), (two, 3, [7.0, 8.0, 9.0])):
        [part] = document.parts
        assert callable(part)
        media = part(Look(frames=frames))
        assert media.features is not None
        assert media.features[:, 1, 2].tolist() == media.pts.tolist() == wanted
