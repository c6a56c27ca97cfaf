"""RTSP, RTMP, TCP, UDP and cameras, and what ffmpeg says of them."""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flamvid.errors import DecodeError
from flamvid.types import Frames
from flamvid.video.address import Kind
from flamvid.video.live import is_endless, open_live
from flamvid.video.live_log import LiveLog
from tests.video.live_tools import (
    child_of,
    contents,
    ffmpeg,
    one_line,
)
from tests.video.media_server import free_port
from tests.video.rtsp_server import RtspServer


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp", "rtmp", "tcp"])
def test_nobody_listens(scheme: str) -> None:
    with pytest.raises(DecodeError, match="can't be reached: nothing answers there") as raised:
        open_live(f"{scheme}://u:secret@127.0.0.1:{free_port()}/x", timeout=5)
    one_line(raised, "secret")


@pytest.mark.parametrize("scheme", ["udp", "srt", "rtp"])
def test_nobody_sends(scheme: str) -> None:
    with pytest.raises(DecodeError, match=r"gave no answer within 0\.7 s|reached") as raised:
        open_live(f"{scheme}://127.0.0.1:{free_port(socket.SOCK_DGRAM)}", timeout=0.7)
    one_line(raised)


def test_rtsp(clip, numbers) -> None:
    with RtspServer(clip("cam.h264")) as server, open_live(server.url) as live:
        assert live.info is not None
        assert (live.info.width, live.info.codec, is_endless(live.info)) == (64, "h264", True)
        shown, pts = contents(list(live.frames()), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)
    assert server.methods[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]


def test_rtsp_by_udp_where_there_is_nothing_else(clip, numbers) -> None:
    with RtspServer(clip("cam.h264"), transports=("udp",), paced=True) as server:
        with open_live(server.url, timeout=5) as live:
            shown = numbers(torch.cat([f.pixels for f in itertools.islice(live.frames(), 40)]))
        assert server.methods[2:5] == ["SETUP", "SETUP", "PLAY"]
    assert shown == list(range(40))


def test_large_pictures_come_in_fragments(make_clip, numbers) -> None:
    recipe = ("-bf", "0", "-qp", "10", "-x264-params", "slices=1:sliced-threads=0")
    large = make_clip("l.h264", *recipe, frames=9, size="640x480", filters=",noise=alls=9:allf=t")
    assert large.stat().st_size > 9 * 70_000  # more than one packet can hold
    with RtspServer(large.read_bytes()) as server, open_live(server.url) as live:
        assert contents(list(live.frames()), numbers)[0] == list(range(9))


def test_rtsp_that_falls_silent(clip) -> None:
    with RtspServer(clip("cam.h264"), silent=True) as server:
        live = open_live(server.url, timeout=2.0)
        child = child_of(live)
        frames = live.frames()
        # Of 60: ffmpeg's parser keeps one until it sees the next; our settings keep none.
        assert len(list(itertools.islice(frames, 59))) == 59
        with pytest.raises(DecodeError, match=r"within 2 s") as raised:
            list(frames)
    one_line(raised)
    assert child.returncode is not None


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({"DESCRIBE": "401 Unauthorized"}, r"refuses access \(401\)"),
        ({"DESCRIBE": "404 Not Found"}, r"does not exist on that server \(404\)"),
        ({"SETUP": "461 Unsupported Transport"}, "answers 461"),
    ],
)
def test_rtsp_that_refuses(clip, answers: dict[str, str], says: str) -> None:
    with (
        RtspServer(clip("cam.h264"), answers=answers) as server,
        pytest.raises(DecodeError, match=says) as raised,
    ):
        open_live(server.url.replace("//", "//u:secret@"), timeout=5)
    one_line(raised, "secret")


@pytest.fixture
def flv(clip, tmp_path: Path) -> str:
    (tmp_path / "a.flv").write_bytes(clip("a.flv"))
    return str(tmp_path / "a.flv")


def test_rtmp(flv: str, numbers) -> None:
    url = f"rtmp://127.0.0.1:{free_port()}/live/x"
    with ffmpeg("-re", "-i", flv, "-c", "copy", "-f", "flv", "-listen", "1", url) as sender:
        shown, pts = contents(_when_it_listens(url, sender), numbers)
    assert shown == list(range(60))
    np.testing.assert_allclose(pts, np.arange(60) / 25, atol=1e-3)


def test_mpegts_over_tcp(flv: str, numbers) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with ffmpeg("-i", flv, "-c", "copy", "-f", "mpegts", f"{url}?listen=1") as sender:
        shown, _ = contents(_when_it_listens(url, sender), numbers)
    assert shown == list(range(60))


def _when_it_listens(url: str, sender: subprocess.Popen[bytes]) -> list[Frames]:
    """A sender that takes one caller can't be asked before whether it listens."""
    for _ in range(50):
        try:
            with open_live(url) as live:
                return list(live.frames())
        except DecodeError as error:
            if "nothing answers" not in str(error) or sender.poll() is not None:
                raise
            time.sleep(0.1)
    raise AssertionError(f"{url} never listened")


@pytest.mark.parametrize("form", ["udp", "rtp"])
def test_mpegts_over_udp(flv: str, form: str) -> None:
    url = f"{form}://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    mux = "mpegts" if form == "udp" else "rtp_mpegts"
    loop = ("-stream_loop", "-1", "-re", "-i", flv, "-c", "copy", "-f", mux)
    with ffmpeg(*loop, f"{url}?pkt_size=1316"), open_live(url, timeout=10) as live:
        pts = [float(f.pts_seconds[0]) for f in itertools.islice(live.frames(), 20)]
    assert (np.diff(pts) > 0).all()


def test_no_such_camera() -> None:
    for name in ("cam:250", "/dev/video250"):
        with pytest.raises(DecodeError, match=f"{name} is not there") as raised:
            open_live(name)
        one_line(raised)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("Failed to resolve hostname cam.invalid: Name or service not known", "unknown host, cam."),
        ("Connection to tcp://10.0.0.1:80 failed: Connection timed out", "no answer within 3 s"),
        ("Connection to tcp://10.0.0.1:80 failed: No route to host", "this network"),
        ("Cannot open video device /dev/video0: Permission denied", "join the group"),
        ("ioctl(VIDIOC_STREAMON): Device or resource busy", "in use by another program"),
        ("Something new under the sun", "ffmpeg says 'Something new under the sun'"),
        ("Odd \x1b[31manswer of rtsp://u:secret@h/x", "'Odd [31manswer of rtsp://***@h/x'"),
    ],
)
def test_what_ffmpeg_says_and_what_it_means(said: str, means: str) -> None:
    log = LiveLog()
    log.add(f"[tcp @ 0x55d0] [error] {said}")
    log.add("[in#0 @ 0x55d0] [error] Error opening input: Input/output error")
    log.add("[fatal] Error opening input files: Input/output error")
    assert means in log.complaint("cam", Kind.RTSP, 3.0)
