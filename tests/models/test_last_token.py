"""The last token's hidden state alone is what it is among all of them, and so is what comes after.

The host without the short way, whose states are cut off at last, is what it must equal.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from flamvid.generate.engine import GenerationConfig, search
from flamvid.generate.score import score_options
from flamvid.models import linear as linear_layer
from flamvid.models.flamingo import Flamingo
from flamvid.models.gated_xattn import XattnConfig
from flamvid.models.int8 import make_int8
from flamvid.models.llama import Llama, LlamaConfig
from flamvid.models.lm import decoder_layers
from flamvid.models.mosaic import MosaicConfig, MosaicForCausalLM
from flamvid.models.resampler import PerceiverResampler, ResamplerConfig
from flamvid.ops import HalfLinear, media_index

MEDIA, END = 5, 2
SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 3, "vocab_size": 40}
WHERE = {
    "before each": {},
    "not before the last": {"every": 2, "first": 1},
    "behind each": {"after": True},
    "behind all but the last": {"after": True, "every": 2, "first": 1},
    "grafted": {"grafted": 2},
}


class Vision(nn.Module):
    width = 8


def llama_sizes() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "vocab_size": 40,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


HOSTS: dict[str, Any] = {
    "llama": lambda: Llama(LlamaConfig(**llama_sizes(), rope_theta=1e4)),
    "mosaic": lambda: MosaicForCausalLM(MosaicConfig(**SIZES)),
    "mosaic with biases": lambda: MosaicForCausalLM(
        MosaicConfig(**SIZES, no_bias=False, attn_clip_qkv=0.7, softmax_scale=0.3)
    ),
    "transformers": lambda: LlamaForCausalLM(TheirConfig(**llama_sizes())),
}
OURS = ("llama", "mosaic", "mosaic with biases")


def make(host: str, int8: bool = False, **xattn: Any) -> Flamingo:
    torch.manual_seed(0)
    lm = HOSTS[host]()
    for parameter in lm.parameters():
        nn.init.normal_(parameter, std=0.2)
    sizes = ResamplerConfig(features=8, width=8, heads=1, head_width=8, latents=2)
    config = XattnConfig(heads=2, head_width=8, **xattn)
    model = Flamingo(Vision(), PerceiverResampler(sizes), lm, config).eval()
    for name, parameter in model.lm.inserted.named_parameters():
        if name.endswith("gate"):
            nn.init.constant_(parameter, 0.7)
    if int8:
        make_int8(decoder_layers(lm))
    return model


def prompt(padded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Latents, ids, what each token sees, and which are no padding."""
    torch.manual_seed(1)
    ids = torch.randint(6, 40, (2, 31))
    ids[:, 1] = ids[:, 12] = MEDIA
    real = torch.ones_like(ids)
    if padded:
        ids[1, :9], real[1, :9] = 0, 0
    return torch.randn(2, 2, 2, 8), ids, media_index(ids, MEDIA), real if padded else None


def read(model: Flamingo, padded: bool, last: bool, begin: int = 0) -> tuple[Tensor, Tensor]:
    """The last state of a prompt, and those of tokens that come after it by the same cache.

    begin: so many tokens are read first.
    """
    latents, ids, index, real = prompt(padded)
    cache, media = model.lm.new_cache(), model.read(latents, index)
    for a, b, short in ((0, begin, False), (begin, 25, last), (25, 31, False)):
        if a == b:
            continue
        seen = type(media)(media.layers, index[:, a:b])
        mask = None if real is None else real[:, :b]
        out = model.lm(ids[:, a:b], seen, mask, cache, last=short)
        if b == 25:
            state = out if short else out[:, -1:]
    return state, out


@pytest.mark.parametrize("begin", [0, 4, 24])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_it_is_the_same(host: str, where: str, padded: bool, begin: int) -> None:
    model = make(host, **WHERE[where])
    for ours, wanted in zip(
        read(model, padded, True, begin), read(model, padded, False, begin), strict=True
    ):
        assert ours.shape == wanted.shape
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("host", ["llama", "mosaic"])
@torch.no_grad()
def test_in_eight_bits_and_in_half_precision(host: str, padded: bool) -> None:
    model = make(host, int8=True)
    pairs = [*zip(read(model, padded, True), read(model, padded, False), strict=True)]
    model = make(host)
    with HalfLinear() as mode:
        wanted = read(model, padded, False)
        kept = len(mode._frozen)
        pairs += zip(read(model, padded, True), wanted, strict=True)
        assert len(mode._frozen) == kept
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)


