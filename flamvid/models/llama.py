"""Llama, written for decoding: fused projections, keys in one buffer, and quick to import.

transformers hosts every other language model, and this one's logits are tested against its. It is
ours because importing transformers' models takes longer than captioning a clip.

Legend: B batch, S new tokens, T all tokens so far, H heads, G key heads, d head width, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flamvid.models.cache import KeyValueCache
from flamvid.models.few import linear_parts, weight_parts
from flamvid.models.linear import Linear, split_linear
from flamvid.ops import causal_attention, causal_is_compiled, feed_few, few_rows, self_few

__all__ = [
    "Llama",
    "LlamaConfig",
    "LlamaLayer",
    "llama_config_of",
    "read_llama_config",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """Sizes of a Llama, under transformers' names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int = 2048

    def table(self) -> dict[str, Any]:
        """As transformers' config.json has it."""
        sizes = asdict(self)
        rope = {"rope_type": "default", "rope_theta": sizes.pop("rope_theta")}
        return {"model_type": "llama", "hidden_act": "silu", "rope_parameters": rope, **sizes}


def read_llama_config(folder: Path) -> LlamaConfig | None:
    """The sizes in a folder's config.json; None as in `llama_config_of`, or without tensors."""
    try:
        table: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(table, dict) and (folder / "model.safetensors").is_file()
    return llama_config_of(table) if whole else None


