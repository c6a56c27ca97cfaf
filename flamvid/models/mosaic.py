"""MPT-1B ("MosaicGPT"), which only remote code on the hub implements; this is ours, from its maths.

A pre-norm decoder without biases: ALiBi (Press et al. 2021, arXiv 2108.12409) for positions, a
LayerNorm over the full width of queries and of keys before they are split into heads, a GELU
feed-forward, and a head tied to the embeddings. Tensor names are those of the released files.

Legend: B batch, S tokens of this call, K tokens with the cached ones, H heads, D width.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from flamvid.errors import ConfigError
from flamvid.models.cache import KeyValueCache
from flamvid.models.decoder import Decoder, WithHead
from flamvid.models.few import hooked, linear_parts, norm_parts
from flamvid.models.linear import Linear, gelu_of, split_linear
from flamvid.models.masks import hidden_keys
from flamvid.ops import (
    causal_attention,
    causal_is_compiled,
    feed_few,
    few_rows,
    halved,
    self_few,
)

__all__ = ["MosaicConfig", "MosaicForCausalLM"]


class MosaicConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes, by the names of the released config.json; what it says besides changes nothing."""

    model_type = "mosaic_gpt"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    d_model: int = 2048
    n_heads: int = 16
    n_layers: int = 24
    mlp_ratio: int = 4
    vocab_size: int = 50368
    no_bias: bool = True
    alibi: bool = True
    alibi_bias_max: int = 8
    attn_qk_ln: bool = True
    attn_clip_qkv: float | None = None
    softmax_scale: float | None = None
    logit_scale: float | str | None = None
    tie_word_embeddings: bool = True


class Sight:
    """What the tokens of a call see: ALiBi, and what is hidden from them."""

    def __init__(
        self, config: MosaicConfig, x_BSD: Tensor, past: int, attention_mask: Tensor | None
    ) -> None:
        self._x, self._past, self._mask = x_BSD, past, attention_mask
        heads_H = torch.arange(1.0, config.n_heads + 1, device=x_BSD.device, dtype=torch.float32)
        self.slopes_H = 2.0 ** -(heads_H * (config.alibi_bias_max / config.n_heads))

    @functools.cached_property
    def real(self) -> Tensor | None:
        """Which keys are no padding, bool [B,K]."""
        if self._mask is None:
            return None
        return (self._mask != 0).expand(self._x.shape[0], -1).contiguous()

    @functools.cached_property
    def bias(self) -> Tensor:
        """ALiBi plus the causal and padding masks, [B,H,S,K]."""
        hidden_B1SK = hidden_keys(self._x, self._past, self._mask)
        # A bias by the key's place alone: softmax doesn't see what a query adds to all its keys.
        key_K = torch.arange(hidden_B1SK.shape[-1], device=self._x.device)
        alibi_H1K = (self.slopes_H[:, None, None] * (key_K - key_K[-1])).to(self._x.dtype)
        return alibi_H1K.masked_fill(hidden_B1SK, torch.finfo(self._x.dtype).min)


