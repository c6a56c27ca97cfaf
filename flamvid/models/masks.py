"""Which keys a decoder's query must not see.

Legend: B batch, S tokens of this call, K tokens with the cached ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["hidden_keys"]


def hidden_keys(x_BSD: Tensor, past: int, attention_mask: Tensor | None) -> Tensor:
    """True where a key is later than its query or padding, [B or 1, 1, S, past + S].

    attention_mask: int [B, past + S], 1 where a token is real.
    """
    S = x_BSD.shape[1]
    key_K = torch.arange(past + S, device=x_BSD.device)
    hidden_11SK = (key_K > key_K[past:, None])[None, None]
    if attention_mask is None:
        return hidden_11SK
    return hidden_11SK | (attention_mask == 0)[:, None, None, :]
