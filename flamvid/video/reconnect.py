"""When to try a lost stream again: exponential backoff with jitter."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from flamvid.errors import InputError

__all__ = ["Reconnect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnect:
    """How long to wait before each attempt, in seconds, and for how long to go on trying.

    first: before the first attempt; each wait is `factor` times the last, up to `longest`. jitter:
    up to this share of a wait is taken off at random, so that many readers of one server do not
    come back at once; the seed makes it repeatable. patience: without a frame for so long, the
    stream is given up; by default never.
    """

    first: float = 0.5
    factor: float = 2.0
    longest: float = 30.0
    jitter: float = 0.5
    patience: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and self.first > 0):
            raise InputError(f"the first wait is {self.first} s; must be above 0")
        if not (math.isfinite(self.longest) and self.longest >= self.first):
            raise InputError(
                f"the longest wait is {self.longest} s; must be at least the first, {self.first} s"
            )
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InputError(f"the factor between waits is {self.factor}; must be at least 1")
        if not 0 <= self.jitter < 1:
            raise InputError(f"jitter is {self.jitter}; must be in [0, 1)")
        if not self.patience >= 0:
            raise InputError(f"patience is {self.patience} s; must be at least 0")

    def waits(self) -> Iterator[float]:
        """Seconds before each attempt, without end."""
        chance = random.Random(self.seed)
        wait = self.first
        while True:
            yield wait * (1 - self.jitter * chance.random())
            wait = min(wait * self.factor, self.longest)
