"""Captions to text, JSON, SRT or WebVTT, on stdout as they come or in a file at once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from flamvid.cli.failure import ClosedPipe, OutputError, one_line
from flamvid.errors import FlamvidError, InputError
from flamvid.types import Caption

__all__ = [
    "Encoder",
    "Format",
    "Output",
    "check_target",
    "encoder",
    "format_for",
    "open_output",
    "write_whole",
]

_SHORTEST_MS = 100  # of a cue: players drop those that end where they start


class Format(StrEnum):
    """How captions are written."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    srt = "srt"
    vtt = "vtt"


Kind = TypeVar("Kind", bound=StrEnum)


class Encoder(Protocol):
    """Captions one at a time to pieces of text; `close` gives what comes after the last."""

    def encode(self, caption: Caption) -> str: ...

    def close(self) -> str: ...


class _Text:
    """The sentence; before it the source if there are many, and the time if it matters."""

    def __init__(self, *, many: bool, timed: bool) -> None:
        self.many, self.timed = many, timed

    def encode(self, caption: Caption) -> str:
        text = one_line(caption.text)
        if self.timed:
            text = f"{_clock(caption.start)}-{_clock(caption.end)} {text}"
        return f"{one_line(caption.source)}: {text}\n" if self.many else f"{text}\n"

    def close(self) -> str:
        return ""


class _JsonLines:
    """One object per line."""

    def encode(self, caption: Caption) -> str:
        return _json(caption) + "\n"

    def close(self) -> str:
        return ""


class _JsonArray:
    """One array of the same objects, one per line."""

    def __init__(self) -> None:
        self.lead = "[\n"

    def encode(self, caption: Caption) -> str:
        lead, self.lead = self.lead, ",\n"
        return lead + _json(caption)

    def close(self) -> str:
        return "[]\n" if self.lead == "[\n" else "\n]\n"


class _Cues:
    """What SRT and WebVTT share: whole milliseconds, starts that never go back, no empty cue."""

    head, comma = "", ","

    def __init__(self) -> None:
        self.number, self.latest = 0, 0

    def encode(self, caption: Caption) -> str:
        text = self.escape(one_line(caption.text))
        if not text:
            return ""
        start = max(round(caption.start * 1000), self.latest)
        end = max(round(caption.end * 1000), start + _SHORTEST_MS)
        self.number, self.latest = self.number + 1, start
        head = self.head if self.number == 1 else ""
        times = f"{_stamp(start, self.comma)} --> {_stamp(end, self.comma)}"
        return f"{head}{self.number}\n{times}\n{text}\n\n"

    def escape(self, text: str) -> str:
        return text.replace("-->", "->")

    def close(self) -> str:
        return "" if self.number else self.head


class _Srt(_Cues):
    """SubRip: numbered from 1, times with a comma."""


