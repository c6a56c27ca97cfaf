"""Attention of a text to what came before: the kernel against torch's, with its dense mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flamvid.ops import causal_attention, causal_is_compiled, implementation

pytestmark = pytest.mark.skipif(
    implementation("causal_attention").name != "kernel", reason="flamvid._C is not there"
)


@settings(max_examples=80, deadline=None)
@given(
    B=st.integers(1, 3),
    G=st.integers(1, 3),
    each=st.integers(1, 3),
    S=st.integers(0, 150),
    past=st.integers(0, 90),
    d=st.sampled_from([16, 48, 64, 256]),
    alibi=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_it_is_attention_under_a_dense_mask(
    B: int, G: int, each: int, S: int, past: int, d: int, alibi: bool, padded: bool, seed: int
) -> None:
    dice = torch.Generator().manual_seed(seed)
    H, K = G * each, S + past
    # As a linear layer and a cache with room for more leave them.
    q = torch.randn(B, S, H, d, generator=dice).transpose(1, 2)
    k, v = (torch.randn(B, G, K + 5, d, generator=dice)[:, :, :K] for _ in range(2))
    slopes = torch.rand(H, generator=dice) if alibi else None
    real = torch.rand(B, K, generator=dice) < 0.7 if padded else None
    if real is not None:
        real[0, : K // 2] = False  # as on the left of a short text
    given = (q, k, v, slopes, real, 0.3)
    found = causal_attention(*given)
    assert found.shape == (B, S, H, d)
    assert found.is_contiguous()
    torch.testing.assert_close(found, causal_attention._init_fn(*given), atol=3e-5, rtol=1e-4)


def test_the_formula_is_torchs_own() -> None:
    q, k, v = torch.randn(3, 2, 4, 90, 32)
    for op in (causal_attention, causal_attention._init_fn):
        want = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        torch.testing.assert_close(op(q, k, v, None, None, 32**-0.5), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("S", [1, 64, 65, 130])
def test_no_token_sees_what_comes_behind_it_or_is_padding(S: int) -> None:
    q, k, v = torch.randn(1, 2, S, 16), *torch.randn(2, 1, 2, 200, 16)
    real = torch.ones(1, 200, dtype=torch.bool)
    real[0, [0, 3, 70]] = False
    before = causal_attention(q, k, v, None, real, 0.25)
    for at in (199, 199 - S // 2, 0, 3, 70):
        changed = [k.clone(), v.clone()]
        for x in changed:
            x[:, :, at] += 100
        after = causal_attention(q, *changed, None, real, 0.25)
        same = (before == after).all(-1).all(-1)[0]
        blind = S - (200 - at) if real[0, at] else S  # its own token sees a padding
        assert same[: max(0, blind)].all() or (not real[0, at] and at >= 200 - S)
        assert same.all() == (not real[0, at] and at < 200 - S)


def test_threads_change_nothing() -> None:
    q, k, v = torch.randn(3, 2, 3, 200, 32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(causal_attention(q, k, v, torch.rand(3) * 0 + 0.1, None, 0.2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, found[0]) for x in found)


def test_what_is_no_number_is_not_lost() -> None:
    q, k, v = torch.randn(3, 1, 1, 80, 16)
    q[0, 0, 70] = torch.nan
    v[0, 0, 75] = torch.inf
    found = causal_attention(q, k, v, None, None, 0.25)[0, :, 0]
    assert found[70].isnan().all()
    assert not found[75:].isfinite().any()
    assert found[:64].isfinite().all()  # of the tiles before


@pytest.mark.parametrize(
    "change",
    [
        {0: lambda q: q.double()},
        {0: lambda q: q[0]},
        {0: lambda q: q[..., :12]},
        {0: lambda q: q.transpose(2, 3)},
        {0: lambda q: q[:, :3]},
        {0: lambda q: torch.randn(2, 4, 30, 16)},
        {0: lambda q: q[:1]},
        {1: lambda k: k[:, :, :20]},
        {1: lambda k: k[:, :1]},
        {2: lambda v: v.half()},
        {2: lambda v: v[:, :, :, :8]},
        {3: lambda s: s[:3]},
        {3: lambda s: s.double()},
        {4: lambda r: r[:, :20]},
        {4: lambda r: r.int()},
        {4: lambda r: r.T.contiguous().T},
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, Any]) -> None:
    q, (k, v) = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 2, 25, 16)
    good: tuple[Any, ...] = (q, k, v, torch.rand(4), torch.ones(2, 25, dtype=torch.bool), 0.2)
    causal_attention(*good)
    bad = [change[i](x) if i in change else x for i, x in enumerate(good)]
    with pytest.raises(RuntimeError, match="causal_attention: "):
        causal_attention(*bad)


def test_it_serves_without_gradients_in_float32_alone() -> None:
    def asked(x: Tensor) -> bool:
        with torch.no_grad():
            return causal_is_compiled(x)

    q = torch.randn(1, 2, 3, 16)
    assert asked(q)
    assert not causal_is_compiled(q)
    for other in (q.bfloat16(), q.double(), q[..., :8], torch.randn(1, 1, 1, 272), q[..., :0]):
        assert not asked(other)
