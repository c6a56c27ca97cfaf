"""When to speak: by the clock, on a change of scene, or when asked.

Legend: F feature width.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

from torch import Tensor

from flamvid.errors import InputError
from flamvid.live.moment import similarity

__all__ = ["Bell", "Change", "ChangeConfig", "Every"]

_MOST_ASKED = 16  # requests that may wait


class Every:
    """Each `seconds` of the stream, as soon as the last frame before that was seen."""

    def __init__(self, seconds: float, due: float | None = None) -> None:
        if not (math.isfinite(seconds) and seconds > 0):
            raise InputError(f"every is {seconds:g} s; must be above 0")
        self.seconds, self.due = seconds, seconds if due is None else due

    def look(self, end: float) -> bool:
        """Whether it is time, now that all is seen up to `end`; moves on to the next time."""
        if end < self.due - 1e-6:
            return False
        self.skip(end)
        return True

    def skip(self, end: float) -> None:
        """Nothing is due up to there."""
        self.due = max(self.due, (math.floor((end + 1e-6) / self.seconds) + 1) * self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeConfig:
    """When a scene counts as changed, in distances 1 - cosine of frames' mean features.

    high: as far from what the scene looked like is another scene. low: only when it has come as
    near again may it change again, so that one cut is not told twice. pace: how much each frame
    counts in what a scene looks like. least: seconds between two changes.
    """

    high: float = 0.3
    low: float = 0.2
    pace: float = 0.3
    least: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 2:
            raise InputError(
                f"a change begins above {self.high:g} and ends below {self.low:g}; they must be in "
                "(0, 2], the second not above the first"
            )
        if not 0 < self.pace <= 1:
            raise InputError(f"the pace of a scene is {self.pace:g}; must be in (0, 1]")
        if self.least < 0:
            raise InputError(f"the least time of a scene is {self.least:g} s; must not be below 0")


class Change:
    """A Schmitt trigger on how far a frame is from what its scene looked like."""

    def __init__(self, config: ChangeConfig | None = None) -> None:
        self.config = config or ChangeConfig()
        self.scene_F: Tensor | None = None
        self.armed, self.began = True, 0.0

    def look(self, mean_F: Tensor, time: float) -> bool:
        """Whether the frame of these mean features, seen at `time`, begins another scene."""
        mean_F = mean_F.float()
        if self.scene_F is None:
            self.scene_F, self.began = mean_F.clone(), time
            return False
        distance = 1 - similarity(mean_F, self.scene_F)
        if self.armed and distance > self.config.high and time - self.began >= self.config.least:
            self.scene_F, self.began, self.armed = mean_F.clone(), time, False
            return True
        if distance < self.config.low:
            self.armed = True
        self.scene_F = self.scene_F.lerp(mean_F, self.config.pace)
        return False


class Bell:
    """Requests from other threads: a question, or an empty text for a caption. Bounded."""

    def __init__(self) -> None:
        self._asked: deque[str] = deque(maxlen=_MOST_ASKED)
        self._lock = threading.Lock()

    def ring(self, question: str = "") -> None:
        """Ask for a caption now, or an answer; beyond 16 that wait, the oldest is forgotten."""
        with self._lock:
            self._asked.append(question.strip())

    def take(self) -> list[str]:
        """What was asked since the last call."""
        with self._lock:
            asked = list(self._asked)
            self._asked.clear()
        return asked
