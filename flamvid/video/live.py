"""Frames of what can't be wound back: streams, standard input, cameras; forward, each one once.

An ffmpeg child decodes. It writes each frame as a picture with a header (PAM) to one pipe and the
frame's pts to another; both are written by the thread that encodes, in the same order, and the
line of a frame is flushed before the frame is passed on.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import selectors
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

import ffmpeg
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import DecodeError, DecoderLost, InputError, SourceError
from flamvid.types import Frames, VideoInfo
from flamvid.video.address import Kind, classify, environment, input_options, shown
from flamvid.video.policy import check_size, pixel_aspect
from flamvid.video.probe import ffmpeg_exe
from flamvid.video.sample import Fps

__all__ = ["LiveSource", "at_ticks", "is_endless", "open_live", "recorded"]

_MEMORY = 6 << 30  # bytes of address space, most of which threads reserve and never touch
_LONGEST_GAP = 3600.0  # seconds between two frames; a jump of more is an error of the clock
_LONGEST_LINE = 4096  # bytes of the log; a stream writes into it what it likes
_PROMPT = frozenset({Kind.RTSP, Kind.RTMP, Kind.CAMERA})  # cameras: a frame may not be held back


class LiveSource:
    """A source read forward; `info` is known once the first frame has come.

    Frames wait in the pipe: while nobody asks for one, the pipe is full and ffmpeg stops reading.
    No thread reads ahead, so that the memory is that of one frame however long the stream, and
    nothing is dropped behind the back of who reads; who can't keep up is the one to choose what
    to leave out. Where that loses packets (UDP) the stream goes on.

    Times rise strictly, from 0 at the first frame. A pts that does not come after the last one, or
    comes over an hour after it, begins a new clock: its frame follows the last one by that one's
    duration, and later frames keep their distance to it. ffmpeg has mended wraps of 33-bit pts and
    jumps of over 10 s in MPEG-TS and HLS in the same way before.

    A frame lasts until the next one comes, which is not known yet: `duration_seconds` is how long
    the frame before it lasted, at most a second or what the container says.
    """

    def __init__(
        self,
        source: str,
        *,
        size: tuple[int, int] | None = None,
        timeout: float = 15.0,
        stdin: BinaryIO | None = None,
    ) -> None:
        if not (math.isfinite(timeout) and timeout > 0):
            raise InputError(f"timeout is {timeout} s; must be above 0")
        _check_target(size)
        self.kind = classify(source)
        self.name = "standard input" if self.kind is Kind.STDIN else shown(source)
        self.info: VideoInfo | None = None
        self.timeout = timeout
        self._size = size
        self._clock = _Clock()
        self._ahead: Frames | None = None  # the first frame, where it was read to connect
        graph = _graph(source, self.kind, size, timeout)
        self._child: _Child | None = _Child(graph, _input_of(self.kind, stdin))

    def connect(self) -> VideoInfo:
        """Wait for the first frame, which stays to be read; `DecodeError` where none comes."""
        if self.info is None:
            self._ahead = self._read()
        if self.info is None:
            raise DecodeError(f"{self.name} is closed; open it again")
        return self.info

    def frames(
        self, *, fps: float | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[Frames]:
        """One frame after the other, each as `Frames` of T = 1, until the stream ends.

        fps: the frame shown at each tick, as `at_ticks` says. size: height and width; cheaper if
        it was given at opening, so that nothing larger has to come through the pipe. A later call
        goes on where the last one stopped.
        """
        _check_target(size)
        if fps is not None:
            Fps(fps)  # checks it
        frames = self._forward() if fps is None else at_ticks(self._forward(), fps)
        return frames if size is None else (_resized(frame, size) for frame in frames)

    def close(self) -> None:
        """End the child at once; safe to call twice. The same happens when this is forgotten."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        self._ahead = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _forward(self) -> Iterator[Frames]:
        while True:
            frame, self._ahead = self._ahead or self._read(), None
            if frame is None:
                return
            yield frame

    def _read(self) -> Frames | None:
        """The next frame; None at the end, with the child gone."""
        if self._child is None:
            return None
        try:
            frame = self._next(self._child, time.monotonic() + self.timeout)
        except BaseException:
            self.close()
            raise
        if frame is None:
            self.close()
        return frame

    def _next(self, child: _Child, deadline: float) -> Frames | None:
        try:
            line = child.line(deadline)
            if line is None:
                self._check_end(child)
                return None
            pts, base, size = line.split()
            pixels = child.picture(int(size), self.name, deadline)
        except TimeoutError:
            known = child.log.container
            what = "sent no frame" if known or self.info else "gave no answer"
            raise DecodeError(
                f"{self.name} {what} within {self.timeout:g} s; check that it is on the air, or "
                "give it a longer timeout"
            ) from None
        if pixels is None:
            self._check_end(child)
            return None
        if self.info is None:
            self.info = child.log.info(self.name, pixels, self._size)
            self._clock.nominal = 1 / self.info.fps if self.info.fps > 0 else 0.0
        above, below = (int(n) for n in base.split(b"/"))
        # Without a pts ffmpeg writes the least integer there is.
        at, lasts = self._clock.place(int(pts) * above / below if int(pts) > -(1 << 62) else None)
        return Frames(pixels[None], np.array([at]), np.array([lasts]))

    def _check_end(self, child: _Child) -> None:
        """`DecodeError` when the stream has not ended by itself, or never began."""
        status, log, at = child.wait(), child.log, f"{self._clock.last:.3f} s"
        if status < 0:
            raise DecoderLost(f"{self.name}: its decoder crashed (signal {-status}); try again")
        if self.info is None:
            raise DecodeError(log.complaint(self.name, self.kind, self.timeout))
        # ffmpeg takes it for an error when a stream of no known length ends, as it must, by the
        # server closing the connection.
        endless = self.kind is Kind.RTMP or log.endless
        if endless and log.broken == "Input/output error":
            return
        if log.broken or status or (log.cut and self.kind is Kind.STDIN):
            why = log.breach(self.kind, self.timeout)
            raise DecodeError(f"{self.name} broke off at {at}: {why}")


