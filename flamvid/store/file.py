"""One store file, open once per process, whoever reads or writes it.

LMDB allows one environment per file and process, whose transactions die when its map grows or the
process forks. So all who use a file in a process share a `StoreFile`; its `generation` counts how
often that happened, and who holds a transaction of an older one begins another.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import shutil
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lmdb
import numpy as np
from numpy.typing import NDArray

from flamvid.errors import DamagedStore, StoreError
from flamvid.store.schema import DATABASES

__all__ = ["Holder", "Pinned", "StoreFile", "abandon", "frontier", "open_file", "translated"]

_NO_RESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python names it since 3.13
_READERS = 1024
_FIRST_MAP = 64 << 20
_ROOM, _ROOM_TIMES = 16 << 30, 8  # address space that a reader asks for: at least, times the file

_LMDB_MAGIC = 0xBEEFC0DE
_PAGE_HEADER = 16
_SMALLEST_PAGE = 4096
_OVERFLOW = 4  # the flag of a page that begins a value too large for a leaf
_META = struct.Struct("<16xII16xI92xQQ")  # magic, version, page size, last page, transaction

_open: weakref.WeakValueDictionary[tuple[int, int], StoreFile] = weakref.WeakValueDictionary()
_opening = threading.RLock()


def open_file(path: str | os.PathLike[str], *, write: bool = False) -> StoreFile:
    """The file's one `StoreFile` of this process; with `write` it is made if there is none."""
    path = Path(path)
    with _opening:
        if write and not path.exists():
            file = StoreFile(path, write=True)
            return _open.setdefault(_identity(path), file)
        key = _identity(path)
        found = _open.get(key)
        if found is None:
            found = _open[key] = StoreFile(path, write=write)
        elif write:
            found.make_writable()
        return found


def abandon(path: Path) -> None:
    """Let go of a file that is about to be replaced; those who read it open the new one."""
    with _opening:
        file = _open.pop(_identity(path), None)
        if file is not None:
            file.replaced = True
            file.close()


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise StoreError(
            f"can't open the store {path} ({error.strerror}); give one that `flamvid index` made"
        ) from error
    if path.is_dir():
        raise StoreError(f"{path} is a folder; a store is one file")
    return status.st_dev, status.st_ino


def frontier(fd: int, path: Path) -> int:
    """Bytes that LMDB uses, by the first two pages of a file, which must be there."""
    try:
        data, size = os.pread(fd, 1 << 16, 0), os.fstat(fd).st_size
        if not size:
            raise StoreError(
                f"{path} is no feature store, but empty; give one that `flamvid index` made"
            )
        meta = _META.unpack_from(data) if len(data) >= _META.size else (0,) * 5
        magic, version, page, last, txn = meta
        if magic != _LMDB_MAGIC:
            raise StoreError(f"{path} is no feature store; give one that `flamvid index` made")
        twin = _META.unpack_from(data, page) if page in (4096, 8192, 16384, 32768) else None
    except struct.error:
        twin = None
    if twin is None or version != 1 or twin[:3] != (magic, version, page):
        raise DamagedStore(f"{path} has a damaged first page; save it with `flamvid store repair`")
    used = int(page * ((last if txn > twin[4] else twin[3]) + 1))
    if size < used:
        raise DamagedStore(
            f"{path} is truncated: {size:,} of {used:,} bytes are there; copy it again, or save "
            "what is left with `flamvid store repair`"
        )
    return used


