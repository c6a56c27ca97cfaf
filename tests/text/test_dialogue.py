"""What is left of a conversation in a given room."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flamvid.errors import InputError
from flamvid.text.dialogue import recent
from flamvid.text.prompt import PromptFormat, Turn
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()
PROMPTS = PromptFormat(TOKENIZER, *TOKENIZER.convert_tokens_to_ids(["<bos>", "<media>", "<end>"]))
TURNS = st.lists(
    st.builds(
        Turn, st.integers(0, 2), st.sampled_from(["red", "red green blue?"]), st.just("blue")
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(turns=TURNS, room=st.integers(1, 200))
def test_the_last_turns_with_the_media_they_are_about(turns: list[Turn], room: int) -> None:
    last = PROMPTS.dialogue([Turn(2, turns[-1].question, "blue")])
    try:
        kept, gone = recent(PROMPTS, turns, room)
    except InputError:
        assert len(last) > room
        return
    assert len(PROMPTS.dialogue(kept)) <= room
    assert gone + sum(turn.media for turn in kept) == sum(turn.media for turn in turns)
    whole = turns[-len(kept) :]
    assert [turn.question for turn in kept] == [turn.question for turn in whole]
    assert kept[1:] == whole[1:]
    # The first one's media are its own, or those that it was about.
    about = [turn.media for turn in turns[: len(turns) - len(kept) + 1] if turn.media]
    assert kept[0].media == (about[-1] if about else 0)
    # No more was left out than had to be.
    if len(kept) < len(turns):
        more, _ = recent(PROMPTS, turns[-len(kept) - 1 :], 10_000)
        assert len(PROMPTS.dialogue(more)) > room or more[0].media == 0


def test_without_an_end_nothing_is_left_out() -> None:
    turns = [Turn(1, "red", "blue")] * 100
    assert recent(PROMPTS, turns, None) == (turns, 0)
    with pytest.raises(InputError, match=r"take \d+ tokens, .* room for 3 beside the answer"):
        recent(PROMPTS, turns, 3)
