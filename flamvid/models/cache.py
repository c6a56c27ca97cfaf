"""Keys and values of the tokens so far, for the language models that are ours.

Legend: B batch, G key heads, S new tokens, T all tokens so far, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["KeyValueCache"]

T = TypeVar("T")


class KeyValueCache:
    """Keys and values of all layers, each a buffer [B,G,room,d] that doubles when it is full.

    As far as our models know it, one of transformers' caches; those copy all keys for every token.
    """

    def __init__(self, layers: int) -> None:
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self.length = 0  # tokens that all layers have
        self._times, self._common = 1, 0  # so many rows in succession have so many tokens in common
        self._begun = 0  # tokens that another cache has in the same buffers
        self._kept: dict[int, Any] = {}

    def kept(self, layer_idx: int, make: Callable[[], T]) -> T:
        """What a layer makes once, for all tokens of the cache."""
        if layer_idx not in self._kept:
            self._kept[layer_idx] = make()
        found: T = self._kept[layer_idx]
        return found

    def get_seq_length(self) -> int:
        """How many tokens the cache holds."""
        return self.length

    def update(self, k_BGSd: Tensor, v_BGSd: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values; returns all of them, [B,G,T,d]."""
        past, S = self.length, k_BGSd.shape[2]
        T = past + S
        keys, values = self.extend(k_BGSd, k_BGSd.shape[:2], k_BGSd.shape[3], S, layer_idx)
        keys[:, :, past:T] = k_BGSd
        values[:, :, past:T] = v_BGSd
        return keys[:, :, :T], values[:, :, :T]

    def extend(
        self, like: Tensor, rows: Sequence[int], d: int, new: int, layer_idx: int
    ) -> tuple[Tensor, Tensor]:
        """A layer's buffers [B,G,room,d] with room for `new` more tokens; rows: B and G.

        What was `length` before is where they are to be written.
        """
        T = self.length + new
        shape = (*rows, max(64, 2 * T), d)
        keys = self._grown(self._keys[layer_idx], like, shape, T)
        values = self._grown(self._values[layer_idx], like, shape, T)
        self._keys[layer_idx], self._values[layer_idx] = keys, values
        if layer_idx == len(self._keys) - 1:
            self.length = T
        return keys, values

    def _grown(
        self, buffer: Tensor | None, like: Tensor, shape: Sequence[int], room: int
    ) -> Tensor:
        if buffer is not None and buffer.shape[2] >= room:
            return buffer
        grown = like.new_empty(shape)
        if buffer is not None:
            grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown

    def beginning(self, tokens: int) -> KeyValueCache:
        """A cache of the first tokens: what either is given from now on, the other never sees."""
        begun = KeyValueCache(len(self._keys))
        begun.length = begun._begun = tokens
        # What that one has is never written here again.
        self._common, self._begun = 0, max(self._begun, tokens)
        # Views without room: for its next tokens it takes buffers of its own.
        begun._keys, begun._values = (
            [None if buffer is None else buffer[:, :, :tokens] for buffer in buffers]
            for buffers in (self._keys, self._values)
        )
        return begun

    def lent(self) -> KeyValueCache:
        """The same buffers for another model: what is appended here, this cache may write over."""
        lent = KeyValueCache(0)
        lent._keys, lent._values, lent.length = self._keys, self._values, self.length
        return lent

    def cut(self, tokens: int) -> None:
        """Leave the first tokens alone."""
        self.length, self._common = tokens, min(tokens, self._common)
        if tokens < self._begun:
            self._map(lambda x: x[:, :, :tokens])  # without room, as above
            self._begun = tokens

    def batch_repeat_interleave(self, times: int) -> None:
        """Each row `times` times in succession."""
        if times > 1:
            self._map(lambda x: x.repeat_interleave(times, 0))
            self._times, self._common, self._begun = times, self.length, 0

    def reorder_cache(self, rows: Tensor) -> None:
        """Let row i be what row `rows[i]` was.

        Rows that were one, as beams of a prompt are, stay as they are as far as they were that.
        """
        among = torch.arange(len(rows), device=rows.device) // self._times
        if self._common and torch.equal(rows // self._times, among):
            self._map(lambda x: self._reordered(x, rows))
        else:
            self._common = 0
            self._map(lambda x: x.index_select(0, rows))

    def _reordered(self, buffer: Tensor, rows: Tensor) -> Tensor:
        new = buffer[:, :, self._common : self.length]
        new.copy_(new.index_select(0, rows))
        return buffer

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                if buffer is not None:
                    buffers[layer] = change(buffer)
