"""An ffmpeg child: bounded in time and memory, and gone when its block ends, however it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ffmpeg

from flamvid.errors import DecodeError, DecoderLost
from flamvid.video.address import environment
from flamvid.video.probe import ffmpeg_exe

__all__ = ["FfmpegProcess", "limit_memory", "running"]

_MEMORY = 6 << 30  # bytes of address space, most of which threads reserve and never touch
_LONGEST_LOG = 256 << 20  # bytes: three days of video at 25 frames per second


@dataclass(frozen=True, slots=True, eq=False)
class FfmpegProcess:
    """A running ffmpeg; its log lies in a file, so that a full pipe can't stop it."""

    name: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    late: threading.Event
    timeout: float

    def read(self, count: int) -> bytearray | None:
        """Exactly so many bytes of its output; None where it ends before."""
        assert self.process.stdout is not None
        data = bytearray(count)
        view, done = memoryview(data), 0
        while done < count:
            got = self.process.stdout.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                self.check()
                return None
            done += got
        return data

    def log_lines(self) -> Iterator[bytes]:
        """Its log, once it has ended."""
        self.process.wait()
        self.check()
        self.log.seek(0)
        return iter(self.log)

    def last_words(self) -> str:
        """What it complained of last, or an empty text."""
        self.log.seek(0)
        lines = self.log.read(_LONGEST_LOG).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def check(self) -> None:
        """`DecoderLost` when it was stopped for being late."""
        if self.late.is_set():
            raise DecoderLost(
                f"{self.name}: decoding took over {self.timeout:.0f} s and was stopped; "
                "give it longer with --decode-timeout if the file is sound"
            )


@contextmanager
def running(name: Path | str, graph: Any, level: str, timeout: float) -> Iterator[FfmpegProcess]:
    """Run ffmpeg's `graph` (of ffmpeg-python) for at most `timeout` seconds."""
    args = ffmpeg.get_args(graph.global_args("-hide_banner", "-nostdin", "-loglevel", level))
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [ffmpeg_exe(), *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(),
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        except OSError as error:
            raise DecodeError(f"ffmpeg can't be started ({error.strerror})") from error
        limit_memory(process.pid)
        _limit_log(process.pid)
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(timeout, stop)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield FfmpegProcess(str(name), process, log, late, timeout)
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def limit_memory(pid: int) -> None:
    """Bound a child's address space, from outside: nothing of ours runs in it."""
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError):  # it has ended already
        resource.prlimit(pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _limit_log(pid: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (_LONGEST_LOG, _LONGEST_LOG))