class _Vtt(_Cues):
    """WebVTT: a header, times with a dot, and text escaped as HTML is."""

    head, comma = "WEBVTT\n\n", "."

    def escape(self, text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def encoder(kind: Format, *, many: bool = False, timed: bool = False) -> Encoder:
    """A fresh encoder; `many` sources and `timed` captions only matter to text."""
    match kind:
        case Format.text:
            return _Text(many=many, timed=timed)
        case Format.json:
            return _JsonArray()
        case Format.jsonl:
            return _JsonLines()
        case Format.srt:
            return _Srt()
        case Format.vtt:
            return _Vtt()


def format_for(kinds: type[Kind], chosen: Kind | None, target: Path | str | None) -> Kind:
    """The chosen format, else the one that the file's name ends in; text for .txt and no ending.

    Raises InputError for another ending: who names a file .csv expects no plain text in it.
    """
    if chosen is not None:
        return chosen
    ending = Path(target or "").suffix.removeprefix(".").lower()
    if ending in ("", "txt"):
        return kinds("text")
    if ending not in set(kinds):
        *known, last = [f".{kind}" for kind in kinds if kind != "text"] + [".txt"]
        raise InputError(
            f"{target} ends in .{ending}, which is no format; end its name in "
            f"{', '.join(known)} or {last}, or give --format"
        )
    return kinds(ending)


class Output:
    """Where captions go. Every caption is whole and flushed when `write` returns."""

    def __init__(self, stream: IO[str], encoding: Encoder, name: str) -> None:
        self.stream, self.encoding, self.name = stream, encoding, name
        self.count = 0

    def write(self, caption: Caption) -> None:
        """Write one caption; OutputError when it can't be written."""
        for key in ("start", "end", "logprob"):
            if not math.isfinite(value := getattr(caption, key)):
                raise FlamvidError(
                    f"the caption of {caption.source} has {key} {value}; must be finite: "
                    "try --dtype float32, or another model"
                )
        self._put(self.encoding.encode(caption))
        self.count += 1

    def finish(self) -> None:
        """Write what comes after the last caption."""
        self._put(self.encoding.close())

    def _put(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError as error:
            raise ClosedPipe(f"{self.name} was closed by its reader") from error
        except OSError as error:
            raise OutputError(f"can't write to {self.name} ({error.strerror})") from error


def check_target(target: Path | None, sources: list[str], flag: str = "--output") -> None:
    """Refuse, before any work is done, a target that can't be or would destroy a source."""
    if target is None or str(target) == "-":
        return
    if target.is_dir():
        raise InputError(f"{flag} is {target}, a folder; give the name of a file in it")
    if not target.resolve().parent.is_dir():
        raise InputError(
            f"{flag} is {target}, but the folder {target.parent} does not exist; create it first"
        )
    for source in sources:
        with contextlib.suppress(OSError):
            if os.path.samefile(source, target):
                raise InputError(f"{flag} is {target}, which is a source; give another name")


@contextmanager
def open_output(encoding: Encoder, target: Path | None) -> Iterator[Output]:
    """An output that is complete at the end, also when it was interrupted.

    A file appears whole, in place of what was there, and only if there is a caption to keep.
    """
    if target is None or str(target) == "-":
        yield from _to_stdout(encoding)
    elif target.exists() and not target.is_file():  # a device or a named pipe can't be replaced
        with _opened(target, str(target)) as stream:
            yield from _complete(Output(stream, encoding, str(target)))
    else:
        yield from _to_file(encoding, target.resolve())


def write_whole(data: bytes, target: Path | None) -> None:
    """Write what is made already, to stdout or in place of a file."""
    name = "stdout" if target is None or str(target) == "-" else str(target)
    try:
        if name == "stdout":
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
            return
        assert target is not None
        if target.exists() and not target.is_file():  # a device or a named pipe can't be replaced
            target.write_bytes(data)
            return
        real = target.resolve()
        handle, temporary = tempfile.mkstemp(".part", f".{real.name[:100]}.", real.parent)
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                _replace(file, Path(temporary), real)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except BrokenPipeError as error:
        raise ClosedPipe(f"{name} was closed by its reader") from error
    except OSError as error:
        raise OutputError(f"can't write to {name} ({error.strerror})") from error


def _to_stdout(encoding: Encoder) -> Iterator[Output]:
    if sys.stdout is None:
        raise OutputError("stdout is closed; give --output, or do not close it")
    # Names of files may hold bytes that are no UTF-8; in JSON the escape reads back as they were.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
    yield from _complete(Output(sys.stdout, encoding, "stdout"))


def _complete(out: Output) -> Iterator[Output]:
    """Finish a stream after success and interruption; after an error only what was begun."""
    try:
        yield out
    except OutputError:
        raise
    except KeyboardInterrupt:
        out.finish()
        raise
    except BaseException:
        if out.count:
            out.finish()
        raise
    out.finish()


def _to_file(encoding: Encoder, target: Path) -> Iterator[Output]:
    """A temporary file beside the target that takes its name once it is on the disk."""
    try:
        handle, temporary = tempfile.mkstemp(".part", f".{target.name[:100]}.", target.parent)
    except OSError as error:
        raise OutputError(
            f"can't write to the folder {target.parent} ({error.strerror})"
        ) from error
    part = Path(temporary)
    try:
        with _opened(handle, str(target)) as stream:
            out = Output(stream, encoding, str(target))
            try:
                yield out
            finally:
                # Also after an interrupt: what is there is kept. An old file is not emptied.
                if out.count:
                    out.finish()
                    _replace(stream, part, target)
    finally:
        part.unlink(missing_ok=True)


def _replace(stream: IO[Any], part: Path, target: Path) -> None:
    try:
        os.fsync(stream.fileno())
        part.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        part.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise OutputError(f"can't write {target} ({error.strerror})") from error


@contextmanager
def _opened(file: Path | int, name: str) -> Iterator[IO[str]]:
    """A stream that closes without a second complaint when a write failed."""
    try:
        stream = open(file, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"can't write to {name} ({error.strerror})") from error
    try:
        yield stream
    except BaseException:
        with contextlib.suppress(OSError):
            stream.close()
        raise
    try:
        stream.close()
    except OSError as error:
        raise OutputError(f"can't write to {name} ({error.strerror})") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _json(caption: Caption) -> str:
    return json.dumps(asdict(caption), ensure_ascii=False, allow_nan=False)


def _clock(seconds: float) -> str:
    """0:00:05.000"""
    return _stamp(round(max(seconds, 0.0) * 1000), ".").removeprefix("0")


def _stamp(ms: int, comma: str) -> str:
    """00:00:05,000; hours have two digits or more."""
    minutes, rest = divmod(ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{comma}{rest % 1000:03}"
