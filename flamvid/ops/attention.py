"""Softmax attention, dense or packed, by the best backend that works on the device.

xformers serves half precision on CUDA once a probe has succeeded, our own kernel many keys on CPUs,
where a segment is one media whose latents all its queries see; torch's scaled_dot_product_attention
serves the rest. The reference is the formula, for tests.

Legend: B batch, H heads, S queries, K keys, d head width.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import InputError
from flamvid.ops.kernels import Implementation, implementation
from flamvid.ops.media_attention import WIDEST, media_attention

__all__ = ["Backend", "attention", "attention_backend"]

Backend = Literal["auto", "xformers", "kernel", "sdpa", "reference"]
Lengths = tuple[Sequence[int], Sequence[int]]

_MANY_KEYS = 128  # fewer leave the kernel's tiles half empty, and torch is as quick


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Lengths | None = None,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """q [B,H,S,d], k and v [B,H,K,d] -> [B,H,S,d], in the dtype of q; `scale`: d^-1/2 if not given.

    lengths: (queries, keys) of segments that stand end to end in S and K, where B is 1; queries of
    a segment see its keys only, and a segment without keys gives 0. No work is done for padding.
    Raises InputError where shapes or lengths don't fit, or a backend asked for can't serve.
    Source: memory-efficient attention, Rabe and Staats 2021; BlockDiagonalMask of xformers.
    """
    _check(q, k, v, lengths)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "auto":
        # A graph can ask for nothing, and a compiler knows torch's own best.
        backend = "sdpa" if torch.compiler.is_compiling() else _best(q, k, v, lengths)
    if backend == "xformers":
        works, why = _xformers_serves(q.device, q.dtype, False)
        if not works:
            raise InputError(f"backend xformers can't serve: {why}; use backend 'auto'")
        return _xformers(q, k, v, lengths, scale)
    if backend == "kernel":
        return _kernel(q, k, v, lengths, scale)
    if backend not in ("sdpa", "reference"):
        raise InputError(
            f"backend is {backend!r}; must be auto, xformers, kernel, sdpa or reference"
        )
    dense = _sdpa if backend == "sdpa" else _reference
    if lengths is None:
        return dense(q, k, v, scale)
    return _by_length(dense, q, k, v, lengths, scale)


def attention_backend(device: str, dtype: torch.dtype = torch.float32) -> Implementation:
    """Which backend `auto` takes on a device for many keys of a dtype, and why."""
    works, why = _xformers_serves(torch.device(device), dtype, False)
    if works:
        return Implementation("xformers", why)
    ours, reason = _kernel_serves(torch.device(device), dtype)
    return Implementation("kernel", reason) if ours else Implementation("sdpa", why)


def _check(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 4 or k.shape != v.shape or k.dim() != 4:
        raise InputError(f"{shapes}: must be [B,H,S,d], [B,H,K,d], [B,H,K,d]")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise InputError(f"{shapes}: B, H and d must be equal")
    if not q.device == k.device == v.device or not q.dtype == k.dtype == v.dtype:
        have = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise InputError(f"q, k, v are {have}; must be one dtype on one device")
    if lengths is None:
        return
    queries, keys = lengths
    if q.shape[0] != 1 or len(queries) != len(keys) or min((*queries, *keys), default=0) < 0:
        raise InputError(
            f"{len(queries)} lengths of queries and {len(keys)} of keys for a batch of "
            f"{q.shape[0]}; must be as many, none negative, and the batch 1: pack the rest into S"
        )
    if sum(queries) != q.shape[2] or sum(keys) != k.shape[2]:
        raise InputError(
            f"lengths add up to {sum(queries)} queries and {sum(keys)} keys; "
            f"must be {q.shape[2]} and {k.shape[2]}, as in q and k"
        )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    weights = (q.to(wide) @ k.to(wide).mT * scale).softmax(-1)
    return (weights @ v.to(wide)).to(q.dtype)


def _by_length(
    dense: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float
) -> Tensor:
    """Segments of equal lengths go together as a batch of a dense problem."""
    groups: dict[tuple[int, int], list[int]] = {}
    for at, pair in enumerate(zip(*lengths, strict=True)):
        groups.setdefault(pair, []).append(at)
    parts = [
        x.split(list(n), dim=2) for x, n in ((q, lengths[0]), (k, lengths[1]), (v, lengths[1]))
    ]
    out: list[Tensor] = list(parts[0])
    for (_, keys), members in groups.items():
        batch = [torch.cat([part[at] for at in members]) for part in parts]
        done = dense(*batch, scale) if keys else torch.zeros_like(batch[0])
        for at, row in zip(members, done.split(1), strict=True):
            out[at] = row
    return torch.cat(out, dim=2) if out else q


def _kernel(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | None, scale: float) -> Tensor:
    """Each segment's keys are the latents of a media of its own."""
    if lengths is None:
        seen = torch.zeros(q.shape[0], q.shape[2], dtype=torch.int32, device=q.device)
        return media_attention(q, k, v, seen, [k.shape[2]], scale)
    queries, keys = lengths
    media = torch.arange(len(keys), dtype=torch.int32)
    seen = media.repeat_interleave(torch.tensor(list(queries), dtype=torch.int64))
    seen = seen.to(q.device)[None]
    return media_attention(q, k, v, seen, list(keys), scale)


