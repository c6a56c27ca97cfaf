"""The part of a conversation that a language model has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flamvid.errors import InputError
from flamvid.text.prompt import PromptFormat, Turn

__all__ = ["recent"]


def recent(
    prompts: PromptFormat, turns: Sequence[Turn], room: int | None
) -> tuple[list[Turn], int]:
    """The last turns whose prompt is at most `room` tokens long, and how many media are left out.

    Media go with the last turn that is about them. InputError if the last turn alone is too long.
    """
    kept, gone = list(turns), 0
    while room is not None and (length := len(prompts.dialogue(kept))) > room:
        if len(kept) == 1:
            raise InputError(
                f"the question and its media take {length} tokens, and the language model has room "
                f"for {room} beside the answer; ask something shorter, or lower max_tokens"
            )
        first, second, *rest = kept
        if second.media:
            gone += first.media
            kept = [second, *rest]
        else:  # about the same media, which now stand in front of it
            kept = [replace(second, media=first.media), *rest]
    return kept, gone
