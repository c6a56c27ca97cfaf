"""Whether a file is shorter than its own container says.

Decoders play what is there and say nothing. MP4, Matroska and AVI write down how long their parts
are, so a cut file can be told apart in a few reads.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_mp4", "missing_bytes"]

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_mp4(head: bytes) -> bool:
    """Whether a file that begins so is an MP4 or MOV, whole or not."""
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def missing_bytes(path: Path) -> int:
    """How many bytes the container promises beyond the end of the file; 0 where it can't say."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        file.seek(0)
        if is_mp4(head):
            end = _mp4_end(file, size)
        elif head[:4] == _EBML:
            end = _matroska_end(file)
        elif head[:4] == b"RIFF":
            # An AVI over 1 GB goes on in further RIFF chunks; the first one bounds it from below.
            end = 8 + int(struct.unpack("<I", head[4:8])[0])
        else:
            end = 0
    return max(0, end - size)


def _mp4_end(file: BinaryIO, size: int) -> int:
    """End of the last top-level box."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            large = file.read(8)
            length = struct.unpack(">Q", large)[0] if len(large) == 8 else 16
        elif length == 0:  # to the end of the file
            return size
        if length < 8 or not all(32 <= c < 127 or c == 0xA9 for c in kind):
            return size  # trailing rubbish after the last box is common, and harmless
        at += length
    return at


def _matroska_end(file: BinaryIO) -> int:
    """End of the segment that follows the EBML header; unknown sizes promise nothing."""
    file.seek(4)
    header = _vint(file)
    if header is None:
        return 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return 0
    length = _vint(file)
    return 0 if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """A variable-length integer of EBML; None when it says "unknown"."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    if len(rest) < width - 1:
        return None
    value = int.from_bytes(bytes([first[0] & (0xFF >> width)]) + rest, "big")
    return None if value == (1 << (7 * width)) - 1 else value
