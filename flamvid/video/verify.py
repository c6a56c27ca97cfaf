"""A decode audit: the frames that a source gives, against ffmpeg reading forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flamvid.video.decode import open_video
from flamvid.video.ffmpeg_file import FfmpegFile
from flamvid.video.playlist import check_references
from flamvid.video.probe import probe
from flamvid.video.sample import Uniform

__all__ = ["Audit", "Difference", "verify"]

_SIZE = (72, 128)  # height and width at which pictures are compared
_PTS_SECONDS = 2e-3  # containers round to milliseconds
_LEVELS = 1.0  # of 255, mean over the picture: builds of swscale may round otherwise
_OTHER_SCALER = 3.0  # torchcodec resizes linearly


@dataclass(frozen=True, slots=True)
class Difference:
    """What one source gives otherwise than ffmpeg does."""

    frame: int
    pts: float
    what: str


@dataclass(frozen=True, slots=True)
class Audit:
    """The outcome: which decoder was checked, on how many frames, and where it was wrong."""

    decoder: str
    reason: str
    checked: int
    differences: tuple[Difference, ...]


def verify(path: Path, frames: int = 16, timeout: float | None = None) -> Audit:
    """Compare `frames` uniform frames of the file's decoder with ffmpeg's, by pts and by content.

    A different number of frames is a difference too. Errors of opening pass.
    """
    with open_video(path, _SIZE, timeout) as source:
        info = probe(path, playlist=check_references(path))
        truth = FfmpegFile.open(path, info, _SIZE, timeout)
        found: list[Difference] = []
        if len(source.pts) != len(truth.pts):
            what = f"{len(source.pts)} frames, ffmpeg shows {len(truth.pts)}"
            found.append(Difference(-1, 0.0, what))
        shared = min(len(source.pts), len(truth.pts))
        at = Uniform(frames).indices(truth.pts[:shared], truth.durations[:shared]).tolist()
        found += _times(source.pts, truth.pts, at)
        found += _pictures(
            source.read(at).pixels.numpy(),
            truth.read(at).pixels.numpy(),
            truth.pts[at],
            at,
            _OTHER_SCALER if source.decoder == "torchcodec" else _LEVELS,
        )
        return Audit(source.decoder, source.reason, len(at), tuple(found))


def _times(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], at: Sequence[int]
) -> list[Difference]:
    return [
        Difference(i, float(theirs[i]), f"pts {ours[i]:.3f} s, ffmpeg has {theirs[i]:.3f} s")
        for i in at
        if abs(ours[i] - theirs[i]) > _PTS_SECONDS
    ]


def _pictures(
    ours: NDArray[np.uint8],
    theirs: NDArray[np.uint8],
    pts: NDArray[np.float64],
    at: Sequence[int],
    most: float,
) -> list[Difference]:
    away = np.abs(ours.astype(np.float32) - theirs).mean(axis=(1, 2, 3))
    return [
        Difference(i, float(time), f"another picture, {level:.1f} levels from ffmpeg's")
        for i, time, level in zip(at, pts, away.tolist(), strict=True)
        if level > most
    ]
