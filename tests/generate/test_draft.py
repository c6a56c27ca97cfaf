"""A text that was guessed ahead is the text that it would have been."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any

import pytest
import torch
from torch import Tensor

from flamvid.errors import InputError
from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.engine import search
from flamvid.generate.favour import Favour
from flamvid.generate.memory import PromptMemory
from flamvid.models.draft import Draft
from flamvid.models.flamingo import Flamingo
from flamvid.models.int8 import Int8Linear
from flamvid.models.lm import TokenHead
from flamvid.ops import implementation, media_index
from tests.generate.test_memory import END, HOSTS, MEDIA, VOCAB, media, model_of

pytestmark = pytest.mark.skipif(
    implementation("linear_int8").name != "kernel", reason="flamvid._C is not there"
)

OWN = ("llama", "mpt", "palm", "chinchilla")
MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((host, {}) for host in OWN),
    ("llama", {"first": 1, "every": 2}),
    ("mpt", {"first": 1, "every": 2}),
    ("mpt", {"after": True}),
    ("llama", {"grafted": 2}),
    ("llama", {"style": "idefics", "ffw_width": 64}),
)
HOWS: tuple[dict[str, Any], ...] = (
    {},
    {"min_tokens": 9},
    {"no_repeat_ngram": 1, "min_tokens": 20},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 3.0, "top_k": 12, "top_p": 0.9, "seed": 4},
)


def made(host: str, seed: int = 0, **xattn: Any) -> Flamingo:
    """Random, with open gates; of seeds above 0 other weights."""
    flamingo: Flamingo = model_of(HOSTS[host](), **xattn).flamingo
    torch.manual_seed(seed)
    for parameter in flamingo.lm.parameters() if seed else ():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return flamingo


def head_of(model: Flamingo) -> TokenHead:
    return model.lm.head_of(torch.tensor([END, *range(MEDIA, VOCAB)]))


@contextmanager
def counted(model: Flamingo) -> Iterator[list[int]]:
    """How many tokens the model reads at once, of each call after the prompt's."""
    seen: list[int] = []
    hook = model.lm.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    yield seen
    hook.remove()
    del seen[0]


def say(model: Flamingo, draft: Draft | None, prompt: int = 0, **how: Any) -> Generated:
    """What comes after one of some prompts; `how`: settings of the search, or arguments of it."""
    dice = torch.Generator().manual_seed(prompt)
    ids = torch.randint(7, VOCAB, (1, 8), generator=dice)
    ids[0, [1, 5]] = MEDIA
    known = GenerationConfig.__dataclass_fields__
    config = GenerationConfig(
        **{
            **{"beams": 1, "max_tokens": 40, "lookup": False},
            **{k: v for k, v in how.items() if k in known},
        }
    )
    return search(
        model,
        torch.cat(media(4, prompt))[None],
        ids,
        media_index(ids, MEDIA),
        END,
        config,
        media_id=MEDIA,
        draft=draft,
        **{k: v for k, v in how.items() if k not in known},
    )[0][0]


def same(one: Generated, other: Generated) -> bool:
    return one.ids == other.ids and abs(one.logprob - other.logprob) < 1e-3  # a sum of 40


@pytest.mark.parametrize(("host", "xattn"), MODELS)
def test_the_text_is_that_without(host: str, xattn: dict[str, Any]) -> None:
    model, other = (made(host, seed, **xattn) for seed in (0, 1))
    own = head_of(model)
    good, wrong = Draft.of(model.lm, own), Draft.of(other.lm, head_of(other))
    read: dict[Draft, list[int]] = {good: [], wrong: []}
    written = 0
    for prompt, how in enumerate(HOWS):
        head = own if prompt % 2 else None
        want = say(model, None, prompt, head=head, **how)
        written += len(want.ids)
        for draft, seen in read.items():
            with counted(model) as calls:
                assert same(say(model, draft, prompt, head=head, **how), want)
            seen += calls
    assert written > 50  # else all ended at once, and the test says little
    assert len(read[good]) < written / 3
    assert max(read[good]) == 6
    assert sum(read[wrong][-40:]) < 4 * 40  # it soon guesses less


def test_guesses_are_favoured_as_what_is_written_is() -> None:
    model = made("mpt")
    draft = Draft.of(model.lm)
    words = [Favour((8, 13, 9), 60.0), Favour((9, 21), 40.0)]
    want = say(model, None, favours=[words], max_tokens=12)
    with counted(model) as calls:
        text = say(model, draft, favours=[words], max_tokens=12)
    assert same(text, want)
    assert len(calls) == 2  # of six, then the rest


def test_what_cannot_be_copied_is_told() -> None:
    model = made("mpt")
    model.lm.lm.register_forward_hook(partial(max, Lock()))
    with pytest.raises(InputError, match="can't be copied"):
        Draft.of(model.lm)


def test_media_and_padding_and_favoured_words() -> None:
    """What moves the media on is never guessed, and the mask and the favours go along."""
    more = {
        "attention_mask": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]),
        "favours": [[Favour((11, 12, 13), 30.0), Favour((MEDIA, 20), 25.0)]],
        "min_tokens": 20,
        "no_repeat_ngram": 2,
    }
    for host in OWN:
        model, moved = made(host), 0
        draft = Draft.of(model.lm)
        for seed in range(4):
            want = say(model, None, seed, **more)
            moved += MEDIA in want.ids
            assert 11 in want.ids
            with counted(model) as calls:
                assert same(say(model, draft, seed, **more), want)
            assert len(calls) < len(want.ids) / 1.5
        assert moved


