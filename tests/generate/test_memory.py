"""What was read once is not read again, and what is said is the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.memory import PromptMemory, common_beginning
from flamvid.generate.prompt import Prompt
from flamvid.models.chinchilla import ChinchillaConfig, ChinchillaForCausalLM
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.llama import Llama
from flamvid.models.llama import LlamaConfig as OwnConfig
from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM
from flamvid.models.palm import PalmConfig, PalmForCausalLM
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.ops import media_index

VOCAB, END, MEDIA = 40, 2, 5
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 0,
}
WIDE = {**SIZES, "intermediate_size": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2}


def own_llama() -> Llama:
    return Llama(
        OwnConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=VOCAB,
            rope_theta=1e4,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
        )
    )


HOSTS: dict[str, Callable[[], Any]] = {
    "llama": own_llama,
    "mpt": lambda: MosaicForCausalLM(
        MosaicConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=VOCAB)
    ),
    "palm": lambda: PalmForCausalLM(PalmConfig(**WIDE, head_dim=8)),
    "chinchilla": lambda: ChinchillaForCausalLM(ChinchillaConfig(**WIDE, head_dim=8)),
    "transformers' llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "transformers' neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE)),
    "transformers' opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=128)
    ),
}


class Vision(torch.nn.Module):
    width = 8


def model_of(lm: Any, **xattn: Any) -> Any:
    """As much of a loaded model as a prompt asks for, random and with open gates."""
    sizes = ResamplerConfig(features=8, width=8, heads=1, head_width=8, latents=2)
    config = XattnConfig(heads=2, head_width=8, **xattn)
    flamingo = Flamingo(Vision(), PerceiverResampler(sizes), lm, config)
    torch.manual_seed(0)
    for name, parameter in flamingo.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 1.0)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "norm" in name and name.endswith(("weight", "attention", "mlp", "norm")):
            torch.nn.init.ones_(parameter)
    return SimpleNamespace(
        flamingo=flamingo.eval(),
        prompts=SimpleNamespace(end_id=END, media_id=MEDIA),
        # An answer with a media token would stand in the next prompt as one more medium.
        head=flamingo.lm.head_of(torch.tensor([END, *range(7, VOCAB)])),
        device=torch.device("cpu"),
        dtype=torch.float32,
        draft=None,
    )


@pytest.fixture(scope="module", params=HOSTS)
def model(request: pytest.FixtureRequest) -> Any:
    return model_of(HOSTS[request.param]())


def media(number: int, seed: int = 0) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return list(torch.randn(number, 1, 2, 8, generator=dice))


SHOTS = [0, MEDIA, 7, 8, 9, 10, END, MEDIA, 11, 12, 13, END, MEDIA, 7, 14, END]  # three
GREEDY = GenerationConfig(beams=1, max_tokens=6, min_tokens=4)


def say(
    model: Any,
    latents: Sequence[Tensor],
    ids: Sequence[int],
    memory: PromptMemory | None = None,
    again: int = 0,
    config: GenerationConfig = GREEDY,
) -> list[Generated]:
    return Prompt(model, latents, ids, memory, again).search(config)


def close(one: Sequence[Generated], other: Sequence[Generated]) -> bool:
    assert [made.ids for made in one] == [made.ids for made in other]
    gaps = [abs(a.logprob - b.logprob) for a, b in zip(one, other, strict=True)]
    return max(gaps) < 1e-4  # a sum of six or so


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """How many tokens the LM reads of each call, and below zero, how many rows of latents."""
    seen: list[int] = []
    lm = model.flamingo.lm
    hooks = [
        lm.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1])),
        lm.inserted[0].to_kv.register_forward_pre_hook(
            lambda _, args: seen.append(-args[0].shape[1])
        ),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("how", [{}, {"beams": 3, "returns": 2}, {"temperature": 1.0}])
def test_shots_are_read_once_and_what_is_said_is_the_same_to_the_bit(
    model: Any, how: dict[str, Any]
) -> None:
    config = GenerationConfig(**{"beams": 1, "max_tokens": 6, "min_tokens": 4, **how})
    plain = replace(config, lookup=False)  # which reads token by token
    shots, memory, texts = media(3), PromptMemory(), set()
    for turn in range(4):
        latents, ids = [*shots, *media(1, 10 + turn % 2)], [*SHOTS, 20 + turn, MEDIA, 7, 8]
        with counted(model) as seen:
            found = say(model, latents, ids, memory, len(SHOTS), plain)
        first = [] if turn else [-6, len(SHOTS)]
        assert seen[: len(first) + 2] == [*first, -2, 4]
        assert set(seen[len(first) + 2 :]) == {1}
        assert found == say(model, latents, ids, PromptMemory(), len(SHOTS), plain)
        for other in (memory, PromptMemory()):
            assert found == say(model, latents, ids, other, len(SHOTS), config)
        assert close(found, say(model, latents, ids, config=config))
        texts |= {made.ids for made in found}
    assert len(texts) > 1


def test_other_shots_are_read_anew(model: Any) -> None:
    memory, shots = PromptMemory(), media(3)
    asked, tail = media(1, 9), [MEDIA, 7, 8]
    say(model, shots + asked, SHOTS + tail, memory, len(SHOTS))
    fewer = SHOTS[:7]
    changed = [*SHOTS[:8], 30, *SHOTS[9:]]
    for latents, ids in (
        (shots[:1], fewer),
        (shots, SHOTS),  # one more again
        (shots, changed),  # other words
        ([shots[0], *media(1, 5), shots[2]], changed),  # the same words of another medium
        (shots[::-1], SHOTS),
    ):
        with counted(model) as seen:
            found = say(model, latents + asked, ids + tail, memory, len(ids))
        assert seen[:4] == [-2 * len(latents), len(ids), -2, 3]
        fresh = say(model, latents + asked, ids + tail, PromptMemory(), len(ids))
        assert found == fresh
        assert close(found, say(model, latents + asked, ids + tail))
    # Equal media are the same, whichever tensors they are in.
    twins = [x.clone() for x in shots[::-1]]
    with counted(model) as seen:
        assert say(model, twins + asked, SHOTS + tail, memory, len(SHOTS)) == found
    assert seen[:2] == [-2, 3]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_conversation_reads_what_is_new(model: Any, beams: int) -> None:
    memory, latents = PromptMemory(), media(3)
    config = GenerationConfig(beams=beams, max_tokens=6, min_tokens=4)
    ids, read = [0, MEDIA, 7, 8, 9], 0
    for turn, more in enumerate((latents[:1], latents[:1], latents[:2], latents[:3])):
        with counted(model) as seen:
            found = say(model, more, ids, memory, config=config)
        new = [-2] if turn != 1 else []
        assert seen[: len(new) + 1] == [*new, len(ids) - read]
        assert close(found, say(model, more, ids, config=config))
        # Of one row the answer is known, too, but for the last token, which nobody read.
        read = len(ids) + (len(found[0].ids) - (len(found[0].ids) == 6) if beams == 1 else 0)
        ids = [*ids, *found[0].ids, END, *([MEDIA] if turn else []), 10 + turn, 11]
    # The first turn and its medium are left out; then the same words about something else.
    for more, ids in (
        (latents[1:], [0, MEDIA, 10, 11, MEDIA, 12]),
        (media(2, 7), [0, MEDIA, 10, 11, MEDIA, 12]),
        ([], [0, 10, 11]),
        ([], [0, 10, 11, 12, END, 13]),
        (media(1), [0, 10, 11, 12, END, MEDIA, 13]),
        (media(1), [0, 10, 11, 12, END, MEDIA, 13]),  # the very same
    ):
        found = say(model, more, ids, memory, config=config)
        assert close(found, say(model, more, ids, config=config))


def test_it_is_of_one_model(model: Any) -> None:
    memory, latents, ids = PromptMemory(), media(4), [*SHOTS, MEDIA, 7]
    say(model, latents, ids, memory, len(SHOTS))
    other = model_of(HOSTS["llama"]())
    other.flamingo.lm.lm.get_input_embeddings().weight.data.neg_()
    found = say(other, latents, ids, memory, len(SHOTS))
    assert found == say(other, latents, ids, PromptMemory(), len(SHOTS))


@pytest.mark.parametrize("again", [0, len(SHOTS)])
@pytest.mark.parametrize("host", ["llama", "transformers' llama"])
def test_threads_share_one(host: str, again: int) -> None:
    model, memory, start = model_of(HOSTS[host]()), PromptMemory(), Barrier(4)
    asked = {seed: [*media(3), *media(1, seed)] for seed in range(10, 14)}
    alone = {s: say(model, x, [*SHOTS, MEDIA, s], PromptMemory(), again) for s, x in asked.items()}

    def thread(seed: int) -> bool:
        start.wait()
        ids = [*SHOTS, MEDIA, seed]
        texts = [say(model, asked[seed], ids, memory, again) for _ in range(12)]
        return all(close(text, alone[seed]) for text in texts)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(thread, asked))


def test_grafted_layers_remember(model: Any) -> None:
    grafted = model_of(HOSTS["transformers' neox"](), grafted=2)
    shots, memory = media(3), PromptMemory()
    for turn in range(2):
        latents, ids = [*shots, *media(1, turn)], [*SHOTS, MEDIA, 20 + turn]
        with counted(grafted) as seen:
            found = say(grafted, latents, ids, memory, len(SHOTS))
        assert seen[0] == (-2 if turn else -6)
        assert close(found, say(grafted, latents, ids))


def test_a_host_that_forgets_is_read_as_ever() -> None:
    lm = MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=6))
    model, memory, latents = model_of(lm), PromptMemory(), media(4)
    ids = [*SHOTS, MEDIA, 7]
    for again in (len(SHOTS), 0):
        for _ in range(2):
            assert say(model, latents, ids, memory, again) == say(model, latents, ids)


def test_layers_that_changed_are_heard_of_in_the_next_turn() -> None:
    model, memory, ids = model_of(own_llama()), PromptMemory(), [0, MEDIA, 7, 8]
    [said] = say(model, media(1), ids, memory)
    called: list[int] = []
    model.flamingo.lm.lm.model.layers[1].down.register_forward_hook(
        lambda *_: called.append(1)  # what it gives is as before
    )
    model.flamingo.lm.inserted[0].to_out.register_forward_hook(lambda *_: called.append(2))
    plain = replace(GREEDY, lookup=False)
    say(model, media(1), [*ids, *said.ids, END, 9], memory, config=plain)
    assert called.count(1) == called.count(2) == 6  # the question, then token by token


def test_a_copy_remembers_nothing() -> None:
    model, memory = model_of(own_llama()), PromptMemory()
    say(model, media(4), [*SHOTS, MEDIA, 7], memory, len(SHOTS))
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        with counted(model) as seen:
            say(model, media(4), [*SHOTS, MEDIA, 7], other, len(SHOTS))
        assert seen[1] == len(SHOTS)


POOL = media(3, 1)
PROMPTS = st.lists(st.sampled_from([7, 8, MEDIA]), max_size=12).flatmap(
    lambda ids: st.tuples(
        st.just(ids),
        st.lists(st.integers(0, 2), min_size=ids.count(MEDIA), max_size=ids.count(MEDIA) + 1),
    )
)


@given(PROMPTS, PROMPTS)
def test_a_beginning_is_common_if_its_tokens_are_and_see_the_same(
    one: tuple[list[int], list[int]], other: tuple[list[int], list[int]]
) -> None:
    def seen(prompt: tuple[list[int], list[int]]) -> list[tuple[int, list[int]]]:
        """Each token, with all the media that are shown up to it."""
        ids, shown = prompt
        return [(token, shown[: ids[: at + 1].count(MEDIA)]) for at, token in enumerate(ids)]

    want = 0
    while seen(one)[: want + 1] == seen(other)[: want + 1] and want < min(
        len(one[0]), len(other[0])
    ):
        want += 1
    index = media_index(torch.tensor([one[0]], dtype=torch.int64), MEDIA)[0].tolist()
    mine, theirs = ((ids, [POOL[i].clone() for i in shown]) for ids, shown in (one, other))
    tokens, media = common_beginning(mine, theirs, index)
    assert tokens == want
    assert one[1][:media] == other[1][:media]
    assert one[1][: media + 1] != other[1][: media + 1] or media == min(len(one[1]), len(other[1]))


def test_a_model_that_computes_in_another_type_remembers_nothing() -> None:
    model, memory, ids = model_of(HOSTS["mpt"]()), PromptMemory(), [0, 7, 8]
    say(model, [], ids, memory)
    model.flamingo.to(torch.bfloat16)
    model.dtype, model.head = torch.bfloat16, model.flamingo.lm.head_of(model.head.ids)
    longer = [*ids, 9, 10]
    assert close(say(model, [], longer, memory), say(model, [], longer))
