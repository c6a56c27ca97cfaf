"""What is kept of a stream of which only the end will tell how long it was."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Spread"]

T = TypeVar("T")


class Spread(Generic[T]):
    """Items spread evenly over all that were added, between `n` and 2 n of them once n came.

    When 2 n are kept, every second one is let go and from then on only every second, fourth, ...
    item is kept. So memory is bounded, every item counts the same, and the same stream always
    leaves the same items.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._kept: list[T] = []
        self._stride, self._added = 1, 0

    def wants(self) -> bool:
        """Whether the next item would be kept: what is costly to make need not be made."""
        return self._added % self._stride == 0

    def skip(self) -> None:
        """Count an item that is not wanted."""
        self._added += 1

    def add(self, item: T) -> None:
        """Keep an item, and others fewer if that makes 2 n."""
        if self.wants():
            self._kept.append(item)
        self._added += 1
        if len(self._kept) == 2 * self.n:
            del self._kept[1::2]
            self._stride *= 2

    def choose(self) -> list[T]:
        """At most `n` of what is kept, in order, each from the middle of an equal part."""
        count = len(self._kept)
        places = sorted(
            {(2 * i + 1) * count // (2 * self.n) for i in range(self.n)} if count else ()
        )
        return [self._kept[place] for place in places]
