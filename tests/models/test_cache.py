"""The cache of keys against a list of each row's tokens, whatever is done with it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamvid.models.cache import KeyValueCache

LAYERS = 2


class Rows:
    """A cache, and beside it the tokens of each of its rows."""

    def __init__(self, cache: KeyValueCache, tokens: list[list[int]]) -> None:
        self.cache, self.tokens = cache, tokens

    def add(self, new: int, first: int) -> None:
        """Other tokens for each row."""
        B = len(self.tokens)
        ids = torch.arange(first, first + B * new).view(B, 1, new, 1)
        for layer in range(LAYERS):
            found = self.cache.update(keys(ids, layer), -keys(ids, layer), layer)
        for row, more in zip(self.tokens, ids.flatten(1).tolist(), strict=True):
            row += more
        self.check(found)

    def check(self, last: tuple[Tensor, Tensor]) -> None:
        assert self.cache.get_seq_length() == len(self.tokens[0])
        want = keys(torch.tensor(self.tokens)[:, None, :, None], LAYERS - 1)
        assert torch.equal(last[0], want)
        assert torch.equal(last[1], -want)


def keys(ids_B1S1: Tensor, layer: int) -> Tensor:
    return (ids_B1S1 + 1000 * layer).float().expand(-1, 2, -1, 3)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_rows_are_what_was_done_to_them(data: st.DataObject) -> None:
    count = st.integers(1, 3)
    caches = [Rows(KeyValueCache(LAYERS), [[] for _ in range(data.draw(count))])]
    for step in range(data.draw(st.integers(1, 14))):
        at = caches[data.draw(st.integers(0, len(caches) - 1))]
        what = data.draw(st.sampled_from(["add", "repeat", "reorder", "among", "begin", "cut"]))
        B, T = len(at.tokens), len(at.tokens[0])
        if what == "repeat" and B <= 4:
            times = data.draw(count)
            at.cache.batch_repeat_interleave(times)
            at.tokens = [list(row) for row in at.tokens for _ in range(times)]
        elif what in ("reorder", "among"):
            # As the beams of each prompt change places, or of all prompts.
            each = at.cache._times if what == "among" else B
            rows = [i // each * each + data.draw(st.integers(0, each - 1)) for i in range(B)]
            at.cache.reorder_cache(torch.tensor(rows))
            at.tokens = [list(at.tokens[row]) for row in rows]
        elif what == "begin" and T:
            tokens = data.draw(st.integers(0, T))
            begun = at.cache.beginning(tokens)
            caches.append(Rows(begun, [row[:tokens] for row in at.tokens]))
        elif what == "cut" and T:
            tokens = data.draw(st.integers(0, T))
            at.cache.cut(tokens)
            at.tokens = [row[:tokens] for row in at.tokens]
        else:
            at.add(data.draw(st.sampled_from([1, 1, 2, 40])), 1 + 100_000 * step)
    for n, at in enumerate(caches):
        at.add(1, 90_000_000 + 10 * n)


def test_beams_that_change_places_leave_what_another_began_with() -> None:
    beams = Rows(KeyValueCache(LAYERS), [[]])
    beams.add(2, 1)
    beams.cache.batch_repeat_interleave(2)
    beams.tokens = [list(beams.tokens[0]) for _ in range(2)]
    beams.add(1, 10)
    other = Rows(beams.cache.beginning(3), [list(row) for row in beams.tokens])
    beams.cache.reorder_cache(torch.tensor([1, 0]))
    beams.tokens.reverse()
    other.add(1, 20)
    beams.add(1, 30)
