"""Text interleaved with media, as token ids (Flamingo, section 2.4 and appendix A.2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from flamvid.errors import InputError

__all__ = ["MEDIA", "Media", "PromptFormat", "Turn"]


class Media:
    """Stands in a prompt where a picture or a video stands; use the one instance, `MEDIA`."""

    def __repr__(self) -> str:
        return "MEDIA"


MEDIA = Media()


class _End:
    """Stands where the end token stands."""


_END = _End()
_Part = str | Media | _End


@dataclass(frozen=True, slots=True)
class Turn:
    """One question in a conversation; `media` of its own come in front of it.

    answer: None for the one to be answered.
    """

    media: int
    question: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """The special tokens of one model, and how its prompts are laid out.

    A pair is `<BOS><media>text<EOC>`. Text follows its media with a leading space, as the
    tokenizer of the LM wants a word in the middle of a line. bos_id: None for none; around_id:
    stands before and behind each media. The layouts hold `{media}` and `{question}`. eos_id: what
    the LM ends a text with where `<EOC>` is another, as in the paper: learnt, never generated.
    """

    tokenizer: Any
    bos_id: int | None
    media_id: int
    end_id: int
    around_id: int | None = None
    caption_layout: str = "{media}"
    question_layout: str = "{media} Question: {question} Answer:"
    eos_id: int | None = None

    def encode(self, parts: Sequence[str | Media]) -> list[int]:
        """Token ids of interleaved parts, opened by BOS, open at the end for generation."""
        for part in parts:
            if isinstance(part, str):
                self.encode_text(part)
        return self._join(parts)

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

    def caption(
        self,
        prompt: str = "",
        labels: Sequence[str] = (),
        shots: Sequence[tuple[Sequence[str], str]] = (),
    ) -> list[int]:
        """The ids in front of a caption: `<BOS><media>` and an optional opening to go on from.

        labels: names of what the media shows, as `<BOS> dog, guitar.<media>`. shots: the labels and
        the caption of media that come before it, as `<media> caption<EOC>` each.
        """
        parts: list[_Part] = []
        for said, caption in shots:
            parts += [*self._pair(said), self._text(caption), _END]
        opening = prompt.strip()
        return self._join(
            [*parts, *self._pair(labels), *([self._text(opening)] if opening else [])]
        )

    def question(self, question: str, shots: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The model's layout for visual question answering (the paper's by default).

        shots: question and answer of media that come before it.
        """
        return self.dialogue([*(Turn(1, q, a) for q, a in shots), Turn(1, question)])

    def answer(self, question: str, text: str) -> list[int]:
        """Token ids of an answer and its end, as they stand behind `question(question)`."""
        asked, told = self.question(question), self.dialogue([Turn(1, question, text)])
        if told[: len(asked)] == asked:
            return told[len(asked) :]
        return [*self.encode_text(f" {text.strip()}"), self.end_id]

    def within(self, text: str) -> list[int]:
        """Token ids of words in the middle of a text, where Llama's tokenizer adds no space."""
        before, whole = self._ids("a"), self.encode_text(f"a {text}")
        if whole[: len(before)] == before:
            return whole[len(before) :]
        return self.encode_text(f" {text}")

    def dialogue(self, turns: Sequence[Turn]) -> list[int]:
        """Questions, each in front of its answer, open at the end for that of the last."""
        parts: list[_Part] = []
        for turn in turns:
            question = turn.question.strip()
            if not question:
                raise InputError("the question is empty; ask something")
            self.encode_text(question)
            layout = self._layout(self.question_layout, question)
            if turn.media == 0:  # about what was seen before
                layout = [part for part in layout if not isinstance(part, Media)]
            parts += [*[MEDIA] * (turn.media - 1), *layout]
            if turn.answer is not None:
                parts += [self._text(turn.answer), _END]
        return self._join(parts)

    def shots_end(self, ids: Sequence[int]) -> int:
        """How many tokens of a prompt are those of the shots; 0 if there are none."""
        last = max((at for at, token in enumerate(ids) if token == self.media_id), default=0)
        return max((at + 1 for at in range(last) if ids[at] == self.end_id), default=0)

    def _pair(self, labels: Sequence[str]) -> list[_Part]:
        """What stands in front of a caption."""
        said: list[_Part] = [self._text(f"{', '.join(labels)}.")] if labels else []
        return [*said, *self._layout(self.caption_layout)]

    def _text(self, text: str) -> str:
        """A user's text as a part; it may hold no special token."""
        part = f" {text.strip()}"
        self.encode_text(part)
        return part

    def _layout(self, layout: str, question: str = "") -> list[_Part]:
        """Parts of a layout, whose own special tokens are meant."""
        parts: list[_Part] = []
        for i, text in enumerate(layout.split("{media}")):
            parts += [MEDIA] if i else []
            parts += [text.replace("{question}", question)] if text else []
        return parts

    def _join(self, parts: Sequence[_Part]) -> list[int]:
        ids = [] if self.bos_id is None else [self.bos_id]
        around = [] if self.around_id is None else [self.around_id]
        # Texts side by side are read as one: a tokenizer such as Llama's begins each with a space.
        for is_text, run in groupby(parts, key=lambda part: isinstance(part, str)):
            if is_text:
                ids += self._ids("".join(map(str, run)))
                continue
            for part in run:
                if isinstance(part, _End):
                    ids.append(self.end_id)
                    continue
                # Between two media one token serves both.
                ids += around if ids[-1:] != around else []
                ids += [self.media_id, *around]
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return " ".join(text.split())
