"""Attention of a text to itself and to what was read of it before, without gradients.

torch's own takes ALiBi and padding as one dense mask, and then scores what no token may see, too.
The reference here is that; flamvid._C takes its place on CPUs, where those tiles are left out.

Legend: B batch, H heads, G key heads, S tokens of this call, K with those before, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.ops.kernels import implementation

__all__ = ["causal_attention", "causal_is_compiled"]

_STEP, _WIDEST = 16, 256


@torch.library.custom_op("flamvid::causal_attention", mutates_args=())
def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor | None,
    real: Tensor | None,
    scale: float,
) -> Tensor:
    """q [B,H,S,d], k and v [B,G,K,d] -> [B,S,H,d]; the queries are those of the last S tokens.

    slopes [H]: ALiBi's bias of a key for each place nearer. real bool [B,K]: which keys may be
    seen; a token always sees its own.
    """
    S, K = q.shape[2], k.shape[2]
    places_SK = torch.arange(K, device=q.device) - torch.arange(K - S, K, device=q.device)[:, None]
    bias = q.new_zeros(1, 1, S, K).masked_fill(places_SK > 0, float("-inf"))
    if slopes is not None:
        bias = bias + slopes.view(1, -1, 1, 1) * places_SK
    if real is not None:
        hidden = ~real[:, None, None] & (places_SK != 0)
        bias = bias.masked_fill(hidden, float("-inf"))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous()


@causal_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3])


def causal_is_compiled(q: Tensor) -> bool:
    """Whether the kernel takes such queries."""
    return (
        not torch.is_grad_enabled()
        and q.is_cpu
        and q.dtype == torch.float32
        and q.shape[3] % _STEP == 0
        and 0 < q.shape[3] <= _WIDEST
        and not torch.compiler.is_compiling()
        and implementation("causal_attention").name == "kernel"
    )