def open_live(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    timeout: float = 15.0,
    stdin: BinaryIO | None = None,
) -> LiveSource:
    """Connect to a stream, a camera (cam:0) or standard input (-), and wait for its first frame.

    size: height and width that frames are resized to while they are decoded. timeout: seconds
    without any frame after which it is given up, now or later. stdin: what to read for `-`
    instead of this process's standard input.
    """
    live = LiveSource(source, size=size, timeout=timeout, stdin=stdin)
    live.connect()
    return live


def is_endless(info: VideoInfo) -> bool:
    """Whether the container knows no end: a live stream, or one that came without its length."""
    return info.duration <= 0


def recorded(source: str, *, timeout: float = 15.0) -> bool:
    """Whether a source has an end and can be read again from its start.

    A web address is asked, which takes one connection; other streams and pipes never can.
    """
    kind = classify(source)
    if kind not in (Kind.HTTP, Kind.HLS):
        return kind is Kind.FILE
    with open_live(source, size=(2, 2), timeout=timeout) as live:
        return live.info is not None and not is_endless(live.info)


def at_ticks(frames: Iterator[Frames], fps: float) -> Iterator[Frames]:
    """The frame shown in the middle of each 1 / fps seconds, as `sample.Fps` takes it.

    A frame shown for long comes again, as time passes. Which one is shown at a tick is known when
    one after the tick has come; then its true duration is known as well.
    """
    held: Frames | None = None
    tick = 0
    for frame in frames:
        if held is not None:
            lasted = frame.pts_seconds - held.pts_seconds
            held = Frames(held.pixels, held.pts_seconds, lasted)
            while (tick + 0.5) / fps < frame.pts_seconds[0]:
                yield held
                tick += 1
        held = frame
    if held is None:
        return
    end = float(held.pts_seconds[0] + held.duration_seconds[0])
    while tick == 0 or (tick + 0.5) / fps < end:
        yield held
        tick += 1


