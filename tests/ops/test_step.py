"""Parts of a decoding step: the kernels against the formulas, whatever the shapes and threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flamvid.ops import cross_few, feed_few, implementation, quantise_int8, self_few, step

pytestmark = pytest.mark.skipif(
    implementation("feed_few").name != "kernel", reason="flamvid._C is not there"
)

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
sizes = st.integers(1, 70)
rows = st.integers(1, 8)
seeds = st.integers(0, 2**32)
flags = st.booleans()


def weights(outputs: int, width: int, int8: bool = False) -> list[Tensor]:
    weight = torch.randn(outputs, width) * width**-0.5
    return list(quantise_int8(weight)) if int8 else [weight]


def norm(width: int, biased: bool) -> list[Tensor]:
    return [torch.randn(width) for _ in range(1 + biased)]


def formula(op: Any, *args: Any) -> Tensor:
    """What the operation says in Python."""
    found: Tensor = getattr(step, op)._init_fn(*args)
    return found


@settings(max_examples=80, deadline=None)
@given(
    rows=rows,
    blocks=st.integers(1, 3),
    int8=flags,
    biased=flags,
    rms=flags,
    gated=flags,
    activation=st.sampled_from(["relu", "squared_relu", "gelu", "silu_gated"]),
    seed=seeds,
    odd=sizes,
)
def test_feed_forward(
    rows: int,
    blocks: int,
    int8: bool,
    biased: bool,
    rms: bool,
    gated: bool,
    activation: str,
    seed: int,
    odd: int,
) -> None:
    torch.manual_seed(seed)
    width, inner = (32 * blocks, 64) if int8 else (odd, odd + 3)
    up = weights(inner * (2 if activation == "silu_gated" else 1), width, int8)
    down = weights(width, inner, int8)
    gate = torch.randn(()) if gated else None
    args = (norm(width, biased and not rms), 1e-5, rms, up, down, activation, gate)
    x = torch.randn(rows, width)
    torch.testing.assert_close(feed_few(x, *args), formula("_feed_few", x, *args), **CLOSE)


@pytest.mark.parametrize("activation", ["gelu", "silu_gated"])
def test_activations_are_exact_to_a_few_units_of_float32(activation: str) -> None:
    n = 512
    values = torch.linspace(-14, 14, n)
    values[:2] = torch.tensor([-300.0, 300.0])
    signs = torch.tensor([1.0, -1.0]).repeat(n // 2)
    # A norm of 1 and -1 is these; by its gain, all of `values` come to the activation.
    identity, gain = [torch.eye(n)], [signs * values]
    gated = activation == "silu_gated"
    up = [torch.cat([torch.eye(n), torch.eye(n)])] if gated else identity
    got = feed_few(signs[None], gain, 0.0, False, up, identity, activation, None)[0] - signs
    wide = values.double()
    want = F.silu(wide) * wide if gated else F.gelu(wide)
    error = (got.double() - want).abs() / want.abs().clamp_min(1)
    assert float(error.max()) < 8e-7


@settings(max_examples=80, deadline=None)
@given(
    prompts=st.integers(1, 3),
    each=st.integers(1, 2),
    heads=st.integers(1, 5),
    d=st.integers(1, 40),
    media=st.integers(1, 4),
    latents=st.integers(1, 9),
    width=sizes,
    int8=flags,
    strided=flags,
    seed=seeds,
)
def test_cross_attention(
    prompts: int,
    each: int,
    heads: int,
    d: int,
    media: int,
    latents: int,
    width: int,
    int8: bool,
    strided: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    if int8:
        d, width = 32, 32 * (width // 32 + 1)
    rows, inner = prompts * each, heads * d
    both = torch.randn(2, prompts, heads, media * latents, d)
    if strided:  # as they come of one product
        both = torch.randn(prompts, media * latents, 2, heads, d).permute(2, 0, 3, 1, 4)
    index, start = torch.randint(-1, media, (rows,), dtype=torch.int32), seed % 3
    args = (
        norm(width, True),
        1e-5,
        weights(inner, width, int8),
        *both,
        torch.where(index < 0, -1, index + start),
        start,
        latents,
        weights(width, inner, int8),
        torch.randn(()),
    )
    x = torch.randn(rows, 2, width)[:, 1] if strided else torch.randn(rows, width)
    torch.testing.assert_close(cross_few(x, *args), formula("_cross_few", x, *args), **CLOSE)


@settings(max_examples=80, deadline=None)
@given(
    texts=st.integers(1, 3),
    tokens=st.integers(1, 4),
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    half=st.integers(1, 20),
    length=st.integers(0, 70),
    width=sizes,
    kind=st.sampled_from(["alibi", "rotary", "neither"]),
    normed=flags,
    rms=flags,
    int8=flags,
    padded=flags,
    seed=seeds,
)
def test_self_attention(
    texts: int,
    tokens: int,
    groups: int,
    each: int,
    half: int,
    length: int,
    width: int,
    kind: str,
    normed: bool,
    rms: bool,
    int8: bool,
    padded: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    d, heads, rows = 2 * half, groups * each, texts * tokens
    if int8:
        d, width = 32, 32 * (width // 32 + 1)
    turn = (
        [torch.randn(1 if seed % 2 and tokens == 1 else rows, d) for _ in range(2)]
        if kind == "rotary"
        else []
    )
    slopes = torch.rand(heads) if kind == "alibi" else None
    real = torch.rand(texts, length + tokens) < 0.7 if padded else None
    q_norm, k_norm = (norm(n * d, not rms) if normed else [] for n in (heads, groups))
    before = torch.randn(2, texts, groups, length + tokens + 2, d)

    def run(op: Any) -> tuple[Tensor, Tensor]:
        cache = before.clone()
        out = op(
            x,
            first,
            1e-5,
            rms,
            qkv,
            q_norm,
            k_norm,
            turn,
            slopes,
            *cache,
            length,
            real,
            heads,
            d**-0.5,
            out_w,
        )
        return out, cache

    x, first = torch.randn(rows, width), norm(width, not rms)
    qkv = weights((heads + 2 * groups) * d, width, int8)
    out_w = weights(width, heads * d, int8)
    ours, wanted = run(self_few), run(lambda *args: formula("_self_few", *args))
    torch.testing.assert_close(ours[0], wanted[0], **CLOSE)
    torch.testing.assert_close(ours[1], wanted[1], **CLOSE)
    places = torch.arange(length + tokens + 2)
    others = (places < length) | (places >= length + tokens)
    assert torch.equal(ours[1][..., others, :], before[..., others, :])


def test_threads_share_what_is_large() -> None:
    torch.manual_seed(0)
    width, heads = 256, 4
    x, first = torch.randn(2, width), norm(width, True)
    up, down = weights(4 * width, width), weights(width, 4 * width)
    cache = torch.randn(2, 2, heads, 600, 64)
    qkv, out_w = weights(3 * width, width), weights(width, width)
    to_q = weights(width, width)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            fed = feed_few(x, first, 1e-5, False, up, down, "gelu", None)
            held = cache.clone()
            args = (first, 1e-5, False, qkv, [], [], [], None, *held, 590, None, heads, 0.125)
            index = torch.tensor([1, 0], dtype=torch.int32)
            media = (to_q, *held[:, :, :, :30], index, 0, 15)
            seen = cross_few(x, first, 1e-5, *media, out_w, None)
            found.append((fed, seen, self_few(x, *args, out_w), held))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_they_are_operations_of_torch() -> None:
    width, x, first = 24, torch.randn(2, 24), norm(24, True)
    up, down = weights(48, width), weights(width, 48)
    args: tuple[Any, ...] = (x, first, 1e-5, False, up, down, "gelu", torch.randn(()))
    torch.library.opcheck(torch.ops.flamvid.feed_few.default, args)
    keys, values = torch.randn(2, 1, 3, 10, 8)
    index = torch.tensor([1, -1], dtype=torch.int32)
    args = (x, first, 1e-5, weights(24, 24), keys, values, index, 0, 5, weights(24, 24), None)
    torch.library.opcheck(torch.ops.flamvid.cross_few.default, args)
    cache = torch.randn(2, 2, 3, 10, 8)
    args = (x, first, 1e-5, False, weights(72, 24), [], [], [], None, cache[0], cache[1], 4, None)
    args = (*args, 3, 0.3, weights(24, 24))
    torch.library.opcheck(torch.ops.flamvid.self_few.default, args)


def test_what_does_not_fit_is_refused_before_it_is_read() -> None:
    x, first, up, down = torch.randn(2, 24), norm(24, True), weights(48, 24), weights(24, 48)
    feed: tuple[Any, ...] = (x, first, 1e-5, False, up, down, "gelu", None)
    for at, bad in (
        (0, x[:, :20]),
        (0, x.double()),
        (1, [first[0][:20]]),
        (1, []),
        (1, [first[0][:1].expand(24)]),
        (4, weights(40, 24)),
        (5, weights(20, 48)),
        (5, [down[0].bfloat16()]),
        (6, "tanh"),
        (7, torch.randn(24)),
    ):
        with pytest.raises(RuntimeError, match=r"step|few"):
            feed_few(*feed[:at], bad, *feed[at + 1 :])
    keys, values = torch.randn(2, 1, 3, 10, 8)
    for index, latents in (([0, 2], 5), ([0, -2], 5), ([0, 1], 0), ([0, 1], 4), ([0], 5)):
        at_media = torch.tensor(index, dtype=torch.int32)
        with pytest.raises(RuntimeError, match=r"step|few"):
            cross_few(
                x, first, 1e-5, weights(24, 24), keys, values, at_media, 0, latents, down, None
            )
    cache = torch.randn(2, 2, 3, 10, 8)
    for length in (-1, 10):
        args = (first, 1e-5, False, weights(72, 24), [], [], [], None, *cache, length, None, 3, 1.0)
        with pytest.raises(RuntimeError, match="no room"):
            self_few(x, *args, weights(24, 24))


def refused(op: Any, good: tuple[Any, ...], changes: Sequence[dict[int, Any]]) -> None:
    op(*good)
    for change in changes:
        with pytest.raises(RuntimeError, match=r"step: |_few: "):
            op(*(change.get(i, arg) for i, arg in enumerate(good)))


def test_self_attention_reads_and_writes_nothing_else() -> None:
    keys, values = torch.randn(2, 2, 3, 10, 8)
    turn, seen = [torch.rand(1, 8), torch.rand(1, 8)], torch.ones(2, 5, dtype=torch.bool)
    good = (torch.randn(2, 24), norm(24, True), 1e-5, False, weights(72, 24), [], [], turn)
    good = (*good, torch.rand(3), keys, values, 4, seen, 3, 1.0, weights(24, 24))
    sideways = torch.randn(2, 3, 8, 10).transpose(2, 3)
    changes: list[dict[int, Any]] = [
        {4: weights(64, 24)},
        {5: [torch.rand(20)]},
        {6: [torch.rand(20)]},
        {7: turn[:1]},
        {7: [turn[0], turn[1][:, :6]]},
        {7: [turn[0].expand(3, 8).contiguous(), turn[1]]},
        {8: torch.rand(2)},
        *({at: x} for at in (9, 10) for x in (keys[:1], keys[:, :2], keys[:, :, :4], sideways)),
        *({at: x} for at in (9, 10) for x in (keys.double(), keys[..., :6], keys[0])),
        {12: seen[:, :4].contiguous()},
        {12: seen.int()},
        {13: 4, 4: weights(80, 24), 8: torch.rand(4), 15: weights(24, 32)},
        {9: keys[:1], 10: values[:1], 12: seen[:1, :1].expand(1, 6).contiguous()},  # two turn alike
        {7: [], 9: keys[:1], 10: values[:1], 12: seen[:1]},  # of two tokens the second is nowhere
        {7: [], 9: keys[:1], 10: values[:1], 11: 9, 12: None},
        {9: keys[:0], 10: values[:0]},
        {15: weights(20, 24)},
        {15: weights(24, 20)},
    ]
    refused(self_few, good, changes)


def test_cross_attention_reads_nothing_else() -> None:
    keys, values = torch.randn(2, 2, 3, 10, 8)
    index = torch.tensor([0, 1], dtype=torch.int32)
    good = (torch.randn(2, 24), norm(24, True), 1e-5, weights(24, 24), keys, values, index, 0, 5)
    good = (*good, weights(24, 24), None)
    three = torch.zeros(3, dtype=torch.int32)
    changes: list[dict[int, Any]] = [
        {0: torch.randn(3, 24), 6: three},
        {3: weights(20, 24)},
        *({at: x} for at in (4, 5) for x in (keys[:1], keys[:, :2], keys[:, :, :5], keys[..., :6])),
        *({at: keys.transpose(2, 3)} for at in (4, 5)),
        {5: values.double()},
        {6: index.long()},
        {6: three},
        {7: 1},  # the first media has no keys then
        {7: -1},
        {6: index - 1, 7: -1},
        {6: index + 2**31 - 2, 7: 2**31},
        {9: weights(20, 24)},
    ]
    refused(cross_few, good, changes)


@pytest.mark.parametrize("activation", ["relu", "squared_relu", "gelu", "silu_gated"])
def test_what_is_no_number_stays_none(activation: str) -> None:
    x, first, up = torch.randn(2, 24), norm(24, True), weights(48, 24)
    down = weights(24, 24 if activation == "silu_gated" else 48)
    x[1, 3] = float("nan")
    out = feed_few(x, first, 1e-5, False, up, down, activation, None)
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    cache = torch.zeros(2, 2, 3, 10, 8)
    args = (first, 1e-5, False, weights(72, 24), [], [], [], None, *cache, 4, None, 3, 1.0)
    out = self_few(x, *args, weights(24, 24))
    assert out[0].isfinite().all()
    assert out[1].isnan().all()


def test_threads_of_python_do_not_wait_for_each_other() -> None:
    torch.manual_seed(0)
    x, first = torch.randn(4, 256), norm(256, True)
    up, down = weights(1024, 256), weights(256, 1024)
    args = (first, 1e-5, False, up, down, "gelu", None)
    wanted = feed_few(x, *args)

    def many(_: int) -> bool:
        torch.set_num_threads(3)  # of this thread's own products
        return all(torch.equal(feed_few(x, *args), wanted) for _ in range(30))

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(many, range(4)))
    finally:
        torch.set_num_threads(threads)
