"""The linear layer as quick as a CPU can have it, for the few rows of a decoding step or for many.

torch gives both to MKL. That packs the weights anew for every few rows, or keeps to one core, where
a kernel of ours is as quick as memory; and for more rows, up to some dozen by far, it is slower
than another of ours where AVX-512 is. All of it in float32.

Legend: R rows, K width, N outputs.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _len_torch_function_stack  # type: ignore[attr-defined]

from flamvid.ops.kernels import has_avx512, implementation

__all__ = ["DENSE", "few_rows", "linear", "linear_gelu"]

_FEW = 8  # rows for which reading the weights is what takes the time
DENSE = (Tensor, nn.Parameter)  # other types, as torchao's, know their own product
_STEP = 16  # widths for the kernel of many rows are multiples of it


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`: x [...,K], weight [N,K] -> [...,N]."""
    K = x.shape[-1]
    rows = x.numel() // (K or 1)
    if _serves_many(rows, x, weight, bias):
        many: Tensor = torch.ops.flamvid.linear_many(x.reshape(rows, K), weight, bias, False)
        return many.view(*x.shape[:-1], -1)
    if not 0 < rows <= _FEW or not _plain(x, weight, bias) or not _few_is_compiled():
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.flamvid.linear_few(x.reshape(rows, K), weight)
    if bias is not None:
        out = out + bias
    return out.view(*x.shape[:-1], -1)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.gelu` of `linear`; of many rows without another pass over them."""
    rows = x.numel() // (x.shape[-1] or 1)
    if _serves_many(rows, x, weight, bias):
        many: Tensor = torch.ops.flamvid.linear_many(x.reshape(rows, -1), weight, bias, True)
        return many.view(*x.shape[:-1], -1)
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


def _serves_many(rows: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        rows > _FEW
        and weight.dim() == 2
        and (bias is None or bias.shape == weight.shape[:1])
        and not any(size % _STEP for size in weight.shape)
        and _plain(x, weight, bias)
        and _many_is_compiled()
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


@torch.library.custom_op("flamvid::linear_many", mutates_args=())
def _linear_many(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


@_linear_many.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@functools.cache
def _many_is_compiled() -> bool:
    # Without AVX-512 torch's is as quick.
    return has_avx512() and implementation("linear_many").name == "kernel"
