"""Who may use a store's file: one writer, or many who verify; readers need no leave."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flamvid.errors import StoreError

__all__ = ["exclusive", "replace", "unwritten"]

_fds: set[int] = set()


@contextmanager
def exclusive(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Be the only writer of a file until the end of the block or of the process.

    refusal: what StoreError says where another is.
    """
    with _locked(path, os.O_RDWR, fcntl.F_WRLCK) as got:
        if not got:
            raise StoreError(
                refusal
                or f"{path} is being written, or verified, by another; a store has one writer at "
                "a time: wait, or write another store and merge the two"
            )
        yield


@contextmanager
def unwritten(path: Path) -> Iterator[bool]:
    """Keep writers away until the end of the block; False if there is one already."""
    with _locked(path, os.O_RDONLY, fcntl.F_RDLCK) as got:
        yield got


@contextmanager
def _locked(path: Path, mode: int, kind: int) -> Iterator[bool]:
    # A lock of the open file, not of the process: LMDB and maps open and close the same file.
    fd = os.open(path, mode | os.O_CLOEXEC)
    _fds.add(fd)
    try:
        try:
            request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
            got = True
        except BlockingIOError:
            got = False
        yield got
    finally:
        if fd in _fds:
            _fds.remove(fd)
            os.close(fd)


def _in_child() -> None:
    """A forked child must not keep its parent's lock when that is killed."""
    while _fds:
        os.close(_fds.pop())


os.register_at_fork(after_in_child=_in_child)


def replace(path: Path, new: Path) -> None:
    """Put another file in a store's place; StoreError while anyone has it open."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"{path} is in use by others, who would go on with the old file; stop them first"
            ) from error
        # LMDB's lock file counts the old file's transactions, and must go with it.
        for lock in (path, new):
            lock.with_name(f"{lock.name}-lock").unlink(missing_ok=True)
        new.replace(path)
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        os.close(fd)
