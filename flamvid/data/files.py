"""Files of a corpus, on this machine or elsewhere: names to addresses, and pieces of them to bytes.

An address is a path, or a URL of a scheme that fsspec knows (http, https, s3, gs, ...).
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Literal, cast

import braceexpand
import fsspec

from flamvid.errors import ConfigError, SourceError
from flamvid.video.address import shown

__all__ = [
    "Held",
    "Piece",
    "expand",
    "failing",
    "is_remote",
    "joined",
    "open_file",
    "suffix_of",
    "system_of",
]

_MOST_BYTES = 8 << 30  # of one member: a header of a few bytes can claim anything
_MOST_PICTURE = 256 << 20  # the web may answer without an end
_SILENT, _LONGEST = 30.0, 3600.0  # seconds without an answer, and of one
_BLOCK = 1 << 20
_REQUEST = 64 << 20


def is_remote(address: str) -> bool:
    """Whether this is a URL and no path."""
    return "://" in address


def expand(sources: Sequence[str], root: Path, where: str) -> list[str]:
    """The files that globs and addresses name, in order; ConfigError for one that names none.

    `{000..041}` stands for all these numbers, in addresses too.
    """
    found: list[str] = []
    for source in sources:
        for name in braceexpand.braceexpand(source) if "{" in source else [source]:
            matches = _remote(name, where) if is_remote(name) else _local(root / name)
            if not matches:
                place = ", or its server does not answer" if is_remote(name) else f" in {root}"
                raise ConfigError(
                    f"{where}: no file matches {shown(name)!r}{place}; correct the recipe, or the "
                    "folder of the data"
                )
            found += matches
    if twice := {name for name in found if found.count(name) > 1}:
        raise ConfigError(f"{where}: {shown(min(twice))} is named twice; name each file once")
    return found


def _local(path: Path) -> list[str]:
    if path.is_file():  # whatever characters are in its name
        return [str(path)]
    return [name for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]


def _remote(address: str, where: str) -> list[str]:
    with failing(address, where):
        system, path = system_of(address)
        # A web address may ask its server for something, and has brackets around some hosts.
        if not any(c in path for c in ("*" if address.lower().startswith("http") else "*?[")):
            return [address] if system.exists(path) else []
        return sorted(system.unstrip_protocol(name) for name in system.glob(path))
    return []


@contextlib.contextmanager
def failing(address: str, where: str = "") -> Iterator[None]:
    """What a file system raises within the block becomes one line that names the address."""
    try:
        yield
    except (ConfigError, SourceError):
        raise
    except ImportError as error:
        # fsspec has no name of the module, but "Install s3fs to access S3".
        named = re.search(r"(?<=nstall )\w+|aiohttp", str(error))
        module = error.name or (named[0] if named else str(error))
        extra = "flamvid[data]" if module in ("aiohttp", "pyarrow", "requests") else module
        raise ConfigError(f"{shown(address)} needs {module}; pip install {extra}") from error
    except Exception as error:  # each file system of fsspec has errors of its own
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"{f'{where}: ' if where else ''}{shown(address)} can't be read: {said}"
        ) from error


def open_file(address: str) -> BinaryIO:
    """A file to read and to wind, opened."""
    if not is_remote(address):
        return open(address, "rb")
    system, path = system_of(address)
    return cast(BinaryIO, system.open(path, "rb"))


def system_of(address: str) -> tuple[Any, str]:
    """The file system of an address, and its path there; web servers that are silent are left."""
    if not address.lower().startswith(("http://", "https://")):
        found: tuple[Any, str] = fsspec.url_to_fs(address)
        return found
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=_LONGEST, sock_connect=_SILENT, sock_read=_SILENT)
    found = fsspec.url_to_fs(address, client_kwargs={"timeout": timeout})
    return found


def suffix_of(address: str) -> str:
    """How a file's name ends, in small letters; what an address asks of its server is no name."""
    path = address.partition("?")[0].partition("#")[0] if is_remote(address) else address
    return PurePosixPath(path).suffix.lower()


def joined(base: str, name: str) -> str:
    """The address of a file that a corpus names, which may not lead out of `base`.

    An http address is one wherever it is named. SourceError for any other way out.
    """
    if name.lower().startswith(("http://", "https://")):
        return name
    path = PurePosixPath(name)
    if is_remote(name) or path.is_absolute() or ".." in path.parts or "\0" in name or not name:
        raise SourceError(f"{name!r} leads out of {shown(base)}; a corpus names files inside")
    return f"{base.rstrip('/')}/{path}" if is_remote(base) else str(Path(base, path))


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that stood inside something else."""

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        """As a file in memory."""
        return io.BytesIO(self.data)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file: all of them, or a member of an archive. Its str names it in errors."""

    address: str
    member: str = ""
    start: int = 0
    size: int | None = None

    def __str__(self) -> str:
        return f"{shown(self.address)}{f'#{self.member}' if self.member else ''}"

    def read(self, most: int = _MOST_BYTES) -> bytes:
        """All its bytes; SourceError where they can't be had, or are too many."""
        if (self.size or 0) > most:
            raise SourceError(f"{self} has {self.size} bytes; at most {most} are read")
        with failing(self.address):
            if is_remote(self.address) and self.size is not None:  # one request rather than three
                system, path = system_of(self.address)
                data = cast(bytes, system.cat_file(path, self.start, self.start + self.size))
                if len(data) > self.size:  # a web server without ranges answers with everything
                    data = data[self.start : self.start + self.size]
            else:
                with open_file(self.address) as file:
                    file.seek(self.start)
                    data = file.read(most + 1 if self.size is None else self.size)
        if len(data) > most:
            raise SourceError(f"{self} has more than {most} bytes, which are not read")
        if self.size is not None and len(data) < self.size:
            raise SourceError(f"{self} is cut short; copy the file again")
        return data

    def open(self, mode: Literal["rb"] = "rb", /) -> BinaryIO:
        """The bytes of a picture as a file in memory."""
        return io.BytesIO(self.read(_MOST_PICTURE))

    @contextlib.contextmanager
    def as_file(self) -> Iterator[str]:
        """A path or web address that holds it alone, for the block; a copy where there is none."""
        whole = self.size is None
        if whole and (not is_remote(self.address) or self.address.startswith("http")):
            yield self.address
            return
        suffix = PurePosixPath(self.member).suffix or suffix_of(self.address)
        with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
            self._copy(copy)
            yield copy.name

    def _copy(self, to: IO[Any]) -> None:
        left = _MOST_BYTES if self.size is None else self.size
        if left > _MOST_BYTES:
            raise SourceError(f"{self} has {left} bytes; at most {_MOST_BYTES} are read")
        if is_remote(self.address) and self.size is not None:
            for at in range(0, left, _REQUEST):
                part = Piece(self.address, self.member, self.start + at, min(_REQUEST, left - at))
                to.write(part.read())
            to.flush()
            return
        with failing(self.address), open_file(self.address) as file:
            file.seek(self.start)
            while left and (block := file.read(min(left, _BLOCK))):
                to.write(block)
                left -= len(block)
        if left and self.size is not None:
            raise SourceError(f"{self} is cut short; copy the file again")
        to.flush()
