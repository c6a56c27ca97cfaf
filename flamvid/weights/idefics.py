"""IDEFICS-1 (9B, 80B, instruct too): one checkpoint with everything, as transformers saves it.

Source: transformers, models/idefics. Our parts are: a CLIP tower that keeps CLS, a resampler with
per-head norms, a LLaMA whose decoupled embeddings stand one above the other, and
`IdeficsCrossAttention` in front of every `cross_layer_interval`-th layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, IdeficsConfig, LlamaConfig
from transformers import LlamaForCausalLM as Llama

from flamvid.errors import InputError, WeightsError
from flamvid.models.flamingo import Flamingo
from flamvid.models.frozen import CPU, blaming, frozen_of
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import ResamplerConfig
from flamvid.models.transformers_encoder import TransformersEncoder
from flamvid.weights.foreign import ModelParts, Names, assemble_empty, fill, sub_names, unwrap
from flamvid.weights.tensors import open_tensors

__all__ = ["idefics_parts", "load_idefics", "one_hot_index"]

_VISION, _PERCEIVER = "model.vision_model.", "model.perceiver_resampler."
_XATTN = "model.gated_cross_attn_layers."
# The tables of special tokens, below those of the language model that it was made from.
_STACKED = {
    "model.embed_tokens.weight": "model.embed_tokens.additional_embedding.weight",
    "lm_head.weight": "lm_head.additional_fc.weight",
}


def load_idefics(
    folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Flamingo:
    """The model in a folder with config.json and its checkpoint, whole or sharded."""
    config = _config(folder)
    tensors = unwrap(open_tensors(folder))
    own = {n: t for n, t in tensors.items() if n.startswith((_PERCEIVER, _XATTN))}
    vision = {n: t for n, t in tensors.items() if n.startswith(_VISION)}
    rest = tensors.keys() - own.keys() - vision.keys()
    with blaming(f"{folder}/config.json"):
        text, sight = _lm_config(config), _vision_config(config)
    lm = frozen_of(Llama, text, _stack(tensors, rest, config, folder), dtype, folder, device)
    tower = {f"vision_model.{n.removeprefix(_VISION)}": t for n, t in vision.items()}
    encoder = frozen_of(CLIPVisionModel, sight, tower, dtype, folder, device)
    flamingo = assemble_empty(
        TransformersEncoder(encoder, class_token=True), lm, idefics_parts(config)
    )
    fill(dict(flamingo.trained()), _names(flamingo), own, folder)
    return flamingo.eval()


def idefics_parts(config: IdeficsConfig) -> ModelParts:
    """Sizes of the resampler and the cross-attention."""
    perceiver, width = config.perceiver_config, config.vision_config.embed_dim
    if not config.use_resampler or not config.qk_layer_norms:
        raise WeightsError(
            f"the IDEFICS model has use_resampler {config.use_resampler} and qk_layer_norms "
            f"{config.qk_layer_norms}; both must be true, as in every release"
        )
    resampler = ResamplerConfig(
        features=width,
        width=width,
        depth=perceiver.resampler_depth,
        heads=perceiver.resampler_n_heads,
        head_width=perceiver.resampler_head_dim,
        latents=perceiver.resampler_n_latents,
        frames=0,
        project=False,
        activation="relu",
        qk_norm=perceiver.qk_layer_norms_perceiver,
    )
    xattn = XattnConfig(
        every=config.cross_layer_interval,
        heads=config.num_attention_heads,
        head_width=config.hidden_size // config.num_attention_heads,
        style="idefics",
        ffw_width=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        vector_gates=config.alpha_type == "vector",
    )
    return resampler, xattn


def one_hot_index(mask_BSM: Tensor) -> Tensor:
    """IDEFICS' image_attention_mask as a media index, int32 [B,S]; -1 where a token sees none."""
    if int(mask_BSM.sum(-1).max()) > 1:
        raise InputError(
            "the image_attention_mask lets a token see several images; IDEFICS' processor gives "
            "each token the latest one alone"
        )
    seen_BS = mask_BSM.sum(-1) > 0
    return torch.where(seen_BS, mask_BSM.argmax(-1), -1).to(torch.int32)


