"""What may come next in a text: by a draft of the model, or by what stood in the text before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flamvid.generate.ahead import Written
from flamvid.generate.choose import draw, forbid
from flamvid.generate.config import GenerationConfig
from flamvid.generate.favour import favour
from flamvid.models.draft import Draft
from flamvid.models.gated_xattn import MediaKeyValues
from flamvid.models.lm import MediaContext, TokenHead

__all__ = ["Drafted", "Lookup"]

_MOST = 5  # with the token before them six rows, as many as go over the weights in one pass


class Drafted:
    """A draft's guesses: what it would choose in the model's place.

    It writes what it thinks of them into the model's cache, and the model over it. It is right
    nearly always, but a guess takes it half as long as a token takes the model.
    """

    def __init__(
        self,
        draft: Draft,
        cache: Any,
        layers: tuple[MediaKeyValues, ...],
        head: TokenHead | None,
        stops: tuple[int, int | None],
        config: GenerationConfig,
    ) -> None:
        """stops: the end's column of the logits, and the id of a media token."""
        self._draft, self._config, self._head = draft, config, head
        self._lent, self._layers = cache.lent(), draft.read(layers)
        self._to_logits: Callable[[Tensor], Tensor] = draft.head(head)
        self._end, self._media_id = stops
        self._many = _MOST

    def guess(self, written: Written, most: int) -> list[int]:
        """The ids that the draft would choose."""
        media = MediaContext(self._layers, written.index)
        config, favoured, text = self._config, written.favoured, list(written.columns)
        token_id, mask = written.token_id, written.mask
        # With the same dice it draws, of much the same probabilities, nearly always the same.
        dice = written.dice.clone_state() if config.draws else written.dice
        guesses: list[int] = []
        for _ in range(min(self._many, most)):
            hidden = self._draft.lm(token_id, media, mask, self._lent)[:, -1]
            logits = forbid(self._to_logits(hidden), [text], self._end, config)
            logits = favour(logits, [favoured])
            column = int(draw(logits, config, dice) if config.draws else logits.argmax(-1))
            guess = int(self._head.ids[column]) if self._head else column
            if column == self._end or guess == self._media_id:
                break
            guesses.append(guess)
            text.append(column)
            favoured = favoured.after(column)
            token_id = torch.full_like(token_id, guess)
            mask = None if mask is None else torch.cat([mask, mask.new_ones(1, 1)], dim=1)
        return guesses

    def learn(self, right: int, guesses: int) -> None:
        """Guess more where all guesses were right, fewer where none was."""
        if right == guesses:
            self._many = min(self._many + 1, _MOST)
        elif not right:
            self._many = max(self._many - 1, 1)

    def cut(self, tokens: int) -> None:
        """Take back what it read behind so many tokens."""
        self._lent.cut(tokens)


class Lookup:
    """Guesses that what followed the last tokens before, in prompt or text, follows them again.

    Prompt lookup (Saxena 2023), or n-gram speculation: examples in front of a question say what it
    is likely to say, and texts repeat names and phrases. A guess takes no time, and four rows take
    hardly more than one.
    """

    _LONGEST, _FEW = 3, 3  # tokens that are looked for; guesses until all of them are right

    def __init__(
        self, prompt: Sequence[int], head: TokenHead | None, stops: tuple[int, int | None]
    ) -> None:
        """stops: the end's id, and that of a media token, behind which nothing is guessed."""
        self._head, self._stops = head, stops
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # where the token behind some tokens stands
        self._text = 0  # so many tokens of it are known
        self._many = self._FEW
        for token in prompt:
            self._add(token)

    def guess(self, written: Written, most: int) -> list[int]:
        """What stood behind the longest match, of the last of them."""
        new = written.columns[self._text :]
        for token in self._head.ids[list(new)].tolist() if self._head else new:
            self._add(token)
        self._text = len(written.columns)
        ids, guesses = self._ids, list[int]()
        for n in range(min(self._LONGEST, len(ids)), 0, -1):
            at = self._behind.get(tuple(ids[-n:]))
            if at is not None:
                break
        else:
            return guesses
        for i in range(at, at + min(self._many, most)):
            # Behind the last token stand the guesses: what came twice may come for a third time.
            guess = ids[i] if i < len(ids) else guesses[i - len(ids)]
            if guess in self._stops:
                break
            guesses.append(guess)
        return guesses

    def learn(self, right: int, guesses: int) -> None:
        """Guess many where all guesses were right, else few."""
        self._many = _MOST if right == guesses else self._FEW

    def cut(self, tokens: int) -> None:
        """It reads nothing."""

    def _add(self, token: int) -> None:
        ids = self._ids
        for n in range(1, min(self._LONGEST, len(ids)) + 1):
            self._behind[tuple(ids[-n:])] = len(ids)
        ids.append(token)
