"""Memory that a decode child writes frames to and its parent reads: no pipe to fill and to empty.

It is only as large as a few frames of the size that models want; what does not fit goes by the
pipe. The child can neither shrink it, for then to read it would kill the parent, nor make it grow.
"""

from __future__ import annotations

import mmap
import os
import sys

import numpy as np
from numpy.typing import NDArray

__all__ = ["Board", "attach", "create"]

_BYTES = 16 << 20  # what is not written to takes no memory


class Board:
    """Frames side by side, from the start again with each request."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._used = 0

    def clear(self) -> None:
        """Begin at its start."""
        self._used = 0

    def put(self, pixels: NDArray[np.uint8]) -> int | None:
        """Where it was written; None where no room is left."""
        at, end = self._used, self._used + pixels.nbytes
        if end > len(self._memory):
            return None
        np.frombuffer(self._memory, np.uint8, pixels.nbytes, at).reshape(pixels.shape)[:] = pixels
        self._used = end
        return at

    def get(self, at: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """What lies there, to be copied at once; `ValueError` where nothing can."""
        if at < 0 or min(shape) < 1:
            raise ValueError("no place on the board")
        count = shape[0] * shape[1] * shape[2]
        return np.frombuffer(self._memory, np.uint8, count, at).reshape(shape)


def create() -> tuple[int, Board] | None:
    """A file descriptor for the child, and what we read of it; None where the system has none."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        descriptor = os.memfd_create("flamvid", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        os.ftruncate(descriptor, _BYTES)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor, Board(mmap.mmap(descriptor, _BYTES, prot=mmap.PROT_READ))
    except OSError:
        os.close(descriptor)
        return None


def attach(descriptor: int) -> Board:
    """The child's side of it."""
    memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
    os.close(descriptor)
    return Board(memory)
