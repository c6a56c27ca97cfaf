"""Linear layers with int8 weights: a third of what a CPU must read for each token it writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flamvid.models.linear import Linear
from flamvid.ops import (
    GROUP,
    Int8,
    dequantise_int8,
    implementation,
    linear,
    linear_int8,
    quantise_int8,
)

__all__ = ["Int8Linear", "int8_of", "make_int8"]


class Int8Linear(nn.Module):
    """Frozen int8 weights [N,K]; bias [N].

    Without the compiled kernel they are widened once: as long as float32 weights, and as quick, but
    the same numbers wherever one runs.
    """

    def __init__(self, weight: Int8, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = bias
        self.int8 = weight if implementation("linear_int8").name == "kernel" else None
        self.wide = dequantise_int8(weight) if self.int8 is None else None

    def forward(self, x: Tensor) -> Tensor:
        if self.int8 is None or (torch.is_grad_enabled() and x.requires_grad):
            return linear(x, self.rows(), self.bias)
        out = linear_int8(x, self.int8)
        return out if self.bias is None else out + self.bias

    def rows(self, at: Tensor | slice = slice(None)) -> Tensor:
        """Some of the weights as float32, [n,K]."""
        if self.int8 is None:
            assert self.wide is not None
            return self.wide[at]
        return dequantise_int8(Int8(*(part[at] for part in self.int8)))


@torch.no_grad()
def make_int8(module: nn.Module) -> None:
    """Put an `Int8Linear` in the place of each float32 `Linear` in `module` that int8 can hold."""
    for name, child in module.named_children():
        made = int8_of(child) if isinstance(child, Linear) else None
        if made is not None:
            setattr(module, name, made)
        else:
            make_int8(child)


@torch.no_grad()
def int8_of(layer: nn.Linear) -> Int8Linear | None:
    """The same in eight bits, if int8 can hold it."""
    if layer.in_features % GROUP:
        return None
    return Int8Linear(quantise_int8(layer.weight), layer.bias)
