"""A frozen causal language model from transformers, read through gated cross-attention.

The host keeps no media: for the length of one call they travel in a context variable, which each
thread has its own of, and a hook in front of each chosen decoder layer hands them to its
cross-attention. Any transformers causal LM will do, and none is copied or patched.

Legend: B batch, S tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import ConfigError
from flamvid.models.cache import KeyValueCache
from flamvid.models.frozen import CPU
from flamvid.models.gated_xattn import GatedCrossAttention, MediaKeyValues
from flamvid.models.graft import GraftedCache, GraftedLayer, run_grafted
from flamvid.models.int8 import Int8Linear
from flamvid.models.llama import Llama, read_llama_config
from flamvid.models.llama_file import can_be_int8, load_llama, load_llama_int8
from flamvid.models.new_tokens import NewHead, NewTokens
from flamvid.ops import linear

__all__ = ["LanguageModel", "MediaContext", "TokenHead", "load_causal_lm", "load_plain_lm"]


@dataclass(frozen=True, slots=True, eq=False)
class MediaContext:
    """What the inserted layers read in one call: keys/values per layer, and `index` int32 [B,S]."""

    layers: tuple[MediaKeyValues, ...]
    index: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenHead:
    """Those rows of the LM's head that training used: `weight` [V,D]; their tokens `ids` [V] rise.

    A model trained with a softmax over the tokens of its captions must choose among those alone:
    it never learnt to keep the others down.
    """

    weight: Tensor
    ids: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [...,D] to logits [...,V]."""
        return linear(hidden, self.weight)

    def columns(self, tokens: Tensor) -> Tensor:
        """Where tokens stand among the ids, -100 (which losses ignore) where they don't."""
        at = torch.searchsorted(self.ids, tokens).clamp_max(len(self.ids) - 1)
        return torch.where(self.ids[at] == tokens, at, -100)


_media: ContextVar[MediaContext | None] = ContextVar("flamvid_media", default=None)


