"""A language model of Chinchilla's shape, which the paper freezes (section 2.2); none is public.

Blocks of `flamvid.models.relative`; the head is tied to the embeddings.

Legend: B batch, S tokens of this call, D width, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from flamvid.models.masks import hidden_keys
from flamvid.models.relative import RelativeBlock

__all__ = ["ChinchillaConfig", "ChinchillaForCausalLM", "register"]


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


class _Chinchilla(PreTrainedModel):  # type: ignore[misc]
    config_class = ChinchillaConfig
    base_model_prefix = "model"
    _no_split_modules = ["RelativeBlock"]  # noqa: RUF012
    _supports_sdpa = True
    takes_own_cache = True

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


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

    def get_input_embeddings(self) -> nn.Module:
        return self.token_emb

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.token_emb = value

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


class ChinchillaForCausalLM(_Chinchilla):
    """The decoder with its tied head."""

    _tied_weights_keys = {"lm_head.weight": "model.token_emb.weight"}  # noqa: RUF012

    def __init__(self, config: ChinchillaConfig) -> None:
        super().__init__(config)
        self.model = ChinchillaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.token_emb

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.token_emb = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits [B,S,V]; keywords as of `ChinchillaModel`."""
        out = self.model(input_ids, **kwargs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values
        )


def register() -> None:
    """Let transformers' AutoModelForCausalLM build flamvid_chinchilla from this file."""
    AutoConfig.register(ChinchillaConfig.model_type, ChinchillaConfig, exist_ok=True)
    AutoModelForCausalLM.register(ChinchillaConfig, ChinchillaForCausalLM, exist_ok=True)
