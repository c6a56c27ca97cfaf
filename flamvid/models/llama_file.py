"""A Llama from transformers' files: in full precision, or as int8, which is made once and kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flamvid.errors import WeightsError
from flamvid.models.int8 import Int8Linear
from flamvid.models.llama import Llama, LlamaConfig, LlamaLayer
from flamvid.models.pointers import refuse_pointers
from flamvid.ops import GROUP, Int8, quantise_int8

__all__ = ["can_be_int8", "llama_of", "llama_tensors", "load_llama", "load_llama_int8"]

Get = Callable[[str], Tensor]
Narrow = Callable[[nn.Linear], nn.Module | None]
_MATRICES = ("qkv", "out", "gate_up", "down")
_LAST = r"model\.layers\.(\d+)\.mlp\.down_proj\.weight"  # of a layer, as `_places` has them
_KEPT = "flamvid-int8.safetensors"


def can_be_int8(config: LlamaConfig) -> bool:
    """Whether all widths are whole groups."""
    widths = (config.hidden_size, config.intermediate_size)
    return all(n % GROUP == 0 for n in (*widths, config.num_attention_heads * config.head_dim))


def load_llama(folder: Path, config: LlamaConfig, dtype: torch.dtype) -> Llama:
    """Read transformers' layout of a Llama, each tensor once, into ours."""
    path = folder / "model.safetensors"
    refuse_pointers(path)
    try:
        with safe_open(path, framework="pt") as file:
            return llama_of(config, file.keys(), file.get_tensor, dtype, path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is damaged ({reason}); copy or pull it again") from error


@torch.no_grad()
def llama_of(
    config: LlamaConfig,
    names: Iterable[str],
    get: Get,
    dtype: torch.dtype,
    source: Path,
    narrow: Narrow | None = None,
) -> Llama:
    """A Llama of tensors by transformers' names; errors name `source`.

    narrow: gives a shorter layer for each linear one, or None, as soon as a decoder layer is read:
    what was not read yet takes no memory.
    """
    lm, left = Llama(config).to(dtype), set(names)
    if config.tie_word_embeddings:
        left.discard("lm_head.weight")
    for name, target in _places(lm):
        if name not in left:
            raise WeightsError(f"{source} lacks {name}; copy or pull it again")
        _copy(get(name), target, f"{source}: {name}")
        left.discard(name)
        if narrow is not None and (done := re.fullmatch(_LAST, name)):
            layer = lm.model.layers[int(done[1])]
            for part in _MATRICES:
                setattr(layer, part, narrow(getattr(layer, part)) or getattr(layer, part))
    if left:
        raise WeightsError(f"{source} holds {min(left)}, which no Llama has")
    return lm.eval()


def load_llama_int8(folder: Path, config: LlamaConfig) -> Llama:
    """A Llama whose matrices are int8, mapped from a file that lies beside the original.

    The file is made at the first load, which takes a second or two, and again when the original
    changes. Where it can't be written, it is made at every load.
    """
    stamp = _stamp(folder / "model.safetensors")
    kept = folder / _KEPT
    try:
        with safe_open(kept, framework="pt") as file:
            if (file.metadata() or {}).get("of") == stamp:
                return _assemble(config, file.get_tensor)
    except (SafetensorError, OSError):
        pass  # none yet, or a broken one: it is made anew
    tensors = _quantised(load_llama(folder, config, torch.float32))
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part")
    try:
        save_file(tensors, part, metadata={"of": stamp})
        part.replace(kept)
    except (OSError, SafetensorError):
        with suppress(OSError):  # a read-only disk refuses that even of what is not there
            part.unlink(missing_ok=True)
    return _assemble(config, tensors.__getitem__)


def llama_tensors(lm: Llama) -> dict[str, Tensor]:
    """The tensors of a Llama as transformers names them; int8 ones have no such names."""
    return dict(_places(lm))


def _stamp(path: Path) -> str:
    """Changes when a file does."""
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{path} can't be read; copy or pull it again") from error
    return f"{status.st_size} {status.st_mtime_ns}"


@torch.no_grad()
def _quantised(lm: Llama) -> dict[str, Tensor]:
    """Everything that the model of `_assemble` is made of, by name."""
    out = {"embed": lm.model.embed_tokens.weight.half(), "norm": lm.model.norm.clone()}
    assert isinstance(lm.lm_head.weight, Tensor)
    out |= _named("head", quantise_int8(lm.lm_head.weight))
    for at, layer in enumerate(lm.model.layers):
        assert isinstance(layer, LlamaLayer)
        out[f"{at}.norm_attention"] = layer.norm_attention.clone()
        out[f"{at}.norm_mlp"] = layer.norm_mlp.clone()
        for name in _MATRICES:
            out |= _named(f"{at}.{name}", quantise_int8(getattr(layer, name).weight))
    return out


def _named(name: str, weight: Int8) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in weight._asdict().items()}


def _assemble(config: LlamaConfig, get: Get) -> Llama:
    lm = Llama(config)  # whose memory is never touched
    lm.model.int8 = True
    lm.model.embed_tokens.weight = _frozen(get("embed"))
    lm.model.norm = _frozen(get("norm"))
    lm.lm_head = Int8Linear(_int8(get, "head"))
    for at, layer in enumerate(lm.model.layers):
        assert isinstance(layer, LlamaLayer)
        layer.norm_attention = _frozen(get(f"{at}.norm_attention"))
        layer.norm_mlp = _frozen(get(f"{at}.norm_mlp"))
        for name in _MATRICES:
            setattr(layer, name, Int8Linear(_int8(get, f"{at}.{name}")))
    return lm.eval()


def _int8(get: Get, name: str) -> Int8:
    return Int8(*(get(f"{name}.{part}") for part in Int8._fields))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _copy(tensor: Tensor, target: Tensor, name: str) -> None:
    if tensor.shape != target.shape:
        raise WeightsError(
            f"{name} has shape {tuple(tensor.shape)}, but its config.json says "
            f"{tuple(target.shape)}"
        )
    target.copy_(tensor)


def _places(lm: Llama) -> Iterator[tuple[str, Tensor]]:
    """Where each tensor of transformers' layout goes."""
    c = lm.config
    yield "model.embed_tokens.weight", lm.model.embed_tokens.weight
    yield "model.norm.weight", lm.model.norm
    if not c.tie_word_embeddings:
        yield "lm_head.weight", _weight(lm.lm_head)
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    for at, layer in enumerate(lm.model.layers):
        assert isinstance(layer, LlamaLayer)
        q, k, v = _weight(layer.qkv).split([queries, keys, keys])
        gate, up = _weight(layer.gate_up).chunk(2)
        for name, tensor in {
            "input_layernorm": layer.norm_attention,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": _weight(layer.out),
            "post_attention_layernorm": layer.norm_mlp,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": _weight(layer.down),
        }.items():
            yield f"model.layers.{at}.{name}.weight", tensor


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight
