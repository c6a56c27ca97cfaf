"""Tar archives of frames as sources: read where they lie, never unpacked.

`frames.tar` is read like a folder. Of a tar with several samples, such as a WebDataset shard,
`shard.tar#sample` chooses one.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from flamvid.errors import DecodeError, FlamvidError, InputError, SourceError
from flamvid.video.pictures import FOLDER_FPS, PICTURES, PictureFrames, natural, open_files

__all__ = ["Member", "is_archive", "members", "open_archive", "parted", "samples"]

_MOST_MEMBERS = 1_000_000
_MOST_BYTES = 256 << 20  # of one picture's file
_LONGEST_HEADER = 64 << 10  # bytes: names and the like
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: `length` bytes from `start`. Its name is a label, and never opened."""

    archive: Path
    name: str
    start: int
    length: int

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        """Its bytes."""
        if self.length > _MOST_BYTES:
            raise DecodeError(
                f"{self} has {self.length} bytes; a picture may have {_MOST_BYTES >> 20} MiB"
            )
        with self.archive.open("rb") as file:
            file.seek(self.start)
            return io.BytesIO(file.read(self.length))

    def __str__(self) -> str:
        return f"{self.archive}: {_shown(self.name)}"


def is_archive(where: str | os.PathLike[str]) -> bool:
    """Whether this names a tar, or a sample of one: `shard.tar#sample`."""
    return parted(where)[0].name.lower().endswith(_SUFFIXES)


def open_archive(
    where: str | os.PathLike[str], size: tuple[int, int] | None, fps: float = FOLDER_FPS
) -> PictureFrames:
    """The pictures of a tar in natural order by name, `fps` of them a second."""
    path, wanted = parted(where)
    found = samples(path)
    if not found:
        raise SourceError(
            f"{path} holds no frames; frames are members that end in {', '.join(sorted(PICTURES))}"
        )
    names = list(found)
    some = ", ".join(map(_shown, names[:3])) + (", ..." if len(names) > 3 else "")
    if wanted is None and len(names) > 1:
        example = next((n for n in names if n and n.isprintable()), "NAME")
        raise InputError(
            f"{path} holds {len(names)} samples ({some}): choose one, as in {path}#{example}"
        )
    if wanted is None:
        wanted = names[0]
    if wanted not in found:
        raise InputError(f"{path} holds no sample {_shown(wanted)}; it has {some}")
    return open_files(found[wanted], os.fspath(where), "archive", fps, size)


def samples(path: Path) -> dict[str, list[Member]]:
    """The pictures of a tar by sample, in natural order.

    In a WebDataset shard a sample is the members whose names agree up to the first dot; a tar is
    one where a picture shares such a name. In any other tar a sample is a folder, "" at the top.
    """
    pictures: list[Member] = []
    others: set[str] = set()
    for member in members(path):
        if posixpath.basename(member.name).startswith("."):  # `._1.png` of a Mac is no picture
            continue
        if posixpath.splitext(member.name)[1].lower() in PICTURES:
            pictures.append(member)
        else:
            others.add(_key(member.name))
    pictures.sort(key=lambda member: natural(member.name))
    keys = [_key(member.name) for member in pictures]
    shard = len(set(keys)) < len(keys) or not others.isdisjoint(keys)
    found: dict[str, list[Member]] = {}
    for member, key in zip(pictures, keys, strict=True):
        found.setdefault(key if shard else posixpath.dirname(member.name), []).append(member)
    return found


def members(path: Path) -> list[Member]:
    """The regular files of a tar, later ones in place of earlier ones of the same name."""
    try:
        with path.open("rb") as file:
            return _listed(path, file)
    except FlamvidError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist; check the path") from error
    except PermissionError as error:
        raise SourceError(f"{path} can't be read: permission denied") from error
    except Exception as error:  # of a damaged header tarfile raises many things
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{path} is no sound tar: {said}; make or copy it again") from error


def _listed(path: Path, file: BinaryIO) -> list[Member]:
    start = file.read(6)
    packed = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
    if packed:
        raise SourceError(
            f"{path} is packed by {packed}, so its frames can't be reached one by one; unpack it "
            f"to a plain .tar first"
        )
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    found: dict[str, Member] = {}
    at = -1
    guarded: Any = _Guarded(file)
    tar: Any
    with tarfile.TarFile(fileobj=guarded) as tar:
        while (entry := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            if entry.offset_data + entry.size > size:
                raise SourceError(
                    f"{path} is truncated within {_shown(entry.name)}: "
                    f"{entry.offset_data + entry.size - size} bytes are missing; copy it again"
                )
            if entry.size < 0 or tar.offset <= at or len(found) > _MOST_MEMBERS:
                raise tarfile.ReadError(f"senseless header at byte {entry.offset}")
            at = tar.offset
            if entry.isreg() and not entry.issparse():  # no links, no devices
                name = posixpath.normpath(entry.name)
                found[name] = Member(path, name, entry.offset_data, entry.size)
        # At a damaged header tarfile stops as if the end were reached; the end is a block of zeros.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise SourceError(
                f"{path} is damaged or truncated at byte {tar.offset}; make or copy it again"
            )
    return list(found.values())


class _Guarded:
    """A file that headers are read from: they are short, whatever lengths they claim."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek: Callable[[int], int] = file.seek
        self.tell: Callable[[], int] = file.tell

    def read(self, count: int) -> bytes:
        if not 0 <= count <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {count} bytes")
        return self._file.read(count)


def parted(where: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Path and sample of `shard.tar#sample`."""
    text = os.fspath(where)
    for at in (i for i, c in enumerate(text) if c == "#" and not Path(text).exists()):
        if text[:at].lower().endswith(_SUFFIXES):
            return Path(text[:at]), text[at + 1 :]
    return Path(text), None


def _key(name: str) -> str:
    """What the names of one WebDataset sample have in common."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _shown(name: str) -> str:
    """A name from outside, on one line."""
    return name if name and name.isprintable() else repr(name)
