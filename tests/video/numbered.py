"""Frames that carry their number as eight bars, one bit each; and when ffmpeg shows them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FRAMES, WIDTH, HEIGHT = 75, 64, 32
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
BARS = f"geq=lum='if(mod(floor(N/pow(2,floor(X/{WIDTH // 8}))),2),235,16)':cb=128:cr=128"
VARIABLE = "select='lt(n,30)+not(mod(n,3))'"  # 25 frames per second, then a third of that


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [FFMPEG, "-hide_banner", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-800:]
    return done.stdout + done.stderr


def bars(frames: np.ndarray) -> list[int]:
    """The numbers of grey frames [N,H,W]."""
    middle = frames[:, HEIGHT // 4 : -HEIGHT // 4].reshape(len(frames), -1, 8, WIDTH // 8)
    bits = middle[..., 2:-2].mean(axis=(1, 3)) > 125
    found: list[int] = (bits @ (1 << np.arange(8))).tolist()
    return found


def truth(clip: Path) -> tuple[np.ndarray, list[int]]:
    """When ffmpeg shows each frame, from the first one on, and its number."""
    command = [FFMPEG, "-hide_banner", "-i", clip, "-vf", "showinfo", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "gray", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    above, below = re.search(rb"config in time_base: (\d+)/(\d+)", done.stderr).groups()
    pts = [int(n) * int(above) / int(below) for n in re.findall(rb" pts: *(-?\d+)", done.stderr)]
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH)
    assert len(pts) == len(frames) > 10
    return np.array(pts) - pts[0], bars(frames)