class StoreFile:
    """The environment of one file, its databases, and a map of its bytes for arrays to lie in."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.generation = 0
        self.replaced = False
        self._writable = write
        self._lmdb: lmdb.Environment | None = None
        self._fd = -1
        self._map: NDArray[np.uint8] | None = None
        self.databases: dict[str, Any] = {}
        self.pinned: weakref.WeakSet[Pinned] = weakref.WeakSet()
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        with self.lock:
            self.environment()

    # -- opening --

    def environment(self) -> lmdb.Environment:
        """LMDB's side, opened if it isn't; the caller holds `lock`."""
        if self.replaced:
            raise StoreError(f"{self.path} was replaced by a new file; take a new snapshot")
        if self._lmdb is None:
            with translated(self.path):
                self._open()
        assert self._lmdb is not None
        return self._lmdb

    def _open(self) -> None:
        new = self._writable and not (self.path.exists() and self.path.stat().st_size)
        if not new:
            self._hold()
        room = _FIRST_MAP if new else 0
        if not self._writable:
            # Address space costs nothing; a limit on it (ulimit -v) is met with what is needed.
            room = max(_ROOM, _ROOM_TIMES * os.fstat(self._fd).st_size)
        try:
            self._lmdb = self._environment(room)
        except (MemoryError, lmdb.Error) as error:
            if not room or new or "allocate memory" not in str(error):
                raise
            self._lmdb = self._environment(0)
        if new:
            self._hold()
        self.databases = {}
        names = {bytes(name) for name in self._lmdb.dbs()}
        expected = {name.encode() for name in DATABASES}
        # What was killed while it made a store is made whole; what others made is left alone.
        if names - expected or (names != expected and not self._writable):
            self.close()
            raise StoreError(f"{self.path} is no feature store; give one that `flamvid index` made")
        for name in DATABASES:
            self.databases[name] = self._lmdb.open_db(name.encode(), create=self._writable)

    def _environment(self, room: int) -> lmdb.Environment:
        options: dict[str, Any] = {
            "subdir": False,
            "map_size": room,
            "max_dbs": len(DATABASES),
            "max_readers": _READERS,
            "readahead": False,
            "meminit": self._writable,
            "lib_version": 0,
        }
        if self._writable:
            # The page that makes a commit valid follows with the next one or at closing: a crash
            # of the machine may undo the last transaction, and never tears one.
            return lmdb.open(str(self.path), metasync=False, mode=0o644, **options)
        try:
            return lmdb.open(str(self.path), readonly=True, create=False, **options)
        except lmdb.Error as error:
            if os.access(self.path.parent, os.W_OK) and "Read-only" not in str(error):
                raise
            # Nobody can write there: no lock is needed, and none could be made.
            return lmdb.open(str(self.path), readonly=True, create=False, lock=False, **options)

    def _hold(self) -> None:
        """Open the bytes, and keep `compact` and `repair` from replacing the file meanwhile."""
        while True:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    break
            os.close(fd)
        self._fd = fd
        frontier(fd, self.path)

    def make_writable(self) -> None:
        """Open for writing what was open for reading."""
        with self.lock:
            if not self._writable:
                self.close()
                self._writable = True
                try:
                    self.environment()
                except BaseException:  # who reads goes on
                    self.close()
                    self._writable = False
                    raise

    # -- using --

    def latest(self) -> int:
        """The number of the last transaction that was committed; the caller holds `lock`."""
        return int(self.environment().info()["last_txnid"])

    def begin(self) -> lmdb.Transaction:
        """A read transaction; the caller holds `lock`."""
        with translated(self.path):
            try:
                return self.environment().begin(buffers=True)
            except lmdb.MapResizedError:
                self.grow(0)
                return self.environment().begin(buffers=True)

    def grow(self, size: int) -> None:
        """Map `size` bytes, or with 0 what other processes map."""
        with self.lock:
            self._detach()
            self.environment().set_mapsize(size)
            self.generation += 1

    def pin(self, value: memoryview, snapshot: Holder) -> Pinned | None:
        """The bytes of a value of the snapshot, for as long as the result is alive.

        None where they lie within a page, with others: those are small, and copied. The caller
        holds `lock`. The map is ours: LMDB's own goes away when it grows.
        """
        place = _overflow(value)
        if place is None:
            return None
        end = place + len(value)
        if self._map is None or len(self._map) < end:
            size = os.fstat(self._fd).st_size
            if size < end:
                return None
            # Private, so that `_detach` can; what nobody writes is shared all the same.
            flags, may = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            self._map = np.frombuffer(mmap.mmap(self._fd, size, flags, may), np.uint8)
        pinned = Pinned(snapshot, self._map[place:end])
        self.pinned.add(pinned)
        return pinned

    def _detach(self) -> None:
        """Give arrays that are alive bytes of their own: their transactions are about to end.

        To write a page of a private map, even what is there already, is to copy it.
        """
        for pinned in list(self.pinned):
            data = pinned.data
            data[:: mmap.PAGESIZE] = data[:: mmap.PAGESIZE].copy()  # to itself numpy writes nothing
            data[-1:] = data[-1:].copy()

    # -- closing --

    def close(self, *, write: bool | None = None) -> None:
        """Let go of the file; the next use opens it again. Arrays that were read stay."""
        with self.lock:
            if write is None:  # else it is a child's, and the parent still holds its transactions
                self._detach()
            else:
                self._writable = write
            # A transaction that is merely dropped leaves its slot in the lock file alone if the
            # process that made it was another; closing LMDB's environment would not.
            for holder in list(self.holders):
                holder.drop()
            self.generation += 1
            if self._lmdb is not None:
                self._lmdb.close()
            if self._fd >= 0:
                os.close(self._fd)
            self._lmdb, self._fd, self._map = None, -1, None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


class Pinned:
    """Bytes of the file that LMDB won't give to others while an array of them is alive."""

    def __init__(self, snapshot: Holder, data: NDArray[np.uint8]) -> None:
        self.snapshot, self.data = snapshot, data

    @property
    def __array_interface__(self) -> dict[str, Any]:
        interface = self.data.__array_interface__
        return {**interface, "data": (interface["data"][0], True)}  # read-only


