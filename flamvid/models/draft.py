"""A language model's twin in int8, which guesses what the model is about to write.

It reads a third of what the model reads for each token, and is right nearly always; the model then
reads some guesses at once, for little more than one token takes (Leviathan et al. 2023, speculative
decoding, arXiv 2211.17192; here the model drafts for itself).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.models.cache import KeyValueCache
from flamvid.models.gated_xattn import GatedCrossAttention, MediaKeyValues
from flamvid.models.int8 import Int8Linear, make_int8
from flamvid.models.lm import LanguageModel, TokenHead, decoder_layers
from flamvid.ops import DENSE, GROUP, few_rows, has_avx512, implementation, quantise_int8

__all__ = ["Draft", "reads_few_at_once"]


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """The twin of a model as it was when this was made. Threads may share one."""

    lm: LanguageModel
    known: TokenHead | None
    narrow: Callable[[Tensor], Tensor] | None

    @classmethod
    @torch.no_grad()
    def of(cls, lm: LanguageModel, head: TokenHead | None = None) -> Draft:
        """A draft with int8 weights of its own, a third of the model's; all else is the model's.

        head: that it is to choose by, if not the model's own. Raises InputError where it would be
        no gain, or where guesses can't be taken back.
        """
        _check(lm)
        shared = {id(tensor): tensor for tensor in (*lm.parameters(), *lm.buffers())}
        try:
            twin = copy.deepcopy(lm, shared)
        except TypeError as error:
            raise InputError(
                f"a draft is a copy of the language model, of which something can't be copied "
                f"({error}); take its hooks off, or leave the draft out"
            ) from error
        for part in (twin.lm, twin.inserted):
            make_int8(part)
        fits = head is not None and head.weight.shape[1] % GROUP == 0
        return cls(twin, head, Int8Linear(quantise_int8(head.weight)) if head and fits else None)

    def head(self, head: TokenHead | None) -> Callable[[Tensor], Tensor]:
        """Hidden states to logits, as a head of the model or the model itself makes them."""
        if head is None:
            return self.lm.head
        return self.narrow if self.narrow and head is self.known else head

    def read(self, layers: Sequence[MediaKeyValues]) -> tuple[MediaKeyValues, ...]:
        """The keys and values that the model has of its media, for the twin's own layers."""
        nothing = torch.empty(1, 0, 0, 0)
        xattns = (x for x in self.lm.inserted if isinstance(x, GatedCrossAttention))
        return tuple(x.read(nothing, has) for x, has in zip(xattns, layers, strict=True))


def reads_few_at_once(
    lm: LanguageModel, layers: Sequence[MediaKeyValues], cache: Any, state_BD: Tensor
) -> bool:
    """Whether a few tokens take the model hardly longer than one, each the same to the bit.

    So it is where every layer reads them by the operations of a decoding step, which compute each
    row alone; torch's own attention rounds otherwise for more of them. Smaller registers than those
    of AVX-512 hold too few sums. layers, cache, state_BD: as they are behind the prompt.
    """
    if type(cache) is not KeyValueCache or not few_rows(state_BD) or not lm.untouched():
        return False
    if not has_avx512() or any(type(weight) not in DENSE for weight in lm.parameters()):
        return False
    if any(read.step is None or read.step.feed is None for read in layers):
        return False
    for at, layer in enumerate(decoder_layers(lm.lm)):
        weights = getattr(layer, "step_weights", None)
        if weights is None or cache.kept(at, weights) is None:
            return False
    return _kinds(lm) == {"float32 on cpu"}


def _kinds(lm: LanguageModel) -> set[str]:
    """What its weights are, and where."""
    kinds = {f"{str(x.dtype).removeprefix('torch.')} on {x.device}" for x in lm.parameters()}
    if any(isinstance(module, Int8Linear) for module in lm.modules()):
        kinds.add("int8 on cpu")
    return kinds


def _check(lm: LanguageModel) -> None:
    if not getattr(lm.lm, "takes_own_cache", False):
        raise InputError(
            f"a draft can't guess for {type(lm.lm).__name__}, whose cache is transformers'; "
            "leave the draft out"
        )
    kinds = _kinds(lm)
    if kinds != {"float32 on cpu"}:
        raise InputError(
            f"a draft is for weights in float32 on a CPU, and these are {', '.join(sorted(kinds))};"
            " give dtype fp32 and device cpu, or leave the draft out"
        )
    served = implementation("linear_int8")
    if served.name != "kernel":
        raise InputError(
            f"a draft is no quicker without flamvid's compiled kernels ({served.why}); leave it out"
        )