@dataclass(slots=True)
class _Clock:
    """Raw pts to seconds that rise, by the rule of `LiveSource`."""

    origin: float = 0.0
    last: float = -1.0  # before the first frame
    lasts: float = 0.0
    nominal: float = 0.0

    def place(self, raw: float | None) -> tuple[float, float]:
        """Time and probable duration of the next frame; raw is None where it has no pts."""
        if self.last < 0:
            self.origin, self.last, self.lasts = raw or 0.0, 0.0, self.nominal
            return 0.0, self.lasts
        follows = self.last + (self.lasts or self.nominal or 0.04)
        at = follows if raw is None else raw - self.origin
        if not self.last < at <= self.last + _LONGEST_GAP:
            at = follows
            self.origin = at if raw is None else raw - at
        self.lasts = min(at - self.last, max(1.0, self.nominal))
        self.last = at
        return at, self.lasts


@dataclass(slots=True)
class _Log:
    """What ffmpeg says: facts of the input, and the last errors; the rest is forgotten."""

    container: str = ""
    duration: float = 0.0
    streams: dict[int, str] = field(default_factory=dict)
    turned: dict[int, float] = field(default_factory=dict)
    stream: int | None = None
    broken: str = ""
    cut: bool = False
    endless: bool = False
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def add(self, line: str) -> None:
        """One line of it. Streams of the output come after the mapping, and are ours."""
        if re.search(r"\[(error|fatal)\]|HTTP error", line):
            said = line.rpartition("] ")[2]
            self.errors.append(said)
            if said.startswith("Error during demuxing: "):
                self.broken = said.partition(": ")[2]
            self.cut |= said.endswith(("partial file", "File ended prematurely"))
            self.endless |= f"should be {(1 << 64) - 1}" in said
        elif self.stream is not None:
            return
        elif match := re.match(r"\[info\] Input #0, (.+?), from ", line):
            self.container = match[1]
        elif match := re.match(r"\[info\]   Duration: (\d+):(\d+):([\d.]+)", line):
            self.duration = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
        elif match := re.match(r"\[info\]   Stream #0:(\d+) -> #0:0 ", line):
            self.stream = int(match[1])
        elif match := re.match(r"\[info\]   +Stream #0:(\d+).*: Video: (.*)", line):
            if len(self.streams) < 64 and "(attached pic)" not in match[2]:
                self.streams[int(match[1])] = match[2]
        elif self.streams and (match := re.search(r"rotation of (-?[\d.]+) degrees", line)):
            self.turned[list(self.streams)[-1]] = float(match[1])

    def info(self, name: str, pixels: Tensor, size: tuple[int, int] | None) -> VideoInfo:
        """The facts, once the first frame is here; `DecodeError` for HDR."""
        said = self.streams.get(self.stream or 0, "")
        form = re.match(r"(\w+)(?: \([^)]*\))*(?:, (\w+)(?:\(([^)]*)\))?)?", said)
        codec, pixel_format, colour = form.groups("") if form else ("unknown", "", "")
        for transfer in ("smpte2084", "arib-std-b67"):
            if transfer in colour:
                raise DecodeError(
                    f"{name} is HDR ({transfer}), which is tone-mapped in files only; record it, "
                    "or let the sender tone-map it"
                )
        shape = re.search(r", (\d+)x(\d+)(?:,? \[?SAR (\d+):(\d+))?", said)
        aspect = pixel_aspect(int(shape[3]), int(shape[4])) if shape and shape[3] else 1.0
        rotation = round(-self.turned.get(self.stream or 0, 0.0)) % 360
        height, width = pixels.shape[1:]
        if size is not None and shape:
            width, height = max(1, round(int(shape[1]) * aspect)), int(shape[2])
            width, height = (width, height) if rotation % 180 == 0 else (height, width)
        fps = re.search(r"([\d.]+)(k?) fps", said) or re.search(r"([\d.]+)(k?) tbr", said)
        return VideoInfo(
            path=name,
            container=self.container,
            codec=codec,
            width=width,
            height=height,
            fps=float(fps[1]) * (1000 if fps[2] else 1) if fps else 0.0,
            duration=self.duration,
            frames=0,
            rotation=rotation,
            stream=self.stream or 0,
            video_streams=max(1, len(self.streams)),
            pixel_format=pixel_format,
            pixel_aspect=aspect,
        )

    def complaint(self, name: str, kind: Kind, timeout: float) -> str:
        """One line on why there is no further frame, without ffmpeg's words where it may be."""
        said = "\n".join(self.errors)
        for pattern, meaning in _MEANINGS:
            if match := re.search(pattern, said, re.M):
                words = {"timeout": f"{timeout:g}"} | match.groupdict("")
                return f"{name} {meaning.format(**words)}"
        if kind is Kind.STDIN and "Invalid data" in said:
            return f"{name} holds no video: it is empty, or of no format that ffmpeg reads"
        if not said or "Invalid data" in said or "Invalid argument" in said:
            return f"{name} is no video that ffmpeg can read; check the address"
        causes = [line for line in self.errors if not line.startswith(_CONSEQUENCES)]
        return f"{name} can't be read: ffmpeg says {(causes or self.errors)[-1]!r}"

    def breach(self, kind: Kind, timeout: float) -> str:
        """Why a stream ended before its end."""
        if "timed out" in self.broken:
            return f"nothing came for {timeout:g} s; check that it is on the air"
        if kind is Kind.STDIN:
            return "the data is damaged, or ends too early"
        return "the connection was cut; open it again to go on"


