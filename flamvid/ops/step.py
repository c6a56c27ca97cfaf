"""Parts of a decoding step, each one operation: a norm, products with few rows, and the sum.

In separate operations most of a token's time goes by between them: threads are woken and wait a
dozen times in each layer. The references here are the formulas; flamvid._C takes their place on
CPUs. Weights come as lists: a norm's weight and perhaps its bias, none for no norm; float32 weights
[N,K] alone, or the three of int8.

Legend: R rows (one token each), B texts, S tokens of each, D width, F inner width, H heads, G key
heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.ops.linear_int8 import Int8, dequantise_int8
from flamvid.ops.media_attention import media_attention

__all__ = ["cross_few", "feed_few", "self_few"]


def _norm(x: Tensor, norm: Sequence[Tensor], eps: float, rms: bool) -> Tensor:
    if not norm:
        return x
    shape = x.shape[-1:]
    if rms:
        return F.rms_norm(x, shape, norm[0], eps)
    return F.layer_norm(x, shape, norm[0], norm[1] if len(norm) > 1 else None, eps)


def _linear(x: Tensor, weight: Sequence[Tensor]) -> Tensor:
    return F.linear(x, weight[0] if len(weight) == 1 else dequantise_int8(Int8(*weight)))


def _gated(gate: Tensor | None, x: Tensor) -> Tensor:
    return x if gate is None else gate.tanh() * x


@torch.library.custom_op("flamvid::feed_few", mutates_args=())
def _feed_few(
    x: Tensor,
    norm: Sequence[Tensor],
    eps: float,
    rms: bool,
    up: Sequence[Tensor],
    down: Sequence[Tensor],
    activation: str,
    gate: Tensor | None,
) -> Tensor:
    """x + tanh(gate) down(activation(up(norm(x)))), [R,D]."""
    inner = _linear(_norm(x, norm, eps, rms), up)
    if activation == "silu_gated":
        first, other = inner.chunk(2, dim=-1)
        inner = F.silu(first) * other
    elif activation == "gelu":
        inner = F.gelu(inner)
    else:
        inner = F.relu(inner)
        inner = inner.square() if activation == "squared_relu" else inner
    return x + _gated(gate, _linear(inner, down))


@torch.library.custom_op("flamvid::cross_few", mutates_args=())
def _cross_few(
    x: Tensor,
    norm: Sequence[Tensor],
    eps: float,
    to_q: Sequence[Tensor],
    keys: Tensor,
    values: Tensor,
    index: Tensor,
    start: int,
    latents: int,
    to_out: Sequence[Tensor],
    gate: Tensor | None,
) -> Tensor:
    """x + tanh(gate) out(attention(q(norm(x)), media)), [R,D].

    keys, values [P,H,M*latents,d] of P prompts, so many rows each; index int32 [R]: which media, of
    which those from `start` on have keys, or -1.
    """
    P, H = keys.shape[:2]
    q = _linear(_norm(x, norm, eps, False), to_q)
    q = q.view(P, -1, H, keys.shape[3]).transpose(1, 2)
    places = torch.where(index < 0, -1, index - start)
    read = media_attention(q, keys, values, places.view(P, -1), latents)
    return x + _gated(gate, _linear(read.transpose(1, 2).reshape(x.shape[0], -1), to_out))


@torch.library.custom_op("flamvid::self_few", mutates_args=("keys", "values"))
def _self_few(
    x: Tensor,
    norm: Sequence[Tensor],
    eps: float,
    rms: bool,
    qkv: Sequence[Tensor],
    q_norm: Sequence[Tensor],
    k_norm: Sequence[Tensor],
    turn: Sequence[Tensor],
    slopes: Tensor | None,
    keys: Tensor,
    values: Tensor,
    length: int,
    real: Tensor | None,
    heads: int,
    scale: float,
    out: Sequence[Tensor],
) -> Tensor:
    """x + out(attention(qkv(norm(x)))), [R,D]; new keys and values go to places from `length` on.

    keys, values [B,G,room,d]: each of B texts has S = R / B rows in succession, its next tokens;
    q_norm, k_norm over all heads at once; turn: cosine and sine of rotary positions, [R,d] each,
    or [1,d] where S is 1, or none; slopes [H] of ALiBi; real bool [B,length+S].
    """
    B, G, _, d = keys.shape
    S = x.shape[0] // B
    end = length + S
    mixed = _linear(_norm(x, norm, eps, rms), qkv)
    q, k, v = mixed.split([heads * d, G * d, G * d], dim=-1)
    q, k = _norm(q, q_norm, eps, rms), _norm(k, k_norm, eps, rms)
    q, k, v = (part.view(B, S, -1, d).transpose(1, 2) for part in (q, k, v))  # B x H x S x d
    if turn:
        cosine, sine = (part.view(-1, 1, S, d) for part in turn)
        q, k = _turned(q, cosine, sine), _turned(k, cosine, sine)
    keys[:, :, length:end], values[:, :, length:end] = k, v
    places = (
        torch.arange(end, device=x.device) - torch.arange(length, end, device=x.device)[:, None]
    )
    bias = x.new_zeros(B, 1, S, end).masked_fill(places > 0, float("-inf"))
    if slopes is not None:
        bias = bias + slopes.view(1, -1, 1, 1) * places
    if real is not None:
        hidden = ~real[:, None] & (places != 0)  # a token always sees itself
        bias = bias.masked_fill(hidden[:, None], float("-inf"))
    room = slice(end)
    read = F.scaled_dot_product_attention(
        q,
        keys[:, :, room],
        values[:, :, room],
        attn_mask=bias,
        scale=scale,
        enable_gqa=heads != G,
    )
    return x + _linear(read.transpose(1, 2).reshape(x.shape[0], -1), out)


def _turned(x_BHSd: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x_BHSd.chunk(2, dim=-1)
    other = torch.cat([-second, first], dim=-1)
    return x_BHSd * cosine + other * sine


def _like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


for _operation in (_feed_few, _cross_few, _self_few):
    _operation.register_fake(_like)

Operation = Callable[..., Tensor]
feed_few: Operation = torch.ops.flamvid.feed_few.default
cross_few: Operation = torch.ops.flamvid.cross_few.default
self_few: Operation = torch.ops.flamvid.self_few.default
