"""Shots and conversations: what the model reads, turn after turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamvid.api import Captioner, Example, Shot
from flamvid.errors import InputError, SourceError
from flamvid.models.lm import LanguageModel
from flamvid.text.prompt import Turn


def test_shots_come_before_what_is_captioned(captioner: Captioner, clip: Path) -> None:
    shots = [Shot(str(clip), "a red wall", end=2.0), Shot(str(clip), "paint", start=4.0)]
    examples = captioner.examples(shots)
    [made] = captioner.caption(clip, start=2, end=4, shots=examples)
    assert (made.start, made.end) == (2.0, 4.0)
    [plain] = captioner.caption(clip, start=2, end=4)
    assert made.logprob != pytest.approx(plain.logprob, abs=1e-3)
    # What they say is read, not only what they show.
    said = [Example(examples[0].seen, "blue"), examples[1]]
    [told] = captioner.caption(clip, start=2, end=4, shots=said)
    assert told.logprob != pytest.approx(made.logprob, abs=1e-3)
    # Their order matters, and each text sees its own medium.
    [other] = captioner.caption(clip, start=2, end=4, shots=examples[::-1])
    assert other.logprob != pytest.approx(made.logprob, abs=1e-3)


def test_a_question_after_shots_is_the_last_turn_of_a_dialogue(
    captioner: Captioner, clip: Path
) -> None:
    shots = captioner.examples([Shot(str(clip), "red", "What colour?", end=2.0)])
    asked = captioner.ask(clip, "And now?", start=4, shots=shots, beams=1)
    talk = captioner.chat(beams=1)
    talk.show(clip, end=2.0)
    answer = talk.say("What colour?")
    assert answer == captioner.ask(clip, "What colour?", end=2.0, beams=1).text
    talk.turns[0] = talk.turns[0].__class__(1, "What colour?", "red")
    talk.show(clip, start=4)
    assert talk.say("And now?") == asked.text


def test_a_conversation_goes_on_about_what_was_seen(captioner: Captioner, clip: Path) -> None:
    talk = captioner.chat(beams=1, max_tokens=6)
    talk.show(clip)
    first = talk.say("What?")
    pieces: list[str] = []
    second = talk.say("And then?", pieces.append)
    assert "".join(pieces) == second
    assert [(turn.media, turn.answer) for turn in talk.turns] == [(1, first), (0, second)]
    # A question that fails changes nothing.
    with pytest.raises(InputError, match="question is empty"):
        talk.say(" ")
    with pytest.raises(SourceError):
        talk.show(clip.with_name("nope.mp4"))
    assert len(talk.turns) == 2
    assert len(talk.seen) == 1
    talk.forget()
    talk.show(clip)
    assert talk.say("What?") == first


def test_words_before_anything_was_shown_see_nothing(captioner: Captioner, clip: Path) -> None:
    talk = captioner.chat(beams=1, max_tokens=6)
    answer = talk.say("What colour?")
    prompts, model = captioner.model.prompts, captioner.model.flamingo
    lm = model.lm
    ids = prompts.dialogue([Turn(0, "What colour?")])
    assert prompts.media_id not in ids
    said: list[int] = []
    with torch.no_grad():
        noise = torch.randn_like(captioner.see(clip).latents)[None]
        for _ in range(6):  # whatever there is to see, and without a cache
            text = torch.tensor([[*ids, *said]])
            unseen = model.read(noise, torch.full_like(text, -1, dtype=torch.int32))
            logits = lm.head(lm(text, unseen))[0, -1]
            logits[prompts.end_id] = logits[prompts.end_id] if said else float("-inf")
            said.append(int(logits.argmax()))
            if said[-1] == prompts.end_id:
                break
    assert answer == prompts.decode(said)
    talk.show(clip)
    talk.say("And now?")
    assert [turn.media for turn in talk.turns] == [0, 1]


def test_a_long_conversation_leaves_out_its_beginning(
    captioner: Captioner, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, answered = captioner.model.prompts, 6
    # Room for two questions and the answer to the first.
    room = 2 * len(prompts.question("What is it?")) + answered
    monkeypatch.setattr(LanguageModel, "positions", property(lambda _: room + answered))
    talk = captioner.chat(beams=1, max_tokens=answered)
    first, second = talk.show(clip, end=2.0), talk.show(clip, start=2.0)
    for question in ("What is it?", "And now?", "What is it?"):
        talk.say(question)
    # The media of the first turn are still what is talked about.
    assert talk.left_out >= 1
    assert talk.seen == [first, second]
    assert talk.turns[0].media == 2
    third = talk.show(clip, start=4.0)
    for _ in range(4):
        answer = talk.say("What is it?")
    assert talk.seen == [third]
    assert talk.turns[0].media == 1
    # What was answered is what is kept, and nothing else.
    ids = prompts.dialogue([*talk.turns[:-1], replace(talk.turns[-1], answer=None)])
    [made] = captioner._continue([third], ids, talk.config)
    assert prompts.decode(made.ids) == answer
    before = (list(talk.seen), list(talk.turns))
    with pytest.raises(InputError, match="ask something shorter, or lower max_tokens"):
        talk.say("What is it? " * 50)
    assert (talk.seen, talk.turns) == before
