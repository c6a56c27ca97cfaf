"""Media masking against a loop that says what the paper says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flamvid.ops import Attend, media_index

IDS = st.lists(st.booleans(), min_size=1, max_size=12)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]


@pytest.mark.parametrize("device", DEVICES)
@given(IDS, st.sampled_from([torch.int32, torch.int64]))
def test_previous_is_the_last_media_at_or_before(
    device: str, row: list[bool], dtype: torch.dtype
) -> None:
    ids = torch.tensor([row], device=device, dtype=dtype)
    want = [sum(row[: s + 1]) - 1 for s in range(len(row))]
    assert media_index(ids, 1).tolist() == [want]


@pytest.mark.parametrize("device", DEVICES)
@given(IDS)
def test_next_is_the_first_media_at_or_after(device: str, row: list[bool]) -> None:
    ids = torch.tensor([row], device=device).long()
    at = [s for s, is_media in enumerate(row) if is_media]
    want = [next((i for i, m in enumerate(at) if m >= s), -1) for s in range(len(row))]
    assert media_index(ids, 1, "next").tolist() == [want]


@given(
    st.lists(IDS, min_size=1, max_size=3), st.integers(0, 5), st.sampled_from(["previous", "next"])
)
def test_padding_on_the_left_moves_nothing(
    rows: list[list[bool]], pad: int, attend: Attend
) -> None:
    for row in rows:
        ids = torch.tensor([row]).long()
        padded = torch.cat([torch.full((1, pad), 9), ids], dim=1)
        index = media_index(padded, 1, attend)
        assert torch.equal(index[:, pad:], media_index(ids, 1, attend))
        blind = -1 if attend == "previous" or not any(row) else 0
        assert (index[:, :pad] == blind).all()


@pytest.mark.parametrize("device", DEVICES)
@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=4), st.data())
def test_the_index_goes_on_from_a_cache_row_by_row(
    device: str, rows: list[list[bool]], data: st.DataObject
) -> None:
    ids = torch.tensor(rows, device=device).long()
    cut = data.draw(st.integers(1, 7))
    seen = (ids[:, :cut] == 1).sum(1)
    whole = media_index(ids, 1)
    assert torch.equal(media_index(ids[:, cut:], 1, seen=seen), whole[:, cut:])
    # One token at a time, as decoding goes.
    for s in range(cut, 8):
        step = media_index(ids[:, s : s + 1], 1, seen=seen)
        assert torch.equal(step, whole[:, s : s + 1])
        seen = seen + (ids[:, s] == 1)
    whole = media_index(ids, 1, "next")
    seen = (ids[:, :cut] == 1).sum(1)
    assert torch.equal(media_index(ids[:, cut:], 1, "next", seen=seen), whole[:, cut:])


def test_bad_input_is_named() -> None:
    ids = torch.zeros(2, 3).long()
    for bad, keywords, complaint in (
        (ids[0], {}, r"\(3,\); must be \[B,S\]"),
        (ids.float(), {}, "must be int32 or int64"),
        (ids, {"attend": "both"}, "must be 'previous' or 'next'"),
        (ids, {"seen": torch.zeros(3).long()}, r"int64 \[2\]"),
        (ids, {"seen": torch.zeros(2)}, "float32"),
    ):
        with pytest.raises(ValueError, match=complaint):
            media_index(bad, 1, **keywords)
