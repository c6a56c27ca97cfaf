"""Folders for what of a model lies on the disk: each goes with its model, or with its process."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flamvid.errors import WeightsError
from flamvid.weights import hub

__all__ = ["OffloadFolder"]


@dataclass(frozen=True, slots=True)
class OffloadFolder:
    """A folder in the cache, not among temporary files: those may themselves lie in memory.

    lock: is held while its process lives, however that ends.
    """

    path: Path
    lock: int

    @classmethod
    def made(cls) -> OffloadFolder:
        """A new one; those that killed processes left are deleted first."""
        above = hub.cache_dir() / "offload"
        try:
            above.mkdir(parents=True, exist_ok=True)
            with _opened(above) as all_of_them:
                fcntl.flock(all_of_them, fcntl.LOCK_EX)
                for old in above.iterdir():
                    _delete_if_left(old)
                path = Path(tempfile.mkdtemp(dir=above))
                lock = os.open(path, os.O_RDONLY)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise WeightsError(
                f"can't write to the cache {above} ({error.strerror}), where what exceeds memory "
                "is to lie; set FLAMVID_HOME to a folder that can be written"
            ) from error
        return cls(path, lock)

    def delete(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def _delete_if_left(folder: Path) -> None:
    with _opened(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
