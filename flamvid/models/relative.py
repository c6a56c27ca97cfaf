"""A decoder block with relative positions, as Transformer-XL has it (Dai et al. 2019, 3.3).

Chinchilla's block, whose projection of the relative positions is the 13th D^2 of a layer in the
paper's parameter totals. Norms are RMSNorm and the feed-forward is 4 D wide with GELU.

Legend: B batch, S tokens of this call, K tokens with the cached ones, H heads, D width, d a head's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Extend", "RelativeBlock"]

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class RelativeBlock(nn.Module):
    """x + attention(x) by content and distance; x + ffw(x). No biases in the linear layers."""

    def __init__(self, width: int, heads: int, head_width: int, ffw_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.to_qkv = nn.Linear(width, 3 * inner, bias=False)
        self.to_distance = nn.Linear(width, inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        # u and v of Transformer-XL: what every query asks for, of content and of distance.
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, head_width))
        self.distance_bias = nn.Parameter(torch.zeros(heads, 1, head_width))
        self.ffw = nn.Sequential(
            nn.RMSNorm(width, eps=1e-6),
            nn.Linear(width, ffw_width, bias=False),
            nn.GELU(),
            nn.Linear(ffw_width, width, bias=False),
        )

    def forward(
        self, hidden_states: Tensor, unseen: Tensor, extend: Extend | None = None
    ) -> Tensor:
        """Hidden states [B,S,D] to the same.

        unseen: bool [B or 1, 1, S, K], keys that a query must not see. extend: given the new keys
        and values [B,H,S,d], returns those with the cached ones in front, [B,H,K,d].
        """
        x_BSD = hidden_states
        qkv = self.to_qkv(self.norm(x_BSD)).chunk(3, dim=-1)
        q, k, v = (self._split(x) for x in qkv)
        if extend is not None:
            k, v = extend(k, v)

        # What each query makes of each distance, then moved to the key at that distance.
        S, K = q.shape[2], k.shape[2]
        far_KD = sinusoids(K, x_BSD.shape[-1], x_BSD.device).to(x_BSD.dtype)
        r_HKd = self._split(self.to_distance(far_KD)[None])[0]
        by_distance = (q + self.distance_bias) @ r_HKd.transpose(-1, -2)  # B x H x S x K
        at = torch.arange(K, device=x_BSD.device)
        ago_SK = (at[K - S :, None] - at).clamp_min(0)  # later keys are unseen anyway
        bias = by_distance.gather(-1, ago_SK.expand_as(by_distance)) * q.shape[-1] ** -0.5
        # The least number rather than -inf: a row of padding alone must not become NaN.
        bias = bias.masked_fill(unseen, torch.finfo(bias.dtype).min)
        attended = F.scaled_dot_product_attention(q + self.content_bias, k, v, attn_mask=bias)

        x_BSD = x_BSD + self.to_out(attended.transpose(1, 2).flatten(2))
        out: Tensor = x_BSD + self.ffw(x_BSD)
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads  # B x H x S x d


def sinusoids(distances: int, width: int, device: torch.device) -> Tensor:
    """Sines, then cosines, of the distances 0, 1, ..., each [distances, width]."""
    step = 1.0 / 10000 ** (torch.arange(0, width, 2, device=device).float() / width)
    turn = torch.arange(distances, device=device).float()[:, None] * step
    return torch.cat([turn.sin(), turn.cos()], dim=-1)
