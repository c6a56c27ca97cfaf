"""How an index run goes: what is counted while it runs, and told at its end."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["Stats"]


@dataclass(slots=True, kw_only=True)
class Stats:
    """Counts since the start. `total` sources are known of beforehand; None for an endless list.

    present, duplicates: sources that the store had by name, or by content; captioned: it had too,
    without the caption that they have now. moved, removed: videos
    that were found under another name than the store's, or nowhere any more. failed_before: those
    that were left alone for it. decode_wait: seconds in which the encoder waited for frames;
    encode_wait: in which decoders waited for the encoder, summed over them; write_wait: in which
    the encoder waited for the disk. video_seconds: of what was indexed.
    """

    total: int | None = None
    found: int = 0
    indexed: int = 0
    present: int = 0
    duplicates: int = 0
    captioned: int = 0
    moved: int = 0
    removed: int = 0
    failed: int = 0
    failed_before: int = 0
    frames: int = 0
    video_seconds: float = 0.0
    decode_wait: float = 0.0
    encode_wait: float = 0.0
    write_wait: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return max(time.monotonic() - self.begun, 1e-9)

    @property
    def over(self) -> int:
        """Sources of which nothing more is to be expected."""
        known = self.present + self.duplicates + self.captioned
        return self.indexed + known + self.failed + self.failed_before

    @property
    def eta(self) -> float | None:
        """Seconds that the rest takes at the pace so far; None where that can't be told."""
        new = self.indexed + self.captioned + self.failed
        if self.total is None or not new:
            return None
        return self.seconds / new * max(0, self.total - self.over)

    def add(self, part: Stats) -> None:
        """Count what was done elsewhere too; total and time stay this one's."""
        for each in fields(self):
            if each.name not in ("total", "begun"):
                setattr(self, each.name, getattr(self, each.name) + getattr(part, each.name))

    def report(self) -> dict[str, Any]:
        """As JSON: the counts, and how fast it went."""
        table = {name: value for name, value in asdict(self).items() if name != "begun"}
        return {name: round(v, 3) if isinstance(v, float) else v for name, v in table.items()} | {
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.frames / self.seconds, 2),
            "video_hours_per_second": round(self.video_seconds / 3600 / self.seconds, 6),
        }