def test_tokens_are_told_as_they_are_chosen() -> None:
    model = made("llama")
    told: list[int] = []
    text = say(model, Draft.of(model.lm), on_token=lambda _, token: told.append(token))
    assert tuple(told) == text.ids


@pytest.mark.parametrize(("most", "reads"), [(1, []), (2, [1]), (3, [2]), (8, [6, 1])])
def test_nothing_is_read_behind_the_last_token(most: int, reads: list[int]) -> None:
    model = made("llama")
    draft = Draft.of(model.lm)
    with counted(model) as calls:
        say(model, draft, max_tokens=most, min_tokens=most)
    assert calls == reads


@pytest.mark.parametrize(("host", "xattn"), [("llama", {}), ("mpt", {}), ("mpt", {"grafted": 1})])
def test_the_cache_is_left_as_without(host: str, xattn: dict[str, Any]) -> None:
    model = made(host, **xattn)
    drafts = None, Draft.of(model.lm), Draft.of(made(host, 1, **xattn).lm)
    ids = torch.tensor([[0, MEDIA, 7, 8, 9]])
    index, latents, ended = media_index(ids, MEDIA), media(1), 0
    for seed, most in enumerate((1, 2, 3, 6, *[24] * 16)):
        config = GenerationConfig(
            beams=1, max_tokens=most, temperature=12.0, seed=seed, lookup=False
        )
        left = []
        for draft in drafts:
            begun = PromptMemory().begin(model, latents, ids, index)
            assert begun is not None
            [[text]] = search(
                model,
                latents[0][None],
                ids,
                index,
                END,
                config,
                media_id=MEDIA,
                begun=begun,
                draft=draft,
            )
            left.append((text, begun.cache))
        (want, plain), *drafted = left
        ended += len(want.ids) < most
        for text, cache in drafted:
            assert same(text, want)
            length = cache.get_seq_length()
            assert length == plain.get_seq_length() == 5 + min(len(want.ids), most - 1)
            for mine, theirs in zip(buffers(cache), buffers(plain), strict=True):
                torch.testing.assert_close(mine[:, :, :length], theirs[:, :, :length])
    assert ended


def buffers(cache: Any) -> Sequence[Tensor]:
    caches = (cache.host, cache.own) if hasattr(cache, "host") else (cache,)
    return [buffer for c in caches for buffer in (*c._keys, *c._values)]


def test_all_but_the_int8_weights_is_shared() -> None:
    model = made("mpt")
    weights = {name: x.data_ptr() for name, x in model.lm.named_parameters()}
    draft = Draft.of(model.lm)
    assert {name: x.data_ptr() for name, x in model.lm.named_parameters()} == weights
    assert not any(isinstance(x, Int8Linear) for x in model.lm.modules())
    left = {name: x.data_ptr() for name, x in draft.lm.named_parameters()}
    assert left.items() < weights.items()
    assert {"lm.transformer.wte.weight", "lm.transformer.ln_f.weight"} < left.keys()
    linear = [n for n, x in model.lm.named_modules() if isinstance(x, torch.nn.Linear)]
    assert len(linear) > 8
    for name in linear:
        narrow, whole = draft.lm.get_submodule(name), model.lm.get_submodule(name)
        assert isinstance(narrow, Int8Linear) or narrow.weight is whole.weight
    assert draft.head(None) is draft.lm.head
    assert isinstance(draft.lm.head, Int8Linear)
    head, other = head_of(model), head_of(model)
    assert isinstance(Draft.of(model.lm, head).head(head), Int8Linear)
    assert Draft.of(model.lm, head).head(other) is other

    with torch.inference_mode():
        [has, _] = model.read(torch.cat(media(2))[None], torch.zeros(1, 1)).layers
        [mine, _] = draft.read((has, has))
    assert mine.keys is has.keys
    assert mine.values is has.values
    assert mine.step.q[0] is draft.lm.inserted[0].to_q.int8.weight


def test_threads_share_one() -> None:
    model = made("llama")
    draft = Draft.of(model.lm)
    alone = [say(model, None, seed, temperature=1.0) for seed in range(4)]

    def thread(seed: int) -> bool:
        return all(same(say(model, draft, seed, temperature=1.0), alone[seed]) for _ in range(8))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(thread, range(4)))


def test_a_draft_is_refused_where_it_is_no_use() -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM, whose cache is transformers'"):
        Draft.of(made("transformers' llama").lm)
    with pytest.raises(InputError, match="these are bfloat16 on cpu; give dtype fp32"):
        Draft.of(made("mpt").to(torch.bfloat16).lm)
    twin = Draft.of(made("mpt").lm)
    with pytest.raises(InputError, match="these are float32 on cpu, int8 on cpu; give"):
        Draft.of(twin.lm)
    model = made("mpt")
    with pytest.raises(InputError, match="there are 3 at a time; give one prompt"):
        say(model, Draft.of(model.lm), beams=3)
    with pytest.raises(InputError, match="there are 2 at a time; give one prompt"):
        say(model, Draft.of(model.lm), temperature=1.0, returns=2)
