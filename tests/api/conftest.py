"""A tiny captioner that sees colours, and a clip that changes its colour."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

from flamvid.api import Captioner, load
from tests.tiny import make_model


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Captioner:
    """What it writes is nonsense, but other nonsense for other colours."""
    return load(str(make_model(tmp_path_factory.mktemp("tiny"))), device="cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of 10 frames each: two seconds of red, of green and of blue."""
    path = tmp_path_factory.mktemp("clip") / "walls.mp4"
    colours = [f"color={name}:s=64x48:r=10:d=2[{name}]" for name in ("red", "green", "blue")]
    graph = ";".join([*colours, "[red][green][blue]concat=n=3"])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", graph]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)
    return path
