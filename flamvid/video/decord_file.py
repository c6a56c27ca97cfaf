"""Random access to the frames of a file, by decord (the maintained decord2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.types import Frames, VideoInfo
from flamvid.video.ffmpeg_file import FfmpegFile

__all__ = ["DecordFile", "untrusted"]


@dataclass(slots=True, eq=False)
class DecordFile:
    """An indexed file; frames are decoded, turned upright and resized on request."""

    info: VideoInfo
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]
    reader: Any
    size: tuple[int, int] | None

    @classmethod
    def open(cls, path: Path, info: VideoInfo, size: tuple[int, int] | None) -> DecordFile | None:
        """Index the file; None where decord can't, or where its index can't be trusted."""
        import decord  # not at the top: to load it before torch has hung data loaders

        decord.logging.set_level(decord.logging.QUIET)
        height, width = size or (-1, -1)
        try:
            # fault_tol: a frame that can't be decoded is an error, not a copy of its neighbour.
            reader = decord.VideoReader(str(path), width=width, height=height, fault_tol=1)
            shown = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)
        except (decord.DECORDError, RuntimeError, IndexError):
            return None
        pts, ends = shown.reshape(-1, 2).T
        if untrusted(info, pts) is not None:
            return None
        durations = np.diff(pts, append=ends[-1])
        return cls(replace(info, frames=len(pts)), pts - pts[0], durations, reader, size)

    def read(self, indices: Sequence[int]) -> Frames:
        """The frames at these places, uint8, in the order asked."""
        import decord

        at = np.asarray(indices, dtype=np.int64)
        unique, back = np.unique(at, return_inverse=True)
        try:
            pixels = self.reader.get_batch(unique.tolist()).asnumpy()  # T x H x W x 3
        except (decord.DECORDError, RuntimeError, IndexError):
            return self._read_forward(indices)
        frames = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        if len(unique) != len(at) or (back != np.arange(len(at))).any():
            frames = frames[torch.from_numpy(back)]
        return Frames(frames, self.pts[at], self.durations[at])

    def _read_forward(self, indices: Sequence[int]) -> Frames:
        """What decord gives up on, ffmpeg may read; its frames count when all of them are there."""
        again = FfmpegFile.open(Path(self.info.path), self.info, self.size)
        if len(again.pts) != len(self.pts):
            raise DecodeError(
                f"{self.info.path} can't be decoded: of {len(self.pts)} frames {len(again.pts)} "
                "are readable; the file is damaged or truncated, copy it again"
            )
        return again.read(indices)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reader = None


def untrusted(info: VideoInfo, pts: NDArray[np.float64]) -> str | None:
    """Why random access by these raw pts would give wrong frames; None where it is right."""
    if len(pts) == 0:
        return "the container lists no frames"
    if not np.isfinite(pts).all() or np.abs(pts).max() > 1e7:
        return "frames without pts"
    if pts[0] < -1e-6:
        return "an edit list hides the first frames"
    if (np.diff(pts) <= 0).any():
        return "pts that do not rise"
    if info.frames and abs(info.frames - len(pts)) > 1:
        return f"the container counts {info.frames} frames, its index {len(pts)}"
    return None
