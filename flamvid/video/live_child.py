"""The ffmpeg child behind a live source, and its three pipes: frames, their times, its log."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO

import ffmpeg
import torch
from torch import Tensor

from flamvid.errors import DecodeError
from flamvid.video.address import environment
from flamvid.video.ffmpeg_process import limit_memory
from flamvid.video.live_log import LiveLog
from flamvid.video.policy import check_size
from flamvid.video.probe import ffmpeg_exe

__all__ = ["LiveChild"]

_LONGEST_LINE = 4096  # bytes of the log; a stream writes into it what it likes


class LiveChild:
    """A running ffmpeg. Its three pipes are read by who asks for a frame, and by nobody else.

    limited: bound its address space; a graphics card's driver reserves more than any bound.
    """

    def __init__(
        self, graph: Callable[[int], Any], stdin: int | BinaryIO, *, limited: bool = True
    ) -> None:
        self.log = LiveLog()
        times, to_times = os.pipe()
        feeds = not isinstance(stdin, int)
        try:
            self.process = subprocess.Popen(
                [ffmpeg_exe(), *ffmpeg.get_args(graph(to_times))],
                stdin=subprocess.PIPE if feeds else stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(to_times,),
                env=environment(),
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            os.close(times)
            raise DecodeError(f"ffmpeg can't be started ({error.strerror})") from error
        finally:
            os.close(to_times)
        # Also when this is forgotten, and when the interpreter ends.
        self.kill = weakref.finalize(self, _kill, self.process, times, os.getpid())
        if limited:
            limit_memory(self.process.pid)
        if not isinstance(stdin, int):
            pump = threading.Thread(target=_pump, args=(stdin, self.process.stdin), daemon=True)
            pump.start()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._times, self._frames = times, self.process.stdout.fileno()
        self._said = self.process.stderr.fileno()
        os.set_blocking(self._frames, False)
        self._lines, self._tail = b"", b""
        self._open = True  # the log, until it ends

    def line(self, deadline: float) -> bytes | None:
        """The next frame's line: pts, time base, bytes and number; None at the end."""
        while b"\n" not in self._lines:
            self._wait(self._times, deadline)
            got = os.read(self._times, 4096)
            if not got:
                return None
            self._lines += got
        line, _, self._lines = self._lines.partition(b"\n")
        return line

    def picture(self, count: int, name: str, deadline: float) -> Tensor | None:
        """The next frame, [3,H,W]; what is transparent lies on white. None where it is cut off."""
        header = self._take(min(count, 128), deadline)
        match = header and re.match(
            rb"P7\nWIDTH (\d+)\nHEIGHT (\d+)\nDEPTH ([34])\nMAXVAL 255\nTUPLTYPE \w+\nENDHDR\n",
            header,
        )
        if not header or not match:
            return None
        width, height, depth = (int(n) for n in match.groups())
        check_size(name, width, height)
        assert count == match.end() + width * height * depth, "a line and a frame that differ"
        data = bytearray(width * height * depth)
        begun = len(header) - match.end()
        data[:begun] = header[match.end() :]
        if not self._fill(memoryview(data)[begun:], deadline):
            return None
        pixels = torch.frombuffer(data, dtype=torch.uint8).view(height, width, depth)
        pixels = pixels.permute(2, 0, 1)
        if depth == 3:
            return pixels  # a view: colours stay beside each other in memory, which costs nothing
        alpha = pixels[3:].float() / 255
        return (pixels[:3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)

    def wait(self) -> int:
        """Its exit status, once its pipes are at their end, and the rest of its log."""
        with contextlib.suppress(TimeoutError):
            while self._open:
                self._wait(None, time.monotonic() + 1)
        try:
            return self.process.wait(1)
        except subprocess.TimeoutExpired:  # its pipes are closed: there is nothing to wait for
            return 0

    def _take(self, count: int, deadline: float) -> bytes | None:
        data = bytearray(count)
        return bytes(data) if self._fill(memoryview(data), deadline) else None

    def _fill(self, view: memoryview, deadline: float) -> bool:
        while len(view):
            try:
                got = os.readv(self._frames, [view])
            except BlockingIOError:
                self._wait(self._frames, deadline)
                continue
            if not got:
                return False
            view = view[got:]
        return True

    def _wait(self, fd: int | None, deadline: float) -> None:
        """Until there is something to read; `TimeoutError` at the deadline. Listens to the log."""
        while True:
            with selectors.DefaultSelector() as ready:
                if fd is not None:
                    ready.register(fd, selectors.EVENT_READ)
                if self._open:
                    ready.register(self._said, selectors.EVENT_READ)
                found = {key.fd for key, _ in ready.select(max(0.0, deadline - time.monotonic()))}
            if self._said in found:
                self._listen()
            if fd in found or (fd is None and not self._open):
                return
            if time.monotonic() >= deadline:
                raise TimeoutError

    def _listen(self) -> None:
        got = os.read(self._said, 1 << 16)
        self._open = bool(got)
        *lines, tail = (self._tail + got).split(b"\n")
        self._tail = tail[:_LONGEST_LINE]
        for line in lines if got else [*lines, tail]:
            self.log.add(line[:_LONGEST_LINE].decode(errors="replace"))


def _kill(process: subprocess.Popen[bytes], times: int, owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork has a copy of us, and no business with our child
    process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    os.close(times)
    process.wait()


def _pump(stream: BinaryIO, pipe: Any) -> None:
    """Feed a stream that is no file of the system's; ends when the child does."""
    read = getattr(stream, "read1", stream.read)
    with contextlib.suppress(OSError, ValueError), pipe:
        while chunk := read(1 << 16):
            view = memoryview(chunk)
            while len(view):
                view = view[pipe.write(view) :]
