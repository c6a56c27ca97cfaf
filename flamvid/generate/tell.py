"""Tokens to the pieces of text that they add, as a text is made."""

from __future__ import annotations

from collections.abc import Callable

from flamvid.text.prompt import PromptFormat

__all__ = ["OnText", "Teller"]

OnText = Callable[[str], None]
"""Called with each piece of a text as it is made."""


class Teller:
    """Hears of tokens, tells of text; of one text."""

    def __init__(self, prompts: PromptFormat, on_text: OnText) -> None:
        self.prompts, self.on_text = prompts, on_text
        self.ids: list[int] = []
        self.told = ""

    def __call__(self, row: int, token: int) -> None:
        self.ids.append(token)
        text = self.prompts.decode(self.ids)
        # Half a letter is not told: the bytes of one may be spread over tokens.
        if not text.endswith("\ufffd"):
            self.on_text(text[len(self.told) :])
            self.told = text

    def end(self) -> None:
        """Tell what is left, where a text ends in the middle of a letter."""
        text = self.prompts.decode(self.ids)
        if text != self.told:
            self.on_text(text[len(self.told) :])
            self.told = text
