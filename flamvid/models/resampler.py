"""Perceiver Resampler: any number of frames to a fixed number of latents (Flamingo, A.1.1).

Legend: B rows (one per media), T frames, N patches per frame, L latents, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.errors import ConfigError, InputError
from flamvid.models.time_embedding import TimeEmbedding

__all__ = [
    "PerceiverResampler",
    "ResamplerConfig",
    "SquaredReLU",
    "check_activation",
    "feed_forward",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerConfig:
    """Sizes of the resampler; `features` is the width of the vision encoder's output.

    frames: how many time embeddings there are; 0 for none. media: how many places of a media in
    its text have an embedding; 0 for none. project: whether features come through a norm and a
    projection to `width`; if not, they are `width` wide. qk_norm: a norm of each head's queries
    and keys.
    """

    features: int
    width: int = 384
    depth: int = 2
    heads: int = 6
    head_width: int = 64
    latents: int = 32
    frames: int = 8
    ffw_ratio: int = 4
    dropout: float = 0.0
    media: int = 0
    project: bool = True
    activation: str = "squared_relu"
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("features", "width", "depth", "heads", "head_width", "latents"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resampler.{name} is {getattr(self, name)}; must be at least 1")
        for name in ("frames", "media"):
            if getattr(self, name) < 0:
                raise ConfigError(f"resampler.{name} is {getattr(self, name)}; must be at least 0")
        check_activation("resampler", self.activation)
        if not self.project and self.features != self.width:
            raise ConfigError(
                f"resampler.features is {self.features} and width {self.width}; they must be the "
                "same without a projection: set project = true"
            )


class SquaredReLU(nn.Module):
    """relu(x)^2, the activation of the paper's new layers."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "squared_relu": SquaredReLU,
    "gelu": nn.GELU,  # the exact one, by erf
    "relu": nn.ReLU,
}


def check_activation(where: str, name: str) -> None:
    """A ConfigError unless there is such an activation."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"{where}.activation is {name!r}; must be one of {', '.join(ACTIVATIONS)}"
        )


def feed_forward(width: int, ratio: int, activation: str = "squared_relu") -> nn.Sequential:
    """LayerNorm, widen, activation, narrow; no biases in the linear layers."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, ratio * width, bias=False),
        ACTIVATIONS[activation](),
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
        self.norm_q = nn.LayerNorm(config.head_width) if config.qk_norm else nn.Identity()
        self.norm_k = nn.LayerNorm(config.head_width) if config.qk_norm else nn.Identity()
        self.ffw = feed_forward(config.width, config.ffw_ratio, config.activation)

    def forward(
        self, latents_BLD: Tensor, media_BKD: Tensor, visible_B11K: Tensor | None
    ) -> Tensor:
        latents = self.norm_latents(latents_BLD)
        keys = torch.cat([self.norm_media(media_BKD), latents], dim=1)  # B x (K + L) x D

        q = self._split(self.to_q(latents))
        k, v = (self._split(x) for x in self.to_kv(keys).chunk(2, dim=-1))
        if visible_B11K is not None:
            visible_B11K = F.pad(visible_B11K, (0, latents.shape[1]), value=True)
        q, k = self.norm_q(q), self.norm_k(k)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible_B11K)

        latents_BLD = latents_BLD + self.to_out(attended.transpose(1, 2).flatten(2))
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
        if config.project:
            self.norm_features: nn.Module = nn.LayerNorm(config.features)
            self.project: nn.Module = nn.Linear(config.features, config.width, bias=False)
        else:
            self.norm_features, self.project = nn.Identity(), nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.time = TimeEmbedding(config.frames, config.width) if config.frames else None
        self.place = TimeEmbedding(config.media, config.width) if config.media else None
        self.latents = nn.Parameter(torch.randn(config.latents, config.width) * 0.02)
        self.blocks = nn.ModuleList(ResamplerBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        features_BTNF: Tensor,
        frame_counts: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Latents [B,L,D]; `frame_counts` [B] hides the padding frames of shorter rows.

        places: int [B], which media of its text each row is; the first if not given.
        """
        B, T, N, _ = features_BTNF.shape

        # Project the frozen features and say when each frame was seen.
        media_BTND = self.project(self.dropout(self.norm_features(features_BTNF)))
        if self.time is not None:
            media_BTND = media_BTND + self._times(self.time, T, frame_counts)
        if self.place is not None:
            media_BTND = media_BTND + self._places(self.place, places, B)
        visible = None
        if frame_counts is not None and bool((frame_counts < T).any()):
            seen_BT = torch.arange(T, device=frame_counts.device) < frame_counts[:, None]
            visible = seen_BT.repeat_interleave(N, dim=1)[:, None, None, :]  # B x 1 x 1 x T*N

        # Squeeze time and space into the latents.
        latents_BLD = self.latents.expand(B, -1, -1)
        for block in self.blocks:
            latents_BLD = block(latents_BLD, media_BTND.flatten(1, 2), visible)
        out: Tensor = self.norm(latents_BLD)
        return out

    def _times(self, time: TimeEmbedding, frames: int, counts: Tensor | None) -> Tensor:
        if counts is None or frames <= self.config.frames:
            times: Tensor = time(frames)[:, None, :]
            return times  # T x 1 x D
        # Past the trained range a row's embeddings stretch to its own length, so that padding
        # a batch changes nothing.
        rows = [F.pad(time(int(n)), (0, 0, 0, frames - int(n))) for n in counts]
        return torch.stack(rows)[:, :, None, :]  # B x T x 1 x D

    def _places(self, place: TimeEmbedding, places: Tensor | None, rows: int) -> Tensor:
        at = places if places is not None else torch.zeros(rows, dtype=torch.long)
        if int(at.max()) >= self.config.media:
            raise InputError(
                f"the text has {int(at.max()) + 1} media; the model has embeddings for "
                f"{self.config.media}: give fewer"
            )
        return place.weight[at.to(place.weight.device)][:, None, None, :]  # B x 1 x 1 x D
