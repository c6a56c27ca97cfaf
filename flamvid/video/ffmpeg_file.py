"""Frames of a file by ffmpeg, decoded forward: slower than random access, and never wrong.

The first pass lists the pts of every frame that a player would show. Each read decodes again, from
the start to the last frame asked for, and keeps only what was asked for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

import ffmpeg
import numpy as np
import torch
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.types import Frames, VideoInfo
from flamvid.video.probe import PROTOCOLS, ffmpeg_exe

__all__ = ["FfmpegFile"]

_SHOWN = re.compile(
    rb" n: *(\d+) pts: *\S+ +pts_time:(\S+) +duration: *\S+ +duration_time:(\S+) .*? s:(\d+)x(\d+) "
)
_LONGEST_SELECT = 64  # runs of frames in one filter expression


@dataclass(frozen=True, slots=True, eq=False)
class FfmpegFile:
    """A file read forward; `picture` is height and width of the frames that `read` gives."""

    info: VideoInfo
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]
    path: Path
    picture: tuple[int, int]

    @classmethod
    def open(cls, path: Path, info: VideoInfo, size: tuple[int, int] | None) -> FfmpegFile:
        """Decode once to list the frames; `DecodeError` when there are none."""
        shown: list[tuple[float, float]] = []
        height, width = 0, 0
        graph = _input(path, info.stream).filter("showinfo", checksum=0)
        listing = graph.output("pipe:", format="null", fps_mode="passthrough")
        with _running(listing, "info") as (process, log):
            process.wait()
            log.seek(0)
            for line in log:
                if match := _SHOWN.search(line):
                    if match[2] == b"NOPTS":
                        raise DecodeError(f"{path}: frame {int(match[1])} has no time")
                    seconds = match[3]
                    known = seconds not in (b"NOPTS", b"N/A")
                    shown.append((float(match[2]), float(seconds) if known else 0.0))
                    width, height = int(match[4]), int(match[5])
        if not shown:
            raise DecodeError(f"{path} has no frame that can be decoded; the file is damaged")
        pts = np.array([t for t, _ in shown])
        pts -= pts[0]
        last = shown[-1][1] or (float(np.median(np.diff(pts))) if len(pts) > 1 else 0.0)
        durations = np.diff(pts, append=pts[-1] + last)
        info = replace(info, frames=len(pts), width=width, height=height)
        return cls(info, pts, durations, path, size or (height, width))

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places, uint8, in the order asked."""
        wanted = sorted(set(indices))
        height, width = self.picture
        kept: dict[int, torch.Tensor] = {}
        frames, numbers = self._reading(wanted)
        keep = set(wanted)
        with _running(frames, "error") as (process, log):
            assert process.stdout is not None
            for number in numbers:
                raw = process.stdout.read(height * width * 3)
                if len(raw) < height * width * 3:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()
                    raise DecodeError(
                        f"{self.path} can't be decoded at {self.pts[number]:.3f} s: "
                        f"{said[-1] if said else 'it ends there'}"
                    )
                if number in keep:
                    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
                    kept[number] = flat.view(height, width, 3).permute(2, 0, 1)
        at = np.asarray(indices, dtype=np.int64)
        pixels = torch.stack([kept[i] for i in indices])
        return Frames(pixels, self.pts[at], self.durations[at])

    def _reading(self, wanted: list[int]) -> tuple[Any, Sequence[int]]:
        """The command that gives frames, and the numbers of those that it gives."""
        graph = _input(self.path, self.info.stream)
        runs = _runs(wanted)
        numbers: Sequence[int] = wanted
        if len(runs) <= _LONGEST_SELECT:
            graph = graph.filter("select", "+".join(f"between(n,{a},{b})" for a, b in runs))
        else:
            numbers = range(wanted[-1] + 1)
        if self.picture != (self.info.height, self.info.width):
            graph = graph.filter("scale", self.picture[1], self.picture[0], flags="bicubic")
        graph = graph.output(
            "pipe:",
            format="rawvideo",
            pix_fmt="rgb24",
            fps_mode="passthrough",
            **{"frames:v": len(numbers)},
        )
        return graph, numbers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def _input(path: Path, stream: int) -> Any:
    return ffmpeg.input(f"file:{path}", protocol_whitelist=PROTOCOLS)[str(stream)]


@contextmanager
def _running(graph: Any, level: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """An ffmpeg process and its log; it is gone when the block ends, however it ends."""
    args = ffmpeg.get_args(graph.global_args("-hide_banner", "-nostdin", "-loglevel", level))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [ffmpeg_exe(), *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            yield process, log
        finally:
            process.kill()
            process.communicate()


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Rising numbers as inclusive runs: [1, 2, 5] is (1, 2), (5, 5)."""
    runs: list[tuple[int, int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1] = (runs[-1][0], n)
        else:
            runs.append((n, n))
    return runs
