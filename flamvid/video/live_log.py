"""What ffmpeg says of a stream while it reads it: facts of the input, and why it stopped."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from flamvid.errors import DecodeError
from flamvid.types import VideoInfo
from flamvid.video.address import Kind
from flamvid.video.policy import pixel_aspect

__all__ = ["LiveLog"]


@dataclass(slots=True)
class LiveLog:
    """What ffmpeg says: facts of the input, and the last errors; the rest is forgotten."""

    container: str = ""
    duration: float = 0.0
    streams: dict[int, str] = field(default_factory=dict)
    turned: dict[int, float] = field(default_factory=dict)
    stream: int | None = None
    broken: str = ""
    cut: bool = False
    endless: bool = False
    complaints: int = 0  # of the demuxer and the decoder, about what they are given
    unrecorded: str = ""  # why what was to be recorded is not
    jumps: int = 0  # of the sender's clock, which ffmpeg has mended
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def add(self, line: str) -> None:
        """One line of it. Streams of the output come after the mapping, and are ours."""
        if match := re.match(r"\[tee @ .*Slave muxer #0 failed: (.*), continuing", line):
            self.unrecorded = match[1]
        if self.stream is not None and re.match(r"\[(?!swscaler|tee).*\[(warning|error)\]", line):
            self.complaints += 1
            if match := re.search(r"timestamp discontinuity .*: (-?\d+), new offset", line):
                # In MPEG-TS a pts has 33 bits, and begins anew every 26 hours.
                self.jumps += abs(int(match[1]) + _WRAP) > 10_000_000
        if re.search(r"\[(error|fatal)\]|HTTP error", line):
            said = "".join(c for c in line.rpartition("] ")[2] if c.isprintable())
            self.errors.append(re.sub(r"://[^/@\s]*@", "://***@", said))  # no password gets out
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
        if kind is Kind.UDP and "Input/output error" in said:  # ffmpeg's word for it there
            return f"{name} gave no answer within {timeout:g} s; check that it is on the air"
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


_WRAP = (1 << 33) * 100 // 9  # microseconds
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
    (
        r"Unrecognized hwaccel: (?P<by>\w+)",
        "can't be decoded by {by}, which this ffmpeg does not have; leave it out, or give auto",
    ),
    (
        r"No device available for decoder: device type (?P<by>\w+)",
        "can't be decoded by {by}, which this machine does not have; leave it out, or give auto",
    ),
    (r"resource busy", "is in use by another program; close that one first"),
    (r"Picture size|max_pixels|max pixel", "has frames larger than 8K; scale them down first"),
    (
        r"partial file",
        "is an MP4 whose index is at its end, where only a file can be wound to: give the file "
        "itself, or rewrite it with `ffmpeg -i IN -c copy -movflags +faststart OUT`",
    ),
    (r"does not contain any stream|matches no streams", "has no video stream, only sound or data"),
]
