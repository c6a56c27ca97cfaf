"""The layers of a decoding step as lists of weights, for the operations that do a step at once.

They are asked for once for each text, its prompt included where that is short: else Python would
take a tenth of each token's time. A hook or a weight that is put in while a text is written is
heard of with the next.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flamvid.models.int8 import Int8Linear
from flamvid.models.linear import Linear, hooked
from flamvid.models.resampler import ACTIVATIONS, FeedForward
from flamvid.ops import DENSE

__all__ = ["feed_parts", "hooked", "linear_parts", "norm_parts", "weight_parts"]

_NAMES = {kind: name for name, kind in ACTIVATIONS.items()}


def linear_parts(layer: nn.Module) -> list[Tensor] | None:
    """A linear layer's weights; None where calling it would do anything else besides.

    Such are a bias, weights of another dtype or elsewhere, another type's layer and hooks.
    """
    if hooked(layer):
        return None
    if type(layer) is Int8Linear:
        return None if layer.int8 is None or layer.bias is not None else list(layer.int8)
    own = layer._parameters
    # A bias or weight that is no parameter any more is made anew for each call, by a property.
    if type(layer).forward is not Linear.forward or own.get("bias", layer) is not None:
        return None
    return weight_parts(own.get("weight"))


def norm_parts(norm: nn.Module) -> list[Tensor] | None:
    """A layer norm's weight and perhaps its bias; None as in `linear_parts`."""
    if type(norm) is not nn.LayerNorm or hooked(norm):
        return None
    own = norm._parameters
    bias = own.get("bias", norm)
    return weight_parts(own.get("weight"), *(() if bias is None else (bias,)))


def weight_parts(*weights: Any) -> list[Tensor] | None:
    """Some weights, if a kernel can read them as they lie: plain float32 tensors on a CPU."""
    for w in weights:
        if type(w) not in DENSE or w.dtype is not torch.float32 or not w.is_cpu:
            return None
        if not w.is_contiguous():
            return None
    return list(weights)


def feed_parts(ffw: nn.Module | None) -> tuple[Any, ...] | None:
    """Of a `FeedForward`, all that `feed_few` takes between x and the gate; None as above."""
    if type(ffw) is not FeedForward or hooked(ffw):
        return None
    norm, up, activation, down = ffw
    parts, wide, narrow = norm_parts(norm), linear_parts(up), linear_parts(down)
    name = _NAMES.get(type(activation))
    if parts is None or wide is None or narrow is None or name is None or hooked(activation):
        return None
    return parts, norm.eps, False, wide, narrow, name
