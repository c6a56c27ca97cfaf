"""Servers on loopback: HTTP that can misbehave, and as much RTSP as cameras speak."""

from __future__ import annotations

import re
import socket
import threading
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
        route = self.server.routes.get(self.path, 404)
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


class RtspServer:
    """One H.264 stream (Annex B, one slice per picture, no B-frames) over RTP inside RTSP's TCP.

    answers: a status line instead of the normal answer, by method. After the last picture it hangs
    up, or says nothing more if `silent`.
    """

    def __init__(
        self, h264: bytes, *, answers: dict[str, str] | None = None, silent: bool = False
    ) -> None:
        self.units = _access_units(h264)
        self.answers = answers or {}
        self.silent = silent
        self.methods: list[str] = []
        self.over = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self.socket.getsockname()[1]}/cam"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.socket.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.socket.accept()
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as lines, suppress(OSError, ValueError):
            while request := lines.readline().decode():
                method = request.split()[0]
                self.methods.append(method)
                headers = {}
                while line := lines.readline().decode().strip():
                    key, _, value = line.partition(":")
                    headers[key.lower()] = value.strip()
                extra, body = self._answer(method)
                status = self.answers.get(method, "200 OK")
                head = f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\n{extra}"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                if method == "PLAY":
                    self._play(client)
                    return

    def _answer(self, method: str) -> tuple[str, str]:
        if method == "DESCRIBE" and method not in self.answers:
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=cam\r\nt=0 0\r\n"
            body += "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track\r\n"
            return "Content-Type: application/sdp\r\n", body
        if method == "SETUP":
            return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n", ""
        return "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\nSession: 1\r\n", ""

    def _play(self, client: socket.socket) -> None:
        sequence = 0
        for n, unit in enumerate(self.units):
            for i, nal in enumerate(unit):
                last = 0x80 if i == len(unit) - 1 else 0
                header = bytes([0x80, last | 96]) + (sequence & 0xFFFF).to_bytes(2, "big")
                packet = header + (900_000 + n * 3600).to_bytes(4, "big") + b"\0\0\0\7" + nal
                client.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                sequence += 1
        if self.silent:
            self.over.wait(60)


def _access_units(h264: bytes) -> list[list[bytes]]:
    """Pictures as their NAL units: parameter sets and SEI before the slice that they belong to."""
    units: list[list[bytes]] = [[]]
    for nal in re.split(rb"\0\0\0?\x01", h264)[1:]:
        units[-1].append(nal.rstrip(b"\0"))
        if nal[0] & 31 in (1, 5):
            units.append([])
    return [unit for unit in units if unit]
