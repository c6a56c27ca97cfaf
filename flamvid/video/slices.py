"""Which H.264 pictures are shown later than they are stored: told by their slices' first bits."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["in_order", "length_bytes"]

_SLICES = frozenset({1, 5})  # types of NAL units; partitioned slices count as unknown
_START = re.compile(rb"\x00\x00\x01(..)", re.DOTALL)
_HEADS = 1024  # bytes: what else may lie before a picture's first slice


def length_bytes(extradata: bytes) -> int:
    """How many bytes tell the length of a unit; 0 where units begin with start codes."""
    return (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else 0


def in_order(packet: bytes | memoryview, lengths: int) -> bool:
    """Whether the packet surely holds no B picture; False, too, where it can't be told.

    lengths: as `length_bytes` has it.
    """
    for head, first in _units(packet, lengths):
        if head & 0x1F in _SLICES:
            # A set bit: macroblock 0. Then the type as Exp-Golomb: 010 is 1 and 00111 is 6, both B.
            bits = first & 0x7F
            return first >= 0x80 and bits >> 4 != 0b010 and bits >> 2 != 0b00111
    return False


def _units(packet: bytes | memoryview, lengths: int) -> Iterator[tuple[int, int]]:
    """The first two bytes of each unit."""
    if not lengths:
        for start in _START.finditer(packet[:_HEADS]):
            yield start[1][0], start[1][1]
        return
    at = 0
    while at + lengths + 1 < len(packet):
        yield packet[at + lengths], packet[at + lengths + 1]
        at += lengths + int.from_bytes(packet[at : at + lengths], "big")
