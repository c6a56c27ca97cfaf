"""Perceiver Resampler: any number of frames to a fixed number of latents (Flamingo, A.1.1).

Legend: B rows (one per media), T frames, N patches per frame, L latents, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.errors import ConfigError, InputError
from flamvid.models.linear import Linear, gelu_of, hooked
from flamvid.models.time_embedding import TimeEmbedding
from flamvid.ops import attention, halved

__all__ = [
    "FeedForward",
    "PerceiverResampler",
    "ResamplerConfig",
    "SquaredReLU",
    "check_activation",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerConfig:
    """Sizes of the resampler; `features` is the width of the vision encoder's output.

    frames: how many time embeddings there are; 0 for none. media: how many places of a media in
    its text have an embedding; 0 for none. project: whether features come through a norm and a
    projection to `width`; if not, they are `width` wide. qk_norm: a norm of each head's queries
    and keys. out_width: what latents are projected to at last, for the LM to read; 0: they aren't.
    kind: "perceiver", or the paper's ablations (section 3.3): "transformer", whose frames and
    latents all attend to each other; "mlp", whose latents are means of successive features, each
    through feed-forwards alone.
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
    out_width: int = 0
    kind: str = "perceiver"

    def __post_init__(self) -> None:
        for name in ("features", "width", "depth", "heads", "head_width", "latents"):
            if getattr(self, name) < 1:
                raise ConfigError(f"resampler.{name} is {getattr(self, name)}; must be at least 1")
        for name in ("frames", "media", "out_width"):
            if getattr(self, name) < 0:
                raise ConfigError(f"resampler.{name} is {getattr(self, name)}; must be at least 0")
        check_activation("resampler", self.activation)
        if self.kind not in ("perceiver", "transformer", "mlp"):
            raise ConfigError(
                f"resampler.kind is {self.kind!r}; must be perceiver, transformer or mlp"
            )
        if not self.project and self.features != self.width:
            raise ConfigError(
                f"resampler.features is {self.features} and width {self.width}; they must be the "
                "same without a projection: set project = true"
            )

    @property
    def latent_width(self) -> int:
        """How wide the latents are that come out."""
        return self.out_width or self.width


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


class FeedForward(nn.Sequential):
    """LayerNorm, widen, activation, narrow; no biases in the linear layers."""

    def __init__(self, width: int, ratio: int, activation: str = "squared_relu") -> None:
        super().__init__(
            nn.LayerNorm(width),
            Linear(width, ratio * width, bias=False),
            ACTIVATIONS[activation](),
            Linear(ratio * width, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] to the same."""
        norm, up, activation, down = self
        half = halved(norm(x), up, down)
        wide = gelu_of(up, half) if _is_gelu(activation) else activation(up(half))
        out: Tensor = down(wide)
        return out.to(x.dtype)

    def __getitem__(self, at: Any) -> Any:
        """One of its parts, or some of them as a plain sequence."""
        return nn.Sequential(*list(self)[at]) if isinstance(at, slice) else super().__getitem__(at)


def _is_gelu(activation: nn.Module) -> bool:
    """Whether it is the exact one, and nobody listens to it."""
    if type(activation) is not nn.GELU or activation.approximate != "none":
        return False
    # With gradients its backward pass may be listened to; a graph is best left as it is.
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or hooked(activation))


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
        self.ffw = FeedForward(config.width, config.ffw_ratio, config.activation)

    def forward(
        self, latents_BLD: Tensor, media: Tensor, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """media [B,K,D]; or [X,D], the media of all rows end to end, `lengths` of each."""
        latents = self._halved(self.norm_latents(latents_BLD))
        q = self._split(self.to_q(latents))
        if lengths is None:
            if torch.is_grad_enabled() and not media.requires_grad and self._folds():
                kv = torch.cat([self._folded(media), self.to_kv(latents)], dim=1)
            else:
                kv = self.to_kv(torch.cat([self._halved(self.norm_media(media)), latents], dim=1))
            k, v = (self._split(x) for x in kv.chunk(2, dim=-1))  # B x H x (K + L) x d
            attended = attention(self.norm_q(q), self.norm_k(k), v).transpose(1, 2)  # B x L x H x d
        else:
            # A row's keys are its own frames and its latents; nothing is padded.
            media = self._halved(self.norm_media(media))
            pairs = zip(media.split(list(lengths)), latents, strict=True)
            keys = torch.cat([part for pair in pairs for part in pair])[None]
            k, v = (self._split(x) for x in self.to_kv(keys).chunk(2, dim=-1))
            q, k = self.norm_q(q), self.norm_k(k)
            B, _, L, _ = q.shape
            ends = ([L] * B, [n + L for n in lengths])
            packed = attention(q.transpose(0, 1).flatten(1, 2)[None], k, v, ends)  # 1 x H x B*L x d
            attended = packed[0].unflatten(1, (B, L)).permute(1, 2, 0, 3)

        latents_BLD = latents_BLD + self.to_out(attended.flatten(2)).to(latents_BLD.dtype)
        out: Tensor = latents_BLD + self.ffw(latents_BLD)
        return out

    def _folds(self) -> bool:
        """Whether the two are what they seem, their weights learn, and nobody listens to them."""
        norm, linear = self.norm_media, self.to_kv
        weight = linear._parameters.get("weight") if isinstance(linear, nn.Linear) else None
        learns = weight is not None and weight.requires_grad
        return learns and type(norm) is nn.LayerNorm and not (hooked(norm) or hooked(linear))

    def _folded(self, media_BKD: Tensor) -> Tensor:
        """Keys and values of media that learn nothing, by the norm's gain and bias in the weights.

        The gain and bias then have their gradients without one by the media, which is as much work
        as the keys and values themselves.
        """
        norm, weight_CD = self.norm_media, self.to_kv.weight
        plain = F.layer_norm(media_BKD, norm.normalized_shape, eps=norm.eps)
        return F.linear(self._halved(plain), weight_CD * norm.weight, weight_CD @ norm.bias)

    def _halved(self, x: Tensor) -> Tensor:
        # Norms of queries and keys round: they see float32.
        plain = isinstance(self.norm_k, nn.Identity)
        return halved(x, self.to_q, self.to_kv, self.to_out) if plain else x

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads  # B x H x K x d


class SelfBlock(nn.Module):
    """A plain Transformer's block: everything attends to everything of its row."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.to_qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.width, bias=False)
        self.ffw = FeedForward(config.width, config.ffw_ratio, config.activation)

    def forward(self, x_1XD: Tensor, lengths: Sequence[int]) -> Tensor:
        """Tokens of all rows end to end, [1,X,D], `lengths` of each row, to the same."""
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in self.to_qkv(self.norm(x_1XD)).chunk(3, dim=-1)
        )
        attended = attention(q, k, v, (lengths, lengths)).transpose(1, 2)  # 1 x X x H x d
        x_1XD = x_1XD + self.to_out(attended.flatten(2))
        out: Tensor = x_1XD + self.ffw(x_1XD)
        return out


