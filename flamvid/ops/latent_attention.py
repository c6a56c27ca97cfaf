"""Attention of few tokens to the latents of their media, of which keys and values are never made.

q W_k^T x is q by the key of x, whichever product comes first: a query goes through the weights of
the keys to the latents, and what it takes of them through the weights of the values. Of T tokens
that see one media of L latents that is 2 T / L of the work. The reference here makes keys and
values; flamvid._C takes its place on CPUs.

Legend: S tokens, H heads, d head width, M media, L latents of each, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flamvid.ops.media_attention import media_attention

__all__ = ["LATENT_STEP", "latent_attention"]

LATENT_STEP = 16
"""L, D and d are multiples of it."""


def latent_attention(
    q: Tensor,
    latents: Tensor,
    turned: Tensor,
    to_keys: Tensor,
    to_values: Tensor,
    index: Tensor,
    heads: int,
    scale: float,
) -> Tensor:
    """q [S,H*d], latents [M,L,D], index int32 [S] -> [S,H*d], 0 where a token sees none (-1).

    turned: the latents as [M,D,L]; to_keys, to_values [H*d,D]. All float32. With gradients it is
    the formula that serves.
    """
    given = (q, latents, turned, to_keys, to_values, index, heads, scale)
    out: Tensor = _formula(*given) if torch.is_grad_enabled() else _operation(*given)
    return out


def _formula(
    q: Tensor,
    latents: Tensor,
    turned: Tensor,
    to_keys: Tensor,
    to_values: Tensor,
    index: Tensor,
    heads: int,
    scale: float,
) -> Tensor:
    keys, values = (
        (latents.flatten(0, 1) @ weight.mT).unflatten(-1, (heads, -1)).transpose(0, 1)[None]
        for weight in (to_keys, to_values)
    )
    q_1HSd = q.unflatten(-1, (heads, -1)).transpose(0, 1)[None]
    out = media_attention(q_1HSd, keys, values, index[None], latents.shape[1], scale)
    return out[0].transpose(0, 1).flatten(1)


_operation = torch.library.custom_op("flamvid::latent_attention", _formula, mutates_args=())


@_operation.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)
