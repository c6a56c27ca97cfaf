"""Each text token attends to the latents of its own media only.

The references here are the operations' defaults; flamvid._C replaces them per device. They compute
in float32 (float64 for float64), and score all media: simple, not fast.

Legend: B batch, H heads, S text tokens, M media, L latents of a media, K latents of all, d width.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from flamvid.errors import InputError

__all__ = ["WIDEST", "check_index", "media_attention"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 256


def media_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    latents_per_media: SupportsIndex | Sequence[int],
    scale: float | None = None,
) -> Tensor:
    """q [B,H,S,d], k and v [B,H,K,d], index int32 [B,S] from `media_index` -> [B,H,S,d].

    `latents_per_media`: one number for all media, or one for each; `scale`: d^-1/2 if not given.
    Rows of tokens that see no media (-1) are exactly 0, their gradients too. All of float32,
    bfloat16 or float16, d up to 256. Raises InputError for anything else, before it is touched.
    Source: Flamingo, section 2.3 and appendix A.1.3: a token attends to one media only.
    The same for graphs and C++: `torch.ops.flamvid.media_attention(q, k, v, media_index,
    latents_per_media, scale)`, where one number means all media there too.
    """
    offsets = _offsets(latents_per_media, k)
    _check(q, k, v, index, len(offsets) - 1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor
    out, _ = torch.ops.flamvid.media_attention_forward(q, k, v, index, offsets, scale)
    return out


def _offsets(latents: SupportsIndex | Sequence[int], k: Tensor) -> Tensor:
    """int64 [M+1]: media m owns latents offsets[m] .. offsets[m+1]."""
    if k.dim() != 4:
        raise InputError(f"k has shape {tuple(k.shape)}; must be [B,H,K,d]")
    total = k.shape[2]
    if not isinstance(latents, Sequence):
        latents = operator.index(latents)
        if latents < 1 or total % latents:
            raise InputError(
                f"latents_per_media is {latents}; must divide the {total} rows of k, "
                "or be a list of one number per media"
            )
        return torch.arange(0, total + 1, latents, device=k.device)
    if any(n < 0 for n in latents) or sum(latents) != total:
        raise InputError(f"latents_per_media is {latents}; must add up to the {total} rows of k")
    ends = [0]
    for n in latents:
        ends.append(ends[-1] + n)
    return torch.tensor(ends, device=k.device)


def _check(q: Tensor, k: Tensor, v: Tensor, index: Tensor, media: int) -> None:
    if q.dim() != 4 or not 1 <= q.shape[3] <= WIDEST:
        raise InputError(f"q has shape {tuple(q.shape)}; must be [B,H,S,d], d from 1 to {WIDEST}")
    B, H, S, d = q.shape
    if k.shape != v.shape or k.shape[:2] != (B, H) or k.shape[3] != d:
        shapes = f"k {tuple(k.shape)} and v {tuple(v.shape)}"
        raise InputError(f"{shapes} don't fit q {tuple(q.shape)}; must be [B,H,K,d] both")
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        have = f"{q.dtype}, {k.dtype}, {v.dtype}"
        raise InputError(f"q, k, v are {have}; must be all float32, bfloat16 or float16")
    if index.shape != (B, S) or index.dtype != torch.int32:
        have = f"{index.dtype} {tuple(index.shape)}"
        raise InputError(f"index is {have}; must be torch.int32 [{B}, {S}], as media_index gives")
    devices = [str(x.device) for x in (q, k, v, index)]
    if len(set(devices)) > 1:
        raise InputError(f"q, k, v, index are on {', '.join(devices)}; must be on one device")
    # Reading it on CUDA would wait for the GPU: the kernels treat what is out of range as -1.
    # A subclass is a stand-in of a trace, without values.
    read = type(index) is Tensor and index.device.type == "cpu" and index.numel()
    if read and not torch.compiler.is_compiling():
        check_index(index, media)


def check_index(index: Tensor, media: int) -> None:
    """InputError for an index, of at least one token, that names a media that is not there."""
    low, high = (int(x) for x in index.aminmax())
    if low < -1 or high >= media:
        raise InputError(
            f"index spans {low}..{high}; must be from -1 (none) to {media - 1}, the last media"
        )


def _weights(
    q: Tensor, k: Tensor, index: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Weights and lse of a dense softmax; lse is -inf and weights 0 where nothing is visible."""
    at = torch.arange(k.shape[2], device=k.device)
    owner_K = torch.searchsorted(offsets[1:].contiguous(), at, right=True)
    visible = index[:, None, :, None] == owner_K  # B x 1 x S x K
    scores = (q @ k.mT * scale).masked_fill(~visible, float("-inf"))
    lse = scores.logsumexp(-1)  # B x H x S
    weights = (scores - lse[..., None].clamp_min(torch.finfo(lse.dtype).min)).exp()
    return weights, lse


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [x if x.dtype == torch.float64 else x.float() for x in tensors]


@torch.library.custom_op("flamvid::media_attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    q32, k32, v32 = _wide(q, k, v)
    weights, lse = _weights(q32, k32, index, offsets, scale)
    return (weights @ v32).to(q.dtype).contiguous(), lse.float().contiguous()


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, offsets: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("flamvid::media_attention_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    index: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    g32, q32, k32, v32, out32 = _wide(grad_out, q, k, v, out)
    weights, _ = _weights(q32, k32, index, offsets, scale)
    delta = (g32 * out32).sum(-1, keepdim=True)
    dscores = weights * (g32 @ v32.mT - delta) * scale
    grads = dscores @ k32, dscores.mT @ q32, weights.mT @ g32
    dq, dk, dv = (x.to(q.dtype).contiguous() for x in grads)
    return dq, dk, dv


@_backward.register_fake
def _(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    index: Tensor,
    offsets: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, index, offsets, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, index, offsets)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = torch.ops.flamvid.media_attention_backward(grad_out, *saved, ctx.scale)
    return (*grads, None, None, None)


_forward.register_autograd(_gradients, setup_context=_keep)


# Composite: autograd, fake tensors and torch.compile see the two operations inside.
torch.library.define(
    "flamvid::media_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor media_index, int[1] latents_per_media, "
    "float? scale=None) -> Tensor",
)


@torch.library.impl("flamvid::media_attention", "CompositeImplicitAutograd")
def _whole(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    media_index: Tensor,
    latents_per_media: Sequence[int],
    scale: float | None = None,
) -> Tensor:
    one = len(latents_per_media) == 1
    latents = latents_per_media[0] if one else latents_per_media
    return media_attention(q, k, v, media_index, latents, scale)
