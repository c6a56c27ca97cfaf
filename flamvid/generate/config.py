"""How to search for a text, and what a search gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from flamvid.errors import InputError

__all__ = ["Generated", "GenerationConfig", "Search"]


class Search(TypedDict, total=False):
    """The fields of `GenerationConfig` as keyword arguments."""

    beams: int
    max_tokens: int
    min_tokens: int
    length_penalty: float
    temperature: float
    top_k: int
    top_p: float
    no_repeat_ngram: int
    returns: int
    seed: int
    lookup: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """Beam search (`beams`; 1 is greedy), or tokens drawn at random (`temperature` above 0).

    A finished beam scores `logprob / tokens ** length_penalty`.

    temperature: tokens are drawn with probabilities p ** (1 / temperature), from the generator that
    `seed` starts; there are no beams then. top_k: only from the k likeliest tokens (0: from all).
    top_p: only from the likeliest that together reach this probability. min_tokens, max_tokens: of
    the text, without its end. no_repeat_ngram: no n tokens in a row stand twice in a text (0: they
    may). returns: how many texts of each prompt: the best beams, or so many draws. lookup: guess
    the next tokens of a single text by what stood before, where reading several at once takes
    hardly longer (our Llama and MPT-1B in float32 on a CPU with AVX-512); the text is the same to
    the bit.
    """

    beams: int = 3
    max_tokens: int = 20
    min_tokens: int = 0
    length_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    no_repeat_ngram: int = 0
    returns: int = 1
    seed: int = 0
    lookup: bool = True

    def __post_init__(self) -> None:
        for name in ("temperature", "length_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)}; must be a finite number")
        for name, least in (
            *(("beams", 1), ("max_tokens", 1), ("returns", 1)),
            *(("min_tokens", 0), ("temperature", 0), ("top_k", 0), ("no_repeat_ngram", 0)),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; must be at least {least}")
        if self.min_tokens > self.max_tokens:
            raise InputError(
                f"min_tokens is {self.min_tokens}, above max_tokens, {self.max_tokens}; lower it"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p:g}; must be above 0 and at most 1")
        if self.draws and self.beams > 1:
            raise InputError(
                f"temperature {self.temperature:g} draws tokens, which {self.beams} beams do not; "
                "give 1 beam"
            )
        if not self.draws and (self.top_k or self.top_p < 1):
            raise InputError("top_k and top_p choose among drawn tokens; give a temperature, too")
        if not self.draws and self.returns > self.beams:
            raise InputError(
                f"returns is {self.returns}, but {self.beams} beams end in no more texts; "
                "give more beams or a temperature"
            )

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids without the end token, and the sum of their log-probabilities (end included)."""

    ids: tuple[int, ...]
    logprob: float
