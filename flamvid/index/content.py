"""What a source consists of, so that a copy under another name is known for what it is."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flamvid.errors import SourceError
from flamvid.index.manifest import VIDEOS
from flamvid.store.places import gone
from flamvid.video.address import shown
from flamvid.video.archive import Member, is_archive, members, parted, samples

__all__ = ["Content", "Gone", "identify", "on_disk", "status"]

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """sha256 in hex, size in bytes, and when it was last changed (since 1970, s)."""

    sha256: str
    size: int
    mtime: float


def status(source: str) -> tuple[int, float] | None:
    """Size of what a source consists of, and when that was changed; None for what isn't a file."""
    try:
        found = parted(source)[0].stat() if is_archive(source) else os.stat(source)
    except (OSError, ValueError):
        return None
    with suppress(OSError, SourceError):  # of a broken tar it is that of the tar
        return sum(map(_size, _files(source))), found.st_mtime
    return found.st_size, found.st_mtime


def identify(source: str) -> Content:
    """Read a source through once. An address is taken for what it names: it is not fetched twice.

    SourceError where it can't be read.
    """
    if "://" in source:
        return Content(hashlib.sha256(shown(source).encode()).hexdigest(), 0, 0.0)
    try:
        path = parted(source)[0] if is_archive(source) else Path(source)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise SourceError(f"{source} is no file; give a video")
        return _content(_files(source), path.stat().st_mtime)
    except FileNotFoundError:
        raise SourceError(f"{source} does not exist; check the path") from None
    except OSError as error:
        raise SourceError(f"{source} can't be read: {error.strerror}") from error


class Gone:
    """Whether a source is no longer where it was: a file, a tar, or a sample in one.

    A tar is listed once: make another when it may have changed.
    """

    def __init__(self) -> None:
        self._names: dict[Path, set[str] | None] = {}

    def __call__(self, source: str) -> bool:
        if "://" in source or not is_archive(source):
            return gone(source)
        path, wanted = parted(source)
        if path not in self._names:
            self._names[path] = _names(path)
        names = self._names[path]
        return gone(source) if names is None or wanted is None else wanted not in names


def _names(path: Path) -> set[str] | None:
    """What samples a tar holds; None where it can't be told."""
    try:
        return {*(member.name for member in members(path)), *samples(path)}
    except SourceError:
        return None


def _files(source: str) -> list[Path] | list[Member]:
    """The video, or its pictures."""
    if is_archive(source):
        return _members(source)
    path = Path(source)
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _size(file: Path | Member) -> int:
    return file.stat().st_size if isinstance(file, Path) else file.length


def _content(files: list[Path] | list[Member], mtime: float) -> Content:
    digest, size = hashlib.sha256(), 0
    for each in files:
        if len(files) > 1:  # where one picture ends is part of what they are
            digest.update(f"{_size(each)} ".encode())
        for block in _blocks(each):
            digest.update(block)
            size += len(block)
    return Content(digest.hexdigest(), size, mtime)


def _blocks(file: Path | Member) -> Iterator[bytes]:
    start, left = (file.start, file.length) if isinstance(file, Member) else (0, 1 << 62)
    with (file.archive if isinstance(file, Member) else file).open("rb") as stream:
        stream.seek(start)
        while left and (block := stream.read(min(left, _BLOCK))):
            left -= len(block)
            yield block


def _members(source: str) -> list[Member]:
    """The files of a sample: one video, or its pictures."""
    path, wanted = parted(source)
    if Path(wanted or "").suffix.lower() in VIDEOS:
        return [_film(path, wanted or "")]
    found = _samples(path, path.stat().st_mtime_ns)
    if wanted is None and len(found) == 1:
        return next(iter(found.values()))
    if wanted not in found:
        raise SourceError(f"{path} holds no sample {wanted!r}; give its name behind the #")
    return found[wanted]


def _film(path: Path, name: str) -> Member:
    found = _listing(path, path.stat().st_mtime_ns).get(name)
    if found is not None:
        return found
    raise SourceError(f"{path} holds no file {name!r}; give its name behind the #")


@lru_cache(maxsize=4)
def _listing(path: Path, changed: int) -> dict[str, Member]:
    """A tar's files by name: it is asked for each of them, and read through to tell."""
    return {member.name: member for member in members(path)}


@lru_cache(maxsize=4)
def _samples(path: Path, changed: int) -> dict[str, list[Member]]:
    """The same of pictures."""
    return samples(path)


@contextmanager
def on_disk(source: str) -> Iterator[str]:
    """The source as decoders can open it: a video inside a tar is copied out for the while."""
    if not is_archive(source):
        yield source
        return
    path, wanted = parted(source)
    suffix = Path(wanted or "").suffix.lower()
    if suffix not in VIDEOS:
        yield source
        return
    member = _film(path, wanted or "")
    # The name is ours: what a tar calls its members is never a path.
    with tempfile.NamedTemporaryFile(prefix="flamvid-", suffix=suffix) as copy:
        if member.length > shutil.disk_usage(os.path.dirname(copy.name)).free:
            raise SourceError(f"{source} has {member.length} bytes, more than $TMPDIR has room for")
        for block in _blocks(member):
            copy.write(block)
        copy.flush()
        yield copy.name
