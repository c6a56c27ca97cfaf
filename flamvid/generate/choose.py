"""Which tokens may come next, and which one does.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flamvid.generate.config import GenerationConfig

__all__ = ["draw", "forbid"]

_NEVER = float("-inf")


def forbid(
    logprobs_RV: Tensor, texts: Sequence[Sequence[int]], end: int, config: GenerationConfig
) -> Tensor:
    """Log-probabilities with -inf for the tokens that the settings forbid after each row's text."""
    if not config.min_tokens and not config.no_repeat_ngram:
        return logprobs_RV
    out = logprobs_RV.clone()
    for row, text in enumerate(texts):
        if len(text) < config.min_tokens:
            out[row, end] = _NEVER
        if config.no_repeat_ngram:
            out[row, _repeated(text, config.no_repeat_ngram)] = _NEVER
    return out


def _repeated(text: Sequence[int], n: int) -> list[int]:
    """Tokens that would end an n-gram that the text has already."""
    last = tuple(text[len(text) - n + 1 :])
    if len(last) < n - 1:
        return []
    return [text[i + n - 1] for i in range(len(text) - n + 1) if tuple(text[i : i + n - 1]) == last]


def draw(logprobs_RV: Tensor, config: GenerationConfig, dice: torch.Generator) -> Tensor:
    """One token of each row, [R,1], at random (Holtzman et al. 2020, section 3, for top-p)."""
    scaled = logprobs_RV / config.temperature
    if 0 < config.top_k < scaled.shape[-1]:
        least = scaled.topk(config.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, _NEVER)
    chances = scaled.softmax(-1)
    if config.top_p < 1:
        ranked, order = chances.sort(descending=True)
        # A token is left out when those before it already reach top_p: the first never is.
        outside = ranked.cumsum(-1) - ranked >= config.top_p
        chances = chances.masked_fill(outside.scatter(1, order, outside), 0.0)
    return chances.multinomial(1, generator=dice)
