"""Exact search: the windows whose vectors are most like the query's, at most one of each moment.

Legend: W windows, E width of a vector.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flamvid.index.windows import Clip, Part, Windows

__all__ = ["Filter", "Hit", "apart", "nearest", "search_windows"]

# What is multiplied is half precision: a score is rounded to this, and those that a rounding may
# have moved are computed again.
_ROUNDING = 2e-3
_BLOCK = 32768  # windows that a thread multiplies at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A part of a video, [start, end) in seconds, and how like the query it is, in [-1, 1]."""

    video: str
    id: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which videos are searched. path: a glob that theirs matches. shortest, longest: in seconds.
    after, before: when the file was last changed, in seconds since 1970."""

    path: str | None = None
    shortest: float = 0.0
    longest: float = math.inf
    after: float = -math.inf
    before: float = math.inf

    def takes(self, clip: Clip) -> bool:
        """Whether this video is searched."""
        return (
            self.shortest <= clip.duration <= self.longest
            and self.after <= clip.mtime < self.before
            and (self.path is None or fnmatch.fnmatchcase(clip.path, self.path))
        )

    def rows(self, part: Part, alive: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        """Which windows of a part are searched; None for all."""
        if self == Filter():
            return alive
        wanted = np.fromiter(map(self.takes, part.clips), bool, len(part.clips))
        rows: NDArray[np.bool_] = wanted[part.rows["video"]]
        return rows if alive is None else rows & alive


def search_windows(
    windows: Windows, query_E: Tensor, top: int = 10, chosen: Filter | None = None
) -> list[Hit]:
    """The `top` best ranges of time, the best first; of windows that overlap only the best.

    query_E: a vector of length 1, float32. The scores are those of float32 arithmetic.
    """
    chosen, found, count = chosen or Filter(), list[Hit](), 8 * top
    masks = [chosen.rows(*pair) for pair in zip(windows.parts, windows.alive, strict=True)]
    scores = [_scores(*pair, query_E) for pair in zip(windows.parts, masks, strict=True)]
    while True:
        ranked = list(_best(windows, scores, query_E, count))
        found = apart(windows, ranked, top)
        if len(found) == top or len(ranked) < count:
            return found
        count *= 8


def _scores(part: Part, mask: NDArray[np.bool_] | None, query_E: Tensor) -> Tensor:
    """Rounded scores [W]; -inf for windows that are left out."""
    query, rows = query_E.half(), None
    if mask is not None and 4 * int(mask.sum()) < len(mask):  # so few that only they are read
        rows = torch.from_numpy(mask).nonzero()[:, 0]
    scores = torch.empty(len(part.vectors) if rows is None else len(rows))

    def some(first: int) -> None:
        place = slice(first, first + _BLOCK)
        scores[place] = part.vectors[place if rows is None else rows[place]] @ query

    # torch multiplies a half precision matrix by a vector on one core; it lets go of Python's lock.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(some, range(0, len(scores), _BLOCK)))
    if rows is not None:
        return torch.full((len(part.vectors),), -math.inf).index_copy_(0, rows, scores)
    if mask is not None:
        scores[~torch.from_numpy(mask)] = -math.inf
    return scores


def _best(
    windows: Windows, scores: list[Tensor], query_E: Tensor, count: int
) -> Iterator[tuple[float, int, int]]:
    """Score, part and row of the `count` best windows, and of all that might be among them."""
    tops = [part.topk(min(count, len(part))).values for part in scores]
    best = torch.cat(tops).sort(descending=True).values if tops else torch.empty(0)
    least = float(best[min(count, len(best)) - 1]) - _ROUNDING if len(best) else 0.0
    ranked = []
    for number, (part, rounded) in enumerate(zip(windows.parts, scores, strict=True)):
        rows = (rounded > max(least, -2.0)).nonzero()[:, 0]
        exact = part.vectors[rows].float() @ query_E
        ranked += [(s, number, r) for s, r in zip(exact.tolist(), rows.tolist(), strict=True)]
    # Of equal scores the earlier window comes first, whatever the parts are.
    yield from sorted(ranked, key=lambda item: (-item[0], item[1], item[2]))


def nearest(windows: Windows, query_E: Tensor, count: int) -> list[tuple[float, int, int]]:
    """Score, part and row of the `count` windows that are most like the query, the best first."""
    pairs = zip(windows.parts, windows.alive, strict=True)
    scores = [_scores(part, alive, query_E) for part, alive in pairs]
    return list(_best(windows, scores, query_E, count))[:count]


def apart(windows: Windows, ranked: list[tuple[float, int, int]], top: int) -> list[Hit]:
    """The best ranges that do not overlap."""
    found: list[Hit] = []
    for score, number, row in ranked:
        part = windows.parts[number]
        video, start, end = part.rows[row].tolist()
        clip = part.clips[video]
        if any(h.id == clip.id and start < h.end and h.start < end for h in found):
            continue
        found.append(Hit(video=clip.path, id=clip.id, start=start, end=end, score=score))
        if len(found) == top:
            break
    return found
