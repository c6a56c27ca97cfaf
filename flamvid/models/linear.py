"""Linear layers that are quick for the few rows of a decoding step, one per beam.

On a CPU, BLAS takes x W^T with two to eight rows of x for a general product, which packs W anew
each time, and with one row for a vector product, and neither goes to several cores. W x^T, the same
numbers summed, does, and reads W once. With three rows and two threads it takes a quarter of the
time, or a sixth for an LM's head; with one row, computed twice, half the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Linear", "linear"]

_MOST = 8
_MOST_NARROWING = 3  # with more inputs than outputs the gain ends sooner


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`: x [...,K], weight [N,K] -> [...,N]."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    N, K = weight.shape
    rows = x.shape[:-1].numel()
    if not 1 <= rows <= (_MOST if K <= N else _MOST_NARROWING):
        return F.linear(x, weight, bias)
    x_RK = x.reshape(rows, K)
    if rows == 1:
        x_RK = torch.cat([x_RK, x_RK])  # a single one would be a vector product
    out = (weight @ x_RK.T).T[:rows].contiguous()
    if bias is not None:
        out = out + bias
    return out.view(*x.shape[:-1], N)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