class Holder(Protocol):
    """Who keeps a transaction."""

    def drop(self) -> None:
        """Forget it."""


def _overflow(value: memoryview) -> int | None:
    """The place in the file of a value that has pages of its own, else None."""
    address: int = np.frombuffer(value, np.uint8).__array_interface__["data"][0]
    if address % _SMALLEST_PAGE != _PAGE_HEADER:
        return None
    page = address - _PAGE_HEADER
    number, flags = ctypes.c_uint64.from_address(page), ctypes.c_uint16.from_address(page + 10)
    return number.value * mmap.PAGESIZE + _PAGE_HEADER if flags.value == _OVERFLOW else None


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """LMDB's errors and the system's in our words, and ours with the store's name."""
    try:
        yield
    except (lmdb.MapFullError, lmdb.MapResizedError):
        raise
    except StoreError as error:
        if str(path) in str(error):
            raise
        way_out = "; `flamvid store repair` saves what is sound"
        text = f"{path}: {error}{way_out if isinstance(error, DamagedStore) else ''}"
        raise type(error)(text) from error
    except (
        lmdb.BadTxnError,  # it met a damaged page before
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
    ) as error:
        raise DamagedStore(
            f"{path} is damaged ({_reason(error)}); `flamvid store repair` saves what it can"
        ) from error
    except lmdb.VersionMismatchError as error:
        raise StoreError(f"{path} was written by another LMDB ({_reason(error)})") from error
    except lmdb.ReadersFullError as error:
        raise StoreError(f"{path} has {_READERS} readers, the most there can be") from error
    except (lmdb.Error, MemoryError) as error:
        # LMDB calls a write that was cut short by a full disk an input/output error.
        short = "Input/output" in str(error) and shutil.disk_usage(path.parent).free < 1 << 20
        if short or "No space left" in str(error):
            raise StoreError(
                f"can't write {path}: the disk is full; what was committed is safe, so free some "
                "space and run it again"
            ) from error
        raise StoreError(f"can't use the store {path} ({_reason(error)})") from error
    except OSError as error:
        raise StoreError(f"can't use the store {path} ({error.strerror})") from error


def _reason(error: BaseException) -> str:
    """What LMDB says, without the name of its function and the path."""
    return str(error).rpartition(": ")[2] or type(error).__name__


def _before_fork() -> None:
    """No other thread may be inside LMDB at the fork, or its transaction could not be dropped."""
    _opening.acquire()
    for file in list(_open.values()):
        file.lock.acquire()
        _held.append(file)


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()
    _opening.release()


def _in_child() -> None:
    files = list(_held)
    _after_fork()
    for file in files:
        file.close(write=False)


_held: list[StoreFile] = []
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
