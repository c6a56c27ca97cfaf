"""In which precision a run computes, by its name in the recipe."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from flamvid.ops.half import HalfLinear

__all__ = ["halve_frozen", "halves", "has_fast_bfloat16", "precision"]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))


def halves(name: str) -> bool:
    """Whether a CPU multiplies in bfloat16 where this is asked for."""
    return name == "bfloat16" or (name == "auto" and has_fast_bfloat16())


def precision(name: str, device: torch.device | None = None) -> AbstractContextManager[Any]:
    """How to compute: "bfloat16", "float32", or "auto", bfloat16 where the device is fast at it.

    A GPU computes in torch's own mixture; weights that are trained are float32 in all of them.
    """
    cuda = device is not None and device.type == "cuda"
    if not halves(name) and not (name == "auto" and cuda):
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16) if cuda else HalfLinear()


def halve_frozen(layers: nn.Module) -> None:
    """Keep frozen linear layers in bfloat16 alone: `HalfLinear` would only have a copy beside."""
    for module in layers.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            module.weight = nn.Parameter(module.weight.bfloat16(), requires_grad=False)
