"""What a model says of tokens that are only guessed yet, read all at once.

Legend: S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flamvid.generate.choose import draw, forbid
from flamvid.generate.config import GenerationConfig
from flamvid.generate.favour import Favoured, favour
from flamvid.models.draft import Draft
from flamvid.models.gated_xattn import MediaKeyValues
from flamvid.models.lm import LanguageModel, MediaContext, TokenHead

__all__ = ["Ahead"]

# Guesses: int8 is right nearly always, and eight rows are as many as take little more than one.
_AT_FIRST, _MOST = 5, 7


class Ahead:
    """The logits after each token of one text, by a model and its draft.

    The two write into one cache: the draft what it thinks of its guesses, the model over it.
    Whichever tokens are chosen, the logits are the model's own: a guess that isn't chosen is cut
    off again.
    """

    def __init__(
        self,
        lm: LanguageModel,
        draft: Draft,
        cache: Any,
        layers: tuple[MediaKeyValues, ...],
        head: TokenHead | None,
        stops: tuple[int, int | None],
        config: GenerationConfig,
    ) -> None:
        """stops: the end's column of the logits, and the id of a media token."""
        self._lm, self._draft, self._config = lm, draft, config
        self._cache, self._lent = cache, cache.lent()
        self._layers, self._drafts_layers = layers, draft.read(layers)
        self._head = head
        self._to_logits: Callable[[Tensor], Tensor] = head or lm.head
        self._to_guess = draft.head(head)
        self._end, self._media_id = stops
        self._read = cache.get_seq_length()  # tokens that were chosen, and those of the prompt
        self._many = _AT_FIRST
        self._guesses: list[int] = []  # ids, of which so many were right:
        self._right = 0
        self._logits_1SV = torch.empty(0)  # after the token before the guesses, and after each

    def after(
        self,
        token_id: Tensor,
        index: Tensor,
        mask: Tensor | None,
        text: Sequence[int],
        favoured: Favoured,
        dice: torch.Generator,
    ) -> Tensor:
        """Logits [1,V] after the last token of a text, [1,1] as is the media that it sees.

        text: columns of the logits; mask [1, past + 1]; favoured, dice: as the next is chosen by.
        """
        right = self._right < len(self._guesses)
        if right and int(token_id) == self._guesses[self._right]:
            self._right += 1
        else:
            self._adapt()
            self.end()
            self._guesses = self._guess(token_id, index, mask, list(text), favoured, dice)
            ids = torch.cat([token_id, token_id.new_tensor([self._guesses])], dim=1)
            media = MediaContext(self._layers, index.expand_as(ids).contiguous())
            if mask is not None:
                mask = torch.cat([mask, mask.new_ones(1, len(self._guesses))], dim=1)
            self._logits_1SV = self._to_logits(self._lm(ids, media, mask, self._cache))
            self._right = 0
        self._read += 1
        return self._logits_1SV[:, self._right]

    def end(self) -> None:
        """Leave in the cache what was chosen."""
        self._cache.cut(self._read)
        self._lent.cut(self._read)

    def _adapt(self) -> None:
        """Guess more where all guesses were right, fewer where none was."""
        if self._guesses and self._right == len(self._guesses):
            self._many = min(self._many + 1, _MOST)
        elif self._guesses and not self._right:
            self._many = max(self._many - 1, 1)

    def _guess(
        self,
        token_id: Tensor,
        index: Tensor,
        mask: Tensor | None,
        text: list[int],
        favoured: Favoured,
        dice: torch.Generator,
    ) -> list[int]:
        """The ids that the draft would choose in the model's place, no media and no end."""
        media = MediaContext(self._drafts_layers, index)
        # With the same dice it draws, of much the same probabilities, nearly always the same.
        dice = dice.clone_state() if self._config.draws else dice
        guesses: list[int] = []
        for _ in range(min(self._many, self._config.max_tokens - len(text) - 1)):
            hidden = self._draft.lm(token_id, media, mask, self._lent)[:, -1]
            logits = forbid(self._to_guess(hidden), [text], self._end, self._config)
            logits = favour(logits, [favoured])
            drawn = self._config.draws
            column = int(draw(logits, self._config, dice) if drawn else logits.argmax(-1))
            guess = int(self._head.ids[column]) if self._head else column
            if column == self._end or guess == self._media_id:
                break
            guesses.append(guess)
            text.append(column)
            favoured = favoured.after(column)
            token_id = torch.full_like(token_id, guess)
            mask = None if mask is None else torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        return guesses