def llama_config_of(table: Mapping[str, Any]) -> LlamaConfig | None:
    """The sizes in a whole config.json; None for another model, or a Llama with extras.

    Also for what makes no sense, which transformers says better.
    """
    rope = table.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    heads = table.get("num_attention_heads", 0)
    plain = (
        table.get("model_type") == "llama"
        and table.get("hidden_act") == "silu"
        and rope.get("rope_type") == "default"
        and rope.get("partial_rotary_factor", 1.0) == 1.0
        and not (table.get("attention_bias") or table.get("mlp_bias"))
    )
    if not plain:
        return None
    try:
        return LlamaConfig(
            hidden_size=table["hidden_size"],
            intermediate_size=table["intermediate_size"],
            num_hidden_layers=table["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=table.get("num_key_value_heads") or heads,
            head_dim=table.get("head_dim") or table["hidden_size"] // heads,
            vocab_size=table["vocab_size"],
            rope_theta=rope["rope_theta"],
            rms_norm_eps=table["rms_norm_eps"],
            tie_word_embeddings=table.get("tie_word_embeddings", False),
            max_position_embeddings=table.get("max_position_embeddings", 2048),
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None


class _Linear(Linear):
    """Without random weights: they are always read from a file."""

    def reset_parameters(self) -> None:
        pass


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        pass


class LlamaLayer(nn.Module):
    """Attention and a gated feed-forward, each behind an RMS norm."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        D, d = config.hidden_size, config.head_dim
        self.heads, self.key_heads, self.width = (
            config.num_attention_heads,
            config.num_key_value_heads,
            d,
        )
        self.eps = config.rms_norm_eps
        self.norm_attention = nn.Parameter(torch.empty(D))
        self.qkv: nn.Module = _Linear(D, (self.heads + 2 * self.key_heads) * d, bias=False)
        self.out: nn.Module = _Linear(self.heads * d, D, bias=False)
        self.norm_mlp = nn.Parameter(torch.empty(D))
        self.gate_up: nn.Module = _Linear(D, 2 * config.intermediate_size, bias=False)
        self.down: nn.Module = _Linear(config.intermediate_size, D, bias=False)

    def forward(
        self,
        x_BSD: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KeyValueCache | None,
        at: int,
        last: bool = False,
    ) -> Tensor:
        """[B,S,D] to the same, or with `last` to that of the last token, [B,1,D]."""
        B, _, D = x_BSD.shape
        if cache is not None and few_rows(x_BSD):
            weights = cache.kept(at, self.step_weights)
            if weights is not None:
                return self._step(weights, x_BSD, turn, mask, cache, at)[:, -1 if last else 0 :]
        normed = F.rms_norm(x_BSD, (D,), self.norm_attention, self.eps)
        widths = [n * self.width for n in (self.heads, self.key_heads, self.key_heads)]
        q, k, v = (self._split(x) for x in split_linear(self.qkv, normed, widths, last))
        N = q.shape[2]  # tokens to go on with
        q, k = _rotate(q, (turn[0][:, :, -N:], turn[1][:, :, -N:])), _rotate(k, turn)
        if cache is not None:
            k, v = cache.update(k, v, at)
        if causal_is_compiled(q):
            attended_BSHd = causal_attention(q, k, v, None, _real(mask, B), self.width**-0.5)
        else:
            attended = F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask if mask is None else mask[:, :, -N:],
                is_causal=mask is None and N > 1,
                enable_gqa=self.heads != self.key_heads,
            )
            attended_BSHd = attended.transpose(1, 2)
        x_BSD = x_BSD[:, -N:] + self.out(attended_BSHd.reshape(B, N, -1))
        gate, up = self.gate_up(F.rms_norm(x_BSD, (D,), self.norm_mlp, self.eps)).chunk(2, -1)
        out: Tensor = x_BSD + self.down(F.silu(gate) * up)
        return out

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.width)).transpose(1, 2)
        return heads  # B x H x S x d

    def step_weights(self) -> tuple[list[Tensor], ...] | None:
        """What a step of few tokens takes of the layer; None where it is not plain."""
        linear = (linear_parts(x) for x in (self.qkv, self.out, self.gate_up, self.down))
        found = (weight_parts(self.norm_attention), weight_parts(self.norm_mlp), *linear)
        whole = tuple(parts for parts in found if parts is not None)
        return whole if len(whole) == len(found) else None

    def _step(
        self,
        weights: tuple[list[Tensor], ...],
        x_BSD: Tensor,
        turn: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KeyValueCache,
        at: int,
    ) -> Tensor:
        """The same of few tokens, at once."""
        first, second, qkv, out, up, down = weights
        (B, S, D), d, length = x_BSD.shape, self.width, cache.length
        x_RD = x_BSD.reshape(-1, D)
        if B > 1 and S > 1:
            turn = (turn[0].expand(B, -1, -1, -1), turn[1].expand(B, -1, -1, -1))
        x_RD = self_few(
            x_RD,
            first,
            self.eps,
            True,
            qkv,
            [],
            [],
            [part.reshape(-1, d) for part in turn],
            None,
            *cache.extend(x_RD, (B, self.key_heads), d, S, at),
            length,
            _real(mask, B),
            self.heads,
            d**-0.5,
            out,
        )
        return feed_few(x_RD, second, self.eps, True, up, down, "silu_gated", None).view_as(x_BSD)


def _real(mask_B1SK: Tensor | None, B: int) -> Tensor | None:
    """Which keys are no padding, bool [B,K]: all that the last token sees."""
    return None if mask_B1SK is None else mask_B1SK[:, 0, -1].expand(B, -1).contiguous()


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """What transformers' bodies give back, as far as it is read."""

    last_hidden_state: Tensor


class _Body(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config, self.int8 = config, False
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: KeyValueCache | None = None,
        use_cache: bool = False,
        depth: int | None = None,
        begun: tuple[int, Tensor] | None = None,
        last: bool = False,
    ) -> Hidden:
        """Hidden states [B,S,D] after the last norm; with `depth`, after so many layers alone.

        begun: how many layers are done, and what they made of the tokens. last: states of the last
        token alone, [B,1,D].
        """
        first, x_BSD = begun or (0, self.embed_tokens(input_ids))
        if self.int8:  # whose table is as the file has it, in half precision
            x_BSD = x_BSD.float()
        S = input_ids.shape[1]
        past = cache.length if cache is not None else 0
        if position_ids is None:
            position_ids = torch.arange(past, past + S, device=input_ids.device)[None]
        turn = _turn(position_ids, self.config, x_BSD.dtype)
        mask = _visible(attention_mask, past, S, input_ids.device)
        end = len(self.layers) - 1
        for at, layer in enumerate(self.layers[first:depth], first):
            x_BSD = layer(x_BSD, turn, mask, cache, at, last and at == end)
        if last:  # where all layers were done
            x_BSD = x_BSD[:, -1:]
        if depth is not None:
            return Hidden(x_BSD)
        D = self.config.hidden_size
        return Hidden(F.rms_norm(x_BSD, (D,), self.norm, self.config.rms_norm_eps))


class Llama(nn.Module):
    """A causal Llama with the names that a transformers host has."""

    base_model_prefix = "model"
    takes_own_cache = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        self.lm_head: nn.Module = _Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Hidden states to logits."""
        return self.lm_head


def _turn(positions_BS: Tensor, config: LlamaConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary embedding (Su et al. 2021), each [B,1,S,d]."""
    d, device = config.head_dim, positions_BS.device
    powers = torch.arange(0, d, 2, device=device, dtype=torch.float32) / d
    angles = positions_BS[:, None, :, None].float() / config.rope_theta**powers
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x_BHSd: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    first, second = x_BHSd.chunk(2, dim=-1)
    return x_BHSd * cos + torch.cat([-second, first], dim=-1) * sin


def _visible(real_BT: Tensor | None, past: int, new: int, device: torch.device) -> Tensor | None:
    """Which tokens each new one may attend to, bool [B or 1,1,S,T]; None: by place alone."""
    if real_BT is None and (past == 0 or new == 1):
        return None
    at = torch.arange(past + new, device=device)
    causal_ST = at <= at[past:, None]
    if real_BT is None:
        return causal_ST[None, None]
    itself_ST = at == at[past:, None]  # padding sees itself, or its softmax would be of nothing
    return (causal_ST & real_BT.bool()[:, None, :] | itself_ST)[:, None]
