"""LMDB's pages read as plain bytes, without LMDB: what verifies and repairs a file can't trust it.

Layout of LMDB 0.9 on 64 bits, little end first. A damaged page ends the branch below it, is noted,
and never more: nothing is mapped, no place outside the file is read, no page twice.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Entry", "Pages"]

_META = struct.Struct("<16xII16xI100xQ")  # magic, version, page size, transaction
_META_MAGIC, _META_VERSION = 0xBEEFC0DE, 1
_MAIN_ROOT_AT = 16 + 24 + 48 + 40
_RECORD_ROOT_AT = 40  # of a database's record, 48 bytes
_PAGE = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
_NODE = struct.Struct("<HHHH")  # low, high, flags, key size
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG, _DATABASE = 1, 2
_EMPTY = (1 << 64) - 1
_DEEPEST = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a key's value lies in the file; `db` is "" for one found outside the tree."""

    db: str
    key: bytes
    offset: int
    size: int


class Pages:
    """The entries of a store's file; `problems` says what could not be followed."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("rb")
        self.size = os.fstat(self.file.fileno()).st_size
        self.problems: list[str] = []
        self.page_size = 4096
        metas: dict[int, int] = {}
        for number in (0, 1):
            meta = self._at(number * self.page_size, 4096)
            if len(meta) < _META.size:
                continue
            magic, version, page_size, txn = _META.unpack_from(meta)
            if magic == _META_MAGIC and version == _META_VERSION:
                if number == 0 and page_size in (8192, 16384, 32768):
                    self.page_size = page_size
                (metas[txn],) = struct.unpack_from("<Q", meta, _MAIN_ROOT_AT)
        # Of the main tree, by transaction, the newest first: LMDB keeps two.
        self.roots = dict(sorted(metas.items(), reverse=True))

    def __enter__(self) -> Pages:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def read(self, entry: Entry) -> memoryview:
        """The bytes of a value."""
        return memoryview(self._at(entry.offset, entry.size))

    def walk(self, root: int) -> Iterator[Entry]:
        """All entries of all databases below the main tree's root."""
        seen: set[int] = set()
        for key, flags, offset, size in self._tree(root, "the main tree", seen, 0):
            if not flags & _DATABASE or size != 48:
                self.problems.append(f"the main tree has an entry {key!r} that is no database")
                continue
            name = key.decode("ascii", "replace")
            (below,) = struct.unpack_from("<Q", self._at(offset, size), _RECORD_ROOT_AT)
            for key, flags, offset, size in self._tree(below, name, seen, 0):
                found = self._place(name, key, flags, offset, size)
                if found is not None:
                    yield found

    def scan(self) -> Iterator[Entry]:
        """All entries of whatever looks like a leaf, also of trees that are no more."""
        for number in range(2, self.size // self.page_size):
            page = self._at(number * self.page_size, self.page_size)
            stored, _, flags, lower, _ = _PAGE.unpack_from(page)
            if stored == number and flags == _LEAF and 16 <= lower <= self.page_size:
                for key, kind, offset, size in self._nodes(page, number, lower):
                    if not kind & _DATABASE:
                        found = self._place("", key, kind, offset, size)
                        if found is not None:
                            yield found

    def _tree(
        self, number: int, name: str, seen: set[int], depth: int
    ) -> Iterator[tuple[bytes, int, int, int]]:
        """Key, flags, place and size of every leaf node, in order."""
        if number == _EMPTY:
            return
        page = self._at(number * self.page_size, self.page_size)
        if number in seen or depth > _DEEPEST or number < 2 or len(page) < self.page_size:
            self.problems.append(f"{name} leads to page {number}, which can't be a part of it")
            return
        seen.add(number)
        stored, _, flags, lower, _ = _PAGE.unpack_from(page)
        if stored != number or flags not in (_BRANCH, _LEAF) or not 16 <= lower <= self.page_size:
            self.problems.append(f"page {number} of {name} is damaged")
        elif flags == _LEAF:
            yield from self._nodes(page, number, lower)
        else:
            for at in struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16):
                if at + 8 > self.page_size:
                    self.problems.append(f"page {number} of {name} is damaged")
                    continue
                low, high, top, _ = _NODE.unpack_from(page, at)
                yield from self._tree(low | high << 16 | top << 32, name, seen, depth + 1)

    def _nodes(self, page: bytes, number: int, lower: int) -> Iterator[tuple[bytes, int, int, int]]:
        for at in struct.unpack_from(f"<{(lower - 16) // 2}H", page, 16):
            if at + 8 <= self.page_size:
                low, high, flags, width = _NODE.unpack_from(page, at)
                data = at + 8 + width
                if data <= self.page_size:
                    place = number * self.page_size + data
                    yield page[at + 8 : data], flags, place, low | high << 16
                    continue
            self.problems.append(f"page {number} has a damaged entry")

    def _place(self, db: str, key: bytes, flags: int, offset: int, size: int) -> Entry | None:
        """The entry of a node, whose value may have pages of its own."""
        if flags & _BIG:
            (number,) = struct.unpack("<Q", self._at(offset, 8).ljust(8, b"\xff"))
            head = self._at(number * self.page_size, 16)
            if len(head) < 16 or _PAGE.unpack(head)[:3:2] != (number, _OVERFLOW):
                self.problems.append(f"page {number}, where a value of {db} begins, is damaged")
                return None
            offset = number * self.page_size + 16
        if offset + size > self.size:
            self.problems.append(f"a value of {db} ends {offset + size - self.size} bytes too late")
            return None
        return Entry(db, key, offset, size)

    def _at(self, offset: int, size: int) -> bytes:
        if offset + size > self.size:
            size = max(0, self.size - offset)
        return os.pread(self.file.fileno(), size, offset) if size else b""
