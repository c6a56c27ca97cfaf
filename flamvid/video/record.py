"""A stream kept in files while it is looked at: its packets as they come, nothing encoded again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flamvid.errors import InputError

__all__ = ["Record"]


@dataclass(frozen=True, slots=True)
class Record:
    """Where to keep a stream, and in parts of how many seconds; each begins with a key frame.

    Parts are Matroska, named by the time in UTC at which their connection began, and numbered. One
    that is not finished plays as far as it goes. A disk that is full ends the recording of this
    connection, and nothing else.
    """

    folder: Path
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"recorded parts are {self.seconds} s long; must be above 0")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder} can't be recorded to: {error.strerror}; give a folder"
            ) from error

    def output(self, stream: Any) -> Any:
        """A second output of ffmpeg's for what `stream` (of ffmpeg-python) reads."""
        now = time.time()
        began = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        # An absolute path is no URL to ffmpeg, whatever colons it holds.
        pattern = str(self.folder.resolve()).replace("%", "%%") + f"/{began}-%05d.mkv"
        parts = f"f=segment:segment_time={self.seconds!r}:segment_format=matroska"
        # Of two outputs one may fail; of one, ffmpeg would take it to heart and end.
        tee = f"[{parts}:reset_timestamps=1:onfail=ignore]{_escaped(pattern)}|[f=null]-"
        # All that it shows, and its sound where there is any.
        return stream["V"].output(
            stream["a?"], tee, format="tee", codec="copy", flags="+global_header"
        )


def _escaped(path: str) -> str:
    return "".join("\\" + c if c in "\\'|[]: " else c for c in path)
