"""The layers of a decoding step as lists of weights, for the operations that do a step at once.

For every token these are asked of every layer: they read modules' own dictionaries, as `getattr` of
a module takes longer than all the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flamvid.models.int8 import Int8Linear
from flamvid.models.linear import Linear
from flamvid.models.resampler import ACTIVATIONS
from flamvid.ops import feed_few

__all__ = ["feed_step", "linear_parts", "norm_parts"]

_NAMES = {kind: name for name, kind in ACTIVATIONS.items()}


def linear_parts(layer: nn.Module) -> list[Tensor] | None:
    """A linear layer's weights; None where calling it would do anything else besides.

    Such are a bias, weights of another dtype or elsewhere, another type's layer and hooks.
    """
    if type(layer) is Linear:
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        known = bias is None and weight.dtype is torch.float32 and weight.is_cpu
        return [weight] if known and weight.is_contiguous() and not _hooked(layer) else None
    if type(layer) is Int8Linear and layer.int8 is not None and layer.bias is None:
        return None if _hooked(layer) else list(layer.int8)
    return None


def norm_parts(norm: nn.Module) -> list[Tensor] | None:
    """A layer norm's weight and perhaps its bias; None as in `linear_parts`."""
    if type(norm) is not nn.LayerNorm or _hooked(norm):
        return None
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    if weight is None or weight.dtype is not torch.float32 or not weight.is_cpu:
        return None
    return [weight] if bias is None else [weight, bias]


def feed_step(x_BSD: Tensor, ffw: nn.Module, gate: Tensor | None) -> Tensor | None:
    """x + tanh(gate) ffw(x) for a `feed_forward`; None where it is not plain."""
    if type(ffw) is not nn.Sequential or len(ffw._modules) != 4 or _hooked(ffw):
        return None
    norm, up, activation, down = ffw
    parts, wide, narrow = norm_parts(norm), linear_parts(up), linear_parts(down)
    name = _NAMES.get(type(activation))
    if parts is None or wide is None or narrow is None or name is None or _hooked(activation):
        return None
    x_RD, eps = x_BSD.reshape(-1, x_BSD.shape[-1]), norm.eps
    out: Tensor = feed_few(x_RD, parts, eps, False, wide, narrow, name, gate)
    return out.view(x_BSD.shape)


def _hooked(layer: nn.Module) -> bool:
    """Whether others listen to its calls, or have put their own `forward` in its place."""
    own = layer.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)