def widths(model: Flamingo) -> list[int]:
    """How many tokens each layer's feed-forward sees."""
    seen: list[int] = []
    for layer in decoder_layers(model.lm.lm):
        ffw = layer.down if isinstance(model.lm.lm, Llama) else layer.mlp
        ffw.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


@pytest.mark.parametrize("host", OURS)
@pytest.mark.parametrize(
    ("where", "short"),
    [("before each", True), ("behind all but the last", True), ("behind each", False)],
)
@torch.no_grad()
def test_the_last_layer_goes_on_with_it_alone(host: str, where: str, short: bool) -> None:
    model = make(host, **WHERE[where])
    latents, ids, index, _ = prompt(False)
    media, seen = model.read(latents, index), widths(model)
    whole = model.lm(ids, media)
    heard: list[tuple[int, ...]] = []
    decoder_layers(model.lm.lm)[-1].register_forward_hook(lambda *a: heard.append(a[2].shape))
    seen.clear()
    assert model.lm(ids, media, last=True).shape == (2, 1, 32)
    assert seen == [31, 31, 1 if short else 31]
    assert heard == [(2, 1, 32) if short else tuple(whole.shape)]


@pytest.mark.parametrize("host", OURS)
@torch.no_grad()
def test_no_other_token_asks_anything_in_the_last_layer(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(host)
    layer = decoder_layers(model.lm.lm)[-1]
    qkv = layer.qkv if host == "llama" else layer.attn.Wqkv
    products: list[tuple[int, int]] = []

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.untyped_storage().data_ptr() == qkv.weight.untyped_storage().data_ptr():
            products.append((x.shape[1], weight.shape[0]))
        return nn.functional.linear(x, weight, bias)

    latents, ids, index, _ = prompt(False)
    media = model.read(latents, index)
    monkeypatch.setattr(linear_layer, "linear", product)
    model.lm(ids, media, last=True)
    queries = 48 if host == "llama" else 32
    assert sorted(products) == [(1, queries), (31, len(qkv.weight) - queries)]


@pytest.mark.parametrize("host", OURS)
@pytest.mark.parametrize("change", ["hook", "parametrized", "gradients"])
def test_a_projection_that_is_no_plain_one(host: str, change: str) -> None:
    model = make(host)
    layer = decoder_layers(model.lm.lm)[-1]
    qkv = layer.qkv if host == "llama" else layer.attn.Wqkv
    heard: list[tuple[int, ...]] = []
    if change == "hook":
        qkv.register_forward_hook(lambda *a: heard.append(a[2].shape[:2]) or a[2] * 1.5)
    elif change == "parametrized":
        parametrizations.weight_norm(qkv).requires_grad_(False)
        qkv.parametrizations.weight.original0.data *= 2
    with torch.set_grad_enabled(change == "gradients"):
        pairs = [*zip(read(model, True, True), read(model, True, False), strict=True)]
    for ours, wanted in pairs:
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
    assert not heard or heard[0] == (2, 25)
    assert (len(heard) == 4) == (change == "hook")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("beams", [1, 3])
def test_the_same_texts_and_scores(host: str, beams: int) -> None:
    model = make(host)
    latents, ids, index, real = prompt(True)
    config = GenerationConfig(beams=beams, max_tokens=12)

    def made() -> tuple[Any, list[list[float]]]:
        texts = search(model, latents, ids, index, END, config, real)
        options = [[7, 8, 9], [11]]
        scores = score_options(model, latents[:1], ids[:1], index[:1], options)
        return [[text.ids for text in row] for row in texts], scores

    texts, scores = made()
    model.lm._ends_with_last = False
    wanted, wanted_scores = made()
    assert texts == wanted
    for ours, theirs in zip(scores, wanted_scores, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
