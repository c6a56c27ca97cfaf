"""What is to be indexed, one source after the other: folders, globs, lists and shards spelled out.

A source is a path, an address, or `shard.tar#member`. Nothing is opened here but lists and shards.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flamvid.errors import InputError, SourceError
from flamvid.video.archive import is_archive, members, parted, samples
from flamvid.video.pictures import natural

__all__ = ["VIDEOS", "Shard", "check", "in_shard", "sources", "videos"]

VIDEOS = frozenset(
    f".{ending}"
    for ending in (
        *("3gp", "asf", "avi", "flv", "gif", "m2ts", "m4v", "mjpeg", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogv", "ts", "vob", "webm", "wmv"),
    )
)
"""Names of the files in a folder that are taken for videos."""

_log = logging.getLogger("flamvid.index.manifest")
_LISTS = (".csv", ".jsonl", ".ndjson", ".txt")
_COLUMNS = ("source", "path", "video", "file", "filename", "url")
_LONGEST_LINE = 1 << 20


def sources(arguments: Iterable[str], stdin: IO[str] | None = None) -> Iterator[str]:
    """Every source that the arguments name, in order; a folder's and a glob's in natural order.

    A folder stands for the videos in it, however deep; a list (`.csv`, `.jsonl`, `.txt`, or `-` for
    lines of standard input) for its lines, whose relative paths start at the list's folder; a tar
    for its samples. Paths come out absolute. InputError where a list breaks a rule or a name is
    that of nothing.
    """
    for argument in arguments:
        if argument == "-":
            found = _lines(stdin or sys.stdin, "standard input", Path())
        else:
            found = _argument(argument)
        # Whole paths: the store is of use from other folders than this one.
        yield from (name if "://" in name else os.path.abspath(name) for name in found)


def check(arguments: Iterable[str]) -> None:
    """InputError for the first that names nothing, without a look at what is in the others."""
    for argument in arguments:
        elsewhere = argument == "-" or "://" in argument or parted(argument)[1] is not None
        if not (elsewhere or Path(argument).exists() or glob.has_magic(argument)):
            raise _missing(argument)


def _missing(argument: str) -> InputError:
    return InputError(f"{argument} does not exist; check the path")


def _argument(argument: str) -> Iterator[str]:
    path = Path(argument)
    if "://" in argument:
        yield argument
    elif path.is_dir():
        yield from videos(path)
    elif path.exists():
        yield from _file(path)
    elif parted(argument)[1] is not None:
        yield argument
    elif glob.has_magic(argument):
        found = sorted(glob.glob(argument, recursive=True), key=natural)
        if not found:
            raise InputError(f"no file matches {argument}; check the pattern and the folder")
        for match in map(Path, found):
            if not match.is_dir():
                yield from _file(match)
            elif "**" not in argument:  # which matches what is in them too
                yield from videos(match)
    else:
        raise _missing(argument)


def videos(folder: Path) -> Iterator[str]:
    """The videos in a folder, however deep, and the samples of its tars, in natural order."""
    seen: set[tuple[int, int]] = set()  # links may lead back to where they are
    for here, folders, files in os.walk(folder, onerror=_unlisted, followlinks=True):
        with suppress(OSError):  # it went just now
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted((name for name in folders if name[0] != "."), key=natural)
        for name in sorted(files, key=natural):
            path = Path(here, name)
            if name[0] != "." and path.suffix.lower() in VIDEOS:
                yield str(path)
            elif name[0] != "." and path.suffix.lower() == ".tar":
                yield from _shard(path)


def _unlisted(error: OSError) -> None:
    _log.warning("%s can't be listed (%s)", error.filename, error.strerror)


def _file(path: Path) -> Iterator[str]:
    if path.suffix.lower() in _LISTS:
        # Names may hold bytes that are no UTF-8: they come back as they were.
        try:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                yield from _lines(file, str(path), path.parent)
        except OSError as error:
            raise InputError(f"the list {path} can't be read ({error.strerror})") from error
    elif is_archive(path):
        yield from _shard(path)
    else:
        yield str(path)


def _lines(file: IO[str], name: str, base: Path) -> Iterator[str]:
    kind = Path(name).suffix.lower()
    if kind == ".csv":
        yield from _table(csv.DictReader(file), name, base)
        return
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
        if line.strip() and not (line[0] == "#" and kind == ".txt"):
            yield _placed(_line(line, f"line {number} of {name}"), base)


def _line(line: str, where: str) -> str:
    """The source in a line: a path as it stands, or an object of JSON."""
    if not line.lstrip().startswith("{"):
        return line.rstrip("\r\n")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is no JSON ({error}); correct it") from error
    return _source(row, where)


def _table(rows: csv.DictReader[str], name: str, base: Path) -> Iterator[str]:
    try:
        for row in rows:
            yield _placed(_source(row, f"line {rows.line_num} of {name}"), base)
    except csv.Error as error:
        raise InputError(f"line {rows.line_num} of {name} is no CSV ({error})") from error


def _source(row: dict[Any, Any], where: str) -> str:
    for column in _COLUMNS:
        if isinstance(value := row.get(column), str) and value:
            return value
    raise InputError(f"{where} names no source; it needs one of {', '.join(_COLUMNS)}")


def _placed(source: str, base: Path) -> str:
    if "\0" in source:
        raise InputError(f"{source!r} has a zero byte in it, which no name has")
    return source if "://" in source else os.path.join(base, source)


def _shard(path: Path) -> Iterator[str]:
    """The samples of a tar: its video files, or pictures that belong together."""
    try:
        yield from (f"{path}#{name}" for name in in_shard(path))
    except SourceError:
        yield str(path)  # what is wrong with it is said when its turn comes, and is in the ledger


def in_shard(path: Path) -> Sequence[str]:
    """Names of the samples in a tar, each of which `path#name` stands for."""
    films = [m.name for m in members(path) if Path(m.name).suffix.lower() in VIDEOS]
    return films or list(samples(path))


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` (from 0) of `count` equal parts of all sources.

    A source belongs to one by its name, whichever others there are: a library may grow meanwhile.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise InputError(
                f"the shard is {self.number}/{self.count}; must be I/N with I from 0 to N - 1"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Of `I/N`."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if found is None:
            raise InputError(f"the shard is {text!r}; must be I/N, such as 0/4")
        return cls(int(found[1]), int(found[2]))

    def __contains__(self, source: str) -> bool:
        digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number
