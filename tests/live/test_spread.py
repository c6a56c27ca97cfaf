from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from flamvid.live.spread import Spread


@given(st.integers(1, 9), st.integers(0, 500))
def test_items_are_spread_over_the_whole_stream(n: int, total: int) -> None:
    spread: Spread[int] = Spread(n)
    most = 0
    for i in range(total):
        if spread.wants():
            spread.add(i)
        else:
            spread.skip()
        most = max(most, len(spread._kept))
    chosen = spread.choose()
    assert most < 2 * n
    assert len(chosen) == min(n, total)
    assert chosen == sorted(set(chosen))
    if total >= n:  # no part of the stream goes without an item
        edges = [-1, *chosen, total]
        longest = max(b - a for a, b in itertools.pairwise(edges))
        assert longest <= 2 * (total // n) + 2


def test_the_same_items_whether_they_are_skipped_or_added() -> None:
    one, other = Spread[int](3), Spread[int](3)
    for i in range(100):
        one.add(i)
        other.add(i) if other.wants() else other.skip()
    assert one.choose() == other.choose()
