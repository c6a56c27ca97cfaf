"""What the name of a source is: a path, a URL, standard input or a camera; and what ffmpeg may do.

Rules on text alone: nothing is opened or connected to here. ffmpeg may open what a source's kind
needs and nothing else, so that a playlist from the network can't name files of this machine.
"""

from __future__ import annotations

import math
import os
import re
import ssl
import sys
from enum import StrEnum
from os import PathLike
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from flamvid.errors import SourceError
from flamvid.video.policy import FORMATS, MOST_PIXELS

__all__ = [
    "ANALYSED",
    "PLAYLIST_PROTOCOLS",
    "Kind",
    "classify",
    "environment",
    "input_options",
    "local_path",
    "shown",
]

PLAYLIST_PROTOCOLS = "file,crypto"  # of a playlist on disk: its neighbours, never the network


class Kind(StrEnum):
    """How a source is reached."""

    FILE = "file"
    HTTP = "http"
    HLS = "hls"
    RTSP = "rtsp"
    RTMP = "rtmp"
    UDP = "udp"
    TCP = "tcp"
    SRT = "srt"
    STDIN = "stdin"
    CAMERA = "camera"


_SCHEMES = {
    "file": Kind.FILE,
    "http": Kind.HTTP,
    "https": Kind.HTTP,
    "rtsp": Kind.RTSP,
    "rtsps": Kind.RTSP,
    "rtmp": Kind.RTMP,
    "rtmps": Kind.RTMP,
    "udp": Kind.UDP,
    "rtp": Kind.UDP,
    "tcp": Kind.TCP,
    "srt": Kind.SRT,
    "cam": Kind.CAMERA,
}

# ffmpeg reads these without "//": `concat:a.ts|/etc/passwd` would name any file.
_FFMPEG_ONLY = frozenset(
    {"async", "bluray", "cache", "concat", "concatf", "crypto", "data", "dvd", "fd", "ftp"}
    | {"gopher", "ipfs", "ipns", "lavfi", "mmsh", "mmst", "pipe", "sftp", "shared", "smb"}
    | {"subfile", "unix"}
)

# `crypto` wraps another protocol of the same list: segments of HLS that are enciphered with AES.
_WEB = "http,https,tcp,tls,httpproxy,crypto"
_PROTOCOLS = {
    Kind.HTTP: _WEB,
    Kind.HLS: _WEB,
    Kind.RTSP: "rtsp,rtp,srtp,udp,tcp,tls",
    Kind.RTMP: "rtmp,rtmps,tcp,tls",
    Kind.UDP: "udp,rtp",
    Kind.TCP: "tcp",
    Kind.SRT: "srt",
    Kind.STDIN: "fd",
}

_PICTURES = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,mpjpeg"
_MEDIA = f"{FORMATS},{_PICTURES}"
_FORMATS = {
    Kind.HTTP: f"{_MEDIA},hls,dash,ac3,eac3,webvtt",
    Kind.HLS: f"{_MEDIA},hls,ac3,eac3,webvtt",
    Kind.RTSP: "rtsp",
    Kind.RTMP: "flv,live_flv",
    Kind.UDP: "mpegts,rtp",
    Kind.TCP: _MEDIA,
    Kind.SRT: "mpegts",
    Kind.STDIN: _MEDIA,
}

_DEVICE = re.compile(r"/dev/video(\d{1,3})")  # a camera's own name on Linux
_LAST_CAMERA = 255  # Linux has no more
ANALYSED = 1_000_000  # microseconds of a stream that are looked at before its first frame


def classify(source: str | PathLike[str]) -> Kind:
    """How to reach `source`; `SourceError` where there is no way. A `Path` is always a path."""
    if not isinstance(source, str):
        return Kind.FILE
    if not source.strip():
        raise SourceError("the source is an empty text; give a file, a URL, - or cam:0")
    if "\0" in source:
        raise SourceError(f"{source!r} has a zero byte in it, which no name has")
    if source == "-":
        return Kind.STDIN
    scheme, kind = _scheme(source)
    if kind is None:
        return Kind.CAMERA if _DEVICE.fullmatch(source) else Kind.FILE
    if kind is Kind.CAMERA:
        _camera(source)
        return kind
    _check_url(source, scheme)
    if kind is Kind.FILE:
        local_path(source)
    elif kind is Kind.HTTP and urlsplit(source).path.lower().endswith((".m3u8", ".m3u")):
        return Kind.HLS
    return kind


def local_path(source: str | PathLike[str]) -> Path:
    """The path that a source of kind `FILE` names, a file:// URL's included."""
    if not isinstance(source, str) or _scheme(source)[1] is not Kind.FILE:
        return Path(source)
    parts = _split(source)
    if parts.netloc.lower() not in ("", "localhost"):
        raise SourceError(
            f"{source} is a file on the machine {parts.netloc}; a file URL has three slashes, "
            f"file:///{parts.netloc}{parts.path}"
        )
    path = unquote(parts.path)
    if not path or "\0" in path:
        raise SourceError(f"{source!r} names no file; write file:///folder/name")
    return Path(path)


def shown(source: str | PathLike[str]) -> str:
    """The source as it may be printed: without a password, such as cameras have in their URL."""
    text = os.fspath(source)
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://[^/?#:@]*):[^/?#]*@", r"\1:***@", text)


