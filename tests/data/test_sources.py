"""Every layout of samples, against what was written into it; videos against ffmpeg's own frames."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from flamvid.data.samples import Document, Look, Media
from flamvid.data.sources import Samples, open_corpus
from flamvid.errors import ConfigError, SourceError
from tests.data.conftest import corpus
from tests.tiny import encode, picture, write_tar

RED, GREEN, BLUE = (encode(picture(rgb)) for rgb in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
LOOK = Look(frames=8, fps=1.0)


def documents(samples: Samples) -> list[Document]:
    return [samples.document(s, at) for s, n in enumerate(samples.counts) for at in range(n)]


def shown(document: Document) -> list[Any]:
    """Texts as they are, media as the colour of their first frame."""
    out: list[Any] = []
    for part in document.parts:
        if not isinstance(part, str):
            media = part if isinstance(part, Media) else part(LOOK)
            assert media.frames is not None
            part = "RGB"[int(media.frames[0, :, 0, 0].argmax())]
        out.append(part)
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 seconds at 5 fps, whose brightness is 20 times the second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i"]
    command += ["color=black:s=64x48:r=5:d=12,format=gray,geq=lum='floor(T)*20'"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path


def seconds(media: Media) -> list[int]:
    assert media.frames is not None
    return [round(float(v) / 20) for v in media.frames.float().mean((1, 2, 3))]


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


def test_frames_in_natural_order_evenly_thinned(tmp_path: Path) -> None:
    frames = [(f"a.f{n}.webp", encode(picture((n * 10, 0, 0)))) for n in range(20)]
    write_tar(tmp_path / "f.tar", [*frames[::-1], ("a.txt", b"red")])
    [document] = documents(open_corpus(corpus("frames", "f.tar"), tmp_path))
    [part] = document.parts
    assert callable(part)
    media = part(Look(frames=4))
    assert media.frames is not None
    assert [int(v) // 10 for v in media.frames[:, 0, 0, 0]] == [2, 7, 12, 17]


MMC4 = {
    "text_list": ["The first.", "The second.", "The third."],
    "url": "http://x",
    "image_info": [
        {"image_name": "Blue.webp", "raw_url": "http://x/b", "matched_text_index": 2},
        {"image_name": "red.webp", "raw_url": "http://x/r", "matched_text_index": 0},
        {"image_name": "gone.webp", "raw_url": "http://x/n", "matched_text_index": 1},
        {"image_name": "green.webp", "raw_url": "http://x/g", "matched_text_index": 2},
    ],
    "similarity_matrix": [],
}
IN_ORDER = ["R", " The first. The second.", "B", "G", " The third."]
NAMED = {"Blue.webp": BLUE, "red.webp": RED, "green.webp": GREEN}


def test_mmc4_as_released_with_its_images_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name, data in NAMED.items():
        (tmp_path / "images" / name).write_bytes(data)
    line = json.dumps(MMC4).encode()
    with zipfile.ZipFile(tmp_path / "docs_shard_0_v2.jsonl.zip", "w") as packed:
        packed.writestr("docs_shard_0_v2.jsonl", line + b"\n" + line)
    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(line))
    config = corpus("interleaved", "docs*.zip", "more.jsonl.gz", media_root="images")
    found = documents(open_corpus(config, tmp_path))
    assert [shown(document) for document in found] == [IN_ORDER] * 3


@pytest.mark.parametrize("way", ["name", "number", "base64"])
def test_mmc4_in_a_shard(tmp_path: Path, way: str) -> None:
    table = json.loads(json.dumps(MMC4))
    members = []
    for n, image in enumerate(table["image_info"]):
        data = NAMED.get(image["image_name"])
        if data and way == "base64":
            image["image_base64"] = base64.b64encode(data).decode()
        elif data:
            members.append((f"p.{image['image_name'] if way == 'name' else f'{n}.webp'}", data))
    write_tar(tmp_path / "p.tar", [*members, ("p.json", json.dumps(table).encode())])
    [document] = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert shown(document) == IN_ORDER


OBELICS = {
    "texts": [None, "One.", "Two.", None, None, "Three."],
    "images": ["http://x/r.jpg", None, None, "http://x/g.jpg", "http://x/b.jpg", None],
    "metadata": "[]",
}


def test_obelics_in_a_shard(tmp_path: Path) -> None:
    images = [("p.0.webp", RED), ("p.1.webp", GREEN), ("p.2.webp", BLUE)]
    write_tar(tmp_path / "p.tar", [*images, ("p.json", json.dumps(OBELICS).encode())])
    [document] = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert shown(document) == ["R", " One.\n\nTwo.", "G", "B", " Three."]


def test_obelics_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = OBELICS | {"images": ["r.webp", None, None, "gone.webp", "b.webp", None]}
    parquet.write_table(pyarrow.Table.from_pylist([table] * 3), tmp_path / "train-0.parquet")
    (tmp_path / "r.webp").write_bytes(RED)
    (tmp_path / "b.webp").write_bytes(BLUE)
    found = documents(open_corpus(corpus("interleaved", "*.parquet"), tmp_path))
    assert [shown(document) for document in found] == [["R", " One.\n\nTwo.", "B", " Three."]] * 3


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_manifests(tmp_path: Path, clip: Path, suffix: str) -> None:
    rows: list[dict[str, Any]] = [
        {"video": str(clip), "start": 3.0, "end": 5.0, "caption": 'a "grey", wall'},
        {"video": "red.webp", "start": None, "end": None, "caption": "rot über\nalles"},
    ]
    (tmp_path / "red.webp").write_bytes(RED)
    path = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    one, two = documents(open_corpus(corpus("manifest", path.name), tmp_path))
    assert (one.texts, two.texts) == (('a "grey", wall',), ("rot über alles",))
    assert shown(two) == ["R"]
    [part] = one.parts
    assert callable(part)
    assert seconds(part(LOOK)) == [3, 4]


RELEASED: dict[str, tuple[Any, list[tuple[str, tuple[str, ...], Any, Any]]]] = {
    "msrvtt": (
        {
            "info": {},
            "videos": [
                {"video_id": "video0", "split": "train", "start time": 137.7, "end time": 149.4},
                {"video_id": "video1", "split": "validate", "start time": 1.0, "end time": 2.0},
            ],
            "sentences": [
                {"caption": "a car", "video_id": "video0", "sen_id": 0},
                {"caption": "a cat", "video_id": "video1", "sen_id": 1},
                {"caption": "a fast car", "video_id": "video0", "sen_id": 2},
            ],
        },
        [("video0", ("a car", "a fast car"), None, None)],
    ),
    "vatex": (
        [{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["a man", "one"], "chCap": ["人"]}],
        [("Ptf_2VRj-V0_000122_000132", ("a man", "one"), None, None)],
    ),
    "activitynet": (
        {
            "v_QOlSCBRmfWY": {
                "duration": 82.73,
                "timestamps": [[0.83, 19.86], [60.81, 17.37]],
                "sentences": ["A woman. ", " She jumps."],
            }
        },
        [
            ("v_QOlSCBRmfWY", ("A woman.",), 0.83, 19.86),
            ("v_QOlSCBRmfWY", ("She jumps.",), 17.37, 60.81),
        ],
    ),
    "youcook2": (
        {
            "database": {
                "xHr8X2Wpmno": {
                    "duration": 311.77,
                    "subset": "training",
                    "recipe_type": "113",
                    "annotations": [{"segment": [41, 54], "id": 0, "sentence": "place oil"}],
                    "video_url": "https://x",
                }
            }
        },
        [("xHr8X2Wpmno", ("place oil",), 41.0, 54.0)],
    ),
    "coco": (
        {
            "images": [{"id": 9, "file_name": "000000000009.jpg"}],
            "annotations": [
                {"image_id": 9, "id": 1, "caption": "food "},
                {"image_id": 9, "id": 2, "caption": "lunch"},
            ],
        },
        [("000000000009.jpg", ("food", "lunch"), None, None)],
    ),
    "karpathy": (
        {
            "images": [
                {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a dog ."}]},
                {"filename": "2.jpg", "split": "val", "sentences": [{"raw": "a cat"}]},
            ],
            "dataset": "flickr8k",
        },
        [("1.jpg", ("a dog .",), None, None)],
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_annotation_files_as_released(tmp_path: Path, name: str) -> None:
    table, wanted = RELEASED[name]
    (tmp_path / "a.json").write_text(json.dumps(table))
    split = {"youcook2": "training", "msrvtt": "train", "karpathy": "train"}.get(name, "")
    samples = open_corpus(corpus("manifest", "a.json", split=split), tmp_path)
    entries = samples._shard(0).entries  # type: ignore[attr-defined]
    assert [(e.video, e.texts, e.start, e.end) for e in entries] == wanted


@pytest.mark.parametrize(
    ("lines", "name", "texts"),
    [
        ("# AllVideoDescriptions\nmv89psg6zh4_33_46 A bird\nmv89psg6zh4_33_46 A parrot\n",
         "mv89psg6zh4_33_46", ("A bird", "A parrot")),
        ("1.jpg#0\tA child .\n1.jpg#1\tA girl .\n", "1.jpg", ("A child .", "A girl .")),
    ],
)  # fmt: skip
def test_annotations_as_lines(
    tmp_path: Path, lines: str, name: str, texts: tuple[str, ...]
) -> None:
    (tmp_path / "a.txt").write_text(lines)
    [document] = documents(open_corpus(corpus("manifest", "a.txt"), tmp_path))
    assert (document.id, document.texts) == (name, texts)


def test_webvid_and_a_pattern_for_where_videos_lie(tmp_path: Path, clip: Path) -> None:
    columns = "videoid,contentUrl,duration,page_dir,name"
    row = "21179416,https://x,PT00H00M11S,006001_006050,A grey wall"
    (tmp_path / "results_2M_train.csv").write_text(f"{columns}\n{row}\n")
    for folder, name in (("006001_006050", "21179416.mp4"), ("PT00H00M11S", "b-21179416.mp4")):
        (tmp_path / "v" / folder).mkdir(parents=True)
        (tmp_path / "v" / folder / name).write_bytes(clip.read_bytes())
    for pattern in ("", "{duration}/b-{videoid}.mp4"):
        config = corpus("manifest", "results*.csv", media_root="v", pattern=pattern)
        [document] = documents(open_corpus(config, tmp_path))
        assert document.texts == ("A grey wall",)
        [part] = document.parts
        assert callable(part)
        assert len(part(LOOK)) == 8


def test_plain_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("three\n\nfour")
    found = documents(open_corpus(corpus("text", "a.jsonl", "b.txt"), tmp_path))
    assert [d.parts for d in found] == [("one",), ("two",), ("three\n\nfour",)]


def test_addresses_of_other_machines(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    shard = write_tar(tmp_path / "s.tar", [("a.webp", RED), ("a.txt", b"red")])
    system = fsspec.filesystem("memory")
    for name in ("s-000.tar", "s-001.tar"):
        system.pipe(f"/corpus/{name}", shard.read_bytes())
    for source in ("memory://corpus/s-{000..001}.tar", "memory://corpus/s-*.tar"):
        found = documents(open_corpus(corpus("images", source), tmp_path))
        assert [shown(d) for d in found] == [["R"], ["R"]]
    with pytest.raises(ConfigError, match=r"no file matches 'memory://corpus/t\.tar'"):
        open_corpus(corpus("images", "memory://corpus/t.tar"), tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.webp", "/etc/hostname", "file:///etc/hostname", "a\0b"]
)
def test_a_page_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "secret.webp").write_bytes(RED)
    table = {"texts": ["a", None], "images": [None, name]}
    (tmp_path / "pages" / "p.jsonl").write_text(json.dumps(table))
    samples = open_corpus(corpus("interleaved", "pages/p.jsonl"), tmp_path)
    with pytest.raises(SourceError, match="leads out of"):
        samples.document(0, 0)


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
