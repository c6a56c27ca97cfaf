"""attention: dense and packed, each backend against float64 softmax one segment at a time."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flamvid.ops import attention, attention_backend, implementation

CUDA = pytest.mark.needs_cuda
CASES = [
    ("cpu", "sdpa", torch.float32, 1e-5),
    ("cpu", "kernel", torch.float32, 1e-5),
    ("cpu", "kernel", torch.bfloat16, 2e-2),
    ("cpu", "reference", torch.float32, 1e-5),
    ("cpu", "auto", torch.bfloat16, 2e-2),
    pytest.param("cuda", "sdpa", torch.float32, 1e-5, marks=CUDA),
    pytest.param("cuda", "auto", torch.bfloat16, 2e-2, marks=CUDA),
    pytest.param("cuda", "auto", torch.float16, 5e-3, marks=CUDA),
]


def truth(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[list[int], list[int]]) -> Tensor:
    out, s, n = [], 0, 0
    for queries, keys in zip(*lengths, strict=True):
        rows, own = slice(s, s + queries), slice(n, n + keys)
        weights = (q[:, :, rows] @ k[:, :, own].mT * q.shape[-1] ** -0.5).softmax(-1)
        out.append(weights @ v[:, :, own])
        s, n = s + queries, n + keys
    return torch.cat(out, dim=2)


@pytest.mark.parametrize(("device", "backend", "dtype", "close"), CASES)
@settings(max_examples=25)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 70)), min_size=1, max_size=6),
    H=st.integers(1, 3),
    d=st.sampled_from([8, 24, 64]),
    seed=st.integers(0, 9999),
)
def test_packed_values_and_gradients(
    device: str,
    backend: str,
    dtype: torch.dtype,
    close: float,
    pairs: list[tuple[int, int]],
    H: int,
    d: int,
    seed: int,
) -> None:
    dice = torch.Generator().manual_seed(seed)
    pairs = [*pairs, (2, 3)]  # one that sees something
    lengths = [n for n, _ in pairs], [n for _, n in pairs]
    S, K = (sum(n) for n in lengths)
    q, k, v, g = (torch.randn(1, H, n, d, generator=dice) for n in (S, K, K, S))
    have = [x.to(device, dtype).requires_grad_() for x in (q, k, v)]
    want = [x.detach().cpu().double().requires_grad_() for x in have]
    g = g.to(dtype)
    out, ref = attention(*have, lengths, backend=backend), truth(*want, lengths)
    assert out.dtype == dtype
    grads = torch.autograd.grad(out, have, g.to(device))
    refs = torch.autograd.grad(ref, want, g.double())
    for x, y in zip((out, *grads), (ref, *refs), strict=True):
        scale = max(1.0, float(y.detach().abs().max()) if y.numel() else 1.0)
        torch.testing.assert_close(x.cpu().double(), y, atol=close * scale, rtol=close)


@pytest.mark.parametrize(("device", "backend", "dtype", "close"), CASES)
def test_dense_is_packed_of_one(
    device: str, backend: str, dtype: torch.dtype, close: float
) -> None:
    q, k, v = (torch.randn(2, 3, n, 16, device=device, dtype=dtype) for n in (5, 9, 9))
    dense = attention(q, k, v, backend=backend)
    for b in range(2):
        row = slice(b, b + 1)
        packed = attention(q[row], k[row], v[row], ([5], [9]), backend=backend)
        torch.testing.assert_close(dense[row], packed, atol=close, rtol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_see_and_nobody_to_see_it(dtype: torch.dtype) -> None:
    q, k = torch.randn(2, 3, 5, 16, dtype=dtype), torch.randn(2, 3, 0, 16, dtype=dtype)
    assert not attention(q, k, k).any()
    assert attention(k, q, q).shape == k.shape
    assert attention(k[:1], k[:1], k[:1], ([], [])).shape == (1, 3, 0, 16)
    assert not attention(q[:1], k[:1], k[:1], ([3, 2], [0, 0])).any()


def test_bad_input_is_named() -> None:
    q, k = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 6, 8)
    two = torch.zeros(2, 2, 4, 8)
    for bad, keywords, complaint in (
        ((q, k, k[:, :, :5]), {}, r"must be \[B,H,S,d\]"),
        ((q[0], k[0], k[0]), {}, r"must be \[B,H,S,d\]"),
        ((q[:, :1], k, k), {}, "B, H and d must be equal"),
        ((q, k.half(), k.half()), {}, "one dtype on one device"),
        ((q, k, k), {"lengths": ([4], [5])}, "add up to 4 queries and 5 keys; must be 4 and 6"),
        ((q, k, k), {"lengths": ([2, 2], [6])}, "2 lengths of queries and 1 of keys"),
        ((q, k, k), {"lengths": ([5, -1], [3, 3])}, "none negative"),
        ((two, two, two), {"lengths": ([4], [4])}, "for a batch of 2"),
        ((q, k, k), {"backend": "flash"}, "backend is 'flash'"),
        ((q, k, k), {"backend": "xformers"}, "xformers is for CUDA, not cpu; use backend 'auto'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            attention(*bad, **keywords)


def test_the_choice_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    served = attention_backend("cpu", torch.float16)
    assert (served.name, served.why) == ("sdpa", "xformers is for CUDA, not cpu")
    served = attention_backend("cpu")
    kernels = implementation("media_attention_forward")
    assert served.name == ("kernel" if kernels.name == "kernel" else "sdpa")
    called = []
    module = importlib.import_module("flamvid.ops.attention")  # its name is the function's too
    monkeypatch.setattr(module, "_kernel", lambda q, *_: called.append(q) or q)
    q, few, many = (torch.zeros(1, 2, n, 8) for n in (4, 127, 256))
    attention(q, few, few)
    attention(q, many, many, ([2, 1, 1], [200, 50, 6]))
    assert not called
    attention(q, many, many)
    attention(q, many, many, ([2, 2], [200, 56]))
    assert len(called) == (2 if kernels.name == "kernel" else 0)


@CUDA
def test_the_choice_on_cuda_follows_the_trial() -> None:
    served = attention_backend("cuda", torch.bfloat16)
    assert ("succeeded" in served.why) == (served.name == "xformers")
    assert attention_backend("cuda", torch.float32).name == "sdpa"
