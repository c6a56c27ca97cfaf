"""Text interleaved with media, as token ids (Flamingo, section 2.4 and appendix A.2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    tokenizer of the LM wants a word in the middle of a line. bos_id: None for none; around_id:
    stands before and behind each media. The layouts hold `{media}` and `{question}`.
    """

    tokenizer: Any
    bos_id: int | None
    media_id: int
    end_id: int
    around_id: int | None = None
    caption_layout: str = "{media}"
    question_layout: str = "{media} Question: {question} Answer:"

    def encode(self, parts: Sequence[str | Media]) -> list[int]:
        """Token ids of interleaved parts, opened by BOS, open at the end for generation."""
        return self._join(parts, self.encode_text)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, in which the special tokens may not be smuggled in."""
        ids = self._ids(text)
        for token in (self.media_id, self.end_id, self.bos_id, self.around_id):
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
        self.encode_text(f"{text} {', '.join(labels)}")
        opening = f" {', '.join(labels)}." if labels else ""
        return self._fill(f"{opening}{self.caption_layout}{f' {text}' if text else ''}")

    def question(self, question: str) -> list[int]:
        """The model's layout for visual question answering (the paper's by default), no shots."""
        if not question.strip():
            raise InputError("the question is empty; ask something")
        self.encode_text(question)
        return self._fill(self.question_layout, question.strip())

    def _fill(self, layout: str, question: str = "") -> list[int]:
        """Ids of a layout, whose own special tokens are meant."""
        parts: list[str | Media] = []
        for i, text in enumerate(layout.split("{media}")):
            parts += [MEDIA] if i else []
            parts += [text.replace("{question}", question)] if text else []
        return self._join(parts, self._ids)

    def _join(self, parts: Sequence[str | Media], encode: Callable[[str], list[int]]) -> list[int]:
        ids = [] if self.bos_id is None else [self.bos_id]
        around = [] if self.around_id is None else [self.around_id]
        for part in parts:
            if isinstance(part, Media):
                # Between two media one token serves both.
                ids += around if ids[-1:] != around else []
                ids += [self.media_id, *around]
            else:
                ids += encode(part)
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return " ".join(text.split())
