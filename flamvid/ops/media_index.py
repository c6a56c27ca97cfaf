"""Which media a token sees.

Legend: B batch, S text tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flamvid.errors import InputError

__all__ = ["Attend", "media_index"]

Attend = Literal["previous", "next"]


@torch.library.custom_op("flamvid::media_index", mutates_args=())
def _media_index(input_ids: Tensor, media_token_id: int, attend: str) -> Tensor:
    is_media_BS = input_ids == media_token_id
    seen_BS = is_media_BS.cumsum(dim=1)
    if attend == "previous":
        return (seen_BS - 1).to(torch.int32)
    following_BS = seen_BS - is_media_BS.long()
    total_B1 = seen_BS[:, -1:]
    return torch.where(following_BS < total_B1, following_BS, -1).to(torch.int32)


@_media_index.register_fake
def _(input_ids: Tensor, media_token_id: int, attend: str) -> Tensor:
    return input_ids.new_empty(input_ids.shape, dtype=torch.int32)


def media_index(
    input_ids: Tensor,
    media_token_id: int,
    attend: Attend = "previous",
    seen: Tensor | None = None,
) -> Tensor:
    """Index of the one media that each token sees (Flamingo, section 2.3 and appendix A.3.2).

    input_ids: int [B,S]. Returns int32 [B,S]; -1 where a token sees none.
    `previous`: the last media token at or before the token; `next`: the first at or after it.
    `seen` int [B]: media tokens of each row before these ones, as in decoding with a cache.
    Padding on the left is no media token, so it sees none (`previous`) or the first (`next`).
    Raises InputError for other shapes and types.
    """
    if input_ids.dim() != 2:
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}; must be [B,S]")
    if input_ids.dtype not in (torch.int32, torch.int64):
        raise InputError(f"input_ids is {input_ids.dtype}; must be int32 or int64")
    if attend not in ("previous", "next"):
        raise InputError(f"attend is {attend!r}; must be 'previous' or 'next'")
    index_BS: Tensor = torch.ops.flamvid.media_index(input_ids, media_token_id, attend)
    if seen is None:
        return index_BS
    if seen.shape != input_ids.shape[:1] or seen.dtype not in (torch.int32, torch.int64):
        have = f"{seen.dtype} {tuple(seen.shape)}"
        raise InputError(f"seen is {have}; must be int32 or int64 [{len(input_ids)}]")
    moved_BS = index_BS + seen.to(torch.int32)[:, None]
    return moved_BS if attend == "previous" else torch.where(index_BS < 0, -1, moved_BS)
