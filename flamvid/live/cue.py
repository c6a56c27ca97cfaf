"""What a live captioner says, and when nothing was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Cue", "Kind"]


class Kind(StrEnum):
    """What a cue is."""

    CAPTION = "caption"
    ANSWER = "answer"
    ALERT = "alert"
    GAP = "gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """One text about [start, end) of a stream, in seconds on its clock.

    why: what made it speak: every, change, different, asked, alert, gap (in front of one), end; of
    a gap, the reason.
    question: what an answer is to. logprob: of the text's tokens; of an alert, how alike text and
    window are; 0 of a gap. pts: of the newest frame that it knows. wall: Unix time at which it was
    made. latency: seconds from that frame's arrival to now. seen, dropped: frames looked at and
    not, since the stream was opened. shed: of those dropped, how many the budget left out, and
    whether this text was searched greedily or read half of the latents because of it. since: the
    time of the oldest frame that is remembered. frames: how many moments are; memory: the bytes
    that they take. policy: what keeps it within its cap.
    """

    kind: Kind = Kind.CAPTION
    source: str
    start: float
    end: float
    text: str
    logprob: float = 0.0
    model: str
    why: str
    question: str = ""
    pts: float
    wall: float
    latency: float = 0.0
    seen: int = 0
    dropped: int = 0
    shed: Mapping[str, int] = field(default_factory=dict)
    since: float = 0.0
    frames: int = 0
    memory: int = 0
    policy: str = "window"
