"""The order of samples, by its properties alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from flamvid.data.order import Order

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(sum)
BATCH, WINDOW, LANES = st.integers(1, 9), st.integers(1, 12), st.integers(1, 9)


@settings(max_examples=300, deadline=None)
@given(COUNTS, BATCH, WINDOW, LANES, st.integers(0, 3))
def test_an_epoch_has_every_sample_once(
    counts: list[int], batch: int, window: int, lanes: int, epoch: int
) -> None:
    order = Order(counts, batch, "s", window, lanes)
    first = epoch * order.total
    seen = [order[at] for at in range(first, first + order.total)]
    assert {e for e, _, _ in seen} == {epoch}
    every = [(shard, at) for shard, n in enumerate(counts) for at in range(n)]
    assert sorted((shard, at) for _, shard, at in seen) == every


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(10, 60))
def test_processes_read_parts_of_the_shards_that_do_not_overlap(
    per_rank: int, world: int, updates: int
) -> None:
    counts = [40] * 4 * world
    order = Order(counts, per_rank * world, "s", window=16, lanes=world)
    epoch = order.total // order.batch
    reads: list[set[int]] = []
    for rank in range(world):
        rows = range(rank * per_rank, (rank + 1) * per_rank)
        places = [u * order.batch + row for u in range(min(updates, epoch)) for row in rows]
        reads.append({order[place][1] for place in places})
    # 4 shards for each process: what is read by two is at most the one where parts meet.
    for a, one in enumerate(reads):
        for other in reads[a + 1 :]:
            assert len(one & other) <= (1 if order.total % order.batch else 0)


def test_what_is_shuffled_together_is_bounded() -> None:
    order = Order([1000], 1, "s", window=50)
    seen = [order[at][2] for at in range(1000)]
    assert seen != sorted(seen)
    assert max(abs(at - sample) for at, sample in enumerate(seen)) < 50


def test_epochs_and_seeds_differ_and_a_window_of_one_is_the_order_of_the_files() -> None:
    orders = {
        name: [Order([9, 9], 2, seed, window)[at] for at in range(36)]
        for name, seed, window in (("a", "a", 8), ("b", "b", 8), ("plain", "a", 1))
    }
    assert orders["a"] != orders["b"]
    assert [x[1:] for x in orders["a"][:18]] != [x[1:] for x in orders["a"][18:]]
    plain = [x[1:] for x in orders["plain"]]
    lanes = [plain[row:18:2] for row in range(2)]  # each row reads its part from start to end
    assert lanes[0] + lanes[1] == [(shard, at) for shard in range(2) for at in range(9)]
