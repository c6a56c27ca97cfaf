"""What our own language models share, to be causal LMs as transformers has them.

Legend: B batch, S tokens of this call, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from flamvid.models.linear import Linear

__all__ = ["Decoder", "WithHead", "register"]


class Decoder(PreTrainedModel):  # type: ignore[misc]
    """A decoder. A class of both it and its head names its embeddings in `_input_embed_layer`."""

    _supports_sdpa = True
    takes_own_cache = True


class WithHead:
    """Mixed into such a class: a `body`, which is a `Decoder`, and a head over its states."""

    body: type[Decoder]
    base_model_prefix: str
    lm_head: nn.Linear

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        setattr(self, self.base_model_prefix, self.body(config))
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """Logits [B,S,V]; keywords as of the body."""
        out = getattr(self, self.base_model_prefix)(input_ids, **kwargs)
        return CausalLMOutputWithPast(
            logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values
        )


def register(causal: Any) -> None:
    """Let transformers' AutoModelForCausalLM build what this class's configuration says."""
    AutoConfig.register(causal.config_class.model_type, causal.config_class, exist_ok=True)
    AutoModelForCausalLM.register(causal.config_class, causal, exist_ok=True)
