"""Linear layers through `flamvid.ops.linear`, ours and those of models that others build."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from flamvid.ops import linear, linear_gelu

__all__ = ["Linear", "gelu_of", "hooked", "quicken"]


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def quicken(model: nn.Module) -> None:
    """Make every plain `nn.Linear` in a model a `Linear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def gelu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU, the exact one, of a linear layer's output; without gradients at once."""
    # Gradients may have hooks as well.
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(layer(x))
    if isinstance(layer, Linear) and type(layer).forward is Linear.forward and not hooked(layer):
        return linear_gelu(x, layer.weight, layer.bias)
    return F.gelu(layer(x))


def hooked(layer: nn.Module) -> bool:
    """Whether others listen to its calls, or have put their own `forward` in its place."""
    own = layer.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or "forward" in own
        or _global_forward_hooks  # of every module, as profilers have them
        or _global_forward_pre_hooks
    )
