"""HTTP on loopback that can misbehave, and a proxy that cuts the lines through it."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Route = bytes | int | Callable[[BaseHTTPRequestHandler], None]


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MediaServer(ThreadingHTTPServer):
    """`routes`: a path to its bytes, to a status code, or to a function that answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, ranges: bool = True) -> None:
        self.routes: dict[str, Route] = {}
        self.anything: Route = 404  # what is not among them
        self.asked: list[str] = []
        self.ranges = ranges
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no error here."""

    def __enter__(self) -> MediaServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: MediaServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        route = self.server.routes.get(self.path, self.server.anything)
        if isinstance(route, int):
            self.send_error(route)
        elif callable(route):
            with suppress(OSError):
                route(self)
        else:
            self._send(route)

    def _send(self, data: bytes) -> None:
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted and self.server.ranges else 0
        self.send_response(206 if wanted and self.server.ranges else 200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data[begin:])

    def log_message(self, *_: object) -> None:
        pass


def paced(request: BaseHTTPRequestHandler, data: bytes, rate: float) -> None:
    """Bytes over HTTP at so many per second, without a length."""
    request.send_response(200)
    request.end_headers()
    began = time.monotonic()
    for at in range(0, len(data), 188):
        time.sleep(max(0.0, began + at / rate - time.monotonic()))
        request.wfile.write(data[at : at + 188])


class Proxy:
    """TCP to a port of this machine, by way of here. `mode`: forward; cut hangs up on everybody and
    refuses new ones; hold takes callers but passes nothing on, as a half-open connection does."""

    def __init__(self, port: int) -> None:
        self.target, self.mode = port, "forward"
        self.lines: list[socket.socket] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def set(self, mode: str) -> None:
        self.mode = mode
        if mode == "cut":
            for line in self.lines:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)
            self.lines.clear()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self.set("cut")
        self.socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self.socket.accept()
                try:
                    if self.mode == "cut":
                        raise ConnectionRefusedError
                    called = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    caller.close()
                    continue
                self.lines += [caller, called]
                for ends in ((caller, called), (called, caller)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), source:
            while data := source.recv(1 << 16):
                if self.mode == "forward":
                    sink.sendall(data)
        with suppress(OSError):
            if self.mode != "hold":
                sink.shutdown(socket.SHUT_RDWR)