_CONSEQUENCES = ("Error opening", "Task finished", "Terminating thread", "Nothing was written")

# What ffmpeg says, and what it means. The first that fits counts: causes stand before what follows
# from them.
_MEANINGS: list[tuple[str, str]] = [
    (
        r"(?:HTTP error|failed:|Server returned) (?P<code>401|403)\b",
        "refuses access ({code}); the address may lack user:password@, or have expired",
    ),
    (
        r"(?:HTTP error|failed:|Server returned) (?P<code>404|410)\b",
        "does not exist on that server ({code}); check the address",
    ),
    (
        r"(?:HTTP error|failed:|Server returned) (?P<code>[1-5](?:\d\d|XX).*)",
        "can't be had: the server answers {code}; check the address, or try later",
    ),
    (
        r"Protocol '(?P<to>[^']*)' not on whitelist",
        "points at a {to}: address, which it may not; only what it is made for is opened",
    ),
    (
        r"Failed to resolve hostname (?P<host>\S+):",
        "has an unknown host, {host}; check its name, and the network",
    ),
    (
        r"Connection refused",
        "can't be reached: nothing answers there; check host and port, and that the server runs",
    ),
    (r"(?i)timed out", "gave no answer within {timeout} s; check that it is on the air"),
    (r"unreachable|No route to host", "can't be reached from this network; check the address"),
    (
        r"certificate",
        "has a certificate that this machine does not trust; check the address, or SSL_CERT_FILE",
    ),
    (
        r"Cannot open video device .*: (?:No such|Not a)",
        "is not there: this machine has no such camera",
    ),
    (r"Cannot open video device .*: Permission", "may not be opened; join the group `video`"),
    (r"Cannot allocate memory", "needs more memory than decoding may take; scale it down first"),
    (r"resource busy", "is in use by another program; close that one first"),
    (r"Picture size|max_pixels|max pixel", "has frames larger than 8K; scale them down first"),
    (
        r"partial file",
        "is an MP4 whose index is at its end, where only a file can be wound to: give the file "
        "itself, or rewrite it with `ffmpeg -i IN -c copy -movflags +faststart OUT`",
    ),
    (r"does not contain any stream|matches no streams", "has no video stream, only sound or data"),
]


