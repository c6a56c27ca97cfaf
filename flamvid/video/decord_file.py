"""Random access to the frames of a file, by decord (the maintained decord2). Runs in a child."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DecodeError
from flamvid.video.policy import pts_reason
from flamvid.video.reader import Distrusted, Pixels

__all__ = ["DecordFile"]


class DecordFile:
    """An indexed file; frames are decoded, turned upright and resized on request."""

    name = "decord"

    def __init__(self, path: str, size: tuple[int, int] | None, counted: int) -> None:
        """Index the file; `Distrusted` where decord can't, or where its index can't be right."""
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._errors = (decord.DECORDError, RuntimeError, IndexError)
        self.path = path
        height, width = size or (-1, -1)
        try:
            # fault_tol: a frame that can't be decoded is an error, not a copy of its neighbour.
            self._reader = decord.VideoReader(path, width=width, height=height, fault_tol=1)
            shown = self._reader.get_frame_timestamp(range(len(self._reader)))
        except self._errors as error:
            raise Distrusted("decord can't index it") from error
        pts, ends = np.asarray(shown, dtype=np.float64).reshape(-1, 2).T
        if reason := pts_reason(pts, counted):
            raise Distrusted(reason)
        self.durations = np.diff(pts, append=ends[-1])
        self.pts = pts - pts[0]

    def keyframes(self) -> NDArray[np.int64]:
        """Places of the key frames."""
        return np.asarray(self._reader.get_key_indices(), dtype=np.int64)

    def read(self, places: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """The frames at these places, which rise."""
        try:
            # decord reads ahead of the frames asked for; to seek bounds what it keeps.
            pixels: Pixels = self._reader.get_batch(list(places)).asnumpy()
            self._reader.seek(0)
        except self._errors as error:
            raise DecodeError("decord can't decode the frames asked for") from error
        yield from zip(places, pixels, strict=True)
