"""What the tests of live reading share."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch

from flamvid.types import Frames
from flamvid.video.live import LiveSource, open_live
from tests.video import rtsp_server

DEBIANS_PYTHON, GSTREAMER = "/usr/bin/python3", Path(__file__).with_name("gst_server.py")
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
VFR = [*range(30), *range(30, 60, 3)]  # of 60 frames the first 30, then every third


@contextmanager
def ffmpeg(*args: str, **pipes: int) -> Iterator[subprocess.Popen[bytes]]:
    """A sender or a server of ffmpeg's, gone at the end of the block."""
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-nostdin", *args]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def camera(clip: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """An RTSP server of its own process, and its address.

    Ours plays H.264 for ever; GStreamer's plays an mp4 to its end, to everybody anew.
    """
    if clip.suffix == ".mp4":
        program = [DEBIANS_PYTHON, str(GSTREAMER)]
    else:
        program = [sys.executable, rtsp_server.__file__]
    command = [*program, str(clip), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def piped(data: bytes, **options) -> LiveSource:
    """The bytes as standard input: through a pipe, which can't seek."""
    return open_live("-", stdin=io.BytesIO(data), **options)


def contents(frames: list[Frames], numbers) -> tuple[list[int], list[float]]:
    shown = numbers(torch.cat([frame.pixels for frame in frames]))
    return shown, [float(frame.pts_seconds[0]) for frame in frames]


def child_of(live: LiveSource) -> subprocess.Popen[bytes]:
    assert live._child is not None
    return live._child.process


def one_line(raised: pytest.ExceptionInfo[Exception], *foreign: str) -> None:
    text = str(raised.value)
    assert text.isprintable()
    assert not any(word in text for word in ("@ 0x", "fd:", "Error opening", *foreign))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline and running(pid):
        time.sleep(0.02)
    return not running(pid)
