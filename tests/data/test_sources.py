"""Every layout of samples, against what was written into it; videos against ffmpeg's own frames."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import sys
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Event, Thread

import numpy as np
import pytest
from PIL import Image

from flamvid.data.mixture import Mixture
from flamvid.data.pack import pack
from flamvid.data.samples import Document, Look
from flamvid.data.sources import open_corpus
from flamvid.errors import ConfigError, SourceError
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import BLUE, GREEN, LOOK, RED, corpus, documents, seconds, shown
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


def test_mmc4_whose_images_are_called_by_other_numbers(tmp_path: Path) -> None:
    names = {"2.webp": BLUE, "0.webp": RED, "1.webp": GREEN}
    images = [
        {"image_name": name, "raw_url": "http://x", "matched_text_index": int(name[0])}
        for name in names
    ]
    table = {"text_list": [" red.", " green.", " blue."], "url": "http://x", "image_info": images}
    members = [(f"p.{name}", names[name]) for name in sorted(names)]
    write_tar(tmp_path / "p.tar", [*members, ("p.json", json.dumps(table).encode())])
    [document] = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert [text.strip() for text in shown(document)] == ["R", "red.", "G", "green.", "B", "blue."]


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


def test_an_address_that_is_called_as_another_image_s_number(tmp_path: Path) -> None:
    """In the order of the page: the number is ours, the address's name is a site's own."""
    addresses = ["http://x/1.webp?w=9", "http://y/2.webp", "http://z/0.webp"]
    table = {"texts": [None, "a", None, None], "images": [addresses[0], None, *addresses[1:]]}
    images = [("p.0.webp", RED), ("p.1.webp", GREEN), ("p.2.webp", BLUE)]
    named = [("q.one.webp", RED), ("q.two.webp", GREEN), ("q.three.webp", BLUE)]
    other = json.dumps(table)
    for number, name in (("1", "one"), ("2", "two"), ("0", "three")):
        other = other.replace(f"{number}.webp", f"{name}.webp")
    members = [*images, ("p.json", json.dumps(table).encode()), *named, ("q.json", other.encode())]
    write_tar(tmp_path / "p.tar", members)
    found = documents(open_corpus(corpus("interleaved", "p.tar"), tmp_path))
    assert [shown(document) for document in found] == [["R", " a", "G", "B"]] * 2


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


def test_obelics_as_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = OBELICS | {"images": ["r.webp", None, None, "gone.webp", "b.webp", None]}
    parquet.write_table(pyarrow.Table.from_pylist([table] * 3), tmp_path / "train-0.parquet")
    (tmp_path / "r.webp").write_bytes(RED)
    (tmp_path / "b.webp").write_bytes(BLUE)
    found = documents(open_corpus(corpus("interleaved", "*.parquet"), tmp_path))
    assert [shown(document) for document in found] == [["R", " One.\n\nTwo.", "B", " Three."]] * 3


def test_pages_of_parquet_are_counted_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OBELICS has 377 GB of them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = OBELICS | {"images": [None] * 6}
    parquet.write_table(pyarrow.Table.from_pylist([table] * 3), tmp_path / "train-0.parquet")
    read: list[list[str]] = []
    real = parquet.ParquetFile.read

    def noting(self: object, columns: list[str], **more: object) -> object:
        read.append(columns)
        return real(self, columns, **more)

    monkeypatch.setattr(parquet.ParquetFile, "read", noting)
    samples = open_corpus(corpus("interleaved", "*.parquet"), tmp_path)
    assert (samples.counts, read) == ((3,), [])
    assert [shown(d) for d in documents(samples)] == [["One.\n\nTwo.\n\nThree."]] * 3
    assert [sorted(columns) for columns in read] == [["images", "texts"]]


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


class _Ranges(SimpleHTTPRequestHandler):
    """Files, and the parts of them that are asked for."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2]), path.stat().st_size - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server(tmp_path: Path, prompts: PromptFormat) -> None:
    pytest.importorskip("aiohttp")
    write_tar(tmp_path / "s.tar", [("a.webp", RED), ("a.txt", b"red")])
    (tmp_path / "g.webp").write_bytes(GREEN)
    table = {"texts": ["a", None, None], "images": [None, "g.webp", "gone.webp"]}
    (tmp_path / "p.jsonl").write_text(json.dumps(table))
    handler = partial(_Ranges, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        [still] = documents(open_corpus(corpus("images", f"{base}/s.tar"), tmp_path))
        assert shown(still) == ["R"]
        # Workers are forked from a process that has read from there already.
        config = corpus("images", f"{base}/s.tar", batch=1)
        for _, [batch] in zip(range(2), Mixture([config], prompts, workers=1), strict=False):
            assert (batch.keys, batch.bad) == (("a",), ())
        # A signed address: what it asks of the server is no part of the name, nor a glob.
        (tmp_path / "m.jsonl").write_text('{"image": "g.webp?s=1", "caption": "green"}')
        [still] = documents(open_corpus(corpus("manifest", f"{base}/m.jsonl?sig=a/b"), tmp_path))
        assert shown(still) == ["G"]
        [page] = documents(open_corpus(corpus("interleaved", f"{base}/p.jsonl"), tmp_path))
        assert shown(Document("", page.parts[:2])) == ["a", "G"]
        with pytest.raises(SourceError, match=r"gone\.webp can't be read"):
            shown(page)
        with pytest.raises(ConfigError, match="no file matches"):
            open_corpus(corpus("images", f"{base}/t.tar"), tmp_path)
        server.shutdown()


def test_a_web_server_that_knows_no_ranges(tmp_path: Path, clip: Path) -> None:
    """It answers with the whole shard, whichever part of it was asked for."""
    pytest.importorskip("aiohttp")
    members = [("a.webp", RED), ("a.txt", b"red"), ("b.webp", BLUE), ("b.txt", b"blue")]
    write_tar(tmp_path / "s.tar", members)
    write_tar(tmp_path / "v.tar", [("a.txt", b"grey"), ("a.mp4", clip.read_bytes())])

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        found = documents(open_corpus(corpus("images", f"{base}/s.tar"), tmp_path))
        assert [(d.texts, shown(d)) for d in found] == [(("red",), ["R"]), (("blue",), ["B"])]
        [video] = documents(open_corpus(corpus("videos", f"{base}/v.tar"), tmp_path))
        [part] = video.parts
        assert callable(part)
        assert seconds(part(LOOK)) == [2, 3, 4, 5, 6, 7, 8, 9]
        write_tar(tmp_path / "big.tar", [("a.bin", bytes(8 << 20)), ("b.txt", b"red")])
        with pytest.raises(SourceError, match="gives no parts of files"):
            open_corpus(corpus("text", f"{base}/big.tar"), tmp_path)
        server.shutdown()


def test_images_of_the_web_are_packed_side_by_side_and_silent_servers_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("flamvid.data.files._SILENT", 0.5)
    meet, over = Barrier(4), Event()

    class Slow(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "silent" in self.path:
                over.wait(20)
                return
            meet.wait(20)  # for three others, which are asked for meanwhile
            self.send_response(200)
            self.send_header("Content-Length", str(len(RED)))
            self.end_headers()
            self.wfile.write(RED)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        pages = [["a", [f"{base}/{n}.webp"]] for n in range(4)]
        pages[3][1] += [f"{base}/silent.webp"]
        lines = [
            json.dumps({"texts": [text] + [None] * len(urls), "images": [None, *urls]})
            for text, urls in pages
        ]
        (tmp_path / "p.jsonl").write_text("\n".join(lines))
        told: list[tuple[int, int]] = []
        config = corpus("interleaved", "p.jsonl")
        out = tmp_path / "out"
        [_] = pack(config, tmp_path, out, count=lambda *counts: told.append(counts))
        over.set()
        server.shutdown()
    assert told == [(4, 1)]
    found = documents(open_corpus(corpus("interleaved", "out/*.tar"), tmp_path))
    assert [shown(document) for document in found] == [["a", "R"]] * 4


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


@pytest.mark.parametrize(("module", "name"), [("pyarrow", "p.parquet"), ("aiohttp", "p.jsonl")])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    (tmp_path / name).write_bytes(b"PAR1")
    source = name if module == "pyarrow" else f"https://127.0.0.1/{name}"
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "https", raising=False)
    with pytest.raises(ConfigError, match=rf"needs {module}; pip install flamvid\[data\]"):
        open_corpus(corpus("interleaved", source), tmp_path)


def test_a_file_system_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flamvid[data] has none of a cloud's."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match="needs s3fs; pip install s3fs"):
        open_corpus(corpus("images", "s3://bucket/a-{000..999}.tar"), tmp_path)
