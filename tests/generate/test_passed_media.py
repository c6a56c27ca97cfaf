"""Media that a prompt passes get no keys, and what is said is the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flamvid.errors import InputError
from flamvid.generate.config import Generated, GenerationConfig
from flamvid.generate.engine import search
from flamvid.generate.memory import PromptMemory
from flamvid.generate.prompt import Prompt
from flamvid.generate.score import score_options
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.lm import MediaContext
from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM
from flamvid.models.passed_media import PassedMedia
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.ops import implementation, media_index
from flamvid.weights.placement import quantise

pytestmark = pytest.mark.skipif(
    implementation("latent_attention").name != "kernel", reason="flamvid._C is not there"
)

VOCAB, END, MEDIA, L, D = 40, 2, 5, 32, 16
EXAMPLE = [MEDIA, 7, 8, 9, 10, 11, 12, 13, 14, END]  # ten tokens: less than 0.4 of the latents
GREEDY = GenerationConfig(beams=1, max_tokens=6, min_tokens=4)


class Vision(torch.nn.Module):
    width = 8


def flamingo(**xattn: Any) -> Flamingo:
    torch.manual_seed(1)
    lm = MosaicForCausalLM(MosaicConfig(d_model=64, n_heads=4, n_layers=3, vocab_size=VOCAB))
    sizes = ResamplerConfig(features=8, width=D, heads=1, head_width=8, latents=L)
    model = Flamingo(
        Vision(), PerceiverResampler(sizes), lm, XattnConfig(heads=2, head_width=16, **xattn)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 1.0)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Flamingo:
    return flamingo()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs something with keys for all media."""

    def run(call: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(PassedMedia, "of", lambda *_: None)
            return call()

    return run


def media(number: int, seed: int = 0) -> Tensor:
    return torch.randn(1, number, L, D, generator=torch.Generator().manual_seed(seed))


def prompt(examples: int, *more: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[0, *EXAMPLE * examples, MEDIA, *more]])
    return ids, media_index(ids, MEDIA)


def say(
    model: Flamingo, latents: Tensor, ids: Tensor, index: Tensor, **config: Any
) -> list[Generated]:
    asked = GenerationConfig(**{"beams": 1, "max_tokens": 6, "min_tokens": 4, **config})
    return search(model, latents, ids, index, END, asked, media_id=MEDIA)[0]


def close(one: list[Generated], other: list[Generated]) -> bool:
    assert [made.ids for made in one] == [made.ids for made in other]
    return all(abs(a.logprob - b.logprob) < 1e-4 for a, b in zip(one, other, strict=True))


@pytest.fixture
def passes(model: Flamingo) -> Iterator[list[int]]:
    """How many media each prompt passed."""
    seen: list[int] = []
    layer = model.lm.inserted[0]
    made = layer._passed
    layer._passed = lambda media: (made(media), seen.append(media.count))[0]
    yield seen
    del layer._passed


@pytest.mark.parametrize(
    "how", [{}, {"beams": 3, "returns": 2}, {"temperature": 1.0, "returns": 3, "beams": 1}]
)
def test_the_text_is_the_same(
    model: Flamingo, passes: list[int], without: Any, how: dict[str, Any]
) -> None:
    for examples, more in ((4, (7, 8)), (1, ()), (2, (7, 8, 9) * 9)):
        asked = media(examples + 1, examples), *prompt(examples, *more)
        assert close(say(model, *asked, **how), without(lambda a=asked: say(model, *a, **how)))
        assert passes == [examples]
        passes.clear()


@torch.inference_mode()
def test_keys_are_those_of_the_last_media_alone(model: Flamingo) -> None:
    latents, (_, index) = media(5), prompt(4)
    passed, whole = model.read(latents, index).layers, model.read(latents, index[:, :1]).layers
    for some, every in zip(passed, whole, strict=True):
        assert (some.start, every.start) == (4, 0)
        torch.testing.assert_close(some.keys, every.keys[:, :, 4 * L :])
        torch.testing.assert_close(some.values, every.values[:, :, 4 * L :])
        assert some.beyond().passed is None
        assert some.first(2).keys.shape[2] == 0
        assert some.first(5).keys.shape[2] == L


@torch.inference_mode()
def test_hidden_states_are_the_same_wherever_a_token_looks(model: Flamingo, without: Any) -> None:
    ids, _ = prompt(4, 7, 8)
    dice = torch.Generator().manual_seed(3)
    for _ in range(8):  # in any order, too: what the last one sees has keys, and what is behind
        index = torch.randint(-1, 5, ids.shape, generator=dice).int()
        index[0, -1] = 3
        latents = media(5)

        def run(latents: Tensor = latents, index: Tensor = index) -> Tensor:
            return model.lm(ids, model.read(latents, index))

        assert model.read(latents, index).layers[0].start == 3
        torch.testing.assert_close(run(), without(run), atol=1e-4, rtol=1e-4)


def test_it_is_left_when_it_is_no_gain_or_cannot_be(model: Flamingo) -> None:
    latents, (_, index) = media(3), prompt(2)
    with torch.inference_mode():
        assert PassedMedia.of(latents, index) is not None
        many = torch.cat([index[:, :2]] * 25 + [index], dim=1)  # of 64 latents 26 would be few
        assert PassedMedia.of(latents, many) is None
        assert PassedMedia.of(latents.bfloat16(), index) is None
        assert PassedMedia.of(latents.expand(2, -1, -1, -1), index.expand(2, -1)) is None
        assert PassedMedia.of(latents[:, :, :24], index) is None  # no multiple of 16
        assert PassedMedia.of(latents, index[:, :5]) is None  # the first media is the last
        assert PassedMedia.of(latents, torch.full_like(index, -1)) is None
        assert PassedMedia.of(latents, index[:, :0]) is None
    assert PassedMedia.of(latents, index) is None  # gradients


