"""As much RTSP as cameras speak: one H.264 stream over RTP, in RTSP's TCP or by UDP.

Also a program: `python tests/video/rtsp_server.py FILE.h264 [--port N] [--fps 25]` plays the file
over and over, in real time, and writes its address as the first line.
"""

from __future__ import annotations

import argparse
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_LARGEST = 1400  # bytes of a packet's payload; what is larger goes in fragments


class RtspServer:
    """Plays Annex B H.264 of one slice per picture and no B-frames to everybody who asks.

    answers: a status line instead of the normal answer, by method. fps: pictures per second of its
    clock; it sends them as fast as they are taken, or in real time if `paced`. After the last
    picture it hangs up, says nothing more if `silent`, or begins anew if `loop`. transports: those
    it agrees to.
    """

    def __init__(
        self,
        h264: bytes,
        *,
        port: int = 0,
        answers: dict[str, str] | None = None,
        silent: bool = False,
        paced: bool = False,
        loop: bool = False,
        fps: float = 25.0,
        transports: tuple[str, ...] = ("tcp",),
    ) -> None:
        self.units = _access_units(h264)
        self.answers = answers or {}
        self.silent, self.paced, self.loop, self.fps = silent, paced, loop, fps
        self.transports = transports
        self.methods: list[str] = []
        self.over = threading.Event()
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self.socket.getsockname()[1])
        self.url = f"rtsp://127.0.0.1:{self.port}/cam"
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
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        send: Callable[[bytes], object] = lambda packet: client.sendall(  # noqa: E731
            b"$\0" + len(packet).to_bytes(2, "big") + packet
        )
        with (
            client,
            client.makefile("rb") as lines,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            suppress(OSError, ValueError),
        ):
            datagrams.bind(("127.0.0.1", 0))
            while request := lines.readline().decode():
                method = request.split()[0]
                self.methods.append(method)
                headers = {}
                while line := lines.readline().decode().strip():
                    key, _, value = line.partition(":")
                    headers[key.lower()] = value.strip()
                status, extra, body = self.answers.get(method, "200 OK"), "Session: 1\r\n", ""
                if method == "OPTIONS":
                    extra += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                elif method == "DESCRIBE" and method not in self.answers:
                    extra, body = "Content-Type: application/sdp\r\n", _SDP
                elif method == "SETUP" and method not in self.answers:
                    wanted = headers["transport"]
                    ports = re.search(r"client_port=(\d+)-(\d+)", wanted)
                    if ("udp" if ports else "tcp") not in self.transports:
                        status = "461 Unsupported Transport"
                    elif ports:
                        to = ("127.0.0.1", int(ports[1]))
                        send = lambda packet: datagrams.sendto(packet, to)  # noqa: B023, E731
                        ours = datagrams.getsockname()[1]
                        extra += f"Transport: {wanted};server_port={ours}-{ours + 1}\r\n"
                    else:
                        extra += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                head = f"RTSP/1.0 {status}\r\nCSeq: {headers['cseq']}\r\n{extra}"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                if method == "PLAY":
                    self._play(send)
                    return

    def _play(self, send: Callable[[bytes], object]) -> None:
        sequence, began = 0, time.monotonic()
        for n, unit in enumerate(self._pictures()):
            if self.paced and self.over.wait(max(0.0, began + n / self.fps - time.monotonic())):
                return
            stamp = (900_000 + round(n * 90_000 / self.fps)) & 0xFFFF_FFFF
            payloads = [payload for nal in unit for payload in _payloads(nal)]
            for i, payload in enumerate(payloads):
                last = 0x80 if i == len(payloads) - 1 else 0
                head = bytes([0x80, last | 96]) + (sequence & 0xFFFF).to_bytes(2, "big")
                send(head + stamp.to_bytes(4, "big") + b"\0\0\0\7" + payload)
                sequence += 1
        if self.silent:
            self.over.wait(60)

    def _pictures(self) -> Iterator[list[bytes]]:
        while not self.over.is_set():
            yield from self.units
            if not self.loop:
                return


_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=cam\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track\r\n"
)


def _payloads(nal: bytes) -> list[bytes]:
    """A NAL unit as RTP carries it: whole, or in fragments (RFC 6184, FU-A)."""
    if len(nal) <= _LARGEST:
        return [nal]
    kind, pieces = nal[0] & 31, range(1, len(nal), _LARGEST)
    return [
        bytes([nal[0] & 0xE0 | 28, kind | 0x80 * (i == 1) | 0x40 * (i == pieces[-1])])
        + nal[i : i + _LARGEST]
        for i in pieces
    ]


def _access_units(h264: bytes) -> list[list[bytes]]:
    """Pictures as their NAL units: parameter sets and SEI before the slice that they belong to."""
    units: list[list[bytes]] = [[]]
    for nal in re.split(rb"\0\0\0?\x01", h264)[1:]:
        units[-1].append(nal.rstrip(b"\0"))
        if nal[0] & 31 in (1, 5):
            units.append([])
    return [unit for unit in units if unit]


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--fps", type=float, default=25.0)
    given = options.parse_args()
    data = given.file.read_bytes()
    with RtspServer(data, port=given.port, fps=given.fps, paced=True, loop=True) as server:
        print(server.url, flush=True)
        threading.Event().wait()
