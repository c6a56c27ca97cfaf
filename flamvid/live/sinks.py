"""Where cues go: files that are valid at every instant, web hooks, browsers."""

from __future__ import annotations

import http.client
import json
import logging
import os
import queue
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from flamvid.errors import InputError
from flamvid.live.cue import Cue
from flamvid.live.trigger import Bell
from flamvid.video.address import shown

__all__ = ["EventServer", "FileSink", "Sink", "WebHook", "to_json", "whole_cues"]

_log = logging.getLogger("flamvid.live")
_WAITING = 64  # cues that may wait for a hook or a browser
_CLIENTS = 32
_TRIES = 3
_TIMEOUT = 10.0  # seconds of a request
_LAST = 5.0  # seconds that closing waits for what is under way
_POLL = 0.1  # seconds after which the end is heard though no cue comes
_LONGEST_BODY = 4096  # bytes of a question


class Sink(Protocol):
    """Takes cues, each at once; never blocks for long, and counts what it could not deliver."""

    lost: int

    def put(self, cue: Cue) -> None: ...

    def close(self) -> None: ...


def to_json(cue: Cue) -> str:
    """A cue on one line."""
    return json.dumps(asdict(cue), ensure_ascii=False, allow_nan=False)


class FileSink:
    """A file to which each cue is written whole, or not at all.

    When the disk is full, what got written of a cue is cut off again, and the next is tried.
    keep: go on behind so many bytes of what is there.
    """

    def __init__(
        self,
        path: Path,
        encode: Callable[[Cue], str],
        head: str = "",
        keep: int = 0,
    ) -> None:
        self.path, self.lost, self._encode, self._size = path, 0, encode, keep
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"can't write to {path}: {error.strerror}") from error
        self._regular = path.is_file()
        self._cut()
        if self._size == 0 and head:
            self._write(head)

    def put(self, cue: Cue) -> None:
        """Write a cue."""
        if text := self._encode(cue):
            self._write(text)

    def close(self) -> None:
        """Nothing waits; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        size = self._size + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self._cut()
            if not self.lost:
                _log.warning("%s: a cue is lost (%s)", self.path, error.strerror)
            self.lost += 1
        else:
            self._size = size

    def _cut(self) -> None:
        """Back to the end of the last whole cue."""
        if self._regular:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)


def whole_cues(path: Path, ending: bytes) -> bytes:
    """What a file holds up to the last cue that ends as it should; nothing where there is none."""
    data = path.read_bytes() if path.is_file() else b""
    at = data.rfind(ending)
    return b"" if at < 0 else data[: at + len(ending)]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A post that is sent elsewhere would arrive there as a GET, without the cue."""

    def redirect_request(self, *_: Any) -> None:
        return None


class WebHook:
    """Posts each cue as JSON to an address, from a thread; what can't be delivered is counted."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            named = None
        if not named or parts.username is not None:
            raise InputError(
                f"the web hook is {shown(url)!r}; must be an http or https address with a host, "
                "and without a password"
            )
        self.url, self.lost = url, 0
        self._open = urllib.request.build_opener(_NoRedirect).open
        self._waiting: queue.Queue[Cue] = queue.Queue(_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flamvid-hook", daemon=True)
        self._thread.start()

    def put(self, cue: Cue) -> None:
        """Have a cue delivered; lost where too many wait."""
        try:
            self._waiting.put_nowait(cue)
        except queue.Full:
            self._lose("too many cues wait")

    def close(self) -> None:
        """Wait a few seconds for what is under way; the rest is lost. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join(_LAST)
        self.lost += self._waiting.unfinished_tasks

    def _run(self) -> None:
        while True:
            try:
                cue = self._waiting.get(timeout=_POLL)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            for attempt in range(_TRIES):
                reason = self._post(cue)
                if not reason:
                    break
                if attempt + 1 < _TRIES:
                    self._closing.wait(2.0**attempt)
            else:
                self._lose(reason)
            self._waiting.task_done()

    def _post(self, cue: Cue) -> str:
        """Why it failed, or nothing."""
        kind = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, to_json(cue).encode(), kind)
        try:
            with self._open(request, timeout=_TIMEOUT):
                return ""
        except (OSError, http.client.HTTPException) as error:  # HTTPError is an OSError
            return str(error) or type(error).__name__

    def _lose(self, reason: str) -> None:
        if not self.lost:
            _log.warning("a cue was not delivered to the web hook (%s)", reason)
        self.lost += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who hangs up, or talks nonsense, is no news."""


class EventServer:
    """Cues as server-sent events (GET /), and requests for more (POST /, a question or nothing).

    A browser that falls behind by 64 cues loses the oldest. Serves this machine alone unless told
    another `host`.
    """

    def __init__(self, port: int, bell: Bell, host: str = "127.0.0.1") -> None:
        self.lost = 0
        self._clients: list[queue.Queue[str | None]] = []
        self._lock = threading.Lock()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            timeout = _TIMEOUT

            def do_GET(self) -> None:
                sink._serve(self)

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length") or "0"
                if not length.isdecimal() or int(length) > _LONGEST_BODY:
                    self.send_error(413)
                    return
                bell.ring(self.rfile.read(int(length)).decode("utf-8", "replace"))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        try:
            self._server = _Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"can't serve events on {host}:{port}: {error}") from error
        self.port: int = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, name="flamvid-events", daemon=True
        ).start()

    def put(self, cue: Cue) -> None:
        """Send a cue to all who listen."""
        event = f"event: {cue.kind}\ndata: {to_json(cue)}\n\n"
        with self._lock:
            for client in self._clients:
                if client.full():
                    client.get_nowait()
                    self.lost += 1
                client.put_nowait(event)

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            for client in self._clients:
                if client.full():
                    client.get_nowait()
                client.put_nowait(None)
        deadline = time.monotonic() + _LAST
        while self._clients and time.monotonic() < deadline:
            time.sleep(0.02)
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        mine: queue.Queue[str | None] = queue.Queue(_WAITING)
        with self._lock:
            if len(self._clients) >= _CLIENTS:
                request.send_error(503)
                return
            self._clients.append(mine)
        try:
            request.send_response(200)
            request.send_header("Content-Type", "text/event-stream")
            request.send_header("Cache-Control", "no-store")
            request.end_headers()
            while True:
                try:
                    event = mine.get(timeout=_TIMEOUT)
                except queue.Empty:
                    event = ":\n\n"  # a comment: notices who went away
                if event is None:
                    return
                request.wfile.write(event.encode())
                request.wfile.flush()
        except OSError:
            pass
        finally:
            with self._lock:
                self._clients.remove(mine)
