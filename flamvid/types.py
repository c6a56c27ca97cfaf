"""Values that cross rooms: frozen, and their repr shows shapes rather than data.

Time is float seconds from the first displayable frame, taken from pts, never index / fps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this module and must start without torch
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = ["Caption", "Frames", "Segment", "VideoInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a container says about the video stream that is read: the largest that is no cover art.

    `width` and `height` are of the picture as shown: after `rotation` (degrees, clockwise) and with
    square pixels (`pixel_aspect` is the width of a stored one). `duration` is in seconds; `frames`
    is 0 when the container does not say; `start` is the time of its first frame by its own clock.
    `stream` is the stream's index in the container, `video_streams` how many there are to choose
    from. `transfer` is named where it means HDR.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    fps: float
    duration: float
    frames: int
    rotation: int = 0
    stream: int = 0
    video_streams: int = 1
    pixel_format: str = ""
    pixel_aspect: float = 1.0
    interlaced: bool = False
    transfer: str = ""
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A half-open range of time, [start, end), in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Decoded frames: `pixels` uint8 [T,3,H,W]; `pts_seconds`, `duration_seconds` float64 [T]."""

    pixels: torch.Tensor
    pts_seconds: NDArray[np.float64]
    duration_seconds: NDArray[np.float64]

    def __post_init__(self) -> None:
        T = self.pixels.shape[0]
        if self.pixels.ndim != 4 or self.pixels.shape[1] != 3:
            raise ValueError(f"pixels have shape {tuple(self.pixels.shape)}; must be [T,3,H,W]")
        if self.pts_seconds.shape != (T,) or self.duration_seconds.shape != (T,):
            raise ValueError(f"pts and durations must have shape ({T},), one per frame")

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    def __repr__(self) -> str:
        span = f"{self.pts_seconds[0]:.3f}..{self.pts_seconds[-1]:.3f} s" if len(self) else "empty"
        return f"Frames(pixels={tuple(self.pixels.shape)}, pts={span})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One generated text about [start, end) of a source; `logprob` sums its tokens' log p."""

    source: str
    start: float
    end: float
    text: str
    logprob: float
    model: str
