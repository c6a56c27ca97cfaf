"""What comes out of a stream: frames, and the gaps between them."""

from __future__ import annotations

from dataclasses import dataclass

from flamvid.types import Frames

__all__ = ["Event", "Frame", "Gap", "Mark"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a stream.

    frames: itself, T = 1, with the time at which it begins to be shown. pts: when it is looked
    at, in seconds on the stream's one clock, which rises strictly: the tick where frames are
    sampled by fps, else its own time. wall: when it came, in seconds of Unix time.
    """

    frames: Frames
    pts: float
    wall: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Between `start` and `end`, in seconds on the stream's clock, nothing was seen.

    Where the two are equal, what follows does not continue what came before, and nobody knows how
    much is missing: the sender's clock was set. That is told within a second of it in a stream that
    comes as it happens, and sooner by what is read ahead in one that comes faster.
    """

    start: float
    end: float
    reason: str

    def joined(self, after: Gap) -> Gap:
        """This one and one that follows it, with nothing left between them."""
        reasons = [self.reason, *([after.reason] if after.reason not in self.reason else [])]
        return Gap(self.start, after.end, "; ".join(reasons)[:_LONGEST_REASON])


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment of a stream: seconds on its clock, and Unix time. From here a reader goes on."""

    pts: float
    wall: float


Event = Frame | Gap

_LONGEST_REASON = 500  # characters; gaps are joined for as long as nobody takes them
