"""Linear layers through `flamvid.ops.linear`, ours and those of models that others build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.overrides import _len_torch_function_stack  # type: ignore[attr-defined]

from flamvid.ops import DENSE, linear, linear_gelu

__all__ = ["Linear", "gelu_of", "hooked", "quicken", "split_linear"]


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
    if not _is_but_linear(layer):
        return F.gelu(layer(x))
    return linear_gelu(x, layer.weight, layer.bias)


def split_linear(
    layer: nn.Module, x_BSK: Tensor, widths: Sequence[int], last: bool
) -> tuple[Tensor, ...]:
    """A linear layer's outputs in parts [B,S,width]; with `last` the first of the last token alone.

    That saves its product for the others, [B,1,width], where the layer is a plain `Linear`.
    """
    # A mode keeps what it makes of each weight that it is given, and a part is a new one each time.
    moded = _len_torch_function_stack()
    if moded or not (last and _is_but_linear(layer) and type(layer.weight) in DENSE):
        first, *others = layer(x_BSK).split(list(widths), -1)
        return first[:, -1:] if last else first, *others
    sizes = [widths[0], sum(widths[1:])]
    query, rest = layer.weight.split(sizes)
    query_bias, rest_bias = (None, None) if layer.bias is None else layer.bias.split(sizes)
    others = linear(x_BSK, rest, rest_bias).split(list(widths[1:]), -1)
    return linear(x_BSK[:, -1:], query, query_bias), *others


def _is_but_linear(layer: nn.Module) -> TypeGuard[Linear]:
    """Whether a call of it would be `linear` and nothing else; not with gradients, that have hooks
    of their own, nor in a graph.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not isinstance(layer, Linear):
        return False
    return type(layer).forward is Linear.forward and not hooked(layer)


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
