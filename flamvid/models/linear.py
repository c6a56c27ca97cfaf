"""Linear layers through `flamvid.ops.linear`, ours and those of models that others build."""

from __future__ import annotations

from torch import Tensor, nn

from flamvid.ops import linear

__all__ = ["Linear", "quicken"]


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def quicken(model: nn.Module) -> None:
    """Make every plain `nn.Linear` in a model a `Linear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
