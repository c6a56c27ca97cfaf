"""Live reading over HTTP and HLS, from servers on loopback."""

from __future__ import annotations

import itertools
import re
import subprocess
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from flamvid.errors import DecodeError
from flamvid.video.live import is_endless, open_live, recorded
from tests.video.live_tools import (
    FFMPEG,
    contents,
    one_line,
    piped,
)
from tests.video.media_server import MediaServer


@pytest.mark.parametrize("name", ["fast.mp4", "large.mp4", "a.ts", "a.mkv"])
def test_a_file_on_a_web_server(clip, server: MediaServer, numbers, name: str) -> None:
    server.routes["/clip"] = clip(name)
    assert recorded(server.url("/clip"))
    with open_live(server.url("/clip"), size=(48, 64)) as live:
        assert live.info is not None
        assert not is_endless(live.info)
        assert live.info.duration == pytest.approx(2.4, abs=0.15)
        assert contents(list(live.frames()), numbers)[0] == list(range(60))


def test_a_web_server_without_ranges(clip, numbers) -> None:
    with MediaServer(ranges=False) as server:
        server.routes |= {"/fast": clip("fast.mp4"), "/large": clip("large.mp4")}
        with open_live(server.url("/fast")) as live:
            assert contents(list(live.frames()), numbers)[0] == list(range(60))
        with pytest.raises(DecodeError, match="index is at its end"):
            open_live(server.url("/large"))


def test_a_stream_without_end(stalling: str) -> None:
    assert not recorded(stalling)
    assert recorded("/some/file.mp4")
    for source in ("-", "cam:0", "rtsp://127.0.0.1/x", "udp://127.0.0.1:9"):
        assert not recorded(source)


@pytest.fixture(scope="module")
def hls(clip, tmp_path_factory: pytest.TempPathFactory, run_ffmpeg_once) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("hls")
    (folder / "a.ts").write_bytes(clip("a.ts"))
    cut = ("-c", "copy", "-f", "hls", "-hls_time", "1", "-hls_list_size", "0")
    run_ffmpeg_once("-i", str(folder / "a.ts"), *cut, str(folder / "live.m3u8"))
    return {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def run_ffmpeg_once() -> Callable[..., None]:
    def run(*args: str) -> None:
        subprocess.run([FFMPEG, "-loglevel", "error", *args], check=True)

    return run


def test_a_playlist_with_an_end_is_recorded(hls, server: MediaServer, numbers) -> None:
    server.routes |= hls
    assert recorded(server.url("/live.m3u8"))
    with open_live(server.url("/live.m3u8")) as live:
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


def test_a_playlist_that_grows(hls, server: MediaServer, numbers) -> None:
    server.routes |= hls
    text = hls["/live.m3u8"].decode().replace("#EXT-X-TARGETDURATION:2", "#EXT-X-TARGETDURATION:1")
    first, second = (at for at in range(len(text)) if text.startswith("#EXTINF", at))
    parts = [text[:second], text.replace("#EXT-X-ENDLIST", ""), text]
    began = time.monotonic()

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/vnd.apple.mpegurl")
        request.end_headers()
        request.wfile.write(parts[min(2, int((time.monotonic() - began) / 0.7))].encode())

    assert first < second
    server.routes["/live.m3u8"] = answer
    with open_live(server.url("/live.m3u8")) as live:
        assert live.info is not None
        assert is_endless(live.info)
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


@pytest.mark.parametrize(
    "to",
    ["file://{}", "{}", "file:{}", "concat:{}", "subfile,,start,0,end,0,,:{}", "crypto+file://{}"],
)
def test_a_playlist_on_the_network_opens_no_file(
    clip, server: MediaServer, tmp_path: Path, to: str
) -> None:
    (tmp_path / "secret.ts").write_bytes(clip("a.ts"))  # would play, if it were opened
    target = to.format(tmp_path / "secret.ts")
    server.routes["/x.m3u8"] = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n".encode()
    )
    with pytest.raises(DecodeError) as raised:
        open_live(server.url("/x.m3u8"), timeout=5)
    one_line(raised)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n/etc/hostname\n#EXT-X-ENDLIST\n",
        '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MAP:URI="file:///etc/passwd"\n#EXTINF:2,\na.ts\n',
        '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="file:///etc/passwd"\n#EXTINF:2,\na.ts\n',
        "ffconcat version 1.0\nfile /etc/hostname\n",
        "v=0\nm=video 5004 RTP/AVP 33\n",
    ],
)
@pytest.mark.parametrize("name", ["/x.m3u8", "/x"])
def test_lists_that_point_at_this_machine(server: MediaServer, text: str, name: str) -> None:
    server.routes[name] = text.encode()
    with pytest.raises(DecodeError) as raised:
        open_live(server.url(name), timeout=5)
    one_line(raised)