class _Child:
    """A running ffmpeg. Its three pipes are read by who asks for a frame, and by nobody else."""

    def __init__(self, graph: Callable[[int], Any], stdin: int | BinaryIO) -> None:
        self.log = _Log()
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
        self.kill = weakref.finalize(self, _kill, self.process, times)
        _limit(self.process.pid)
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
        """The next frame's line: pts, time base and bytes; None at the end."""
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


def _kill(process: subprocess.Popen[bytes], times: int) -> None:
    process.kill()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    os.close(times)
    process.wait()


def _limit(pid: int) -> None:
    """Bound its address space, from outside: nothing of ours runs in the child."""
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError):  # it has ended already
        resource.prlimit(pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _pump(stream: BinaryIO, pipe: Any) -> None:
    """Feed a stream that is no file of the system's; ends when the child does."""
    read = getattr(stream, "read1", stream.read)
    with contextlib.suppress(OSError, ValueError), pipe:
        while chunk := read(1 << 16):
            view = memoryview(chunk)
            while len(view):
                view = view[pipe.write(view) :]


def _input_of(kind: Kind, stdin: BinaryIO | None) -> int | BinaryIO:
    """What the child gets as standard input."""
    if kind is not Kind.STDIN:
        return subprocess.DEVNULL
    stream: BinaryIO | None = stdin if stdin is not None else getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise SourceError("standard input is closed; pipe a video into it")
    if stream.isatty():
        raise SourceError("standard input is a terminal; pipe a video into it")
    try:
        return int(stream.fileno())
    except (OSError, io.UnsupportedOperation):
        return stream


def _graph(
    source: str, kind: Kind, size: tuple[int, int] | None, timeout: float
) -> Callable[[int], Any]:
    """ffmpeg's command, by the number of the pipe for times: all frames, upright, square pixels."""
    name, options = input_options(source, timeout)
    # By frames, threads hold one frame back each: two are a compromise, cameras get none.
    options |= {"thread_type": "slice"} if kind in _PROMPT else {"threads": 2}
    height, width = size or (
        "ih",
        "if(gt(sar\\,0)*gt(abs(sar-1)\\,0.01)\\,max(1\\,round(iw*sar))\\,iw)",
    )
    # Broadcasts are interlaced at times. To undo it takes the next frame: not for cameras.
    filters = [] if kind in _PROMPT else ["bwdif=send_frame:deint=interlaced"]
    filters += [f"scale={width}:{height}:flags=bicubic", "format=rgb24|rgba"]

    def graph(times: int) -> Any:
        output = ffmpeg.input(name, **options).output(
            "pipe:1",
            vf=",".join(filters),
            vcodec="pam",
            format="image2pipe",
            fps_mode="passthrough",
            flush_packets=1,
            stats_enc_post=f"pipe:{times}",
            # pts and time base are the decoder's: no rate of an encoder rounds them.
            stats_enc_post_fmt="{ptsi} {tbi} {size}",
            an=None,
            sn=None,
            dn=None,
        )
        quiet = ("-hide_banner", "-nostats", "-nostdin", "-loglevel", "level+info")
        return output.global_args(*quiet, "-max_error_rate", "1")

    return graph


def _check_target(size: tuple[int, int] | None) -> None:
    if size is not None and min(size) < 1:
        raise InputError(f"size is {size}; height and width must be at least 1")


def _resized(frame: Frames, size: tuple[int, int]) -> Frames:
    if frame.pixels.shape[2:] == size:
        return frame
    pixels: Tensor = F.interpolate(frame.pixels, size, mode="bicubic", antialias=True)
    return Frames(pixels, frame.pts_seconds, frame.duration_seconds)
