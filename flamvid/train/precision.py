"""Linear layers in bfloat16, everything else as it is.

Autocast on a CPU turns attention and elementwise work to bfloat16 too, and casts frozen weights
anew at every call, which costs more than it saves. Matrix products alone run about twice as fast
in bfloat16 where the CPU has instructions for it; they are accumulated in float32 either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
)

__all__ = ["HalfLinear", "halve_frozen", "halves", "has_fast_bfloat16", "is_halved", "precision"]


class HalfLinear(TorchFunctionMode):
    """Within this context `F.linear` multiplies in bfloat16 and gives back the dtype of its input.

    Frozen weights are kept in bfloat16 for as long as the context object lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and args[0].dtype in (torch.float32, torch.bfloat16):
            x, weight, *bias = args
            bias_16 = [b if b is None else b.bfloat16() for b in bias]
            return func(x.bfloat16(), self._half(weight), *bias_16).to(x.dtype)
        return func(*args, **(kwargs or {}))

    def _half(self, weight: Tensor) -> Tensor:
        if weight.requires_grad:
            return weight.bfloat16()
        known = self._frozen.get(id(weight))
        if known is None or known[0] is not weight:
            known = self._frozen[id(weight)] = (weight, weight.bfloat16())
        return known[1]


def is_halved() -> bool:
    """Whether `F.linear` is now called within a `HalfLinear`."""
    return any(isinstance(mode, HalfLinear) for mode in _get_current_function_mode_stack())


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
