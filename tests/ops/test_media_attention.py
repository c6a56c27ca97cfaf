"""media_attention against a float64 loop: values, gradients, opcheck, compile, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamvid.errors import InputError
from flamvid.ops import OPERATIONS, implementation, media_attention, media_index

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]


def truth(q: Tensor, k: Tensor, v: Tensor, index: Tensor, counts: list[int]) -> Tensor:
    """One token at a time, in the dtype given."""
    rows = []
    for b in range(q.shape[0]):
        for s in range(q.shape[2]):
            m = int(index[b, s])
            if m < 0 or counts[m] == 0:
                rows.append(q[b, :, s] * 0)
                continue
            own = slice(sum(counts[:m]), sum(counts[: m + 1]))
            weights = (k[b, :, own] @ q[b, :, s, :, None] * q.shape[-1] ** -0.5).softmax(1)
            rows.append((weights * v[b, :, own]).sum(1))
    return torch.stack(rows).view(q.shape[0], q.shape[2], *q.shape[1::2]).transpose(1, 2)


def problem(B: int, H: int, S: int, d: int, counts: list[int], seed: int) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    K = sum(counts)
    q, k, v, g = (torch.randn(B, H, n, d, generator=dice) for n in (S, K, K, S))
    index = torch.randint(-1, len(counts), (B, S), generator=dice, dtype=torch.int32)
    return [q, k, v, g, index]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@settings(max_examples=25)
@given(
    B=st.integers(1, 3),
    H=st.integers(1, 3),
    S=st.sampled_from([1, 2, 5, 64, 67]),
    d=st.sampled_from([1, 8, 33, 64, 100, 256]),
    counts=st.lists(st.sampled_from([0, 1, 7, 64, 70]), min_size=1, max_size=4),
    seed=st.integers(0, 9999),
)
def test_values_and_gradients(
    device: str,
    dtype: torch.dtype,
    B: int,
    H: int,
    S: int,
    d: int,
    counts: list[int],
    seed: int,
) -> None:
    q, k, v, g, index = problem(B, H, S, d, counts, seed)
    have = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
    want = [x.detach().cpu().double().requires_grad_() for x in have]
    g = g.to(dtype)
    out = media_attention(*have, index.to(device), counts)
    ref = truth(*want, index, counts)
    blind = (index < 0)[:, None, :].expand(out.shape[:3])
    assert not out.detach().cpu()[blind].any()
    grads = torch.autograd.grad(out, have, g.to(device))
    refs = torch.autograd.grad(ref, want, g.double(), allow_unused=True)
    assert not grads[0].cpu()[blind].any()
    for x, y in zip((out, *grads), (ref, *refs), strict=True):
        y = torch.zeros(x.shape).double() if y is None else y
        close = TOLERANCE[dtype] * max(1.0, float(y.detach().abs().max()) if y.numel() else 1.0)
        torch.testing.assert_close(x.cpu().double(), y, atol=close, rtol=TOLERANCE[dtype])


# The warning is about a tensor of opcheck's own.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device: str, dtype: torch.dtype) -> None:
    inputs = [x.to(device) for x in problem(2, 2, 5, 8, [3, 4], 0)]
    q, k, v, g = (x.to(dtype).requires_grad_() for x in inputs[:4])
    index, offsets = inputs[4], torch.tensor([0, 3, 7], device=device)
    forward = torch.ops.flamvid.media_attention_forward.default
    torch.library.opcheck(forward, (q, k, v, index, offsets, 0.3))
    out, lse = (x.detach() for x in forward(q, k, v, index, offsets, 0.3))
    backward = torch.ops.flamvid.media_attention_backward.default
    saved = (g.detach(), q.detach(), k.detach(), v.detach(), out, lse, index, offsets, 0.3)
    torch.library.opcheck(backward, saved)
    for attend in ("previous", "next"):
        for kind in (torch.int32, torch.int64):
            ids = torch.randint(0, 3, (2, 5), device=device, dtype=kind)
            torch.library.opcheck(torch.ops.flamvid.media_index.default, (ids, 1, attend))
    whole = torch.ops.flamvid.media_attention.default
    torch.library.opcheck(whole, (q, k, v, index, [3, 4], 0.3))


def test_the_registered_operation_is_the_function() -> None:
    q, k, v, g, index = problem(2, 2, 9, 16, [4, 4], 7)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    op = torch.ops.flamvid.media_attention
    want = media_attention(*inputs, index, 4, 0.3)
    wants = torch.autograd.grad(want, inputs, g)
    compiled = torch.compile(
        lambda *x: op(*x, index, [4, 4], 0.3), fullgraph=True, backend="aot_eager"
    )
    outs = (
        op(*inputs, index, 4, 0.3),
        op(*inputs, media_index=index, latents_per_media=[4, 4], scale=0.3),
        media_attention(*inputs, index, np.int64(4), 0.3),
        compiled(*inputs),
    )
    for out in outs:
        assert torch.equal(out, want)
        for x, y in zip(torch.autograd.grad(out, inputs, g), wants, strict=True):
            assert torch.equal(x, y)
    with pytest.raises(InputError, match="must divide the 8 rows of k"):
        op(*inputs, index, 3)
    with pytest.raises(InputError, match=r"must be from -1 .none. to 1"):
        op(*inputs, index + 5, [4, 4])


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_whole_with_gradients(device: str) -> None:
    q, k, v, g, _ = (x.to(device) for x in problem(2, 2, 9, 16, [4, 4], 1))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    ids = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0, 0], [0] * 8 + [1]], device=device)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return media_attention(q, k, v, media_index(ids, 1), 4)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    plain = run(*inputs)
    assert torch.equal(compiled, plain)
    pairs = (torch.autograd.grad(x, inputs, g) for x in (compiled, plain))
    for x, y in zip(*pairs, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_repeats_itself_whatever_the_threads(device: str, dtype: torch.dtype) -> None:
    q, k, v, g, index = problem(2, 3, 150, 40, [70, 3, 0, 64], 2)
    inputs = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]

    def once() -> list[Tensor]:
        out = media_attention(*inputs, index.to(device), [70, 3, 0, 64])
        return [out, *torch.autograd.grad(out, inputs, g.to(device, dtype))]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = once()
        torch.set_num_threads(4)
        assert all(torch.equal(x, y) for x, y in zip(first, once(), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", DEVICES)
def test_what_no_token_sees_has_no_part_in_it(device: str) -> None:
    q, k, v, g, index = (x.to(device) for x in problem(1, 2, 70, 24, [5, 6, 7], 3))
    index = index.clamp_max(1)  # nobody sees the last media, nor is its NaN seen
    blind = (index < 0)[:, None, :, None]
    q, g = (x.masked_fill(blind, float("nan")) for x in (q, g))
    k, v = (x.clone() for x in (k, v))
    k[:, :, 11:] = v[:, :, 11:] = float("nan")
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = media_attention(*inputs, index, [5, 6, 7])
    dq, dk, dv = torch.autograd.grad(out, inputs, g)
    for x in (out, dq, dk, dv):
        assert not x.isnan().any()
    for x in (out, dq):
        assert not x.masked_select(blind).any()
    for x in (dk, dv):
        assert not x[:, :, 11:].any()


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_read_as_they_lie(device: str) -> None:
    q, k, v, g, index = (x.to(device) for x in problem(2, 3, 20, 32, [9, 9], 4))
    inside = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    # Neither heads first nor the last dimension contiguous.
    across = [x.mT.contiguous().mT.requires_grad_() for x in (q, k, v)]
    plain = [x.clone().requires_grad_() for x in (q, k, v)]
    outs = [media_attention(*x, index, 9) for x in (plain, inside, across)]
    grads = [
        torch.autograd.grad(o, x, g) for o, x in zip(outs, (plain, inside, across), strict=True)
    ]
    for out, grad in zip(outs[1:], grads[1:], strict=True):
        torch.testing.assert_close(out, outs[0])
        for x, y in zip(grad, grads[0], strict=True):
            torch.testing.assert_close(x, y)


def test_large_scores_and_empty_problems() -> None:
    q, k, v, _, index = problem(1, 1, 80, 16, [40, 100], 5)
    out = media_attention(q * 300, k, v, index, [40, 100])
    want = truth(*(x.double() for x in (q * 300, k, v)), index, [40, 100])
    torch.testing.assert_close(out.double(), want, atol=1e-3, rtol=1e-3)
    for B, S, counts in ((0, 3, [4]), (2, 0, [4]), (2, 3, []), (2, 3, [0, 0])):
        q, k, v = (torch.randn(B, 2, n, 8, requires_grad=True) for n in (S, *[sum(counts)] * 2))
        index = torch.full((B, S), len(counts) - 1, dtype=torch.int32)
        out = media_attention(q, k, v, index, counts)
        out.sum().backward()
        assert not out.any()
        assert not q.grad.any()


def test_bad_input_is_named() -> None:
    q, k, v, _, index = problem(1, 1, 3, 8, [4], 0)
    wide = torch.zeros(1, 1, 3, 257)
    for bad, complaint in (
        ((q, k, v, index, 3), "latents_per_media is 3; must divide the 4 rows of k"),
        ((q, k, v, index, [3, 2]), "must add up to the 4 rows"),
        ((q, k, v, index, [5, -1]), "must add up to the 4 rows"),
        ((q, k, v, index + 5, 4), "must be from -1 .none. to 0"),
        ((q, k, v, index - 5, 4), "must be from -1 .none. to 0"),
        ((q, k.half(), v, index, 4), "must be all float32, bfloat16 or float16"),
        ((q.double(), k.double(), v.double(), index, 4), "torch.float64"),
        ((q, k, v, index.long(), 4), "must be torch.int32"),
        ((q, k, v, index[:, :2], 4), r"must be torch.int32 \[1, 3\]"),
        ((q, k, v[:, :, :3], index, 4), "don't fit q"),
        ((q, k[:, :, :, :7], v[:, :, :, :7], index, 4), "don't fit q"),
        ((q, k[0], v[0], index, 4), "k has shape"),
        ((q[0], k, v, index, 4), "q has shape"),
        ((wide, wide, wide, index, 3), "d from 1 to 256"),
        ((q, k, v, index.to("meta"), 4), "must be on one device"),
    ):
        with pytest.raises(ValueError, match=complaint):
            media_attention(*bad)


@pytest.mark.skipif(implementation("media_attention_forward").name == "reference", reason="no _C")
def test_the_kernel_itself_refuses_what_it_could_not_survive() -> None:
    q, k, v, _, index = problem(1, 1, 3, 8, [4], 0)
    forward = torch.ops.flamvid.media_attention_forward
    for offsets in ([0, 5], [0, 3], [1, 4], [0, 4, 2, 4], []):
        with pytest.raises(RuntimeError, match="offsets must"):
            forward(q, k, v, index, torch.tensor(offsets, dtype=torch.int64), 1.0)
    for bad in ((q, k[:, :, :3], v, index), (q, k, v, index[:, :2]), (q, k.half(), v, index)):
        with pytest.raises(RuntimeError, match="media_attention: "):
            forward(*bad, torch.tensor([0, 4]), 1.0)
    # An index out of range, which compiled code does not look for, reads as none.
    out, _ = forward(q, k, v, torch.full_like(index, 7), torch.tensor([0, 4]), 1.0)
    assert not out.any()


def test_implementation_says_why() -> None:
    for op in OPERATIONS:
        served = implementation(op)
        assert served.name in ("kernel", "reference")
        assert served.why
