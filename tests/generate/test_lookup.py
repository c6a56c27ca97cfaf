"""A text of which the next words were looked up is the text that it would have been."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flamvid.generate.ahead import Written
from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.engine import search
from flamvid.generate.favour import Favour, Favoured
from flamvid.generate.guess import Lookup
from flamvid.generate.memory import PromptMemory
from flamvid.models.flamingo import Flamingo
from flamvid.models.int8 import make_int8
from flamvid.models.lm import TokenHead
from flamvid.ops import implementation, media_index
from tests.generate.test_draft import HOWS, MODELS, buffers, counted, head_of, made
from tests.generate.test_draft import say as say_with
from tests.generate.test_memory import END, MEDIA, media

compiled = pytest.mark.skipif(
    implementation("feed_few").name != "kernel", reason="flamvid._C is not there"
)
PROMPT = 8  # tokens of what `say` asks
ALONE = [  # the hosts and layers that compute each row alone
    (host, xattn)
    for host, xattn in MODELS
    if host in ("llama", "mpt") and not xattn.keys() & {"grafted", "style"}
]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where registers are small it is no gain, but as right as elsewhere."""
    monkeypatch.setattr("flamvid.models.draft.has_avx512", lambda: True)


def say(model: Flamingo, prompt: int = 0, lookup: bool = True, **how: Any) -> Generated:
    return say_with(model, None, prompt, lookup=lookup, **how)


@contextmanager
def listening(model: Flamingo) -> Iterator[list[tuple[list[int], int]]]:
    """Ids that the model reads at once, and how many it has read before; after the prompt."""
    seen: list[tuple[list[int], int]] = []
    hook = model.lm.register_forward_pre_hook(
        lambda _, args: seen.append((args[0][0].tolist(), args[3].get_seq_length()))
    )
    yield seen
    hook.remove()
    del seen[0]


@compiled
@pytest.mark.parametrize(("host", "xattn"), MODELS)
def test_the_text_is_that_without_to_the_bit(host: str, xattn: dict[str, Any]) -> None:
    model = made(host, **xattn)
    own, read, written = head_of(model), list[int](), 0
    for prompt, how in enumerate(HOWS * 2):
        head = own if prompt % 2 else None
        want = say(model, prompt, lookup=False, head=head, **how)
        with counted(model) as calls:
            assert say(model, prompt, head=head, **how) == want
        read += calls
        written += len(want.ids)
    assert written > 100  # else all ended at once, and the test says little
    if (host, xattn) in ALONE:
        assert len(read) < written * 0.9
        assert set(read) >= {1, 4, 6}
    else:
        assert set(read) == {1}


@compiled
@pytest.mark.parametrize("head", [False, True])
def test_a_text_that_repeats_itself_is_read_in_few_calls(head: bool) -> None:
    model = made("mpt")
    with counted(model) as calls:
        text = say(model, head=head_of(model) if head else None)
    assert len(text.ids) == 40
    assert len(calls) < 13


@compiled
@pytest.mark.parametrize(("host", "xattn"), ALONE)
def test_media_and_padding_and_favoured_words(host: str, xattn: dict[str, Any]) -> None:
    more = {
        "attention_mask": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]),
        "favours": [[Favour((11, 12, 13), 30.0), Favour((MEDIA, 20), 25.0)]],
        "min_tokens": 20,
    }
    model, moved, calls, written = made(host, **xattn), 0, 0, 0
    for seed in range(6):
        repeats = {"no_repeat_ngram": 2 if seed % 2 else 0}
        want = say(model, seed, lookup=False, **more, **repeats)
        moved += want.ids.count(MEDIA)
        assert 11 in want.ids
        with counted(model) as seen:
            assert say(model, seed, **more, **repeats) == want
        calls, written = calls + len(seen), written + len(want.ids)
    assert moved
    assert calls < written


@compiled
def test_neither_the_end_nor_media_are_guessed() -> None:
    model = made("mpt")
    ids = torch.tensor([[0, MEDIA, 7, 8, END, 10, 11, MEDIA, 7, 9]])
    words = [Favour((word,), 60.0) for word in (8, 11)]
    asked = (torch.cat(media(3))[None], ids, media_index(ids, MEDIA), END)
    config = GenerationConfig(beams=1, max_tokens=8, min_tokens=8)
    with listening(model) as seen:
        [[text]] = search(model, *asked, config, media_id=MEDIA, favours=[words])
    assert {8, 11} < set(text.ids)  # behind which they stood
    guesses = {guess for ids, _ in seen for guess in ids[1:]}
    assert guesses
    assert not guesses & {MEDIA, END}