def _best(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | None) -> Backend:
    grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if _xformers_serves(q.device, q.dtype, grad)[0]:
        return "xformers"
    return "kernel" if _kernel_is_better(q, k, lengths) else "sdpa"


def _kernel_is_better(q: Tensor, k: Tensor, lengths: Lengths | None) -> bool:
    segments = 1 if lengths is None else max(len(lengths[1]), 1)
    # torch's own is slower still in bfloat16.
    many = k.shape[2] >= _MANY_KEYS * segments or q.dtype == torch.bfloat16
    return many and q.shape[3] <= WIDEST and _kernel_serves(q.device, q.dtype)[0]


def _kernel_serves(device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False, f"the kernel serves float32 and bfloat16 on CPUs, not {dtype} on {device}"
    served = implementation("media_attention_forward")
    return served.name == "kernel", served.why


def _xformers(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | None, scale: float) -> Tensor:
    fmha = importlib.import_module("xformers.ops.fmha")
    bias = None
    if lengths is not None:
        queries, keys = (list(n) for n in lengths)
        mask = fmha.attn_bias.BlockDiagonalMask
        bias = mask.from_seqlens(queries, keys, device=q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # xformers has heads inside
    out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=bias, scale=scale)
    return out.transpose(1, 2)


@functools.cache
def _xformers_serves(device: torch.device, dtype: torch.dtype, grad: bool) -> tuple[bool, str]:
    """Whether xformers can be used, found by using it: its wheels often miss torch's version."""
    if device.type != "cuda":
        return False, f"xformers is for CUDA, not {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return False, f"xformers is for half precision, not {dtype}"
    q = torch.randn(1, 2, 5, 64, device=device, dtype=dtype, requires_grad=grad)
    k = torch.randn(1, 2, 7, 64, device=device, dtype=dtype, requires_grad=grad)
    # It prints and warns on import whatever happens; only the result counts.
    logging.getLogger("xformers").setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            torch.set_grad_enabled(grad),
        ):
            warnings.simplefilter("ignore")
            lengths = ((2, 3), (4, 3))
            out = _xformers(q, k, k, lengths, 0.125)
            if grad:
                out.sum().backward()
            want = _by_length(_reference, q, k, k, lengths, 0.125)
            error = float((out - want).detach().abs().max())
    except Exception as reason:
        line = f"{type(reason).__name__}: {reason}".splitlines()[0]
        return False, f"a trial of xformers failed: {line}"
    if not error < 2e-2:
        return False, f"a trial of xformers was {error:.2g} from the reference"
    return True, "a trial of xformers succeeded"