class MlpBlock(nn.Module):
    """A feed-forward and the residual."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.ffw = FeedForward(config.width, config.ffw_ratio, config.activation)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B,L,D] to the same."""
        out: Tensor = x_BLD + self.ffw(x_BLD)
        return out


class PerceiverResampler(nn.Module):
    """Features of T frames, [B,T,N,F], to latents [B,L,D], or of another kind by `config.kind`."""

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
        block = {"perceiver": ResamplerBlock, "transformer": SelfBlock, "mlp": MlpBlock}[
            config.kind
        ]
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.out: nn.Module = nn.Identity()
        if config.out_width:
            self.out = nn.Linear(config.width, config.out_width, bias=False)

    def forward(
        self,
        features_BTNF: Tensor,
        frame_counts: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Latents [B,L,D]; `frame_counts` int [B]: frames past a row's count are not read.

        places: int [B], which media of its text each row is; the first if not given.
        """
        B, T, N, _ = features_BTNF.shape
        counts = None if frame_counts is None else [int(n) for n in frame_counts]
        at_B = None if self.place is None else self._places(self.place, places, B)
        if counts is None or min(counts, default=T) >= T:
            times = None if self.time is None else self.time(T)
            media = self._embed(features_BTNF, times)  # B x T x N x D
            media = (media if at_B is None else media + at_B[:, None, None, :]).flatten(1, 2)
            lengths = None
        else:
            # Only frames that are there, end to end. A row's time embeddings are those of its own
            # length, so that padding a batch changes nothing.
            frames_XNF = torch.cat([row[:n] for row, n in zip(features_BTNF, counts, strict=True)])
            times = None if self.time is None else torch.cat([self.time(n) for n in counts])
            media = self._embed(frames_XNF, times)  # X x N x D
            if at_B is not None:
                of_row = torch.tensor(counts, device=at_B.device)
                media = media + at_B.repeat_interleave(of_row, 0)[:, None, :]
            media = media.flatten(0, 1)  # X*N x D
            lengths = [n * N for n in counts]

        # Squeeze time and space into the latents.
        latents_BLD = self.latents.expand(B, -1, -1)
        if self.config.kind == "perceiver":
            for block in self.blocks:
                latents_BLD = block(latents_BLD, media, lengths)
        else:
            rows = list(media.unbind() if lengths is None else media.split(lengths))
            latents_BLD = self._plain(latents_BLD, rows)
        out: Tensor = self.out(self.norm(latents_BLD))
        return out

    def _plain(self, latents_BLD: Tensor, rows: list[Tensor]) -> Tensor:
        """The ablations: latents [B,L,D] of each row's features [K,D], whatever their number K."""
        L = latents_BLD.shape[1]
        if self.config.kind == "mlp":
            means = [F.adaptive_avg_pool1d(row.t(), L).t() for row in rows]
            x = torch.stack(means) + latents_BLD
            for block in self.blocks:
                x = block(x)
            return x
        # Rows end to end, each its features and then its latents; nothing is padded.
        lengths = [len(row) + L for row in rows]
        pairs = zip(rows, latents_BLD, strict=True)
        x = torch.cat([part for pair in pairs for part in pair])[None]
        for block in self.blocks:
            x = block(x, lengths)
        return torch.stack([row[-L:] for row in x[0].split(lengths)])

    def _embed(self, features: Tensor, times_TD: Tensor | None) -> Tensor:
        """Project frozen features [...,T,N,F] and say when each frame was seen: [...,T,N,D]."""
        media: Tensor = self.project(self.dropout(self.norm_features(features)))
        return media if times_TD is None else media + times_TD[:, None, :]

    def _places(self, place: TimeEmbedding, places: Tensor | None, rows: int) -> Tensor:
        """The embedding of each row's place among the media of its text, [B,D]."""
        at = places if places is not None else torch.zeros(rows, dtype=torch.long)
        if int(at.max()) >= self.config.media:
            raise InputError(
                f"the text has {int(at.max()) + 1} media; the model has embeddings for "
                f"{self.config.media}: give fewer"
            )
        return place.weight[at.to(place.weight.device)]