@compiled
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"min_tokens": 30}])
def test_tokens_are_told_as_they_are_chosen(how: dict[str, Any]) -> None:
    model = made("llama")
    for head in (None, head_of(model)):
        told: list[tuple[int, int]] = []
        with counted(model) as calls:
            text = say(model, 2, head=head, on_token=lambda *one, to=told: to.append(one), **how)
        assert told == [(0, token) for token in text.ids]
        assert max(calls) > 1


@compiled
def test_nothing_is_read_behind_the_last_token() -> None:
    model, full = made("mpt"), 0
    for most in range(1, 41):
        with listening(model) as seen:
            text = say(model, max_tokens=most, min_tokens=most)
        assert len(text.ids) == most
        # The last token is chosen by what was read of the one before it.
        ends = [before + len(ids) for ids, before in seen]
        assert all(end <= PROMPT + most - 1 for end in ends)
        full += bool(seen) and len(seen[-1][0]) > 1 and ends[-1] == PROMPT + most - 1
    assert full > 20


@compiled
@pytest.mark.parametrize(("host", "xattn"), ALONE)
def test_the_cache_is_left_as_without(host: str, xattn: dict[str, Any]) -> None:
    model = made(host, **xattn)
    ids = torch.tensor([[0, MEDIA, 7, 8, 9, 7, 8]])
    index, latents, ended, cut = media_index(ids, MEDIA), media(1), 0, 0
    hots = (0.0, 0.0, 0.0, 0.0, 1.0, 6.0, 12.0)
    for seed, (most, hot) in enumerate((m, h) for m in (1, 2, 3, 6, 24, 24, 24) for h in hots):
        left = []
        for lookup in (False, True):
            begun = PromptMemory().begin(model, latents, ids, index)
            assert begun is not None
            hot_at_all = {"temperature": hot, "seed": seed}
            config = GenerationConfig(beams=1, max_tokens=most, lookup=lookup, **hot_at_all)
            asked = (latents[0][None], ids, index, END, config)
            with counted(model) as seen:
                [[text]] = search(model, *asked, media_id=MEDIA, begun=begun)
            left.append((text, begun.cache, sum(seen)))
        (want, plain, few), (text, cache, many) = left
        assert text == want
        ended += len(want.ids) < most
        cut += many > few
        length = cache.get_seq_length()
        assert length == plain.get_seq_length() == 7 + min(len(want.ids), most - 1)
        for mine, theirs in zip(buffers(cache), buffers(plain), strict=True):
            assert torch.equal(mine[:, :, :length], theirs[:, :, :length])
    assert ended
    assert cut


@compiled
def test_threads_share_nothing() -> None:
    model = made("llama")
    head = head_of(model)
    hows = [{"head": head if seed % 2 else None, "prompt": seed} for seed in range(4)]
    alone = [say(model, lookup=False, **how) for how in hows]
    with ThreadPoolExecutor(4) as pool:
        for at, text in enumerate(pool.map(lambda how: say(model, **how), hows * 8)):
            assert text == alone[at % 4]


def bfloat16() -> Flamingo:
    return made("mpt").to(torch.bfloat16)


def int8() -> Flamingo:
    model = made("mpt")
    make_int8(model.lm.lm)
    make_int8(model.lm.inserted)
    return model


def hooked(part: Callable[[Flamingo], torch.nn.Module]) -> Callable[[], Flamingo]:
    def make() -> Flamingo:
        model = made("mpt")
        part(model).register_forward_hook(lambda *_: None)
        return model

    return make


class Other(torch.nn.Parameter):
    """A weight of a type that may know a product of its own."""


def another_head() -> Flamingo:
    model = made("mpt")
    model.lm.head.weight = Other(model.lm.head.weight.detach())
    return model


def another_call() -> Flamingo:
    model = made("mpt")
    norm = model.lm.lm.transformer.ln_f
    norm.forward = norm.forward
    return model


def compiled_layer() -> Flamingo:
    model = made("mpt")
    model.lm.lm.transformer.blocks[1].compile(backend="eager")
    return model


