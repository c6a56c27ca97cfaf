"""Perceiver Resampler: any number of frames to a fixed number of latents (Flamingo, A.1.1).

Legend: B rows (one per media), T frames, N patches per frame, L latents, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.errors import ConfigError
from flamvid.models.time_embedding import TimeEmbedding
from flamvid.ops import attention

__all__ = ["PerceiverResampler", "ResamplerConfig", "SquaredReLU", "feed_forward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerConfig:
    """Sizes of the resampler; `features` is the width of the vision encoder's output."""

    features: int
    width: int = 384
    depth: int = 2
    heads: int = 6
    head_width: int = 64
    latents: int = 32
    frames: int = 8
    ffw_ratio: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("features", "width", "depth", "heads", "head_width", "latents", "frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resampler.{name} is {getattr(self, name)}; must be at least 1")


class SquaredReLU(nn.Module):
    """relu(x)^2, the activation of the paper's new layers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def feed_forward(width: int, ratio: int) -> nn.Sequential:
    """LayerNorm, widen, squared ReLU, narrow; no biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, ratio * width, bias=False),
        SquaredReLU(),
        nn.Linear(ratio * width, width, bias=False),
    )


class ResamplerBlock(nn.Module):
    """Latents attend to the frames and to themselves, then a feed-forward."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm_media = nn.LayerNorm(config.width)
        self.norm_latents = nn.LayerNorm(config.width)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.width, bias=False)
        self.ffw = feed_forward(config.width, config.ffw_ratio)

    def forward(
        self, latents_BLD: Tensor, media: Tensor, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """media [B,K,D]; or [X,D], the media of all rows end to end, `lengths` of each."""
        latents = self.norm_latents(latents_BLD)
        media = self.norm_media(media)
        q = self._split(self.to_q(latents))
        if lengths is None:
            keys = torch.cat([media, latents], dim=1)  # B x (K + L) x D
            k, v = (self._split(x) for x in self.to_kv(keys).chunk(2, dim=-1))
            attended = attention(q, k, v).transpose(1, 2)  # B x L x H x d
        else:
            # A row's keys are its own frames and its latents; nothing is padded.
            pairs = zip(media.split(list(lengths)), latents, strict=True)
            keys = torch.cat([part for pair in pairs for part in pair])[None]
            k, v = (self._split(x) for x in self.to_kv(keys).chunk(2, dim=-1))
            B, _, L, _ = q.shape
            ends = ([L] * B, [n + L for n in lengths])
            packed = attention(q.transpose(0, 1).flatten(1, 2)[None], k, v, ends)  # 1 x H x B*L x d
            attended = packed[0].unflatten(1, (B, L)).permute(1, 2, 0, 3)

        latents_BLD = latents_BLD + self.to_out(attended.flatten(2))
        out: Tensor = latents_BLD + self.ffw(latents_BLD)
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads  # B x H x K x d


class PerceiverResampler(nn.Module):
    """Features of T frames, [B,T,N,F], to latents [B,L,D]."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.norm_features = nn.LayerNorm(config.features)
        self.project = nn.Linear(config.features, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.time = TimeEmbedding(config.frames, config.width)
        self.latents = nn.Parameter(torch.randn(config.latents, config.width) * 0.02)
        self.blocks = nn.ModuleList(ResamplerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, features_BTNF: Tensor, frame_counts: Tensor | None = None) -> Tensor:
        """Latents [B,L,D]; `frame_counts` int [B]: frames past a row's count are not read."""
        B, T, N, _ = features_BTNF.shape
        counts = None if frame_counts is None else [int(n) for n in frame_counts]
        if counts is None or min(counts, default=T) >= T:
            media = self._embed(features_BTNF, self.time(T)).flatten(1, 2)  # B x T*N x D
            lengths = None
        else:
            # Only frames that are there, end to end. A row's time embeddings are those of its own
            # length, so that padding a batch changes nothing.
            frames_XNF = torch.cat([row[:n] for row, n in zip(features_BTNF, counts, strict=True)])
            times_XD = torch.cat([self.time(n) for n in counts])
            media = self._embed(frames_XNF, times_XD).flatten(0, 1)  # X*N x D
            lengths = [n * N for n in counts]

        # Squeeze time and space into the latents.
        latents_BLD = self.latents.expand(B, -1, -1)
        for block in self.blocks:
            latents_BLD = block(latents_BLD, media, lengths)
        out: Tensor = self.norm(latents_BLD)
        return out

    def _embed(self, features: Tensor, times_TD: Tensor) -> Tensor:
        """Project frozen features [...,T,N,F] and say when each frame was seen: [...,T,N,D]."""
        media = self.project(self.dropout(self.norm_features(features)))
        out: Tensor = media + times_TD[:, None, :]
        return out