def test_a_short_prompt_passes_media_too(model: Flamingo, passes: list[int], without: Any) -> None:
    ids = torch.tensor([[MEDIA, 7, MEDIA, MEDIA, 8, MEDIA]])  # as few as a decoding step takes
    asked = media(4), ids, media_index(ids, MEDIA)
    assert close(say(model, *asked), without(lambda: say(model, *asked)))
    assert passes == [3]


def test_what_is_passed_is_let_go_of_behind_the_prompt(model: Flamingo) -> None:
    kept: list[bool] = []
    listener = model.lm.register_forward_pre_hook(
        lambda _, args: kept.append(args[1].layers[0].passed is not None)
    )
    say(model, media(3), *prompt(2), lookup=False)
    listener.remove()
    assert kept == [True] + [False] * (len(kept) - 1)
    assert len(kept) == 6


@pytest.mark.parametrize("tokens", [1, 4, 12])
@torch.inference_mode()
def test_a_token_that_sees_what_was_passed_is_told(model: Flamingo, tokens: int) -> None:
    latents, (ids, index) = media(3), prompt(2)
    seen = model.read(latents, index)
    late = MediaContext(tuple(layer.beyond() for layer in seen.layers), index[:, 1 : 1 + tokens])
    with pytest.raises(InputError, match="first 2 media, which have no keys"):
        model.lm(ids[:, 1 : 1 + tokens], late)


def test_other_media_at_the_start_are_passed_with_a_memory_too() -> None:
    model, memory = MEMORY, PromptMemory()
    counts = []
    layer = model.flamingo.lm.inserted[0]
    made = layer._passed
    layer._passed = lambda given: (made(given), counts.append(given.count))[0]
    for first in (0, 1):  # the second prompt begins with another media, and goes on as the first
        latents = [*media(1, first)[0][:, None], *media(3, 9)[0][:, None]]
        ids = [0, *EXAMPLE * 3, MEDIA, 7]
        Prompt(model, latents, ids, memory).search(GREEDY)
    del layer._passed
    assert counts == [3, 3]


@torch.no_grad()
def test_a_trace_without_values_is_spared(model: Flamingo) -> None:
    _, index = prompt(2)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        found = model.read(fake.from_tensor(media(3)), fake.from_tensor(index))
    assert found.layers[0].start == 0


def test_gradients_of_words_go_through_what_was_passed(model: Flamingo, without: Any) -> None:
    latents, (ids, index) = media(3), prompt(2, 7)
    table = model.lm.lm.get_input_embeddings()
    words = table.weight.detach()[ids].requires_grad_()

    def slope() -> Tensor:
        with torch.no_grad():
            seen = model.read(latents, index)
        swap = table.register_forward_hook(lambda *_: words)
        try:
            hidden = model.lm(ids, seen)
        finally:
            swap.remove()
        return torch.autograd.grad(hidden.square().sum(), words)[0]

    torch.testing.assert_close(slope(), without(slope), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("part", ["to_kv", "norm_k", "norm_q"])
def test_a_layer_that_is_listened_to_is_called(part: str) -> None:
    model, heard = flamingo(), []
    for layer in model.lm.inserted:
        layer.get_submodule(part).register_forward_hook(lambda *_: heard.append(1))
    say(model, media(3), *prompt(2))
    assert len(heard) >= 3


def test_int8_weights_pass_too(model: Flamingo, without: Any) -> None:
    narrow = copy.deepcopy(model)
    quantise(narrow, own=True)
    asked = media(4), *prompt(3, 7)
    with torch.inference_mode():
        assert narrow.read(asked[0], asked[2]).layers[0].start == 3
    assert close(say(narrow, *asked), without(lambda: say(narrow, *asked)))


def test_options_are_as_likely(model: Flamingo, passes: list[int], without: Any) -> None:
    asked = media(4), *prompt(3, 7, 8)

    def run() -> list[list[float]]:
        return score_options(model, *asked, [[7, 8, 9], [10], [11, 12]])

    for one, other in zip(run(), without(run), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert passes == [3]


PIECES = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(7, 12), max_size=9)), min_size=1, max_size=5
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(PIECES, st.booleans()), min_size=2, max_size=4))
def test_a_memory_of_passed_media_says_the_same(turns: list[tuple[Any, bool]]) -> None:
    """Prompts whose media and words agree to some point, the first of them read by themselves."""
    model = MEMORY
    memory, pool = PromptMemory(), [media(1, seed)[0] for seed in range(4)]
    for pieces, again in turns:
        latents = [pool[at] for at, _ in pieces]
        ids = [0, *(token for _, words in pieces for token in (MEDIA, *words))]
        shots = len(ids) - len(pieces[-1][1]) - 1 if again and len(pieces) > 1 else 0
        found = Prompt(model, latents, ids, memory, shots).search(GREEDY)
        assert close(found, Prompt(model, latents, ids).search(GREEDY))
        assert (
            found == Prompt(model, latents, ids, PromptMemory(), shots).search(GREEDY) or not shots
        )


MEMORY: Any = SimpleNamespace(
    flamingo=flamingo(every=2),
    prompts=SimpleNamespace(end_id=END, media_id=MEDIA),
    device=torch.device("cpu"),
    dtype=torch.float32,
    draft=None,
)
MEMORY.head = MEMORY.flamingo.lm.head_of(torch.tensor([END, *range(7, VOCAB)]))