def input_options(source: str, timeout: float) -> tuple[str, dict[str, str | int]]:
    """What to give `ffmpeg.input` for a source that is no file: the name to open, and options.

    timeout: seconds after which ffmpeg itself gives up a connection that says nothing.
    """
    kind = classify(source)
    if kind is Kind.FILE:
        raise SourceError(f"{source} is a file; files are not opened as streams")
    # ffmpeg allocates a frame before we hear of its size.
    options: dict[str, str | int] = {"max_pixels": MOST_PIXELS}
    if kind is Kind.CAMERA:
        name, device = _device(_camera(source))
        return name, options | device

    options |= {
        "protocol_whitelist": _PROTOCOLS[kind],
        "format_whitelist": _FORMATS[kind],
        "analyzeduration": ANALYSED,
    }
    if kind is Kind.STDIN:
        # `fd:` can seek where standard input is a file, which `pipe:` never does.
        return "fd:", options

    microseconds = max(1, int(timeout * 1e6))
    if kind is Kind.RTSP:
        # Over UDP, a lost packet is a torn frame, and firewalls lose them all; but some cameras
        # have nothing else.
        options |= {"rtsp_transport": "tcp+udp", "rtsp_flags": "prefer_tcp"}
        options |= {"timeout": microseconds}
    elif kind is Kind.UDP and source.lower().startswith("rtp:"):
        options |= {"listen_timeout": max(1, math.ceil(timeout))}  # seconds
    elif kind is Kind.UDP:
        # A slow reader loses packets, as it must; that is no reason to end.
        options |= {"timeout": microseconds, "overrun_nonfatal": 1}
    elif kind is Kind.SRT:
        options |= {"timeout": microseconds}
    else:
        options |= {"rw_timeout": microseconds}
    if kind in (Kind.HTTP, Kind.HLS):
        # A file that breaks off goes on where it was. Not `reconnect_streamed`: what the server
        # can't wind would begin again at its start, and for ever where it has no known length.
        options |= {"reconnect": 1, "reconnect_delay_max": max(1, min(4, int(timeout / 3)))}
    scheme, colon, rest = source.partition(":")
    return scheme.lower() + colon + rest, options  # ffmpeg knows schemes in small letters only


def environment() -> dict[str, str]:
    """The child's environment: ours, and where Python finds the certificates that HTTPS needs.

    The bundled ffmpeg looks where its builder's system kept them, which some systems don't have.
    """
    found = dict(os.environ)
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & found.keys():
        paths = ssl.get_default_verify_paths()
        if paths.cafile:
            found["SSL_CERT_FILE"] = paths.cafile
    return found


def _scheme(source: str) -> tuple[str, Kind | None]:
    """The scheme of a URL and its kind; kind None for a path. One letter is a Windows drive."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?", source)
    scheme = match[1].lower() if match else "subfile" if source.startswith("subfile,") else ""
    slashes = bool(match and match[2])
    if scheme in _FFMPEG_ONLY or (slashes and scheme not in _SCHEMES):
        raise SourceError(
            f"{shown(source)!r}: {scheme} is not read; give a file, a URL of http(s), rtsp(s), "
            f"rtmp(s), udp, rtp, tcp or srt, - or cam:0 (a file of that name is ./{scheme}...)"
        )
    if scheme not in _SCHEMES:
        return "", None
    if scheme != "cam" and not slashes:
        raise SourceError(
            f"{source!r} has no // after {scheme}: ; write {scheme}://... "
            f"(a file of that name is ./{scheme}:...)"
        )
    return scheme, _SCHEMES[scheme]


def _check_url(source: str, scheme: str) -> None:
    """`SourceError` for a URL that no server could be asked for."""
    if bad := re.search(r"[\x00-\x20\x7f]", source):
        raise SourceError(
            f"{shown(source)!r} has the character {bad[0]!r} in it; in a URL it is written "
            f"%{ord(bad[0]):02X}"
        )
    parts = _split(source)
    if scheme == "file":
        return
    if not parts.hostname:
        raise SourceError(f"{shown(source)} names no host; write {scheme}://host/...")


def _split(source: str) -> SplitResult:
    try:
        parts = urlsplit(source)
        _ = parts.port  # is parsed when it is asked for
    except ValueError as error:
        raise SourceError(f"{shown(source)!r} is no URL: {error}; check the address") from None
    return parts


def _camera(source: str) -> int:
    if named := _DEVICE.fullmatch(source):
        return int(named[1])
    number = source.partition(":")[2]
    if not (number.isascii() and number.isdigit() and len(number) < 4):
        raise SourceError(f"{source!r} names no camera; write cam:0 for the first, cam:1, ...")
    if int(number) > _LAST_CAMERA:
        raise SourceError(f"{source}: cameras are numbered from 0 to {_LAST_CAMERA}")
    return int(number)


def _device(number: int) -> tuple[str, dict[str, str | int]]:
    """Camera `number` as the system calls it, and ffmpeg's way to it."""
    if sys.platform == "linux":
        return f"/dev/video{number}", {"format": "v4l2"}
    if sys.platform == "darwin":
        # It refuses every rate that the camera does not list; all of them list 30.
        return f"{number}:none", {"format": "avfoundation", "framerate": 30}
    raise SourceError(
        f"cam:{number}: cameras are read on Linux and macOS; elsewhere, pipe ffmpeg's dshow in by -"
    )
