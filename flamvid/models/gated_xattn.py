"""GATED XATTN-DENSE: how the frozen language model reads latents (Flamingo, A.1.2, figure 4).

Legend: B batch, P prompts, S text tokens, M media, L latents per media, D width of the LM, Dm of
the latents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flamvid.errors import ConfigError, InputError
from flamvid.models.few import feed_parts, hooked, linear_parts, norm_parts
from flamvid.models.linear import Linear
from flamvid.models.passed_media import PassedMedia, PassedWeights
from flamvid.models.resampler import FeedForward, check_activation
from flamvid.ops import check_index, cross_few, feed_few, few_rows, media_attention

__all__ = ["GatedCrossAttention", "MediaKeyValues", "XattnConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class XattnConfig:
    """Where the layers stand (before LM layers first, first + every, ...) and how wide they are.

    after: behind those LM layers instead. style: "flamingo", or "idefics" for IDEFICS-1's block;
    that alone has ffw_width (of its SwiGLU), norm_eps and vector_gates (one gate per channel).
    The paper's ablations (section 3.3): gated, whether a tanh gate stands before each sum; dense,
    whether there is a feed-forward; grafted, so many layers behind the whole LM instead, each with
    a self-attention.
    """

    first: int = 0
    every: int = 1
    heads: int = 8
    head_width: int = 64
    ffw_ratio: int = 4
    activation: str = "squared_relu"
    after: bool = False
    style: str = "flamingo"
    ffw_width: int = 0
    norm_eps: float = 1e-6
    vector_gates: bool = False
    gated: bool = True
    dense: bool = True
    grafted: int = 0

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ConfigError(f"xattn.first is {self.first}; must be at least 0")
        for name in ("every", "heads", "head_width", "ffw_ratio"):
            if getattr(self, name) < 1:
                raise ConfigError(f"xattn.{name} is {getattr(self, name)}; must be at least 1")
        check_activation("xattn", self.activation)
        if self.style not in ("flamingo", "idefics"):
            raise ConfigError(f"xattn.style is {self.style!r}; must be flamingo or idefics")
        if self.style == "idefics" and self.ffw_width < 1:
            raise ConfigError(f"xattn.ffw_width is {self.ffw_width}; must be at least 1 in idefics")
        if self.grafted < 0:
            raise ConfigError(f"xattn.grafted is {self.grafted}; must be at least 0")
        if self.style == "idefics" and (self.grafted or not (self.gated and self.dense)):
            raise ConfigError("xattn.gated, dense and grafted are of style flamingo, not idefics")

    def positions(self, layers: int) -> range:
        """LM layers (of `layers`) that get a cross-attention in front of them; grafted, none."""
        return range(0) if self.grafted else range(self.first, layers, self.every)


class _Step(NamedTuple):
    """Weights of a layer as `cross_few` and `feed_few` take them."""

    norm: list[Tensor]
    eps: float
    q: list[Tensor]
    out: list[Tensor]
    gate: Tensor | None
    feed: tuple[Any, ...] | None
    feed_gate: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class MediaKeyValues:
    """Keys and values of media for one layer: each [P,H,M*L,d]; computed once per media.

    P prompts, whose beams or options share them: never copied for each. step: how the layer reads
    them for few tokens at once, if it can. start: so many media before them have none; tokens of
    the prompt read those as they are passed, and no token after it sees them.
    """

    keys: Tensor
    values: Tensor
    latents: int
    step: _Step | None = None
    start: int = 0
    passed: PassedWeights | None = None

    def first(self, media: int) -> MediaKeyValues:
        """Those of the first media, without the layer's weights."""
        start = min(self.start, media)
        end = (media - start) * self.latents
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        return MediaKeyValues(keys, values, self.latents, start=start)

    def beyond(self) -> MediaKeyValues:
        """The same for the tokens behind the prompt, who see none of those that it passed."""
        return self if self.passed is None else replace(self, passed=None)

    def places(self, index: Tensor) -> Tensor:
        """Which of the media that have keys an index of all of them means, -1 for the others."""
        if not self.start:
            return index
        if self.passed is None:
            self.check(index)
        return (index - self.start).clamp_min(-1)

    def check(self, index: Tensor) -> None:
        """InputError for an index that names a media without keys."""
        check_index(index, self.start + self.keys.shape[2] // self.latents)
        if bool(((index >= 0) & (index < self.start)).any()):
            raise InputError(
                f"a token sees one of the first {self.start} media, which have no keys, for the "
                "prompt passed them; read the media again with an index of all tokens to come"
            )


class GatedCrossAttention(nn.Module):
    """x + tanh(a) attention(x, media); x + tanh(b) ffw(x). Gates and ffw by the configuration."""

    def __init__(self, config: XattnConfig, width: int, media_width: int) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.norm: nn.Module = nn.LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_kv = Linear(media_width, 2 * inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)
        self.norm_q: nn.Module = nn.Identity()
        self.norm_k: nn.Module = nn.Identity()
        self.ffw: nn.Module | None = None
        self.attn_gate: nn.Parameter | None = None
        self.ffw_gate: nn.Parameter | None = None
        if config.dense:
            self.ffw = FeedForward(width, config.ffw_ratio, config.activation)
        # tanh gates start at 0: step 0 equals the frozen LM.
        if config.gated:
            self.attn_gate = nn.Parameter(torch.zeros(()))
        if config.gated and config.dense:
            self.ffw_gate = nn.Parameter(torch.zeros(()))

    def read(
        self,
        latents_BMLD: Tensor,
        known: MediaKeyValues | None = None,
        passed: PassedMedia | None = None,
    ) -> MediaKeyValues:
        """Keys and values of the media, to be used for every token that is ever generated.

        known: those of media before these, which are not read again. passed: the first of these,
        which need no keys, if the layer can do without.
        """
        M, L = latents_BMLD.shape[1:3]
        step = None if torch.is_grad_enabled() else self._step()
        if known is not None and not M:
            return replace(known, step=step)
        if passed is not None and (weights := self._passed(passed)) is not None:
            rest = self.read(latents_BMLD[:, passed.count :])
            return replace(rest, start=passed.count, passed=weights)
        latents_BMLD = latents_BMLD.to(next(self.norm.parameters()).device)
        k, v = self.to_kv(latents_BMLD.flatten(1, 2)).chunk(2, dim=-1)
        k, v = self.norm_k(self._split(k)), self._split(v)
        if known is not None:
            k, v = torch.cat([known.keys, k], 2), torch.cat([known.values, v], 2)
        return MediaKeyValues(k, v, L, step, known.start if known else 0)

    def forward(self, x_BSD: Tensor, media: MediaKeyValues, index_BS: Tensor) -> Tensor:
        """B rows, in order so many of each prompt of the media; index int32 [B,S]."""
        passes = media.passed is not None and x_BSD.shape[1] > 1
        if media.step is not None and not passes and few_rows(x_BSD):
            return self._read_few(x_BSD, media, media.step, index_BS)
        q_BSI = self.to_q(self.norm(x_BSD))
        # Rows of one prompt stand end to end, as more tokens: each knows by its index what it sees.
        P = media.keys.shape[0]
        q = self.norm_q(self._split(q_BSI.reshape(P, -1, q_BSI.shape[-1])))
        index = media.places(index_BS).reshape(P, -1)
        attended = media_attention(q, media.keys, media.values, index, media.latents)
        attended = attended.transpose(1, 2).reshape(*x_BSD.shape[:2], -1)
        if media.passed is not None:
            attended = attended + media.passed.read_by(q_BSI, index_BS, self.heads)
        attended = self.to_out(attended)

        return self.feed(_sum(x_BSD, self.attn_gate, attended))

    def feed(self, x_BSD: Tensor) -> Tensor:
        """The second sum alone, which is all of it for a token that sees no media: [B,S,D]."""
        if self.ffw is None:
            return x_BSD
        return _sum(x_BSD, self.ffw_gate, self.ffw(x_BSD))

    def _step(self) -> _Step | None:
        """None where the layer is not plain."""
        norm, q, out = norm_parts(self.norm), linear_parts(self.to_q), linear_parts(self.to_out)
        if norm is None or q is None or out is None:
            return None
        if type(self.norm_q) is not nn.Identity or hooked(self.norm_q):
            return None
        eps: Any = self.norm.eps
        return _Step(norm, eps, q, out, self.attn_gate, feed_parts(self.ffw), self.ffw_gate)

    def _passed(self, media: PassedMedia) -> PassedWeights | None:
        """How tokens read the latents of media that get no keys; None where they can't."""
        for norm in (self.norm_q, self.norm_k):
            if type(norm) is not nn.Identity or hooked(norm):
                return None
        return PassedWeights.of(media, self.to_kv, self.heads)

    def _read_few(
        self, x_BSD: Tensor, media: MediaKeyValues, step: _Step, index_BS: Tensor
    ) -> Tensor:
        """As `forward`, a sum at a time."""
        norm, eps, q, out, gate, feed, feed_gate = step
        keys, values, index = media.keys, media.values, index_BS.reshape(-1)
        x_RD = x_BSD.reshape(-1, x_BSD.shape[-1])
        try:
            seen = (keys, values, index, media.start, media.latents)
            x_RD = cross_few(x_RD, norm, eps, q, *seen, out, gate)
        except RuntimeError:  # all that C++ can raise; a check before it would cost every step
            media.check(index)
            raise
        if feed is None:
            return self.feed(x_RD.view(x_BSD.shape))
        return feed_few(x_RD, *feed, feed_gate).view(x_BSD.shape)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads  # B x H x S x d


def _sum(x: Tensor, gate: Tensor | None, more: Tensor) -> Tensor:
    """x + tanh(gate) more."""
    if gate is None:
        return x + more
    if x.dtype == more.dtype == gate.dtype and not torch.is_grad_enabled():
        return x.addcmul(more, gate.tanh())  # once through memory
    return x + gate.tanh() * more
