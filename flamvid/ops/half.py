"""Linear layers in bfloat16, everything else as it is, for CPUs that are fast at them.

Autocast on a CPU turns attention and elementwise work to bfloat16 too, and casts frozen weights
anew at every call, which costs more than it saves. Matrix products alone run about twice as fast
in bfloat16 where the CPU has instructions for it; they are accumulated in float32 either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

__all__ = ["HalfLinear", "halved", "made_again"]


class HalfLinear(TorchFunctionMode):
    """Within this context `F.linear` multiplies in bfloat16 and gives back the dtype of its input.

    Frozen weights are kept in bfloat16 for as long as the context object lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and args[0].dtype in (torch.float32, torch.bfloat16):
            x, weight, *bias = args
            bias_16 = [b if b is None else b.bfloat16() for b in bias]
            return func(x.bfloat16(), self._half(weight), *bias_16).to(x.dtype)
        return func(*args, **(kwargs or {}))

    def _half(self, weight: Tensor) -> Tensor:
        if weight.requires_grad:
            return weight.bfloat16()
        known = self._frozen.get(id(weight))
        if known is None or known[0] is not weight:
            known = self._frozen[id(weight)] = (weight, weight.bfloat16())
        return known[1]


def halved(x: Tensor, *through: nn.Module) -> Tensor:
    """In bfloat16 within a `HalfLinear`, as linear layers would have it; elsewhere as it is.

    For what goes from one linear layer to the next and is rounded once on the way: numbers stay the
    same, and nothing goes back and forth between the two types. through: those layers; one of
    another kind, as an adapter's, adds what bfloat16 would lose, or is in eight bits.
    """
    if torch.compiler.is_compiling():  # a graph has no modes
        return x
    plain = x.dtype == torch.float32 and all(isinstance(layer, nn.Linear) for layer in through)
    return x.bfloat16() if plain and _current() is not None else x


def made_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The contexts of a checkpointed layer, on the way forward and on the way back.

    A backward pass is out of all modes, and would make a layer again in another type.
    """
    return nullcontext(), _current() or nullcontext()


def _current() -> HalfLinear | None:
    modes = _get_current_function_mode_stack()
    return next((mode for mode in modes if isinstance(mode, HalfLinear)), None)
