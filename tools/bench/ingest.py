"""What it costs to watch a stream: frames chosen and scaled in the decoder, or after it.

    python tools/bench/ingest.py [--seconds 20] [--rounds 5]

A 720p25 file is read at 2 frames per second of 224 x 224, by turns: both chosen in ffmpeg; scaled
there and chosen here; both here. Prints medians of processor seconds per minute of stream, of this
process and ffmpeg together, and checks that the first two see the same pictures.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import torch

from flamvid.types import Frames
from flamvid.video.live import LiveSource

FPS, SIZE = 2.0, (224, 224)


def both_there(path: str) -> list[Frames]:
    with LiveSource(path, fps=FPS, size=SIZE) as live:
        return list(live.frames())


def scaled_there(path: str) -> list[Frames]:
    with LiveSource(path, size=SIZE) as live:
        return list(live.frames(fps=FPS))


def both_here(path: str) -> list[Frames]:
    with LiveSource(path) as live:
        return list(live.frames(fps=FPS, size=SIZE))


SIDES: dict[str, Callable[[str], list[Frames]]] = {
    "chosen and scaled in ffmpeg": both_there,
    "scaled in ffmpeg, chosen here": scaled_there,
    "chosen and scaled here": both_here,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=20)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "720p.mkv")
        picture = f"testsrc2=s=1280x720:r=25:d={given.seconds}"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi"]
        command += ["-i", picture, "-c:v", "libx264", "-preset", "veryfast", "-g", "50", path]
        subprocess.run(command, check=True)
        same = zip(both_there(path), scaled_there(path), strict=True)
        assert all(torch.equal(a.pixels, b.pixels) for a, b in same), "other frames"
        spent: dict[str, list[float]] = {name: [] for name in SIDES}
        for _ in range(given.rounds):
            for name, side in SIDES.items():
                before = os.times()
                side(path)
                spent[name].append(sum(os.times()[:4]) - sum(before[:4]))
    for name, seconds in spent.items():
        per_minute = statistics.median(seconds) * 60 / given.seconds
        print(f"{name:32} {per_minute:6.2f} s of processor time per minute of stream")


if __name__ == "__main__":
    main()