class Mode(TorchFunctionMode):
    """Under which torch computes what it likes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


PLAIN = lambda: made("mpt")  # noqa: E731
OFF: dict[str, tuple[Callable[[], Flamingo], dict[str, Any]]] = {
    "not asked for": (PLAIN, {"lookup": False}),
    "beams": (PLAIN, {"beams": 3}),
    "texts of beams": (PLAIN, {"beams": 2, "returns": 2}),
    "texts that are drawn": (PLAIN, {"temperature": 0.1, "returns": 2}),
    "bfloat16": (bfloat16, {}),
    "int8": (int8, {}),
    "transformers' host": (lambda: made("transformers' llama"), {}),
    "a host that goes by torch": (lambda: made("palm"), {}),
    "a layer of it that does": (hooked(lambda m: m.lm.lm.transformer.blocks[1].mlp.mlp_up), {}),
    "a cross-attention that does": (hooked(lambda m: m.lm.inserted[1].to_q), {}),
    "a feed-forward that does": (hooked(lambda m: m.lm.inserted[1].ffw), {}),
    "a whole layer that is listened to": (hooked(lambda m: m.lm.lm.transformer.blocks[1]), {}),
    "a whole cross-attention that is": (hooked(lambda m: m.lm.inserted[1]), {}),
    "a last norm that is": (hooked(lambda m: m.lm.lm.transformer.ln_f), {}),
    "a head that is": (hooked(lambda m: m.lm.head), {}),
    "a head of another type": (another_head, {}),
    "a norm that is called otherwise": (another_call, {}),
    "a layer that is compiled": (compiled_layer, {}),
}


def repeated(model: Flamingo, rows: int = 1, **how: Any) -> list[int]:
    """How many tokens it reads at once behind prompts that say the same again and again."""
    ids = torch.tensor([[MEDIA, *[7, 8, 9, 10] * 5]] * rows)
    kind = model.lm.inserted[0].norm.weight.dtype
    latents = torch.cat(media(1))[None].expand(rows, -1, -1, -1).to(kind)
    config = GenerationConfig(**{"beams": 1, "max_tokens": 30, "min_tokens": 30, **how})
    with counted(model) as calls:
        search(model, latents, ids, media_index(ids, MEDIA), END, config, media_id=MEDIA)
    assert calls
    return calls


@compiled
@pytest.mark.parametrize("why", OFF)
def test_it_is_off_where_it_would_be_no_gain(why: str) -> None:
    model, how = OFF[why]
    assert set(repeated(model(), **how)) == {1}


@compiled
def test_it_is_off_where_registers_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flamvid.models.draft.has_avx512", lambda: False)
    assert set(repeated(made("mpt"))) == {1}


@compiled
def test_it_is_off_for_a_batch_and_under_a_mode_and_else_on() -> None:
    model = made("mpt")
    assert set(repeated(model, rows=2)) == {1}
    with Mode():
        assert set(repeated(model)) == {1}
    for how in ({}, {"temperature": 0.1}, {"length_penalty": 1.0}):
        assert max(repeated(model, **how)) > 1


TOKENS = st.lists(st.integers(0, 5), max_size=24)
HEAD = TokenHead(torch.empty(4, 1), torch.tensor([0, 1, 3, 5]))


def stated(ids: Sequence[int], most: int, stops: Sequence[int | None]) -> list[int]:
    """What stands behind the most recent of the longest beginnings like the end, copied on."""
    for n in (3, 2, 1):
        places = [i for i in range(len(ids) - n) if list(ids[i : i + n]) == list(ids[-n:])]
        if places:
            known = list(ids)
            while len(known) < len(ids) + most:
                token = known[places[-1] + n + len(known) - len(ids)]
                if token in stops:
                    break
                known.append(token)
            return known[len(ids) :]
    return []


def written(columns: Sequence[int]) -> Written:
    nothing: Tensor = torch.empty(0)
    return Written(nothing, nothing, None, columns, Favoured.at_start(()), torch.Generator())


@given(
    TOKENS,
    st.lists(st.integers(0, 3), min_size=1, max_size=24),
    st.sets(st.integers(1, 24)),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([(0, 1), (0, None), (9, None)]),
    st.sampled_from([None, (3, 3), (5, 5), (2, 3), (0, 3)]),
)
def test_guesses_are_copied_from_behind_the_last_like_it(
    prompt: list[int],
    columns: list[int],
    cuts: set[int],
    most: int,
    headed: bool,
    stops: tuple[int, int | None],
    learnt: tuple[int, int] | None,
) -> None:
    head = HEAD if headed else None
    text = HEAD.ids[columns].tolist() if headed else columns
    lookup, at_once = (Lookup(prompt, head, stops) for _ in range(2))
    many = 3
    for at in sorted({cut for cut in cuts if cut < len(text)} | {len(text)}):
        want = stated([*prompt, *text[:at]], min(many, most), stops)
        assert lookup.guess(written(columns[:at]), most) == want
        lookup.cut(0)  # which changes nothing
        if learnt is not None:
            lookup.learn(*learnt)
            many = 5 if learnt[0] == learnt[1] else 3
    want = stated([*prompt, *text], min(3, most), stops)
    assert at_once.guess(written(columns), most) == want


def test_what_came_twice_may_come_for_a_third_time() -> None:
    lookup = Lookup([7, 8, 9, 7, 8, 9, 7], None, (END, None))
    lookup.learn(1, 1)
    assert lookup.guess(written([8]), 7) == [9, 7, 8, 9, 7]
    lookup.learn(4, 5)
    assert lookup.guess(written([8, 9]), 7) == [7, 8, 9]
    assert lookup.guess(written([8, 9, 30]), 7) == []
    assert lookup.guess(written([8, 9, 30, 9]), 7) == [30, 9, 30]  # the last 9, not the first
