"""Shots and turns that were read once are not read again, and nothing else is kept."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flamvid.api import Captioner, Example, Shot, load
from flamvid.models.cache import KeyValueCache
from tests.tiny import make_model


@pytest.fixture
def shots(captioner: Captioner, clip: Path) -> list[Example]:
    said = [Shot(str(clip), "a red wall", "What?", end=2.0), Shot(str(clip), "b", "Who?", start=4)]
    return captioner.examples(said)


@contextmanager
def reading(captioner: Captioner) -> Iterator[list[int]]:
    """How many tokens the LM reads in each call."""
    calls: list[int] = []
    lm = captioner.model.flamingo.lm
    hook = lm.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[1]))
    yield calls
    hook.remove()


@pytest.mark.parametrize("beams", [1, 3])
def test_the_tenth_of_a_folder_is_captioned_as_if_it_were_the_first(
    captioner: Captioner, clip: Path, shots: list[Example], beams: int
) -> None:
    prompts = captioner.model.prompts
    seen = [captioner.see(clip, start=at, end=at + 1) for at in (0.0, 2.0, 4.0)]
    with reading(captioner) as calls:
        how = {"shots": shots, "beams": beams, "lookup": False}  # token by token
        run = [captioner.caption(one, **how) for one in seen * 3]
        asked = [captioner.ask(seen[0], f"{what}?", shots=shots) for what in ("Who", "What")]
    whole = len(prompts.caption(shots=[((), shot.text) for shot in shots]))
    turns = len(prompts.question("Who?", [(shot.question, shot.text) for shot in shots]))
    who, what = (len(prompts.question(word)) - 1 for word in ("Who?", "What?"))
    assert [x for x in calls if x > 1] == [whole - 1, turns - who, who, what]
    for one, found in zip(seen * 3, run, strict=True):
        # A list of one's own remembers nothing behind the call.
        assert captioner.caption(one, shots=list(shots), beams=beams) == found
    assert captioner.ask(seen[0], "What?", shots=list(shots)) == asked[1]
    assert len({(one.text, one.logprob) for [one] in run}) == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_so_it_is_in_other_dtypes(clip: Path, tmp_path: Path, dtype: str) -> None:
    captioner = load(str(make_model(tmp_path)), device="cpu", dtype=dtype)
    shots = captioner.examples([Shot(str(clip), "red", end=2.0), Shot(str(clip), "b", start=4)])
    for at in (0.0, 2.0, 4.0):
        one = captioner.see(clip, start=at, end=at + 1)
        found = captioner.caption(one, shots=shots)
        assert captioner.caption(one, shots=list(shots)) == found


def test_a_turn_reads_what_is_new_until_all_is_forgotten(captioner: Captioner, clip: Path) -> None:
    prompts = captioner.model.prompts
    talk = captioner.chat(beams=1, max_tokens=5)
    for _ in range(2):
        before = 0
        talk.show(clip)
        for question in ("What is it?", "And now?", "Where is it?"):
            with reading(captioner) as calls:
                answer = talk.say(question)
            ids = prompts.dialogue([*talk.turns[:-1], replace(talk.turns[-1], answer=None)])
            # Of the answer, too, what is written the same in the next prompt.
            assert len(ids) - before - 5 < calls[0] <= len(ids) - before
            before = len(ids)
            # The same again by one who remembers nothing.
            [made] = captioner._continue(talk.seen, ids, talk.config)
            assert prompts.decode(made.ids) == answer
        talk.forget()


def test_a_caption_leaves_no_cache_behind(
    captioner: Captioner, clip: Path, shots: list[Example]
) -> None:
    def caches() -> int:
        gc.collect()
        return sum(type(x) is KeyValueCache for x in gc.get_objects())

    before = caches()
    captioner.caption(clip, every=2.0)
    captioner.caption(clip, shots=list(shots))
    assert caches() == before
    captioner.caption(clip, shots=shots)
    captioner.ask(clip, "What?", shots=shots)
    assert caches() == before + 1
    del shots[:]
    copied = copy.deepcopy(shots)
    assert caches() == before + 1
    shots.memory = copied.memory  # type: ignore[attr-defined]
    assert caches() == before
