"""Which sample is seen when: arithmetic alone, so that a run resumes at any sample at no cost.

An epoch is a permutation of the samples of all shards, made of three: the shards in a random order,
that row of samples cut into lanes, and each lane shuffled within windows. A row of a batch keeps to
its lane, and a process to its rows: it reads its own part of the shards, and at any time no more
than a few of them. Nothing depends on the number of processes or of workers.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from flamvid.errors import ConfigError

__all__ = ["Order", "unchanged"]


class Order:
    """An endless sequence of (epoch, shard, sample in the shard).

    counts: samples in each shard. batch: rows of an update, of all processes. window: samples that
    are shuffled among each other; 1 leaves the files' order. lanes: parts of the shards that are
    read side by side, at most one for each row.
    """

    def __init__(
        self, counts: Sequence[int], batch: int, seed: str, window: int = 10_000, lanes: int = 8
    ) -> None:
        self.counts, self.batch, self.seed, self.window = tuple(counts), batch, seed, window
        self.total = sum(counts)
        self.lanes = max(1, min(lanes, batch))

    def __getitem__(self, place: int) -> tuple[int, int, int]:
        """What stands at a place: row `place % batch` of update `place // batch`."""
        epoch, _ = divmod(place, self.total)
        first = epoch * self.total
        lane = self._lane(place)
        in_lane = self._before(place, lane) - self._before(first, lane)
        start = sum(self._length(epoch, x) for x in range(lane))
        window, at = divmod(in_lane, self.window)
        size = min(self.window, self._length(epoch, lane) - window * self.window)
        mixed = self._mixed(epoch, lane, window, size)[at]
        shards, ends = self._shards(epoch)
        sample = start + window * self.window + mixed
        k = bisect_right(ends, sample)
        return epoch, shards[k], sample - (ends[k - 1] if k else 0)

    def _lane(self, place: int) -> int:
        return place % self.batch * self.lanes // self.batch

    def _before(self, place: int, lane: int) -> int:
        """How many places before this one are of a lane."""
        first, last = (-(-x * self.batch // self.lanes) for x in (lane, lane + 1))
        whole, rest = divmod(place, self.batch)
        return whole * (last - first) + min(max(rest - first, 0), last - first)

    def _length(self, epoch: int, lane: int) -> int:
        first = epoch * self.total
        return self._before(first + self.total, lane) - self._before(first, lane)

    # Caches hold what the rows of an update have in common; they are no state.
    def _shards(self, epoch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return _shards(self.counts, self.seed, epoch, self.window)

    def _mixed(self, epoch: int, lane: int, window: int, size: int) -> Sequence[int]:
        if self.window == 1:
            return (0,)
        return _permutation(f"{self.seed} {epoch} {lane} {window}", size)


def unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError where what decides which sample is seen when is not what it was."""
    if changed := sorted(k for k in {*before, *now} if before.get(k) != now.get(k)):
        raise ConfigError(
            f"the data changed since the run was stopped ({', '.join(changed)}); give the "
            "recipe and the files as they were, or start anew with --fresh"
        )


@lru_cache(maxsize=16)
def _shards(
    counts: tuple[int, ...], seed: str, epoch: int, window: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shards in an epoch's order, and where each ends."""
    order = list(range(len(counts)))
    if window > 1:
        random.Random(f"{seed} {epoch}").shuffle(order)
    return tuple(order), tuple(accumulate(counts[shard] for shard in order))


@lru_cache(maxsize=256)
def _permutation(seed: str, size: int) -> Sequence[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return array("I", order)
