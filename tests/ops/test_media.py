"""Media masking against a loop that says what the paper says."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flamvid.ops import media_attention, media_index

IDS = st.lists(st.booleans(), min_size=1, max_size=12)


@given(IDS)
def test_previous_is_the_last_media_at_or_before(row: list[bool]) -> None:
    ids = torch.tensor([row]).long()
    want = [sum(row[: s + 1]) - 1 for s in range(len(row))]
    assert media_index(ids, 1).tolist() == [want]


@given(IDS)
def test_next_is_the_first_media_at_or_after(row: list[bool]) -> None:
    ids = torch.tensor([row]).long()
    at = [s for s, is_media in enumerate(row) if is_media]
    want = [next((i for i, m in enumerate(at) if m >= s), -1) for s in range(len(row))]
    assert media_index(ids, 1, "next").tolist() == [want]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9999))
def test_attention_reads_one_media_only(B: int, M: int, L: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    S, d = 6, 8
    q = torch.randn(B, 2, S, d, generator=generator, requires_grad=True)
    k, v = (torch.randn(B, 2, M * L, d, generator=generator) for _ in range(2))
    index = torch.randint(-1, M, (B, S), generator=generator, dtype=torch.int32)
    out = media_attention(q, k, v, index, L)
    out.sum().backward()
    for b in range(B):
        for s in range(S):
            m = int(index[b, s])
            if m < 0:
                assert not out[b, :, s].any()
                assert not q.grad[b, :, s].any()
                continue
            own = slice(m * L, (m + 1) * L)
            weights = (k[b, :, own] @ q[b, :, s, :, None] / d**0.5).softmax(1)
            want = (weights * v[b, :, own]).sum(1)
            torch.testing.assert_close(out[b, :, s], want, atol=1e-5, rtol=1e-5)