def _config(folder: Path) -> IdeficsConfig:
    with blaming(f"{folder} is no IDEFICS checkpoint"):
        table = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if table.get("model_type") != "idefics":
            raise ValueError(f"its model_type is {table.get('model_type')!r}")
        return IdeficsConfig.from_dict(table)


def _lm_config(config: IdeficsConfig) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=config.vocab_size + config.additional_vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def _vision_config(config: IdeficsConfig) -> CLIPVisionConfig:
    vision = config.vision_config
    return CLIPVisionConfig(
        hidden_size=vision.embed_dim,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_attention_heads=vision.num_attention_heads,
        num_channels=vision.num_channels,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        hidden_act=vision.hidden_act,
        layer_norm_eps=vision.layer_norm_eps,
    )


def _stack(
    tensors: Mapping[str, Tensor], names: set[str], config: IdeficsConfig, source: Path
) -> dict[str, Tensor]:
    """The language model's tensors, with the special tokens' rows below the others."""
    out = {name: tensors[name] for name in names if name not in _STACKED.values()}
    for name, more in _STACKED.items():
        if name in out and more not in names and config.additional_vocab_size:
            raise WeightsError(f"{source} does not fit the model: missing [{more}]")
        if name in out and more in names:
            above, below = tensors[name].shape, tensors[more].shape
            if len(above) != 2 or above[1:] != below[1:]:
                raise WeightsError(
                    f"{source}: {name} has shape {tuple(above)}, {more} {tuple(below)}; they must "
                    "be matrices of one width: copy or fetch it again"
                )
            out[name] = torch.cat([tensors[name], tensors[more]])
    return out


def _names(flamingo: Flamingo) -> Names:
    """Our trained parameters' names to the released tensors that make them."""
    theirs = {"latents": f"{_PERCEIVER}latents", "norm": f"{_PERCEIVER}layer_norm"}
    for i in range(flamingo.resampler.config.depth):
        block = {
            "norm_media": "0.context_layer_norm",
            "norm_latents": "0.latents_layer_norm",
            "norm_q": "0.q_layer_norm",
            "norm_k": "0.k_layer_norm",
            "to_q": "0.q_proj",
            "to_kv": "0.k_proj",
            "to_out": "0.output_proj",
            "ffw.0": "1.ln",
            "ffw.1": "1.fc",
            "ffw.3": "1.c_proj",
        }
        theirs |= {f"blocks.{i}.{our}": f"{_PERCEIVER}blocks.{i}.{t}" for our, t in block.items()}
    names = sub_names(flamingo.resampler, "resampler.", theirs)
    layer = {
        "norm": "input_layernorm",
        "norm_q": "cross_attn.q_layer_norm",
        "norm_k": "cross_attn.k_layer_norm",
        "to_q": "cross_attn.q_proj",
        "to_kv": "cross_attn.k_proj",
        "to_out": "cross_attn.o_proj",
        "ffw.norm": "post_attention_layernorm",
        "ffw.gate": "mlp.gate_proj",
        "ffw.up": "mlp.up_proj",
        "ffw.down": "mlp.down_proj",
        "attn_gate": "alpha_cross_attn",
        "ffw_gate": "alpha_dense",
    }
    for slot, xattn in enumerate(flamingo.lm.inserted):
        named = {our: f"{_XATTN}{slot}.{their}" for our, their in layer.items()}
        names |= sub_names(xattn, f"xattn.{slot}.", named)
    return {ours: _keys_then_values(name) for ours, name in names.items()}


def _keys_then_values(name: str) -> tuple[str, ...]:
    """Ours holds keys above values in one matrix, theirs has one for each."""
    if ".k_proj." in name:
        return name, name.replace(".k_proj.", ".v_proj.")
    return (name,)
