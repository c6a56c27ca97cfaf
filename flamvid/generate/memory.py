"""Prompts that begin alike: what a model made of the beginning is kept, and not read anew.

Legend: M media, S tokens, L latents, D width.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import MediaKeyValues

__all__ = ["Begun", "PromptMemory", "common_beginning"]


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A prompt of which the first `tokens` are read: the LM's cache of them, and all its media.

    Whoever goes on from it extends the cache in place: it is that one's own.
    """

    cache: Any
    layers: tuple[MediaKeyValues, ...]
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """Tokens and media [1,L,D] that were read, and what was made of them; never changed."""

    ids: Sequence[int]
    latents: Sequence[Tensor]
    cache: Any
    layers: tuple[MediaKeyValues, ...]
    model: weakref.ref[Flamingo]


class PromptMemory:
    """The last prompt, or its beginning, as a model read it. Threads may share one.

    It holds, for each token, keys and values of every LM layer, and for each of the media those of
    every cross-attention: `2 * size * (tokens * lm_layers * lm_key_width + media * latents *
    inserted_layers * heads * head_width)` bytes, of `size` a number; up to twice that for the
    tokens, whose buffers have room for more. Of OpenFlamingo-3B in float32 with 32 shots of 20
    tokens that is 0.25 GB and 0.2 GB; of media that were passed (models/passed_media.py), as these
    are on a CPU, there are none. It lives as long as who has it: the examples, or the chat.

    What it holds is shared by those who take it and written by none of them. It knows tokens and
    media, not weights: after these have changed, begin with a new one.
    """

    def __init__(self) -> None:
        self._held: _Held | None = None

    def __reduce__(self) -> tuple[type[PromptMemory], tuple[()]]:
        return PromptMemory, ()  # a copy remembers nothing

    @torch.inference_mode()
    def begin(
        self,
        model: Flamingo,
        latents: Sequence[Tensor],
        input_ids: Tensor,
        index_1S: Tensor,
        again: int = 0,
    ) -> Begun | None:
        """The prompt as far as it is known, at least its last token excepted.

        None where the LM's cache can't be cut. latents: [1,L,D] of each of the media. again: so
        many first tokens come in other prompts, too; they are read by themselves and remembered. A
        prompt is then always read in the same two pieces, and so to the same bits.
        """
        if model.lm.beginning(model.lm.new_cache(), 0) is None:
            return None
        ids: list[int] = input_ids[0].tolist()
        held = self._held
        if held is not None and (
            held.model() is not model or _kind(held.latents) != _kind(latents)
        ):
            held = None
        tokens = media = 0
        if held is not None:
            seen = index_1S[0].tolist()
            tokens, media = common_beginning((ids, latents), (held.ids, held.latents), seen)
            tokens = min(tokens, len(ids) - 1)
        if again and (held is None or not tokens == again == len(held.ids)):
            tokens, media = again, max(1, int(index_1S[0, again - 1]) + 1)
            held = _read(model, latents[:media], input_ids[:, :again], index_1S[:, :again])
            self._held = held
        cache = model.lm.beginning(held.cache, tokens) if held else model.lm.new_cache()
        known = _first(held.layers, media) if held and media else ()
        # Media that were passed have no keys: if a token sees one now, all are read again.
        first = int(index_1S[0, tokens:].clamp_min(0).min())
        if any(layer.start > first for layer in known):
            known, media = (), 0
        new = torch.cat(list(latents))[None, media:]
        layers = model.read(new, index_1S[:, tokens:], known).layers
        return Begun(cache, layers, tokens)

    def keep(
        self, model: Flamingo, latents: Sequence[Tensor], ids: Sequence[int], begun: Begun
    ) -> None:
        """Remember a prompt that was begun here and read to its end, and the text behind it.

        ids: of both; the cache tells how many of them were read.
        """
        tokens = min(len(ids), begun.cache.get_seq_length())
        cache = model.lm.beginning(begun.cache, tokens)
        layers = _first(begun.layers, len(latents))
        self._held = _Held(ids[:tokens], latents, cache, layers, weakref.ref(model))


def common_beginning(
    one: tuple[Sequence[int], Sequence[Tensor]],
    other: tuple[Sequence[int], Sequence[Tensor]],
    index: Sequence[int],
) -> tuple[int, int]:
    """How many first tokens of two prompts are the same and see the same media, and how many media.

    A prompt is its ids and its latents; index: which of the media each token of `one` sees.
    """
    pairs = zip(one[1], other[1], strict=False)
    media = _alike(_same_media(a, b) for a, b in pairs)
    places = zip(one[0], other[0], index, strict=False)
    return _alike(a == b and seen < media for a, b, seen in places), media


def _alike(pairs: Iterable[bool]) -> int:
    """How many are true before one is not."""
    return sum(1 for _ in takewhile(bool, pairs))


def _same_media(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    kinds = [(x.shape, x.dtype, x.device) for x in (one, other)]
    return kinds[0] == kinds[1] and torch.equal(one, other)


def _kind(latents: Sequence[Tensor]) -> tuple[torch.dtype, torch.device]:
    """What the model computed in, and where."""
    return latents[0].dtype, latents[0].device


def _first(layers: Sequence[MediaKeyValues], media: int) -> tuple[MediaKeyValues, ...]:
    return tuple(layer.first(media) for layer in layers)


def _read(model: Flamingo, latents: Sequence[Tensor], input_ids: Tensor, index_1S: Tensor) -> _Held:
    cache, tokens = model.lm.new_cache(), input_ids.shape[1]
    media = model.read(torch.cat(list(latents))[None], index_1S)
    model.lm(input_ids, media, None, cache, last=True)
    return _Held(
        input_ids[0].tolist(),
        latents,
        model.lm.beginning(cache, tokens),
        _first(media.layers, len(latents)),
        weakref.ref(model),
    )
