"""GRAFTING, an ablation of the paper: new layers behind the whole frozen LM instead of inside it.

Each new layer is a self-attention block and a GATED XATTN-DENSE; the frozen head reads the last
(Flamingo, section 3.3 and appendix B.1, after VC-GPT, Luo et al. 2022).

Legend: B batch, S tokens of this call, K tokens with the cached ones, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from flamvid.models.cache import KeyValueCache
from flamvid.models.gated_xattn import GatedCrossAttention, MediaKeyValues, XattnConfig
from flamvid.models.masks import hidden_keys
from flamvid.models.relative import RelativeBlock

__all__ = ["GraftedCache", "GraftedLayer", "run_grafted"]


class GraftedLayer(GatedCrossAttention):
    """Self-attention over the text, then the gated cross-attention."""

    def __init__(self, config: XattnConfig, width: int, media_width: int) -> None:
        super().__init__(config, width, media_width)
        self.mix = RelativeBlock(width, config.heads, config.head_width, 4 * width)


class GraftedCache:
    """The host's cache, and one for the self-attention of the grafted layers."""

    def __init__(self, host: Any, own: KeyValueCache) -> None:
        self.host = host
        self.own = own

    def get_seq_length(self) -> int:
        """How many tokens the cache holds."""
        return self.own.get_seq_length()

    def lent(self) -> GraftedCache:
        """As of the two."""
        return GraftedCache(self.host.lent(), self.own.lent())

    def cut(self, tokens: int) -> None:
        """Leave the first tokens alone."""
        self.host.cut(tokens)
        self.own.cut(tokens)

    def batch_repeat_interleave(self, times: int) -> None:
        """Each row `times` times in succession."""
        self.host.batch_repeat_interleave(times)
        self.own.batch_repeat_interleave(times)

    def reorder_cache(self, rows: Tensor) -> None:
        """Let row i be what row `rows[i]` was."""
        self.host.reorder_cache(rows)
        self.own.reorder_cache(rows)


def run_grafted(
    layers: Sequence[GraftedLayer],
    x_BSD: Tensor,
    media: Sequence[MediaKeyValues] | None,
    index_BS: Tensor | None,
    attention_mask: Tensor | None,
    cache: GraftedCache | None,
) -> Tensor:
    """The host's last hidden states [B,S,D] through the grafted layers; text alone without media.

    attention_mask int [B,K], 1 where a token is real; `cache` is extended in place.
    """
    past = cache.get_seq_length() if cache is not None else 0
    for i, layer in enumerate(layers):
        x_BSD = x_BSD.to(layer.mix.norm.weight.device)
        unseen = hidden_keys(x_BSD, past, attention_mask)
        keep = partial(cache.own.update, layer_idx=i) if cache is not None else None
        x_BSD = layer.mix(x_BSD, unseen, keep)
        if media is not None and index_BS is not None:
            x_BSD = layer(x_BSD, media[i], index_BS.to(x_BSD.device))
        else:
            x_BSD = layer.feed(x_BSD)
    return x_BSD
