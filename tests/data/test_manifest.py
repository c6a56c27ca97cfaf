"""Manifests and annotation files, as their authors release them."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flamvid.data.annotations import Entry
from flamvid.data.files import Piece
from flamvid.data.media import Clip, Pictures
from flamvid.data.sources import open_corpus
from flamvid.errors import SourceError
from tests.data.conftest import LOOK, RED, corpus, documents, seconds, shown


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


BAD: dict[str, tuple[str, list[Any]]] = {
    "list.jsonl": ("manifest", [{"video": "a.mp4", "caption": "a"}, [1], {"caption": "b"},
                                {"video": "c.mp4", "caption": "c", "start": "soon"},
                                {"video": "d.mp4", "caption": 4}]),
    "pages.jsonl": ("interleaved", [{"texts": ["a"], "images": [None]}, 7, {"texts": "ab"},
                                    {"texts": ["a", {}], "images": [None, None]},
                                    {"text_list": "a", "image_info": []}]),
    "texts.jsonl": ("text", [{"text": "a"}, None, {"text": {}}, {"text": ["a"]}, {}]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_bad_row_is_a_bad_sample_of_a_good_list(tmp_path: Path, name: str) -> None:
    kind, rows = BAD[name]
    lines = [json.dumps(row) for row in rows] + ['{"video": ']
    (tmp_path / name).write_text("\n".join(lines))
    samples = open_corpus(corpus(kind, name), tmp_path)
    assert samples.counts == (6,)
    samples.document(0, 0)
    for at in range(1, 6):
        assert name in samples.name(0, at)
        with pytest.raises(SourceError):
            samples.document(0, at)


def _spoilt(table: Any) -> Any:
    """The same with a second row of another type in each list of rows, or table of them."""
    if isinstance(table, list):
        return [*table, 7]
    if "database" in table:
        return {"database": {**table["database"], "x": 7}}
    if "videos" in table or "images" in table:
        return {k: [*v, 7] if isinstance(v, list) else v for k, v in table.items()}
    return {**table, "x": 7}


@pytest.mark.parametrize("name", RELEASED)
def test_one_bad_row_of_an_annotation_file_is_a_bad_sample(tmp_path: Path, name: str) -> None:
    table, wanted = RELEASED[name]
    (tmp_path / "a.json").write_text(json.dumps(_spoilt(table)))
    split = {"youcook2": "training", "msrvtt": "train", "karpathy": "train"}.get(name, "")
    samples = open_corpus(corpus("manifest", "a.json", split=split), tmp_path)
    entries = samples._shard(0).entries  # type: ignore[attr-defined]
    assert [e.texts for e in entries if isinstance(e, Entry)] == [w[1] for w in wanted]
    bad = len(entries) - len(wanted)
    assert bad == (2 if name in ("msrvtt", "coco") else 1)
    for at in range(len(wanted), len(entries)):
        with pytest.raises(SourceError, match="can't be read"):
            samples.document(0, at)


@pytest.mark.parametrize(
    ("name", "data", "kind", "texts"),
    [
        ("a.json.gz", json.dumps(RELEASED["vatex"][0]), "manifest", ("a man", "one")),
        ("a.txt.gz", "1.jpg#0\tA child .\n", "manifest", ("A child .",)),
        ("t.txt.gz", "a text", "text", ()),
        ("t.jsonl.gz", '{"text": "a text"}', "text", ()),
    ],
)
def test_packed_lists(
    tmp_path: Path, name: str, data: str, kind: str, texts: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(data.encode()))
    [document] = documents(open_corpus(corpus(kind, name), tmp_path))
    assert document.texts == texts
    assert kind != "text" or document.parts == ("a text",)


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
        samples = open_corpus(config, tmp_path)
        [entry] = samples._shard(0).entries  # type: ignore[attr-defined]
        # Of ten million rows, all of them in memory.
        assert set(entry.columns) == ({"duration", "videoid"} if pattern else set())
        [document] = documents(samples)
        assert document.texts == ("A grey wall",)
        [part] = document.parts
        assert callable(part)
        assert len(part(LOOK)) == 8


@pytest.mark.parametrize(
    ("name", "address", "kind"),
    [
        ("memory://v/a.mp4", "memory://v/a.mp4", Clip),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg", Pictures),
        ("https://h/watch?v=3", "https://h/watch?v=3", Clip),
        ("https://h/a.jpg?s=1", "https://h/a.jpg?s=1", Pictures),
        ("https://h/a?name=b.jpg", "https://h/a?name=b.jpg", Clip),
        ("/v/a.mp4", "/v/a.mp4", Clip),
        ("../v/a.JPG", "ROOT/../v/a.JPG", Pictures),
        ("clip", "ROOT/clip.mp4", Clip),
        ("clip.v2", "ROOT/clip.v2", Clip),
        ("v_QOlSCBRmfWY", "ROOT/v_QOlSCBRmfWY.mkv", Clip),
        ("xHr8X2Wpmno", "ROOT/xHr8X2Wpmno.webm", Clip),
        ("photo", "ROOT/photo.jpg", Pictures),
    ],
)
def test_where_the_media_of_a_list_are(
    tmp_path: Path, name: str, address: str, kind: type[Clip | Pictures]
) -> None:
    for there in ("v_QOlSCBRmfWY.mkv", "xHr8X2Wpmno.webm", "photo.jpg"):
        (tmp_path / there).write_bytes(b"")
    (tmp_path / "m.jsonl").write_text(json.dumps({"video": name, "caption": "a"}))
    [document] = documents(open_corpus(corpus("manifest", "m.jsonl"), tmp_path))
    [part] = document.parts
    assert isinstance(part, kind)
    file = part.file if isinstance(part, Clip) else part.files[0]
    assert isinstance(file, Piece)
    assert file.address == address.replace("ROOT", str(tmp_path))


def test_videos_of_a_pattern_whose_format_is_whatever_there_was(tmp_path: Path) -> None:
    (tmp_path / "training" / "113").mkdir(parents=True)
    (tmp_path / "training" / "113" / "xHr8X2Wpmno.mkv").write_bytes(b"")
    (tmp_path / "y.json").write_text(json.dumps(RELEASED["youcook2"][0]))
    config = corpus("manifest", "y.json", pattern="training/{recipe_type}/{video}")
    [document] = documents(open_corpus(config, tmp_path))
    [part] = document.parts
    assert isinstance(part, Clip)
    assert part.file.address == str(tmp_path / "training/113/xHr8X2Wpmno.mkv")


@pytest.mark.parametrize("name", ["../a.mp4", "/etc/a.mp4", "memory://v/a.mp4", "file:///a.mp4"])
def test_a_list_from_afar_names_no_file_of_this_machine(tmp_path: Path, name: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    line = json.dumps({"video": name, "caption": "a"}).encode()
    fsspec.filesystem("memory").pipe("/afar/m.jsonl", line)
    for root in ("", "videos"):
        config = corpus("manifest", "memory://afar/m.jsonl", media_root=root)
        with pytest.raises(SourceError, match="leads out of"):
            open_corpus(config, tmp_path).document(0, 0)
