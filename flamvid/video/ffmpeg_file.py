"""Frames of a file by ffmpeg, decoded forward: slower than random access, and never wrong.

The first pass lists the pts of every frame that a player would show. Each read decodes again, from
the start to the last frame asked for, and keeps only what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid.errors import DecodeError
from flamvid.types import Frames, VideoInfo
from flamvid.video.address import shown as address_shown
from flamvid.video.ffmpeg_process import running
from flamvid.video.graph import pictures, shown
from flamvid.video.policy import check_size, has_alpha, pixel_aspect

__all__ = ["FfmpegFile", "time_allowed"]

_BASE = re.compile(rb"config in time_base: (\d+)/(\d+)")
_FRAME = re.compile(  # pts in ticks: seconds are printed with six digits, too few after an hour
    rb" n: *(\d+) pts: *(\S+) +pts_time:\S+ +duration: *(\S+) +duration_time:\S+ .*?"
    rb" sar:(\d+)/(\d+) s:(\d+)x(\d+) i:(\w)(?: iskey:(\d))?"
)
_LONGEST_SELECT = 64  # runs of frames in one filter expression


def time_allowed(where: Path | str, duration: float = 0.0) -> float:
    """Seconds that one request may take: it grows with the file, and is ample for a sound one."""
    if isinstance(where, str):  # from the web, as slowly as it would play
        return 60.0 + duration
    return 30.0 + where.stat().st_size / 20e6 + 0.5 * duration


@dataclass(frozen=True, eq=False)
class FfmpegFile:
    """A file, or one on the web, read forward; frames are `picture` = (height, width) large."""

    info: VideoInfo
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]
    keyframes: NDArray[np.int64]
    where: Path | str
    picture: tuple[int, int]
    timeout: float | None
    reason: str

    decoder = "ffmpeg"

    @classmethod
    def open(
        cls,
        where: Path | str,
        info: VideoInfo,
        size: tuple[int, int] | None,
        timeout: float | None = None,
        reason: str = "",
    ) -> FfmpegFile:
        """Decode once to list the frames; `DecodeError` when there are none."""
        name = address_shown(where)
        check_size(name, info.width, info.height)
        times: list[tuple[float, float]] = []
        keys: list[int] = []
        first: tuple[int, int, float, bool] | None = None
        base = 0.0
        listing = shown(where, info).filter("showinfo", checksum=0)
        listing = listing.output("pipe:", format="null", fps_mode="passthrough")
        allowed = timeout or time_allowed(where, info.duration)
        with running(name, listing, "info", allowed) as process:
            for line in process.log_lines():
                if match := _BASE.search(line):
                    base = int(match[1]) / int(match[2])
                if (match := _FRAME.search(line)) is None:
                    continue
                if match[2] == b"NOPTS":
                    raise DecodeError(f"{name}: frame {int(match[1])} has no time")
                known = match[3] not in (b"NOPTS", b"N/A")
                times.append((int(match[2]) * base, int(match[3]) * base if known else 0.0))
                if match[9] == b"1":
                    keys.append(len(times) - 1)
                if first is None:
                    aspect = pixel_aspect(int(match[4]), int(match[5]))
                    first = int(match[6]), int(match[7]), aspect, match[8] != b"P"
        if first is None:
            raise DecodeError(f"{name} has no frame that can be decoded; the file is damaged")
        pts = np.array([t for t, _ in times])
        pts -= pts[0]
        last = times[-1][1] or (float(np.median(np.diff(pts))) if len(pts) > 1 else 0.0)
        durations = np.diff(pts, append=pts[-1] + last)
        width, height, aspect, interlaced = first
        info = replace(
            info,
            frames=len(pts),
            width=max(1, round(width * aspect)),
            height=height,
            interlaced=interlaced or info.interlaced,
        )
        picture = size or (info.height, info.width)
        places = np.array(keys, dtype=np.int64)
        return cls(info, pts, durations, places, where, picture, timeout, reason)

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places, uint8, in the order asked."""
        wanted = sorted(set(indices))
        runs = _runs(wanted)
        few = len(runs) <= _LONGEST_SELECT
        numbers: Sequence[int] = wanted if few else range(wanted[-1] + 1)
        graph = pictures(self.where, self.info, self.picture, runs if few else [])
        frames = graph.output(
            "pipe:",
            format="rawvideo",
            pix_fmt="rgba" if self._alpha else "rgb24",
            fps_mode="passthrough",
            **{"frames:v": len(numbers)},
        )
        keep = set(wanted)
        kept: dict[int, Tensor] = {}
        height, width = self.picture
        count = height * width * (4 if self._alpha else 3)
        with running(self._name, frames, "error", self._allowed) as process:
            for number in numbers:
                raw = process.read(count)
                if raw is None:
                    said = process.last_words() or "it ends there"
                    raise DecodeError(
                        f"{self._name} can't be decoded at {self.pts[number]:.3f} s: {said}"
                    )
                if number in keep:
                    kept[number] = self._picture(raw)
        at = np.asarray(indices, dtype=np.int64)
        pixels = torch.stack([kept[i] for i in indices])
        return Frames(pixels, self.pts[at], self.durations[at])

    @cached_property
    def _alpha(self) -> bool:
        return has_alpha(self.info.pixel_format)

    @property
    def _name(self) -> str:
        return address_shown(self.where)

    @property
    def _allowed(self) -> float:
        return self.timeout or time_allowed(self.where, float(self.pts[-1] + self.durations[-1]))

    def _picture(self, raw: bytearray) -> Tensor:
        """Raw pixels as [3,H,W]; what is transparent lies on white."""
        height, width = self.picture
        pixels = torch.frombuffer(raw, dtype=torch.uint8).view(height, width, -1).permute(2, 0, 1)
        if not self._alpha:
            return pixels
        alpha = pixels[3:].float() / 255
        return (pixels[:3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Rising numbers as inclusive runs: [1, 2, 5] is (1, 2), (5, 5)."""
    runs: list[tuple[int, int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1] = (runs[-1][0], n)
        else:
            runs.append((n, n))
    return runs
