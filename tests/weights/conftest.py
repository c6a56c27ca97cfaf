"""A package index of one small wheel, which can stop while it sends it; models as released."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flamvid.weights.artefacts import ARTEFACTS
from tests.tiny import make_model
from tests.weights.pull import artefact
from tests.weights.released import release

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
MADE = "tiny_weights-1.0.dist-info"
Pull = Callable[..., subprocess.Popen[str]]


def write_wheel(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_weights/data.bin", b"0123456789")
        # whoever imports this wheel fails
        wheel.writestr("tiny_weights/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(
            f"{MADE}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0"
        )
        wheel.writestr(
            f"{MADE}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{MADE}/RECORD", "")
        wheel.writestr("tiny_weights/filler.bin", os.urandom(200_000))
    return path.read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.SimpleNamespace]:
    """The only index pip knows: `sha256`, times `fetched`, and while `go` is cleared it stalls."""
    data = write_wheel(tmp_path / WHEEL)
    state = types.SimpleNamespace(
        fetched=0,
        go=threading.Event(),
        half=threading.Event(),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    state.go.set()

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            body = data if self.path.endswith(".whl") else page
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body is page else "application/zip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if body is data:
                state.fetched += 1
                self.wfile.write(body[: len(body) // 2])
                state.half.set()
                state.go.wait(60)
                body = body[len(body) // 2 :]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client was killed, as tests do
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_FIND_LINKS": f"http://127.0.0.1:{server.server_address[1]}/",
        "NO_PROXY": "127.0.0.1",
        "FLAMVID_HOME": str(tmp_path / "home"),
        "FLAMVID_OFFLINE": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(ARTEFACTS, "tiny-weights", artefact(state.sha256))
    yield state
    state.go.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def pull(index: types.SimpleNamespace) -> Iterator[Pull]:
    """pull(seconds=0) starts a process that pulls; its conversion takes so many seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float = 0) -> subprocess.Popen[str]:
        helper = Path(__file__).with_name("pull.py")
        command = [sys.executable, str(helper), index.sha256, str(seconds)]
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that pip, its child, can be killed with it
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a tiny model's TOML."""
    return make_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny OpenFlamingo as its author left it, for tests that only read it."""
    return release(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path