class MosaicAttention(nn.Module):
    """Causal self-attention with a bias that grows with the distance to the key."""

    def __init__(self, config: MosaicConfig, layer: int) -> None:
        super().__init__()
        width, bias = config.d_model, not config.no_bias
        self.layer, self.heads = layer, config.n_heads
        self.clip, self.scale = config.attn_clip_qkv, config.softmax_scale
        self.Wqkv = Linear(width, 3 * width, bias=bias)
        self.q_ln: nn.Module = nn.Identity()
        self.k_ln: nn.Module = nn.Identity()
        if config.attn_qk_ln:
            self.q_ln, self.k_ln = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.out_proj = Linear(width, width, bias=bias)

    def forward(self, x_BSD: Tensor, sight: Sight, cache: Any, last: bool = False) -> Tensor:
        """[B,S,D], or [B,1,D] of the last token, which sees the keys of all."""
        q, k, v = split_linear(self.Wqkv, x_BSD, [x_BSD.shape[-1]] * 3, last)
        if self.clip is not None:
            q, k, v = (x.clamp(-self.clip, self.clip) for x in (q, k, v))
        q, k, v = (self._split(x) for x in (self.q_ln(q), self.k_ln(k), v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out: Tensor = self.out_proj(self.attend(q, k, v, sight).flatten(2))
        return out

    def attend(self, q_BHSd: Tensor, k_BHKd: Tensor, v_BHKd: Tensor, sight: Sight) -> Tensor:
        """[B,S,H,d] of the last S tokens."""
        scale = q_BHSd.shape[3] ** -0.5 if self.scale is None else self.scale
        out: Tensor
        if causal_is_compiled(q_BHSd):
            out = causal_attention(q_BHSd, k_BHKd, v_BHKd, sight.slopes_H, sight.real, scale)
            return out
        bias = sight.bias[:, :, -q_BHSd.shape[2] :]
        out = F.scaled_dot_product_attention(q_BHSd, k_BHKd, v_BHKd, attn_mask=bias, scale=scale)
        return out.transpose(1, 2)

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads  # B x H x S x d


class MosaicMlp(nn.Module):
    """Widen, GELU, narrow."""

    def __init__(self, config: MosaicConfig) -> None:
        super().__init__()
        width, bias = config.d_model, not config.no_bias
        self.mlp_up = Linear(width, config.mlp_ratio * width, bias=bias)
        self.mlp_down = Linear(config.mlp_ratio * width, width, bias=bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        half_BSD = halved(x_BSD, self.mlp_up, self.mlp_down)
        out: Tensor = self.mlp_down(gelu_of(self.mlp_up, half_BSD))
        return out.to(x_BSD.dtype)


class MosaicBlock(nn.Module):
    """One decoder layer."""

    def __init__(self, config: MosaicConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.ln_1 = nn.LayerNorm(config.d_model, bias=not config.no_bias)
        self.attn = MosaicAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.d_model, bias=not config.no_bias)
        self.mlp = MosaicMlp(config)

    def forward(
        self, hidden_states: Tensor, sight: Sight, cache: Any, last: bool = False
    ) -> Tensor:
        """[B,S,D] to the same, or with `last` to that of the last token, [B,1,D]."""
        if type(cache) is KeyValueCache and few_rows(hidden_states):
            weights = cache.kept(self.layer, self.step_weights)
            if weights is not None:
                return self._step(weights, hidden_states, sight, cache)[:, -1 if last else 0 :]
        attended = self.attn(self.ln_1(hidden_states), sight, cache, last)
        x_BSD = hidden_states[:, -attended.shape[1] :] + attended
        out: Tensor = x_BSD + self.mlp(self.ln_2(x_BSD))
        return out

    def step_weights(self) -> tuple[list[Tensor], ...] | None:
        """What a step of few tokens takes of the layer; None where it is not plain."""
        attn, mlp = self.attn, self.mlp
        if type(attn) is not MosaicAttention or type(mlp) is not MosaicMlp:
            return None
        if attn.clip is not None or hooked(attn) or hooked(mlp):
            return None
        found = [norm_parts(self.ln_1), norm_parts(self.ln_2)]
        for norm in (attn.q_ln, attn.k_ln):
            none = type(norm) is nn.Identity and not hooked(norm)
            found.append([] if none else norm_parts(norm))
        layers = (attn.Wqkv, attn.out_proj, mlp.mlp_up, mlp.mlp_down)
        found += [linear_parts(layer) for layer in layers]
        whole = tuple(parts for parts in found if parts is not None)
        return whole if len(whole) == len(found) else None

    def _step(
        self, weights: tuple[list[Tensor], ...], x_BSD: Tensor, sight: Sight, cache: KeyValueCache
    ) -> Tensor:
        """The same of few tokens, at once."""
        first, second, q_norm, k_norm, qkv, out, up, down = weights
        attn = self.attn
        (B, S, D), length = x_BSD.shape, cache.length
        H, d = attn.heads, D // attn.heads
        x_RD = x_BSD.reshape(-1, D)
        x_RD = self_few(
            x_RD,
            first,
            self.ln_1.eps,
            False,
            qkv,
            q_norm,
            k_norm,
            [],
            sight.slopes_H,
            *cache.extend(x_RD, (B, H), d, S, self.layer),
            length,
            sight.real,
            H,
            d**-0.5 if attn.scale is None else attn.scale,
            out,
        )
        x_RD = feed_few(x_RD, second, self.ln_2.eps, False, up, down, "gelu", None)
        return x_RD.view_as(x_BSD)


class _Mosaic(Decoder):
    config_class = MosaicConfig
    base_model_prefix = "transformer"
    _input_embed_layer = "wte"
    _no_split_modules = ["MosaicBlock"]  # noqa: RUF012


class MosaicModel(_Mosaic):
    """The decoder without its head."""

    def __init__(self, config: MosaicConfig) -> None:
        super().__init__(config)
        if not config.alibi or config.logit_scale is not None:
            raise ConfigError(
                f"the mosaic_gpt model has alibi {config.alibi} and logit_scale "
                f"{config.logit_scale}; only MPT-1B's alibi without a scale is known"
            )
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(MosaicBlock(config, i) for i in range(config.n_layers))
        self.ln_f = nn.LayerNorm(config.d_model, bias=not config.no_bias)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        last: bool = False,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B,S,D] after the last norm; a cache given is extended in place.

        last: of the last token alone, [B,1,D].
        """
        x_BSD = self.wte(input_ids)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        sight = Sight(self.config, x_BSD, past, attention_mask)
        end = len(self.blocks) - 1
        for at, block in enumerate(self.blocks):
            x_BSD = block(x_BSD, sight, past_key_values, last and at == end)
        return BaseModelOutputWithPast(self.ln_f(x_BSD), past_key_values)


class MosaicForCausalLM(WithHead, _Mosaic):
    """MPT-1B with its tied head."""

    body = MosaicModel
    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}  # noqa: RUF012
