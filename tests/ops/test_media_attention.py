"""media_attention against a float64 loop: values, gradients, opcheck, compile, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamvid.ops import implementation, media_attention, media_index

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
def test_opcheck(device: str) -> None:
    q, k, v, _, index = (x.to(device) for x in problem(2, 2, 5, 8, [3, 4], 0))
    offsets = torch.tensor([0, 3, 7], device=device)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    forward = torch.ops.flamvid.media_attention_forward.default
    torch.library.opcheck(forward, (*inputs, index, offsets, 0.3))
    for attend in ("previous", "next"):
        ids = torch.randint(0, 3, (2, 5), device=device)
        torch.library.opcheck(torch.ops.flamvid.media_index.default, (ids, 1, attend))


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_whole_and_repeats_itself(device: str) -> None:
    q, k, v, _, index = (x.to(device) for x in problem(2, 2, 9, 16, [4, 4], 1))
    compiled = torch.compile(media_attention, fullgraph=True, backend="aot_eager")
    first = compiled(q, k, v, index, 4)
    assert torch.equal(first, media_attention(q, k, v, index, 4))


def test_index_goes_on_from_a_cache() -> None:
    ids = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]])
    whole = media_index(ids, 1)
    seen = (ids[:, :2] == 1).sum(1)
    assert torch.equal(media_index(ids[:, 2:], 1, seen=seen), whole[:, 2:])


def test_bad_input_is_named() -> None:
    q, k, v, _, index = problem(1, 1, 3, 8, [4], 0)
    with pytest.raises(ValueError, match="must divide"):
        media_attention(q, k, v, index, 3)
    with pytest.raises(ValueError, match="must be from -1 to 0"):
        media_attention(q, k, v, index + 5, 4)
    with pytest.raises(ValueError, match="one float type"):
        media_attention(q, k.half(), v, index, 4)
    with pytest.raises(ValueError, match="int32"):
        media_attention(q, k, v, index.long(), 4)


def test_implementation_says_why() -> None:
    served = implementation("media_attention")
    assert served.name in ("kernel", "reference")
    assert served.why
