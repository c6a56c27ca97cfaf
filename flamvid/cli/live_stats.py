"""How an index run goes, on stderr: a live line on a terminal, elsewhere one now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flamvid.cli.failure import report, say

if TYPE_CHECKING:
    from flamvid.index.stats import Stats

__all__ = ["LiveStats", "line", "live_stats"]

_EVERY, _EVERY_LINE = 0.25, 30.0  # seconds: on a terminal, and in a log


class LiveStats:
    """What the indexer tells of its progress to."""

    def __init__(self, live: Any) -> None:
        self._live = live
        self._next = time.monotonic() + (_EVERY if live else _EVERY_LINE)

    def progress(self, stats: Stats) -> None:
        """Show the counts, if they were not shown just now."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (_EVERY if self._live else _EVERY_LINE)
        if self._live:
            self._live.update(line(stats))
        else:
            say(line(stats))

    def failed(self, source: str, reason: str, message: str) -> None:
        """Name a source that failed."""
        report(message, source)


def line(stats: Stats) -> str:
    """The counts, in a line."""
    known = stats.present + stats.duplicates
    parts = [
        f"{stats.over}{'' if stats.total is None else f'/{stats.total}'} videos",
        *([f"{known} known"] if known else []),
        *([f"{stats.captioned} told of"] if stats.captioned else []),
        *([f"{stats.failed} failed"] if stats.failed else []),
        f"{stats.frames / stats.seconds:.1f} frames/s",
        f"{stats.video_seconds / 3600 / stats.seconds:.4f} video-hours/s",
        f"decode-wait {100 * stats.decode_wait / stats.seconds:.0f}%",
        f"encode-wait {100 * stats.encode_wait / stats.seconds:.0f}%",
        "ETA " + ("?" if stats.eta is None else _clock(stats.eta)),
    ]
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def live_stats() -> Iterator[LiveStats]:
    """A listener; the line is gone at the end."""
    if not sys.stderr.isatty():
        yield LiveStats(None)
        return
    from rich.console import Console
    from rich.live import Live

    with Live(
        "looking for videos that are new",
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        refresh_per_second=4,
    ) as live:
        yield LiveStats(live)
