"""Render the example clips in examples/ from public-domain photographs, with a moving camera.

    python tools/make_examples.py

The photographs ship with scikit-image, whose docstrings state their terms:
- chelsea.png, a cat, by Stefan van der Walt: CC0.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image
from skimage import data

OUT = Path(__file__).parents[1] / "examples"
SIZE = (320, 240)  # width, height of the clip
FPS = 25

Box = tuple[float, float, float, float]  # left, top, right, bottom of what the camera sees


@dataclass(frozen=True, slots=True)
class Shot:
    """A camera that moves from one part of a photograph to another."""

    name: str
    photograph: str
    start: Box
    end: Box
    seconds: float = 4.0


SHOTS = (Shot("cat.mp4", "chelsea", (80, 10, 451, 288), (0, 0, 400, 300)),)


def render(shot: Shot) -> None:
    """Write one clip: ease from the first view to the last, every frame resampled."""
    photograph = Image.fromarray(getattr(data, shot.photograph)()).convert("RGB")
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{SIZE[0]}x{SIZE[1]}", "-r", str(FPS)),
        *("-i", "-", "-c:v", "libx264", "-crf", "23", "-pix_fmt", "yuv420p"),
        # Nothing of the encoder's version or the time of day: the same clip on every machine.
        *("-movflags", "+faststart", "-fflags", "+bitexact", "-flags:v", "+bitexact"),
        *("-threads", "1", str(OUT / shot.name)),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as ffmpeg:
        assert ffmpeg.stdin is not None
        frames = round(shot.seconds * FPS)
        start, end = np.array(shot.start), np.array(shot.end)
        for done in np.linspace(0, 1, frames):
            eased = done * done * (3 - 2 * done)
            box = tuple(start + eased * (end - start))
            view = photograph.resize(SIZE, Image.Resampling.LANCZOS, box=box)
            ffmpeg.stdin.write(view.tobytes())
    if ffmpeg.returncode:
        raise SystemExit(f"ffmpeg failed on {shot.name}")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for shot in SHOTS:
        render(shot)
        print(OUT / shot.name)


if __name__ == "__main__":
    main()
