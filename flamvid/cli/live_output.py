"""Cues of a stream as text, JSON lines, SRT or WebVTT: each whole, and the file valid after it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flamvid.cli.failure import ClosedPipe, OutputError, one_line
from flamvid.cli.output import Encoder, Format, check_target, encoder, format_for
from flamvid.errors import InputError
from flamvid.types import Caption

if TYPE_CHECKING:
    from flamvid.live.cue import Cue
    from flamvid.live.sinks import Sink
    from flamvid.live.trigger import Bell

__all__ = ["CueEncoder", "StdoutSink", "check_sinks", "open_sink"]

_WEB, _EVENTS = ("http://", "https://"), "sse:"
_NOT_LIVE = "--format json is one array, which a stream never closes; choose jsonl"


class CueEncoder:
    """Cues to pieces of a file, `head` before the first.

    A gap is a note in WebVTT, and a cue of its own in SRT, which has no notes. number: how many
    cues there are already.
    """

    def __init__(self, kind: Format, number: int = 0) -> None:
        if kind is Format.json:
            raise InputError(_NOT_LIVE)
        self.kind = kind
        self._encoder: Encoder = encoder(kind, timed=True)
        self.head = "WEBVTT\n\n" if kind is Format.vtt else ""
        if kind in (Format.srt, Format.vtt):
            self._encoder.head = ""  # type: ignore[attr-defined]
            self._encoder.number = number  # type: ignore[attr-defined]

    def encode(self, cue: Cue) -> str:
        """A cue; nothing where the format has no place for it."""
        if self.kind is Format.jsonl:
            from flamvid.live.sinks import to_json

            return to_json(cue) + "\n"
        if cue.kind == "gap" and self.kind is Format.vtt:
            reason = one_line(cue.why).replace("-->", "->")
            return f"NOTE gap from {cue.start:.3f} s to {cue.end:.3f} s: {reason}\n\n"
        return self._encoder.encode(
            Caption(
                source=cue.source,
                start=cue.start,
                end=cue.end,
                text=_words(cue),
                logprob=cue.logprob,
                model=cue.model,
            )
        )


def _words(cue: Cue) -> str:
    if cue.kind == "gap":
        return f"[no picture: {cue.why}]"
    return f"[alert] {cue.text}" if cue.kind == "alert" else cue.text


class StdoutSink:
    """Standard output, flushed after every cue."""

    def __init__(self, encoding: CueEncoder) -> None:
        if sys.stdout is None:
            raise OutputError("stdout is closed; give --sink, or do not close it")
        self.lost, self._encoding = 0, encoding
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        self._write(encoding.head)

    def put(self, cue: Cue) -> None:
        """Write a cue; ClosedPipe where nobody reads any more."""
        self._write(self._encoding.encode(cue))

    def close(self) -> None:
        """Nothing waits."""

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ClosedPipe("stdout was closed by its reader") from error
        except OSError as error:
            raise OutputError(f"can't write to stdout ({error.strerror})") from error


def open_sink(target: str, chosen: Format | None, bell: Bell, *, resume: bool) -> Sink:
    """Where `target` says: a file, - for stdout, http(s)://HOOK, or sse:[HOST:]PORT.

    resume: go on behind what is in the file.
    """
    from flamvid.live.sinks import EventServer, FileSink, WebHook, whole_cues

    if target == "-":
        return StdoutSink(CueEncoder(chosen or Format.text))
    if target.startswith(_WEB):
        return WebHook(target)
    if target.startswith(_EVENTS):
        host, port = _address(target)
        return EventServer(port, bell, host or "127.0.0.1")
    path = Path(target)
    kind = format_for(Format, chosen, path)
    ending = b"\n\n" if kind in (Format.srt, Format.vtt) else b"\n"
    kept = whole_cues(path, ending) if resume else b""
    encoding = CueEncoder(kind, kept.count(b" --> "))
    return FileSink(path, encoding.encode, encoding.head, len(kept))


def _address(target: str) -> tuple[str, int]:
    """The host and the port of an event server."""
    host, _, port = target.removeprefix(_EVENTS).rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--sink is {target!r}; must be sse:PORT or sse:HOST:PORT")
    return host, int(port)


def check_sinks(targets: Sequence[str], source: str, chosen: Format | None) -> None:
    """Refuse, before any work is done, sinks that can't be, or would destroy the source."""
    for target in targets:
        if target.startswith(_EVENTS):
            _address(target)
        elif not target.startswith(_WEB):
            file = None if target == "-" else target
            if file is not None:
                check_target(Path(file), [source], "--sink")
            CueEncoder(format_for(Format, chosen, file))