def test_a_redirection_to_a_file_is_not_followed(server: MediaServer, tmp_path: Path, clip) -> None:
    (tmp_path / "secret.ts").write_bytes(clip("a.ts"))

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", f"file://{tmp_path}/secret.ts")
        request.end_headers()

    server.routes["/away.ts"] = answer
    with pytest.raises(DecodeError) as raised:
        open_live(server.url("/away.ts"), timeout=5)
    one_line(raised)


@pytest.mark.parametrize(
    ("route", "says"),
    [
        (404, r"does not exist on that server \(404\)"),
        (403, r"refuses access \(403\)"),
        (401, r"refuses access \(401\)"),
        (500, "the server answers 500"),
        (b"", "is no video"),
        (b"<html><body>Call me Ishmael.</body></html>" * 99, "is no video"),
        (bytes(range(256)) * 99, "is no video"),
    ],
)
def test_what_a_web_server_may_say_instead(server: MediaServer, route, says: str) -> None:
    server.routes["/clip.mp4"] = route
    with pytest.raises(DecodeError, match=says) as raised:
        open_live(server.url("/clip.mp4"))
    one_line(raised)


def test_a_server_that_never_answers(server: MediaServer) -> None:
    server.routes["/"] = lambda request: server.over.wait(60) and None
    began = time.monotonic()
    with pytest.raises(DecodeError, match="gave no answer within 1 s") as raised:
        open_live(server.url("/"), timeout=1.0)
    one_line(raised)
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off(clip, numbers, ranges: bool) -> None:
    data = clip("large.mp4") if ranges else clip("a.mkv")

    def answer(request: BaseHTTPRequestHandler) -> None:
        wanted = re.match(r"bytes=(\d+)-", request.headers.get("Range", "") if ranges else "")
        begin = int(wanted[1]) if wanted else 0
        request.send_response(206 if wanted else 200)
        if ranges:
            request.send_header("Accept-Ranges", "bytes")
            request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        request.wfile.write(data[begin : begin + len(data) * 3 // 5])

    got = []
    with MediaServer() as server:
        server.routes["/clip"] = answer
        with open_live(server.url("/clip"), size=(48, 64)) as live:
            frames = live.frames()
            if ranges:  # it goes on where it was
                got = list(frames)
            else:
                with pytest.raises(DecodeError, match=r"broke off at .* was cut") as raised:
                    got.extend(frames)
                one_line(raised)
    assert contents(got, numbers)[0][:60] == list(range(60 if ranges else len(got)))


@pytest.mark.parametrize("name", ["fast.mp4", "a.mkv"])
def test_a_pipe_that_is_cut_short(clip, numbers, name: str) -> None:
    got = []
    with (
        piped(clip(name)[: len(clip(name)) * 9 // 10]) as live,
        pytest.raises(DecodeError, match=r"broke off at .* ends too early") as raised,
    ):
        got.extend(live.frames())
    one_line(raised)
    assert contents(got, numbers)[0][:30] == list(range(min(30, len(got))))


@pytest.mark.parametrize("ranges", [False, True])
def test_a_stream_of_unknown_length_ends_where_it_ends(clip, server, numbers, ranges) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if ranges:
            request.send_header("Accept-Ranges", "bytes")
        request.end_headers()
        request.wfile.write(clip("a.ts"))

    server.routes["/live"] = answer
    with open_live(server.url("/live"), timeout=3) as live:
        got = list(itertools.islice(live.frames(), 200))
    assert contents(got, numbers)[0] == list(range(60))


def test_motion_jpeg_of_a_web_camera(server: MediaServer, run_ffmpeg, tmp_path: Path) -> None:
    run_ffmpeg(
        *("-f", "lavfi", "-i", "color=gray:s=64x48:r=5:d=2", "-c:v", "mjpeg", "-f", "mpjpeg"),
        str(tmp_path / "cam"),
    )

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace;boundary=ffmpeg")
        request.end_headers()
        request.wfile.write((tmp_path / "cam").read_bytes())

    server.routes["/video"] = answer
    with open_live(server.url("/video")) as live:
        frames = list(live.frames())
    assert len(frames) == 10
    assert all(128 <= int(frame.pixels.float().mean()) <= 132 for frame in frames)
