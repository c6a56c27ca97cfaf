"""The language model inside flamingo-pytorch: PaLM's parallel blocks (arXiv 2204.02311).

One norm feeds attention and feed-forward at once; keys and values have one head for all queries;
rotary positions; norms and linear layers without biases; the head is tied to the embeddings.
Source: lucidrains/flamingo-pytorch 10913ab, flamingo_palm.py.

Legend: B batch, S tokens of this call, K tokens with the cached ones, H heads, D width, d a head's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from flamvid.models.decoder import Decoder, WithHead
from flamvid.models.masks import hidden_keys

__all__ = ["PalmConfig", "PalmForCausalLM"]


class PalmConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of the language model."""

    model_type = "flamingo_palm"

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    head_dim: int = 64
    num_key_value_heads: int = 1
    vocab_size: int = 20000
    tie_word_embeddings: bool = True


class PalmBlock(nn.Module):
    """Attention and SwiGLU side by side, and the residual."""

    def __init__(self, config: PalmConfig, layer: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.layer, self.heads = layer, config.num_attention_heads
        self.widths = [inner, config.head_dim, config.head_dim, 2 * config.intermediate_size]
        self.norm = nn.LayerNorm(width, bias=False)
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(
        self, hidden_states: Tensor, turn_Sd: Tensor, seen_B1SK: Tensor, cache: Any
    ) -> Tensor:
        fused = self.fused_attn_ff_proj(self.norm(hidden_states))
        q, k, v, ff = fused.split(self.widths, dim=-1)
        q = rotate(q.unflatten(-1, (self.heads, -1)).transpose(1, 2), turn_Sd)  # B x H x S x d
        k, v = rotate(k[:, None], turn_Sd), v[:, None]  # B x 1 x S x d
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        k, v = (x.expand(-1, self.heads, -1, -1) for x in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_B1SK)
        x, gate = ff.chunk(2, dim=-1)
        read = self.attn_out(attended.transpose(1, 2).flatten(2))
        out: Tensor = hidden_states + read + self.ff_out(F.silu(gate) * x)
        return out


class _Palm(Decoder):
    config_class = PalmConfig
    base_model_prefix = "model"
    _input_embed_layer = "token_emb"
    _no_split_modules = ["PalmBlock"]  # noqa: RUF012


class PalmModel(_Palm):
    """The decoder without its head."""

    def __init__(self, config: PalmConfig) -> None:
        super().__init__(config)
        self.token_emb = nn.Embedding(config.vocab_size, config.hidden_size)
        depth = config.num_hidden_layers
        self.layers = nn.ModuleList(PalmBlock(config, i) for i in range(depth))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B,S,D] after the last norm; a cache given is extended in place."""
        x_BSD = self.token_emb(input_ids)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        seen_B1SK = ~hidden_keys(x_BSD, past, attention_mask)
        turn_Sd = angles(past, x_BSD.shape[1], self.config.head_dim, x_BSD.device)
        for layer in self.layers:
            x_BSD = layer(x_BSD, turn_Sd, seen_B1SK, past_key_values)
        return BaseModelOutputWithPast(self.norm(x_BSD), past_key_values)


class PalmForCausalLM(WithHead, _Palm):
    """The decoder with its tied head."""

    body = PalmModel
    _tied_weights_keys = {"lm_head.weight": "model.token_emb.weight"}  # noqa: RUF012


def angles(past: int, tokens: int, width: int, device: torch.device) -> Tensor:
    """What rotary positions turn each channel of each of these tokens by, [S,d]."""
    step = 1.0 / 10000 ** (torch.arange(0, width, 2, device=device).float() / width)
    turn = torch.arange(past, past + tokens, device=device).float()[:, None] * step
    return torch.cat([turn, turn], dim=-1)


def rotate(x: Tensor, turn_Sd: Tensor) -> Tensor:
    """Rotary positions on [...,S,d]: halves are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x * turn_Sd.cos().to(x.dtype) + turned * turn_Sd.sin().to(x.dtype)
