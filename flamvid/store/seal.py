"""A digest of every byte, behind LMDB's last page, of a store that was closed in order.

LMDB neither reads nor keeps what is there. Values carry their own checksums; the seal also covers
what lies between them: page padding, free pages, LMDB's own pages. The first write removes it.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

from flamvid.errors import DamagedStore
from flamvid.store.file import frontier

__all__ = ["holds", "is_sealed", "remove", "write"]

_SEAL = struct.Struct("<8sQ32sI8s")  # magic, bytes covered, sha256 of them, crc32 of the former
_BEGIN, _END = b"FLVSEAL\x01", b"\x01LAESVLF"
_BLOCK = 4 << 20


def is_sealed(path: Path) -> bool:
    """Whether there is a seal, whole or not."""
    with path.open("rb") as file:
        return bool(_tail(file.fileno(), path)[1])


def holds(path: Path) -> bool | None:
    """Whether the seal fits what the file holds; None where there is none."""
    with path.open("rb") as file:
        used, tail = _tail(file.fileno(), path)
        if not tail:
            return None
        if len(tail) != _SEAL.size:
            return False
        begin, covered, digest, crc, end = _SEAL.unpack(tail)
        whole = begin == _BEGIN and end == _END and crc == zlib.crc32(tail[: _SEAL.size - 12])
        return bool(whole and covered == used) and digest == _digest(file.fileno(), used)


def write(path: Path) -> None:
    """Seal a file that nobody writes."""
    with path.open("r+b") as file:
        used, _ = _tail(file.fileno(), path)
        os.ftruncate(file.fileno(), used)
        head = struct.pack("<8sQ32s", _BEGIN, used, _digest(file.fileno(), used))
        os.pwrite(file.fileno(), head + struct.pack("<I8s", zlib.crc32(head), _END), used)
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Break the seal, before anything is written."""
    with path.open("r+b") as file:
        used, tail = _tail(file.fileno(), path)
        if tail:
            os.ftruncate(file.fileno(), used)


def _tail(fd: int, path: Path) -> tuple[int, bytes]:
    """Bytes that LMDB uses, and the seal behind them: b"" unless it can be told for one."""
    used = frontier(fd, path)
    tail = os.pread(fd, _SEAL.size + 1, used)
    # A writer that was killed may leave pages here. One damaged mark doesn't hide the other.
    if tail[:8] == _BEGIN or (len(tail) == _SEAL.size and tail[-8:] == _END):
        return used, tail
    size = os.fstat(fd).st_size
    if size % 4096 == _SEAL.size and os.pread(fd, 8, size - 8) == _END:
        return used, tail  # the seal is there, but not where the first pages say
    return used, b""


def _digest(fd: int, used: int) -> bytes:
    digest, at = hashlib.sha256(), 0
    while at < used:
        block = os.pread(fd, min(_BLOCK, used - at), at)
        if not block:
            raise DamagedStore("the file became shorter while it was read")
        digest.update(block)
        at += len(block)
    return digest.digest()
