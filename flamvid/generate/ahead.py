"""What a model says of tokens that are only guessed yet, read all at once.

Legend: S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flamvid.generate.favour import Favoured
from flamvid.models.gated_xattn import MediaKeyValues
from flamvid.models.lm import LanguageModel, MediaContext

__all__ = ["Ahead", "Guesser", "Written"]


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """One text as far as it is written, and by what its next token is chosen.

    token_id: [1,1], its last, which is not read yet; index [1,1]: the media that this one sees;
    mask: [1, past + 1] or None; columns: of the logits, of all its tokens.
    """

    token_id: Tensor
    index: Tensor
    mask: Tensor | None
    columns: Sequence[int]
    favoured: Favoured
    dice: torch.Generator


class Guesser(Protocol):
    """Says which tokens may come next."""

    def guess(self, written: Written, most: int) -> list[int]:
        """At most so many ids, in the order in which they would follow; of no media, no end."""
        ...

    def learn(self, right: int, guesses: int) -> None:
        """Hear how many of the last guesses, of which there were some, were right."""
        ...

    def cut(self, tokens: int) -> None:
        """Forget what was read behind so many tokens, those of the prompt among them."""
        ...


class Ahead:
    """The logits after each token of one text, by a model that reads guesses at once.

    Whichever tokens are chosen, the logits are the model's own: a guess that isn't chosen is cut
    off again.
    """

    def __init__(
        self,
        lm: LanguageModel,
        guesser: Guesser,
        cache: Any,
        layers: tuple[MediaKeyValues, ...],
        to_logits: Callable[[Tensor], Tensor],
        max_tokens: int,
    ) -> None:
        self._lm, self._guesser, self._max_tokens = lm, guesser, max_tokens
        self._cache, self._layers, self._to_logits = cache, layers, to_logits
        self._read = cache.get_seq_length()  # tokens that were chosen, and those of the prompt
        self._guesses: list[int] = []  # ids, of which so many were right:
        self._right = 0
        self._logits_1SV = torch.empty(0)  # after the token before the guesses, and after each

    def after(self, written: Written) -> Tensor:
        """Logits [1,V] after the last token of a text."""
        token_id = written.token_id
        right = self._right < len(self._guesses)
        if right and int(token_id) == self._guesses[self._right]:
            self._right += 1
        else:
            if self._guesses:
                self._guesser.learn(self._right, len(self._guesses))
            self.end()
            most = self._max_tokens - len(written.columns) - 1
            self._guesses = self._guesser.guess(written, most)
            ids = torch.cat([token_id, token_id.new_tensor([self._guesses])], dim=1)
            media = MediaContext(self._layers, written.index.expand_as(ids).contiguous())
            mask = written.mask
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(1, len(self._guesses))], dim=1)
            self._logits_1SV = self._to_logits(self._lm(ids, media, mask, self._cache))
            self._right = 0
        self._read += 1
        return self._logits_1SV[:, self._right]

    def end(self) -> None:
        """Leave in the cache what was chosen."""
        self._cache.cut(self._read)
        self._guesser.cut(self._read)
