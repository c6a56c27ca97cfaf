"""Clips whose every frame says its number: its grey level is 16 + 3 * n."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from tests.video.media_server import MediaServer

MakeClip = Callable[..., Path]


def run_ffmpeg(*args: str) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *args]
    subprocess.run(command, check=True)


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> MakeClip:
    """make_clip("a.mp4", *output options, frames=60, size="64x48", filters="")"""

    def make(
        name: str, *options: str, frames: int = 60, size: str = "64x48", filters: str = ""
    ) -> Path:
        path = tmp_path_factory.mktemp("clips") / name
        graph = f"color=black:s={size}:r=25:d={frames / 25},format=gray,geq=lum=16+3*N"
        run_ffmpeg(
            *("-f", "lavfi", "-i", graph + filters),
            *("-frames:v", str(frames), "-pix_fmt", "yuv420p", "-c:v", "libx264", "-g", "30"),
            *options,
            str(path),
        )
        return path

    return make


def numbers(pixels: torch.Tensor) -> list[int]:
    """The numbers of frames [T,3,H,W] of such a clip, read from their grey."""
    grey = pixels.float().mean((1, 2, 3)).numpy()
    found: list[int] = np.rint((grey - 16) / 3).astype(int).tolist()
    return found


@pytest.fixture(name="numbers")
def _numbers() -> Callable[[torch.Tensor], list[int]]:
    return numbers


@pytest.fixture(name="run_ffmpeg")
def _run_ffmpeg() -> Callable[..., None]:
    return run_ffmpeg


@pytest.fixture(scope="module")
def clip(make_clip) -> Callable[[str], bytes]:
    """A clip of 60 numbered frames as bytes, by name; made once."""
    vfr = {"filters": ",select='lt(n,30)+not(mod(n,3))'"}
    recipes = {
        "a.ts": (("-bf", "3"), {}),
        "a.mkv": (("-bf", "3"), {}),
        "a.flv": ((), {}),
        "fast.mp4": (("-movflags", "+faststart"), {}),
        "slow.mp4": ((), {}),
        "vfr.mkv": (("-fps_mode", "vfr"), vfr),
        "vfr.ts": (("-fps_mode", "vfr"), vfr),
        "cam.h264": (("-bf", "0", "-x264-params", "slices=1:sliced-threads=0"), {}),
        # Too large to be kept whole while its index is looked for.
        "large.mp4": (("-crf", "1"), {"size": "160x120", "filters": ",noise=alls=20:allf=t"}),
    }
    made: dict[str, bytes] = {}

    def get(name: str) -> bytes:
        if name not in made:
            options, more = recipes[name]
            made[name] = make_clip(name, *options, **more).read_bytes()
        return made[name]

    return get


@pytest.fixture
def server() -> Iterator[MediaServer]:
    with MediaServer() as running:
        yield running


@pytest.fixture
def stalling(clip, server: MediaServer) -> str:
    """An address that sends half a clip, and then nothing."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(clip("a.ts")[: 188 * 90])
        server.over.wait(60)

    server.routes["/stalls.ts"] = answer
    return server.url("/stalls.ts")
