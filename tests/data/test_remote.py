"""Sources on other machines: what web servers give and withhold, and what reading them needs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Event, Thread

import pytest

from flamvid.data.mixture import Mixture
from flamvid.data.pack import pack
from flamvid.data.samples import Document
from flamvid.data.sources import open_corpus
from flamvid.data.verify import verify
from flamvid.errors import ConfigError, SourceError
from flamvid.text.prompt import PromptFormat
from tests.data.conftest import BLUE, GREEN, LOOK, RED, corpus, documents, seconds, shown
from tests.tiny import write_tar


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


@pytest.fixture
def meeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that answers when four are asked for at once, or never."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("flamvid.data.files._SILENT", 0.5)
    meet, over = Barrier(4), Event()

    class Slow(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "silent" in self.path:
                over.wait(20)
                return
            meet.wait(20)  # for three others, which are asked for meanwhile
            data = BLUE if "blue" in self.path else RED
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        over.set()
        server.shutdown()


def test_images_of_the_web_are_packed_side_by_side_and_silent_servers_are_left(
    tmp_path: Path, meeting: str
) -> None:
    pages = [["a", [f"{meeting}/{n}.webp"]] for n in range(4)]
    pages[3][1] += [f"{meeting}/silent.webp"]
    lines = [
        json.dumps({"texts": [text] + [None] * len(urls), "images": [None, *urls]})
        for text, urls in pages
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    told: list[tuple[int, int]] = []
    config = corpus("interleaved", "p.jsonl")
    out = tmp_path / "out"
    [_] = pack(config, tmp_path, out, count=lambda *counts: told.append(counts))
    assert told == [(4, 1)]
    found = documents(open_corpus(corpus("interleaved", "out/*.tar"), tmp_path))
    assert [shown(document) for document in found] == [["a", "R"]] * 4


def test_pictures_of_a_list_are_packed_side_by_side_and_in_order(
    tmp_path: Path, meeting: str
) -> None:
    names = ["silent", "red", "0", "blue", "1"]
    rows = [{"image": f"{meeting}/{name}.webp", "caption": name} for name in names]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [_, bad] = pack(corpus("manifest", "m.jsonl"), tmp_path, tmp_path / "out")
    assert "silent.webp" in str(bad)
    found = documents(open_corpus(corpus("images", "out/*.tar"), tmp_path))
    said = [(*shown(document), *document.texts) for document in found]
    assert said == [("R", "red"), ("R", "0"), ("B", "blue"), ("R", "1")]


def test_images_of_the_web_are_verified_side_by_side_and_told_in_order(
    tmp_path: Path, meeting: str
) -> None:
    names = ["silent", "red", "0", "blue", "1"]
    rows = [{"image": f"{meeting}/{name}.webp", "caption": "a wall"} for name in names]
    rows.insert(2, {"image": f"{meeting}/none.webp", "caption": ""})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    good: list[tuple[int, int]] = []
    config = corpus("manifest", "m.jsonl")
    found = verify({"train": [config]}, tmp_path, lambda *told: good.append(told[2:]))
    told = [(problem.sample.rpartition("/")[2], problem.reason) for problem in found]
    assert [name for name, _ in told] == ["silent.webp", "none.webp", "0.webp", "1.webp"]
    silent, bare, *copies = [reason for _, reason in told]
    assert "silent.webp can't be read" in silent
    assert bare.endswith("none.webp has no caption")
    assert all(reason.startswith("is a duplicate of ") for reason in copies)
    assert all(reason.endswith("/red.webp") for reason in copies)
    assert good == [(2, 0)]


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
