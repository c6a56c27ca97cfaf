"""IDEFICS-1's gated cross-attention: Flamingo's, with the norms and feed-forward of LLaMA.

Source: transformers, models/idefics (Laurencon et al. 2023, arXiv 2306.16527).
Legend: B batch, S text tokens, D width of the LM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.gated_xattn import GatedCrossAttention, XattnConfig
from flamvid.models.linear import Linear

__all__ = ["IdeficsCrossAttention"]


class SwiGLU(nn.Module):
    """RMSNorm, then down(silu(gate(x)) * up(x)); no biases."""

    def __init__(self, width: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps)
        self.gate = Linear(width, inner, bias=False)
        self.up = Linear(width, inner, bias=False)
        self.down = Linear(inner, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x = self.norm(x_BSD)
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class IdeficsCrossAttention(GatedCrossAttention):
    """RMS norms, also of each head's queries and keys; a SwiGLU; gates that may be per channel."""

    def __init__(self, config: XattnConfig, width: int, media_width: int) -> None:
        super().__init__(config, width, media_width)
        self.norm = nn.RMSNorm(width, eps=config.norm_eps)
        self.norm_q = nn.RMSNorm(config.head_width, eps=config.norm_eps)
        self.norm_k = nn.RMSNorm(config.head_width, eps=config.norm_eps)
        self.ffw = SwiGLU(width, config.ffw_width, config.norm_eps)
        if config.vector_gates:
            self.attn_gate = nn.Parameter(torch.zeros(width))
            self.ffw_gate = nn.Parameter(torch.zeros(width))
