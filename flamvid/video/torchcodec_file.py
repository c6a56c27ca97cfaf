"""Random access by torchcodec, for those who ask for it (FLAMVID_DECODER=torchcodec).

It needs FFmpeg's shared libraries on the system. PyAV is as fast or faster
(docs/benchmarks.md), so torchcodec is never chosen by itself. Runs in a child.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.video.av_file import AvFile
from flamvid.video.reader import Pixels

__all__ = ["TorchcodecFile"]


class TorchcodecFile:
    """PyAV's index, torchcodec's frames; a frame counts when its pts is the one of the index."""

    name = "torchcodec"

    def __init__(
        self, path: str, container: Any, stream: int, size: tuple[int, int] | None
    ) -> None:
        try:
            from torchcodec.decoders import VideoDecoder
            from torchcodec.transforms import Resize
        except Exception as error:  # a library that does not load raises many things
            raise DecodeError(f"torchcodec can't be loaded ({_first_line(error)})") from error
        index = AvFile(container, stream, size)
        self.pts, self.durations = index.pts, index.durations
        self._keys, self._raw = index.keyframes(), index.raw_seconds()
        transforms = [Resize(size)] if size else []
        try:
            self._decoder: Any = VideoDecoder(path, stream_index=stream, transforms=transforms)
        except Exception as error:
            raise DecodeError(f"torchcodec can't open it ({_first_line(error)})") from error

    def keyframes(self) -> NDArray[np.int64]:
        """Places of the key frames."""
        return self._keys

    def read(self, places: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """The frames at these places, which rise."""
        try:
            batch = self._decoder.get_frames_at(list(places))
        except Exception as error:
            raise DecodeError(f"torchcodec can't decode them ({_first_line(error)})") from error
        if not np.allclose(batch.pts_seconds.numpy(), self._raw[list(places)], atol=1e-4):
            raise DecodeError("torchcodec gives frames of other times than the index has")
        yield from zip(places, batch.data.permute(0, 2, 3, 1).numpy(), strict=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