class LanguageModel(nn.Module):
    """The frozen host: hidden states and logits, with or without media."""

    def __init__(
        self,
        lm: Any,
        inserted: Mapping[int, GatedCrossAttention],
        *,
        after: bool = False,
        grafted: Sequence[GraftedLayer] = (),
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.lm = lm.requires_grad_(not frozen).eval()
        self.body = _body(lm)
        self.inserted = nn.ModuleList([*inserted.values(), *grafted])
        self.tokens: NewTokens | None = None
        self.new_head: NewHead | None = None
        layers = decoder_layers(lm)
        self.at = (*inserted, *[len(layers) - 1] * len(grafted))  # the layer that each is beside
        self.grafted, self._behind = tuple(grafted), after
        takes = inspect.signature(self.body.forward).parameters
        self._takes_positions = "position_ids" in takes
        # What stands behind the last layer reads with all tokens.
        behind = bool(grafted) or (after and len(layers) - 1 in inserted)
        self._ends_with_last = "last" in takes and not behind
        # transformers 5.24 renamed it.
        self._cache_name = "cache" if "cache" in takes else "past_key_values"
        for slot, (at, xattn) in enumerate(inserted.items()):
            if after:
                layers[at].register_forward_hook(_ReaderBehind(xattn, slot))
            else:
                layers[at].register_forward_pre_hook(_Reader(xattn, slot), with_kwargs=True)

    @property
    def head(self) -> nn.Module:
        """Hidden states [...,D] to logits [...,V]."""
        head = self.new_head or self.lm.get_output_embeddings()
        assert isinstance(head, nn.Module)
        return head

    def untouched(self) -> bool:
        """Whether nobody listens to parts of it, or has changed how they are called."""
        ours = self.tokens and self.lm.get_input_embeddings()  # which reads their rows instead
        for module in (*self.lm.modules(), *self.inserted.modules()):
            own = module.__dict__
            listen = (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values())
            if any(not isinstance(hook, _Reader) for hook in listen):
                return False
            if "forward" in own and module is not ours:
                return False
            if own.get("_compiled_call_impl") is not None:
                return False
        return True

    @property
    def places(self) -> list[torch.device]:
        """Where each new layer belongs: where the layer beside it is computed."""
        home = self.lm.get_input_embeddings().weight.device
        laid, path = getattr(self.lm, "hf_device_map", {}), layers_path(self.lm)
        found = (laid.get(f"{path}.{at}") for at in self.at)
        # What is kept in memory or on the disk comes home for it.
        return [torch.device("cuda", at) if isinstance(at, int) else home for at in found]

    def add_tokens(self, ids: Sequence[int]) -> None:
        """Give tokens rows of their own, to be trained; they start as what the table has for them.

        Raises ConfigError for a language model in eight bits, which has no such rows.
        """
        head = self.head
        if isinstance(head, Int8Linear):
            raise ConfigError("a language model in int8 can't be given tokens; use another dtype")
        deep = min(self.at, default=0) == 0 and not self.grafted
        self.tokens = NewTokens(self.lm.get_input_embeddings(), head, ids, deep)
        self.new_head = NewHead(head, self.tokens)

    @property
    def positions(self) -> int | None:
        """How many tokens it was made for; None where its positions have no end."""
        config = self.lm.config
        found = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
        return found if found is None else int(found)

    def head_of(self, ids: Tensor) -> TokenHead:
        """The head's rows for some tokens, int64 [V]."""
        if isinstance(self.head, Int8Linear) and not self.lm.config.tie_word_embeddings:
            return TokenHead(self.head.rows(ids), ids)
        if isinstance(self.head, Int8Linear):  # the table has them as they were
            return TokenHead(self.lm.get_input_embeddings().weight[ids].float(), ids)
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        # An unfrozen LM's head learns; its rows are to be taken anew after every update.
        return TokenHead((weight.detach() if self.frozen else weight)[ids], ids)

    @property
    def unmoved(self) -> int:
        """How many layers make the same of a text whatever it is read with, and never learn.

        Those of our own Llama alone can be left out of a call.
        """
        learns = self.tokens is not None or any(p.requires_grad for p in self.lm.parameters())
        if learns or not isinstance(self.lm, Llama):
            return 0
        return min(self.at, default=0) + (self._behind or bool(self.grafted))

    def new_cache(self) -> Any:
        """An empty cache of keys and values, as `forward` extends it."""
        host = self._host_cache()
        return GraftedCache(host, KeyValueCache(len(self.grafted))) if self.grafted else host

    def _host_cache(self) -> Any:
        if getattr(self.lm, "takes_own_cache", False):
            return KeyValueCache(self.lm.config.num_hidden_layers)
        from transformers import DynamicCache

        return DynamicCache(config=self.lm.config)

    def beginning(self, cache: Any, tokens: int) -> Any:
        """A cache of the first tokens of one, which is left as it is; None where that can't be.

        What either is given from now on, the other never sees.
        """
        if isinstance(cache, KeyValueCache):
            return cache.beginning(tokens)
        if isinstance(cache, GraftedCache):
            host = self.beginning(cache.host, tokens)
            return None if host is None else GraftedCache(host, cache.own.beginning(tokens))
        return _beginning(cache, tokens)

    def train(self, mode: bool = True) -> LanguageModel:
        """Train the inserted layers; the frozen part stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.lm.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        media: MediaContext | None = None,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        begun: tuple[int, Tensor] | None = None,
        last: bool = False,
    ) -> Tensor:
        """Hidden states [B,S,D] after the last norm; `head` makes logits of them.

        attention_mask int [B, past + S], 1 where a token is real; `cache` is extended in place.
        begun: how many layers are done, no more than `unmoved`, and what `states` gave of them.
        last: those of the last token alone, [B,1,D], which our own hosts have sooner.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if attention_mask is not None and self._takes_positions:
            # Left padding must not shift the positions of the real tokens.
            positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
            inputs["position_ids"] = positions[:, -input_ids.shape[1] :]
        if begun is not None:
            inputs["begun"] = begun
        if last and self._ends_with_last:
            inputs["last"] = True
        token = _media.set(media)
        try:
            host = cache.host if isinstance(cache, GraftedCache) else cache
            out = self.body(**inputs, **{self._cache_name: host}, use_cache=cache is not None)
        finally:
            _media.reset(token)
        hidden: Tensor = out.last_hidden_state
        if self.grafted:
            layers, index = (None, None) if media is None else (media.layers, media.index)
            hidden = run_grafted(self.grafted, hidden, layers, index, attention_mask, cache)
        if last:
            hidden = hidden[:, -1:]
        return hidden.to(input_ids.device)

    def states(self, input_ids: Tensor, attention_mask: Tensor, depth: int = 0) -> Tensor:
        """What the first `depth` layers make of texts padded on the right, [B,S,D]; 0: all do.

        Less than all of them can be had of our own Llama alone.
        """
        if not depth:
            whole: Tensor = self(input_ids, attention_mask=attention_mask)
            return whole
        if not isinstance(self.lm, Llama):
            raise ConfigError(f"layer is {depth}; must be 0 for a {type(self.lm).__name__}")
        hidden: Tensor = self.body(input_ids, attention_mask, depth=depth).last_hidden_state
        return hidden


class _Reader:
    """The hook of a decoder layer that hands a call's media to the cross-attention in front of it.

    Not a function: in a copy of the model this is a copy too, with the copy's cross-attention.
    """

    def __init__(self, xattn: nn.Module, slot: int) -> None:
        self.xattn, self.slot = xattn, slot

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        media = _media.get()
        if media is None:
            return None
        if args:
            return (_insert(self.xattn, args[0], media, self.slot), *args[1:]), kwargs
        hidden = _insert(self.xattn, kwargs["hidden_states"], media, self.slot)
        return args, {**kwargs, "hidden_states": hidden}


class _ReaderBehind(_Reader):
    """The same behind the layer."""

    def __call__(self, _: nn.Module, __: Any, out: Any) -> Any:
        media = _media.get()
        if media is None:
            return None
        if isinstance(out, tuple):
            return (_insert(self.xattn, out[0], media, self.slot), *out[1:])
        return _insert(self.xattn, out, media, self.slot)


def _insert(xattn: nn.Module, hidden: Tensor, media: MediaContext, slot: int) -> Tensor:
    """The layer's output, on its own device where a model lies on several."""
    read = media.layers[slot]
    place = read.keys.device
    out: Tensor = xattn(hidden.to(place), read, media.index.to(place))
    return out


def _beginning(cache: Any, tokens: int) -> Any:
    """Of transformers' cache; None if some layer keeps a window, or a state instead of keys."""
    from transformers.cache_utils import DynamicLayer

    begun = copy.copy(cache)
    begun.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in begun.layers:
        if type(layer) is not DynamicLayer:
            return None
        if layer.is_initialized:  # it never writes into these, but makes others
            layer.keys, layer.values = layer.keys[:, :, :tokens], layer.values[:, :, :tokens]
    return begun


def decoder_layers(lm: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a transformers causal LM."""
    layers = lm.get_submodule(layers_path(lm))
    assert isinstance(layers, nn.ModuleList)
    return layers


def layers_path(lm: nn.Module) -> str:
    """Where in a causal LM its list of decoder layers stands, such as `model.layers`."""
    depth = lm.config.num_hidden_layers  # type: ignore[union-attr]
    named = lm.named_modules()
    found: list[str] = [n for n, m in named if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise ConfigError(
            f"{type(lm).__name__} has no list of {depth} decoder layers; "
            "the frozen LM must be a decoder-only transformers model"
        )
    return found[0]


def load_causal_lm(folder: Path, dtype: torch.dtype, device: torch.device = CPU) -> Any:
    """Load a causal LM from a local folder; MPT-1B too, which only remote code knows elsewhere."""
    from flamvid.models.hosts import load_host

    return load_host(folder, dtype, device)


def load_plain_lm(
    folder: Path, dtype: torch.dtype, device: torch.device = CPU, int8: bool = False
) -> Any:
    """As `load_causal_lm`, but a plain Llama is ours, in eight bits if asked and if it can be."""
    config = read_llama_config(folder)
    if config is None:
        return load_causal_lm(folder, dtype, device)
    if int8 and can_be_int8(config) and device.type == "cpu":
        return load_llama_int8(folder, config)
    return load_llama(folder, config, dtype).to(device)


def _body(lm: Any) -> nn.Module:
    """The LM without its head."""
    body = getattr(lm, lm.base_model_prefix, None)
    if not isinstance(body, nn.Module):
        raise ConfigError(f"{type(lm).__name__} has no body apart from its head")
    return body
