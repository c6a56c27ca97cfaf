"""Where cues go: files that are whole after every cue, hooks that fail, browsers that listen."""

from __future__ import annotations

import errno
import http.client
import json
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flamvid.errors import InputError
from flamvid.live.cue import Cue, Kind
from flamvid.live.sinks import EventServer, FileSink, WebHook, to_json, whole_cues
from flamvid.live.trigger import Bell


def cue(number: int, text: str = "a dog runs") -> Cue:
    return Cue(
        source="script",
        start=2.0 * number,
        end=2.0 * number + 2,
        text=text,
        model="tiny",
        why="every",
        pts=2.0 * number + 1.75,
        wall=1e9,
    )


def line(made: Cue) -> str:
    return to_json(made) + "\n"


def test_json_says_everything() -> None:
    made = json.loads(to_json(cue(1)))
    assert made["kind"] == "caption"
    assert (made["pts"], made["wall"], made["latency"]) == (3.75, 1e9, 0.0)
    assert {"seen", "dropped", "shed", "memory", "policy", "frames", "since"} <= made.keys()
    assert json.loads(to_json(Cue(**{**made, "kind": Kind.GAP})))["kind"] == "gap"


def test_a_file_holds_whole_cues_at_every_instant(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    sink = FileSink(path, line)
    for n in range(3):
        sink.put(cue(n))
        assert [json.loads(x)["start"] for x in path.read_text().splitlines()] == [
            2.0 * i for i in range(n + 1)
        ]
    sink.close()
    sink.close()


def test_resuming_cuts_off_half_a_cue(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line(cue(0)) + line(cue(1))[:20])
    sink = FileSink(path, line, keep=len(whole_cues(path, b"\n")))
    sink.put(cue(2))
    assert [json.loads(x)["start"] for x in path.read_text().splitlines()] == [0.0, 4.0]
    FileSink(path, line)  # without keeping any, it begins anew
    assert path.read_bytes() == b""


def test_a_full_disk_loses_cues_but_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "a.jsonl", os.write
    sink = FileSink(path, line)
    sink.put(cue(0))
    left = [10]

    def full(file: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        some, left[0] = data[: left[0]], 0
        return real(file, some)

    monkeypatch.setattr("flamvid.live.sinks.os.write", full)
    sink.put(cue(1))
    sink.put(cue(2))
    assert path.read_text() == line(cue(0))
    monkeypatch.undo()
    sink.put(cue(3))
    assert path.read_text() == line(cue(0)) + line(cue(3))
    assert sink.lost == 2


def test_dev_full_is_a_full_disk() -> None:
    sink = FileSink(Path("/dev/full"), line)
    sink.put(cue(0))
    assert sink.lost == 1
    sink.close()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't write"):
        FileSink(tmp_path, line)


class Hook:
    """A server that takes what is posted, after refusing the first few."""

    def __init__(self, refuse: int) -> None:
        self.got: list[dict[str, Any]] = []
        self.refuse = refuse
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hook.refuse > 0:
                    hook.refuse -= 1
                    self.send_error(500)
                    return
                hook.got.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_hook_is_tried_again() -> None:
    hook = Hook(refuse=1)
    sink = WebHook(hook.url)
    sink.put(cue(0))
    sink.put(cue(1))
    sink.close()
    hook.close()
    assert [c["start"] for c in hook.got] == [0.0, 2.0]
    assert sink.lost == 0


def test_a_hook_that_is_down_holds_nothing_up() -> None:
    hook = Hook(refuse=0)
    hook.close()
    sink = WebHook(hook.url)
    began = time.monotonic()
    for n in range(200):
        sink.put(cue(n))
    assert time.monotonic() - began < 1.0
    assert sink.lost >= 200 - 64 - 2


@contextmanager
def answering(*answers: bytes | None) -> Iterator[tuple[str, list[bytes]]]:
    """A socket that takes one call after the other and says this, or nothing; what it was sent."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                try:
                    caller, _ = server.accept()
                except OSError:  # closed behind a test that called less often
                    return
                asked.append(caller.recv(65536))
                if answer is None:
                    callers.append(caller)
                    continue
                caller.sendall(answer)
                caller.close()

        callers: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/", asked
        for caller in callers:
            caller.close()


NONSENSE = b"no http at all\r\n\r\n"
THANKS = b"HTTP/1.0 204 thanks\r\n\r\n"


def test_a_hook_that_talks_nonsense_is_tried_again() -> None:
    with answering(NONSENSE, THANKS, THANKS) as (url, asked):
        sink = WebHook(url)
        sink.put(cue(0))
        sink.put(cue(1))
        sink.close()
    assert sink.lost == 0
    assert len(asked) == 3


def test_a_hook_that_sends_elsewhere_has_not_got_the_cue() -> None:
    moved = b"HTTP/1.0 302 moved\r\nLocation: /there\r\n\r\n"
    with answering(moved, moved, moved, THANKS) as (url, asked):
        sink = WebHook(url)
        sink.put(cue(0))
        sink.close()
    assert sink.lost == 1
    assert all(request.startswith(b"POST / ") for request in asked)


def test_what_a_hook_has_not_got_by_the_end_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamvid.live.sinks._LAST", 0.3)
    with answering(None) as (url, _):
        sink = WebHook(url)
        for n in range(3):
            sink.put(cue(n))
        sink.close()
        sink.close()
        assert sink.lost == 3


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http:///hook", "http://a:b/", "https://me:secret@host/"]
)
def test_what_can_be_no_hook(url: str) -> None:
    with pytest.raises(InputError, match="http or https address with a host") as refused:
        WebHook(url)
    assert "secret" not in str(refused.value)


def test_callers_who_talk_nonsense_are_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    bell = Bell()
    server = EventServer(0, bell)
    for request in (
        b"POST / HTTP/1.0\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.0\r\nContent-Length: 99999\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as caller:
            caller.sendall(request)
            assert caller.recv(4096).startswith(b"HTTP/1.0 413")
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.sendall(b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\n")
    time.sleep(0.2)  # until the server has seen that it was hung up on
    server.close()
    assert bell.take() in ([], [""])
    assert capfd.readouterr().err == ""


def test_browsers_listen_and_ask() -> None:
    bell = Bell()
    server = EventServer(0, bell)
    listener = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    listener.request("GET", "/")
    events = listener.getresponse()
    assert events.headers["Content-Type"] == "text/event-stream"
    server.put(cue(0, "ein Hund läuft"))
    assert events.readline() == b"event: caption\n"
    assert json.loads(events.readline().decode().removeprefix("data: "))["text"] == "ein Hund läuft"

    asking = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    asking.request("POST", "/", "who sings?")
    assert asking.getresponse().status == 202
    assert bell.take() == ["who sings?"]
    asking.close()
    with pytest.raises(InputError, match="can't serve"):
        EventServer(server.port, bell)
    server.close()
    assert events.read() == b"\n"
    listener.close()


def test_a_browser_that_falls_behind_loses_the_oldest() -> None:
    server = EventServer(0, Bell())
    slow: queue.Queue[str | None] = queue.Queue(64)
    server._clients.append(slow)
    for n in range(70):
        server.put(cue(n))
    assert server.lost == 6
    assert '"start": 12.0' in str(slow.get())
    server._clients.clear()
    server.close()
