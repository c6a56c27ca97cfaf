from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from flamvid.errors import SourceError
from flamvid.video import address
from flamvid.video.address import Kind, classify, environment, input_options, local_path, shown


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("clip.mp4", Kind.FILE),
        ("/a b/c.mp4", Kind.FILE),
        ("-y.ts", Kind.FILE),
        ("two\nlines.mp4", Kind.FILE),
        ("part 1: the start.mp4", Kind.FILE),
        ("data,1.mp4", Kind.FILE),
        ("C:\\clips\\a.mp4", Kind.FILE),
        ("./concat:a.ts", Kind.FILE),
        (Path("concat:a.ts"), Kind.FILE),
        (Path("-"), Kind.FILE),
        ("file:///a%20b.mp4", Kind.FILE),
        ("local.m3u8", Kind.FILE),
        ("http://host/a.mp4", Kind.HTTP),
        ("HTTPS://host/a.mp4?x=1", Kind.HTTP),
        ("http://[::1]:8080/live", Kind.HTTP),
        ("https://host/live/index.m3u8?token=a.mp4", Kind.HLS),
        ("rtsp://admin:pass@10.0.0.1:554/stream", Kind.RTSP),
        ("rtsps://host/x", Kind.RTSP),
        ("rtmp://host/live/x", Kind.RTMP),
        ("udp://@239.1.1.1:1234", Kind.UDP),
        ("rtp://127.0.0.1:5004", Kind.UDP),
        ("tcp://host:99", Kind.TCP),
        ("srt://host:99", Kind.SRT),
        ("-", Kind.STDIN),
        ("cam:0", Kind.CAMERA),
        ("cam:12", Kind.CAMERA),
    ],
)
def test_kinds(source: str | Path, kind: Kind) -> None:
    assert classify(source) is kind


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "empty text"),
        ("  ", "empty text"),
        ("a\0b.mp4", "zero byte"),
        ("foo://x", "foo is not read"),
        ("ftp://host/a.mp4", "ftp is not read"),
        ("concat:a.ts|/etc/passwd", "concat is not read"),
        ("subfile,,start,0,end,9,,:/etc/passwd", "subfile is not read"),
        ("crypto+http://host/x", r"crypto\+http is not read"),
        ("pipe:0", "pipe is not read"),
        ("data:text/plain,x", r"a file of that name is \./data"),
        ("http:/host/x", "has no // after http"),
        ("rtsp:host", "has no // after rtsp"),
        ("http://", "names no host"),
        ("rtsp:///cam", "names no host"),
        ("http://host:99999/x", "is no URL"),
        ("http://[::1/x", "is no URL"),
        ("http://host/a b", "written %20"),
        ("http://host/a\r\nX: y", "written %0D"),
        ("rtmp://host/app listen=1", "written %20"),
        ("file://server/share/a.mp4", "on the machine server"),
        ("file://", "names no file"),
        ("file:///a%00b", "names no file"),
        ("cam:", "cam:0 for the first"),
        ("cam:x", "cam:0 for the first"),
        ("cam:-1", "cam:0 for the first"),
        ("cam:\N{ARABIC-INDIC DIGIT ONE}", "cam:0 for the first"),
        ("cam:99999999999999999999", "cam:0 for the first"),
        ("cam:256", "from 0 to 255"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(source: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as raised:
        classify(source)
    assert str(raised.value).isprintable()


def test_paths_of_file_urls() -> None:
    assert local_path("file:///a%20b/c.mp4") == Path("/a b/c.mp4")
    assert local_path("FILE://localhost/c.mp4") == Path("/c.mp4")
    assert local_path("a%20b.mp4") == Path("a%20b.mp4")
    assert local_path(Path("file:/x")) == Path("file:/x")


def test_passwords_are_not_shown() -> None:
    assert shown("rtsp://admin:s3cret@cam/1?a=b@c") == "rtsp://admin:***@cam/1?a=b@c"
    assert shown("rtsp://:s3cret@cam/1") == "rtsp://:***@cam/1"
    assert shown("http://host:80/a@b") == "http://host:80/a@b"
    assert shown("a:b@c.mp4") == "a:b@c.mp4"
    with pytest.raises(SourceError) as raised:
        classify("rtsp://admin:s3cret@cam/a b")
    assert "s3cret" not in str(raised.value)


STREAMS = (
    "http://h/a http://h/a.m3u8 rtsp://h/a rtmp://h/a udp://h:1 rtp://h:1 tcp://h:1 srt://h:1 -"
)


@pytest.mark.parametrize("source", STREAMS.split())
def test_streams_may_open_no_file(source: str) -> None:
    _, options = input_options(source, 15.0)
    protocols = set(str(options["protocol_whitelist"]).split(","))
    assert protocols.isdisjoint({"file", "pipe", "concat", "subfile", "data", "cache", "unix"})
    formats = set(str(options["format_whitelist"]).split(","))
    assert formats.isdisjoint({"concat", "image2", "tty", "sdp", "lavfi"})
    assert source[:4] in ("http", "-") or "hls" not in formats
    assert int(options["max_pixels"]) < 1 << 26


def test_options_by_kind() -> None:
    name, options = input_options("RTSP://u:p@Host/A", 2.5)
    assert name == "rtsp://u:p@Host/A"
    assert options["rtsp_transport"] == "tcp+udp"
    assert options["rtsp_flags"] == "prefer_tcp"
    assert options["timeout"] == 2_500_000
    _, options = input_options("http://host/a.m3u8", 2.5)
    assert options["rw_timeout"] == 2_500_000
    assert options["reconnect"] == 1
    assert options["protocol_whitelist"] == "http,https,tcp,tls,httpproxy,crypto"
    assert input_options("-", 1.0)[0] == "fd:"
    assert input_options("rtmp://h/a", 1.0)[1]["protocol_whitelist"] == "rtmp,rtmps,tcp,tls"
    assert address.PLAYLIST_PROTOCOLS == "file,crypto"
    with pytest.raises(SourceError, match="is a file"):
        input_options("a.mp4", 1.0)


def test_cameras_by_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    name, options = input_options("cam:2", 1.0)
    assert (name, options["format"]) == ("/dev/video2", "v4l2")
    monkeypatch.setattr(sys, "platform", "darwin")
    name, options = input_options("cam:2", 1.0)
    assert (name, options["format"], options["framerate"]) == ("2:none", "avfoundation", 30)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SourceError, match="Linux and macOS"):
        input_options("cam:2", 1.0)


def test_certificates_are_those_of_python_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/own.pem")
    assert environment() == dict(os.environ)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    assert "SSL_CERT_FILE" not in environment() or Path(environment()["SSL_CERT_FILE"]).is_file()
