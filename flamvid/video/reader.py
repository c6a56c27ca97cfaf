"""What a random-access decoder must give. Its implementations run in a child, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Distrusted", "Pixels", "Reader"]

Pixels = NDArray[np.uint8]


class Distrusted(Exception):  # noqa: N818 - not an error: the next decoder is asked
    """This decoder would give wrong frames of the file, or none; the message says why."""


class Reader(Protocol):
    """An indexed file. `pts`, `durations` float64 [N], seconds from the first displayable frame."""

    name: str
    pts: NDArray[np.float64]
    durations: NDArray[np.float64]

    def keyframes(self) -> NDArray[np.int64]:
        """Places of the key frames, rising."""
        ...

    def read(self, places: Sequence[int]) -> Iterator[tuple[int, Pixels]]:
        """The frames [H,W,3] at these places, which rise, each with its place, as soon as it is
        there; `DecodeError` where one can't be had."""
        ...
