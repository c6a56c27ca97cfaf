"""Text interleaved with media, as token ids (Flamingo, section 2.4 and appendix A.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flamvid.errors import InputError

__all__ = ["MEDIA", "Media", "PromptFormat"]


class Media:
    """Stands in a prompt where a picture or a video stands; use the one instance, `MEDIA`."""

    def __repr__(self) -> str:
        return "MEDIA"


MEDIA = Media()


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The special tokens of one model, and how its prompts are laid out.

    A pair is `<BOS><media>text<EOC>`. Text follows its media with a leading space, as the
    tokenizer of the LM wants a word in the middle of a line.
    """

    tokenizer: Any
    bos_id: int
    media_id: int
    end_id: int

    def encode(self, parts: Sequence[str | Media]) -> list[int]:
        """Token ids of interleaved parts, opened by BOS, open at the end for generation."""
        ids = [self.bos_id]
        for part in parts:
            if isinstance(part, Media):
                ids.append(self.media_id)
            else:
                ids.extend(self.encode_text(part))
        return ids

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, in which the special tokens may not be smuggled in."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in (self.media_id, self.end_id, self.bos_id):
            if token in ids:
                name = self.tokenizer.convert_ids_to_tokens(token)
                raise InputError(
                    f"the text {text!r} contains {name!r}; special tokens can't be part of a text: "
                    "leave it out"
                )
        return ids

    def caption(self, prompt: str = "", labels: Sequence[str] = ()) -> list[int]:
        """The ids in front of a caption: `<BOS><media>` and an optional opening to go on from.

        labels: names of what the media shows, as `<BOS> dog, guitar.<media>`.
        """
        text = prompt.strip()
        parts: list[str | Media] = [f" {', '.join(labels)}."] if labels else []
        parts.append(MEDIA)
        if text:
            parts.append(f" {text}")
        return self.encode(parts)

    def question(self, question: str) -> list[int]:
        """The paper's layout for visual question answering, without shots."""
        if not question.strip():
            raise InputError("the question is empty; ask something")
        return self.encode([MEDIA, f" Question: {question.strip()} Answer:"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return " ".join(text.split())
