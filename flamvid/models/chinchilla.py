"""A language model of Chinchilla's shape, which the paper freezes (section 2.2); none is public.

Blocks of `flamvid.models.relative`; the head is tied to the embeddings.

Legend: B batch, S tokens of this call, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

from flamvid.models.decoder import Decoder, WithHead
from flamvid.models.masks import hidden_keys
from flamvid.models.relative import RelativeBlock

__all__ = ["ChinchillaConfig", "ChinchillaForCausalLM"]


class ChinchillaConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of the language model (Flamingo, table 4: layers, width, heads)."""

    model_type = "flamvid_chinchilla"

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    head_dim: int = 128
    vocab_size: int = 32000
    tie_word_embeddings: bool = True


class _Chinchilla(Decoder):
    config_class = ChinchillaConfig
    base_model_prefix = "model"
    _input_embed_layer = "token_emb"
    _no_split_modules = ["RelativeBlock"]  # noqa: RUF012


class ChinchillaModel(_Chinchilla):
    """The decoder without its head."""

    def __init__(self, config: ChinchillaConfig) -> None:
        super().__init__(config)
        width, heads = config.hidden_size, config.num_attention_heads
        self.token_emb = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            RelativeBlock(width, heads, config.head_dim, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)
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
        unseen = hidden_keys(x_BSD, past, attention_mask)
        for i, layer in enumerate(self.layers):
            keep = None
            if past_key_values is not None:  # an empty cache is false
                keep = partial(past_key_values.update, layer_idx=i)
            x_BSD = layer(x_BSD, unseen, keep)
        return BaseModelOutputWithPast(self.norm(x_BSD), past_key_values)


class ChinchillaForCausalLM(WithHead, _Chinchilla):
    """The decoder with its tied head."""

    body = ChinchillaModel
    _tied_weights_keys = {"lm_head.weight": "model.token_emb.weight"}  # noqa: RUF012
