"""A linear layer with int8 weights, and a scale and an offset for each group of 32 of them.

Legend: R rows, K width, N outputs, G groups of a row: K / 32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flamvid.errors import InputError
from flamvid.ops.linear import linear

__all__ = ["GROUP", "Int8", "dequantise_int8", "linear_int8", "quantise_int8"]

GROUP = 32
_MOST = 128


class Int8(NamedTuple):
    """Weights [N,K] as int8; each stands for `weight * scale + offset` of its group, [N,G]."""

    weight: Tensor
    scales: Tensor
    offsets: Tensor


@torch.library.custom_op("flamvid::linear_int8", mutates_args=())
def _linear_int8(x: Tensor, weight: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    return F.linear(x, dequantise_int8(Int8(weight, scales, offsets)))


@_linear_int8.register_fake
def _(x: Tensor, weight: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("flamvid::widen_int8", mutates_args=())
def _widen_int8(weight: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    N, K = weight.shape
    groups = weight.view(N, -1, GROUP).float()
    return (groups * scales[:, :, None] + offsets[:, :, None]).view(N, K)


@_widen_int8.register_fake
def _(weight: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    return scales.new_empty(weight.shape)


def linear_int8(x: Tensor, w: Int8) -> Tensor:
    """`x` [...,K] float32 times the weights, [...,N]; no gradients.

    Weights are widened as they are read: writing a text reads all of them for each token, a short
    prompt once, and these are a third as long. Raises InputError for other shapes and types.
    """
    K = x.shape[-1]
    rows = x.numel() // (K or 1)
    try:
        if rows > _MOST:  # what widening takes is then little
            return linear(x, dequantise_int8(w))
        out: Tensor = torch.ops.flamvid.linear_int8(x.reshape(rows, K), *w)
    except (RuntimeError, ValueError):  # the operation sees to it: twice would take as long again
        _refuse(x, w)
        raise
    return out.view(*x.shape[:-1], w.weight.shape[0])


def _refuse(x: Tensor, w: Int8) -> None:
    """An InputError where one is due."""
    N, K = w.weight.shape
    if x.shape[-1] != K or K % GROUP or {w.scales.shape, w.offsets.shape} != {(N, K // GROUP)}:
        raise InputError(
            f"x {tuple(x.shape)}, weight {tuple(w.weight.shape)}, scales {tuple(w.scales.shape)} "
            f"and offsets {tuple(w.offsets.shape)} do not fit; must be [...,K], [N,K] and [N,K/32]"
        )
    kinds = (x.dtype, w.weight.dtype, w.scales.dtype, w.offsets.dtype)
    if kinds != (torch.float32, torch.int8, torch.float32, torch.float32):
        raise InputError(
            f"x, weight, scales and offsets are {', '.join(map(str, kinds))}; must be float32, "
            "int8, float32 and float32"
        )


def quantise_int8(weight_NK: Tensor) -> Int8:
    """The least of each group becomes -128, the largest 127: 255 equal steps.

    No weight moves by more than 1/510 of the span of its group; and none at all where a group has
    16 equal steps, as 4-bit files have them, since 15 divides 255.
    """
    N, K = weight_NK.shape
    if K % GROUP:
        raise InputError(f"the weights are {K} wide; int8 needs a multiple of {GROUP}")
    groups = weight_NK.float().view(N, K // GROUP, GROUP)
    least, largest = groups.amin(-1), groups.amax(-1)
    scales = (largest - least) / 255
    offsets = least + 128 * scales
    # A group of one value has no span: all of it is in the offset.
    steps = (groups - offsets[:, :, None]) / scales.clamp_min(1e-30)[:, :, None]
    weight = steps.round().clamp(-128, 127).to(torch.int8).view(N, K)
    return Int8(weight, scales, offsets)


def dequantise_int8(w: Int8) -> Tensor:
    """The float32 weights [N,K] that int8 ones stand for."""
    out: Tensor = torch.ops.flamvid.widen_int8(*w)
    return out
