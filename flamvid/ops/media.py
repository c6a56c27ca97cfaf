"""Which media a token sees, and the attention that reads it: plain PyTorch references.

Legend: B batch, H heads, S text tokens, M media, L latents per media, d head width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Attend", "media_attention", "media_index"]

Attend = Literal["previous", "next"]


def media_index(input_ids: Tensor, media_token_id: int, attend: Attend = "previous") -> Tensor:
    """Index of the one media that each token sees (Flamingo, section 2.3 and appendix A.3.2).

    input_ids: int [B,S]. Returns int32 [B,S]; -1 where a token sees none.
    `previous`: the last media token at or before the token; `next`: the first at or after it.
    """
    is_media_BS = input_ids == media_token_id
    seen_BS = is_media_BS.cumsum(dim=1)
    if attend == "previous":
        return (seen_BS - 1).to(torch.int32)
    following_BS = seen_BS - is_media_BS.long()
    total_B1 = seen_BS[:, -1:]
    return torch.where(following_BS < total_B1, following_BS, -1).to(torch.int32)


def media_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, latents: int) -> Tensor:
    """Each text token attends to the latents of its own media only.

    q [B,H,S,d], k and v [B,H,M*L,d], index int32 [B,S] from `media_index`, `latents` = L.
    Returns [B,H,S,d]; rows of tokens that see no media (-1) are exactly 0, gradients too.
    """
    media = k.shape[2] // latents
    owner = torch.arange(media, device=k.device).repeat_interleave(latents)  # M*L
    visible = index[:, None, :, None] == owner  # B x 1 x S x M*L
    blind = (index < 0)[:, None, :, None]  # B x 1 x S x 1
    # A row with nothing visible would be softmax over -inf: let it see all, then zero it.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | blind)
    return out.masked_fill(blind, 0.0)
