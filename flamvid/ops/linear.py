"""The linear layer as quick as a CPU can have it, for the few rows of a decoding step or for many.

torch gives both to MKL. That packs the weights anew for every few rows, or keeps to one core, where
a kernel of ours is as quick as memory; and on processors of AMD it leaves AVX-512 alone, where
oneDNN, which torch has as well, takes half the time. All of it in float32.

Legend: R rows, K width, N outputs.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _len_torch_function_stack  # type: ignore[attr-defined]

from flamvid.ops.kernels import implementation

__all__ = ["DENSE", "MANY", "few_rows", "linear", "linear_gelu"]

_FEW = 8  # rows for which reading the weights is what takes the time
DENSE = (Tensor, nn.Parameter)  # other types, as torchao's, know their own product
MANY = 24  # with fewer oneDNN gains less than it takes to prepare for another number of rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`: x [...,K], weight [N,K] -> [...,N]."""
    K = x.shape[-1]
    rows = x.numel() // (K or 1)
    if _FEW < rows < MANY or not rows or not _plain(x, weight, bias):
        return F.linear(x, weight, bias)
    out: Tensor
    if rows >= MANY:
        many = _one_dnn()
        out = F.linear(x, weight, bias) if many is None else many(x, weight, bias)
        return out
    if not _few_is_compiled():
        return F.linear(x, weight, bias)
    out = torch.ops.flamvid.linear_few(x.reshape(rows, K), weight)
    if bias is not None:
        out = out + bias
    return out.view(*x.shape[:-1], -1)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.gelu` of `linear`; of many rows without another pass over them."""
    if x.numel() >= MANY * x.shape[-1] > 0 and _plain(x, weight, bias):
        many = _one_dnn()
        if many is not None:
            out: Tensor = many(x, weight, bias, "gelu")
            return out
    return F.gelu(linear(x, weight, bias))


def few_rows(x: Tensor) -> bool:
    """Whether x [...,K] has few enough rows for the operations of a decoding step, none of which
    has gradients, and they are compiled.
    """
    return (
        not torch.is_grad_enabled()
        and x.is_cpu
        and x.dtype == torch.float32
        and 0 < x.numel() <= _FEW * x.shape[-1]
        and not torch.compiler.is_compiling()
        and not _len_torch_function_stack()
        and _step_is_compiled()
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are float32 on a CPU, and nothing but their product is asked for."""
    if torch.compiler.is_compiling() or type(weight) not in DENSE or not x.is_cpu:
        return False
    if not x.dtype == weight.dtype == torch.float32:
        return False
    if _len_torch_function_stack():  # a mode, as of training in bfloat16, has its own product
        return False
    learns = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    return not (learns and torch.is_grad_enabled())


@torch.library.custom_op("flamvid::linear_few", mutates_args=())
def _linear_few(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight)


@_linear_few.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@functools.cache
def _few_is_compiled() -> bool:
    return implementation("linear_few").name == "kernel"


@functools.cache
def _step_is_compiled() -> bool:
    # Its threads wait for each other, so all must run: a pool's may be another caller's.
    openmp = "parallel backend: OpenMP" in torch.__config__.parallel_info()
    return openmp and implementation("feed_few").name == "kernel"


@functools.cache
def _one_dnn() -> Any:
    """oneDNN's linear layer, by the operation that torch.compile uses; None where it is no gain.

    The operation is torch's own business, so it is tried before it is trusted.
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return None

    def many(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
        # The last names the formula of what comes then; of gelu "none" is the exact one.
        op = torch.ops.mkldnn._linear_pointwise
        out: Tensor = op(x, weight, bias, then, [], "" if then == "none" else "none")
        return out

    dice = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(MANY, 32, generator=dice) for _ in range(2))
    try:
        with torch.inference_mode():
            plain = F.linear(x, weight)
            same = torch.allclose(many(x, weight, None), plain, atol=1e-4)
            same &= torch.allclose(many(x, weight, None, "gelu"), F.gelu(plain), atol=1e-4)
    except Exception:
        return None
    return many if same else None
