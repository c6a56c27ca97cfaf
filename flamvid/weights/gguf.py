"""A llama-architecture GGUF file to what transformers loads: safetensors, config, tokenizer.

transformers can read GGUF too, but dequantises at every load, which takes far longer than reading
half-precision safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken as Added
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from flamvid.errors import WeightsError

__all__ = ["convert_gguf"]

_GLOBAL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's token type of special tokens


def convert_gguf(source: Path, out: Path) -> None:
    """Write config.json, model.safetensors (float16), tokenizer.json and its config to `out`."""
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, OSError) as error:
        raise WeightsError(f"{source.name} is no GGUF file: {error}") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    if fields.get("general.architecture") != "llama":
        raise WeightsError(
            f"{source.name} has the architecture {fields.get('general.architecture')!r}; "
            "only llama can be converted"
        )
    config = _config(fields)
    tied = all(t.name != "output.weight" for t in reader.tensors)
    config["tie_word_embeddings"] = tied

    tensors = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = tensor.name.removesuffix(".weight")
        heads = {
            "attn_q": config["num_attention_heads"],
            "attn_k": config["num_key_value_heads"],
        }.get(name.rpartition(".")[2])
        if heads:
            array = _unpermute(array, heads)
        tensors[_rename(name)] = torch.from_numpy(array.astype(np.float16))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2))
    _write_tokenizer(fields, out)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    width = fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields.get("llama.rope.dimension_count", width // heads),
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": fields["llama.rope.freq_base"],
        },
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _unpermute(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rotary pairs side by side, as llama.cpp wants them, back to halves, as transformers does."""
    rows, columns = array.shape
    paired = array.reshape(heads, rows // heads // 2, 2, columns)
    return paired.swapaxes(1, 2).reshape(rows, columns)


def _rename(name: str) -> str:
    if name in _GLOBAL:
        return f"{_GLOBAL[name]}.weight"
    prefix, _, part = name.partition(".")[2].partition(".")
    if not name.startswith("blk.") or part not in _LAYER:
        raise WeightsError(f"the GGUF file has a tensor {name!r}, which no llama has")
    return f"model.layers.{prefix}.{_LAYER[part]}.weight"


def _write_tokenizer(fields: dict[str, Any], out: Path) -> None:
    """A byte-level BPE that splits digits one by one, as SmolLM's does."""
    if (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise WeightsError(
            f"the GGUF tokenizer is {fields['tokenizer.ggml.pre']!r}; only smollm can be converted"
        )
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([Added(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
