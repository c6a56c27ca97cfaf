"""What all foreign formats share: names without their wrappers, and tensors put in place.

A format says of each of our parameters which released tensors make it; everything is checked
before anything is copied, and an error speaks of the released names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flamvid.errors import WeightsError
from flamvid.models.build import assemble
from flamvid.models.encoder import VisionEncoder
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.resampler import ResamplerConfig

__all__ = [
    "ModelParts",
    "Names",
    "assemble_empty",
    "count",
    "fill",
    "listed",
    "sub_names",
    "unwrap",
]

Names = Mapping[str, tuple[str, ...]]
"""Our parameter's name to the tensors it is made of, one above the other."""

ModelParts = tuple[ResamplerConfig, XattnConfig]
"""Sizes of what is trained."""

# What DDP, FSDP, activation checkpointing and torch.compile put between the parts of a name.
_WRAPPERS = {"module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
# Masks and tables that old releases kept among their weights; every model makes its own.
_BUFFERS = re.compile(
    r"\.(attention|attn|self_attn)\.(bias|masked_bias)$"
    r"|\.rotary_emb\.\w+$|(^|\.)(attn_bias|attn_mask|causal_mask|masked_bias|position_ids)$"
)


def assemble_empty(vision: VisionEncoder, lm: Any, parts: ModelParts) -> Flamingo:
    """A Flamingo over frozen parts whose trained ones have memory but no values yet.

    They get the LM's dtype and devices, so that `fill` is the only copy that is ever made.
    """
    like = lm.get_input_embeddings().weight
    with torch.device("meta"):
        flamingo = assemble(vision, lm, *parts)
    flamingo.resampler.to(like.dtype).to_empty(device=like.device)
    for new, place in zip(flamingo.lm.inserted, flamingo.lm.places, strict=True):
        new.to(like.dtype).to_empty(device=place)
    return flamingo


def unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names of the bare model, without mask buffers."""
    bare = {".".join(p for p in k.split(".") if p not in _WRAPPERS): t for k, t in tensors.items()}
    return {name: t for name, t in bare.items() if not _BUFFERS.search(name)}


def count(names: Iterable[str], pattern: str) -> int:
    """How many numbers the pattern's group finds: a file of few names can't claim many layers."""
    return len({int(m[1]) for name in names if (m := re.match(pattern, name))})


def sub_names(module: nn.Module, prefix: str, theirs: Mapping[str, str]) -> dict[str, str]:
    """Names of a module's parameters as `prefix` + name to theirs, by the longest part that fits.

    theirs: `{"to_q": "attn.q_proj"}` renames `to_q.weight` to `attn.q_proj.weight`.
    """
    out = {}
    for name, _ in module.named_parameters():
        part = max((p for p in theirs if f"{name}.".startswith(f"{p}.")), key=len)
        out[f"{prefix}{name}"] = theirs[part] + name[len(part) :]
    return out


def fill(
    parameters: Mapping[str, nn.Parameter],
    names: Names,
    tensors: Mapping[str, Tensor],
    source: Path,
    *,
    spare: Collection[str] = (),
) -> None:
    """Copy tensors into parameters once, to each one's dtype and device.

    spare: tensors that may be there without a place. Shapes may differ by dimensions of 1.
    WeightsError lists what is missing, unexpected, or of another shape; then nothing was changed.
    """
    used = {name for parts in names.values() for name in parts}
    missing = sorted(used - tensors.keys())
    unexpected = sorted(tensors.keys() - used - set(spare))
    if missing or unexpected:
        raise WeightsError(
            f"{source} does not fit the model: missing {listed(missing)}, unexpected "
            f"{listed(unexpected)}; is it whole, and the language model the one it was trained "
            "with?"
        )
    if odd := next((name for name in used if not tensors[name].is_floating_point()), None):
        raise WeightsError(
            f"{source}: {odd} is {str(tensors[odd].dtype).removeprefix('torch.')}, weights are "
            "floats; get it from its author unquantised"
        )
    for ours, parts in names.items():
        shapes = [tensors[name].shape for name in parts]
        shape = shapes[0]
        if len(parts) > 1:
            shape = torch.Size([sum(s[:1].numel() for s in shapes), *shape[1:]])
        alike = len({s[1:] for s in shapes}) == 1
        wanted = torch.Size(s for s in parameters[ours].shape if s != 1)
        if not alike or torch.Size(s for s in shape if s != 1) != wanted:
            raise WeightsError(
                f"{source}: {parts[0]} has shape {tuple(shape)}, the model wants "
                f"{tuple(parameters[ours].shape)}; is it the language model it was trained with?"
            )
    with torch.no_grad():
        for ours, parts in names.items():
            target, row = parameters[ours], 0
            if len(parts) == 1:
                target.copy_(tensors[parts[0]].reshape(target.shape))
                continue
            for name in parts:
                target[row : row + len(tensors[name])] = tensors[name]
                row += len(tensors[name])


def listed(names: Collection[str], most: int = 6) -> str:
    """Names for an error message: the first ones, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    rest = len(names) - most
    return f"[{shown}{f' and {rest} more' if rest > 0 else ''}]"
