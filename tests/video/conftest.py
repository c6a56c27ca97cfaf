"""Clips whose every frame says its number: its grey level is 16 + 3 * n."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

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
